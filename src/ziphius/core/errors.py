"""Errors that a user can cause. Each message says what is wrong, where, and what to do about it.

All of them are `ValueError`s, so a caller that knows nothing of this package can still catch them;
the command line prints their message alone, without a traceback. Broken invariants are `assert`s
instead.
"""


class ZiphiusError(ValueError):
    """Base of the errors that the user, not the program, has to mend."""


class ConfigError(ZiphiusError):
    """A setting has a value that cannot work, or that would have no effect."""


class CheckpointError(ZiphiusError):
    """A model folder or file is missing, truncated, of the wrong shape, or not what it says."""


class TokenizerError(ZiphiusError):
    """A vocabulary cannot be read, or does not fit the model."""


class ChatError(ZiphiusError):
    """A conversation cannot be rendered in the chosen chat format."""


class AssetError(ZiphiusError):
    """A data file that a package carries cannot be fetched, or its hash is not the recorded one."""


class MissingExtraError(ZiphiusError):
    """An optional dependency is needed: the message names the extra that installs it."""


class DeviceError(ZiphiusError):
    """A device or number type was asked for that this machine does not have."""


class OutputError(ZiphiusError):
    """A file or folder cannot be written: something is in the way, or no room, or no right."""


class QueueFullError(ZiphiusError):
    """An engine has as many requests waiting as it may: the same one may be sent again later."""
