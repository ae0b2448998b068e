"""What can go wrong when models are measured."""

from ziphius.core.errors import ZiphiusError


class EvalError(ZiphiusError):
    """Figures were asked for that the samples cannot give, or of measurements that do not fit."""
