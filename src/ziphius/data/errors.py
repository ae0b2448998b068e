"""The error of this room: text that cannot be had, read or used as asked."""

from ziphius.core.errors import ZiphiusError


class DataError(ZiphiusError):
    """Text is missing, unreadable, too little, or lacks the column or domain that was named."""
