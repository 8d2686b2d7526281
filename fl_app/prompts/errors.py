"""The error of everything that is done with prompts."""

from fl_app.errors import WireError


class PromptError(WireError):
    """A prompt, or what was asked of prompts, is refused; ``reason`` is the short name booked."""
