"""The errors of this room: a run that cannot go on."""

from ziphius.core.errors import ZiphiusError


class TrainingError(ZiphiusError):
    """A run cannot start, go on or be trusted: its folder, its settings or its numbers."""


class DivergenceError(TrainingError):
    """Loss or gradients are not finite, or jumped; what led to it is saved."""
