"""What an activation function keeps for its gradient."""

from collections.abc import Mapping

from fl_app.resources.errors import ResourceError

KEPT: Mapping[str, tuple[int, bool]] = {
    "relu": (1, True),
    "gelu": (1, False),
    "silu": (1, False),
    "gelu_new": (4, False),
}
"""Per activation: tensors it keeps for its gradient, and whether its output is one of them."""


def kept(activation: str) -> tuple[int, bool]:
    """Returns the activation's entry.

    Raises:
        ResourceError: it has none.
    """
    if activation not in KEPT:
        raise ResourceError(
            f"activation {activation!r} is not priced; choose a model with one of "
            f"{', '.join(KEPT)} or add it to fl_app/resources/activations.py"
        )
    return KEPT[activation]
