"""What a transfer was worth."""

from collections.abc import Sequence

from fl_app.prompts.errors import PromptError


def steps_to_reach(losses: Sequence[float], target: float) -> int | None:
    """Returns after how many local steps a loss is first at or below ``target``.

    Args:
        losses: entry t is the loss after t steps; entry 0 that of the starting values.
        target: in the same unit.

    Returns:
        The number of steps, None if it is never reached.
    """
    return next((step for step, loss in enumerate(losses) if loss <= target), None)


def retention(transferred: float, own: float) -> float:
    """Returns what a transferred prompt keeps of the quality of one tuned on the target itself.

    Raises:
        PromptError: ``bad-measure``, ``own`` is not > 0.
    """
    if not own > 0:
        raise PromptError("bad-measure", f"own={own} must be > 0")
    return transferred / own


def negative_rate(before: Sequence[float], after: Sequence[float]) -> float:
    """Returns the share of transfers, in [0, 1], after which a loss was higher than before.

    Raises:
        PromptError: ``bad-measure``, there is none, or the numbers differ.
    """
    if not 1 <= len(before) == len(after):
        raise PromptError("bad-measure", f"{len(before)} losses before, {len(after)} after")
    return sum(b < a for b, a in zip(before, after, strict=True)) / len(before)
