"""The error of scheduling."""

from fl_app.errors import DeftError


class ScheduleError(DeftError, ValueError):
    """No schedule as asked exists; the text names the device, block or value and the remedy."""
