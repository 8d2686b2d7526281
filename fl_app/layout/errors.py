"""The error of allocation."""

from fl_app.errors import DeftError


class LayoutError(DeftError, ValueError):
    """A layout cannot be made as asked; the text names the budget or setting and the remedy."""
