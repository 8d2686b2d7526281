"""The error of the air interface."""

from fl_app.errors import DeftError


class ChannelError(DeftError, ValueError):
    """An array or a setting that cannot be sent; the text names the field or the device."""
