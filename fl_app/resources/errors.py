"""The error of the resource model."""

from fl_app.errors import DeftError


class ResourceError(DeftError, ValueError):
    """A configuration, device or link that cannot be priced; the text names field and remedy."""
