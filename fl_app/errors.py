"""Typed errors; each message names the field, the value and the remedy."""


class DeftError(Exception):
    """Base of all errors this project raises on purpose."""


class ConfigError(DeftError):
    """A configuration key, type, value or combination is not allowed."""


class DataError(DeftError):
    """A data set is missing, unreadable or does not fit the task."""


class ModelError(DeftError):
    """A foundation model, adapter or emulator cannot be loaded or does not fit."""


class WireError(DeftError):
    """A message does not carry what it must; ``reason`` is the short name the report books."""

    def __init__(self, reason: str, detail: str) -> None:
        """Stores the short ``reason`` beside the full text."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class DeviceError(DeftError):
    """A device failed; says the kind of the error only, for its text may quote the device's data.

    The device's own log has the text.
    """


class RunError(DeftError):
    """A run cannot go on or ended without a single aggregated round."""
