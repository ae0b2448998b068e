"""Errors of tasks that a user can mend."""

from ziphius.core.errors import ZiphiusError


class TaskError(ZiphiusError):
    """A task, level or split that does not exist or is exhausted, or a damaged file of problems."""
