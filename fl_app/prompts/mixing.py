"""One prompt made of several sources, as a place to start tuning from."""

from collections.abc import Sequence

import numpy as np

from fl_app.prompts.errors import PromptError
from fl_app.prompts.lengths import fit_length
from fl_app.prompts.member import Card, Member


def mix(
    members: Sequence[Member],
    scores: Sequence[float],
    card: Card,
    *,
    temperature: float = 1.0,
    num_tokens: int | None = None,
    how: str = "repeat",
) -> Member:
    """Returns sum_j a_j P_j with a = softmax(score / temperature), heads alike.

    Args:
        members: sources, at least one; all with a head or none.
        scores: one per source, higher is better.
        card: of the mixture.
        temperature: > 0; towards 0 the best source alone, towards infinity their mean.
        num_tokens: length of the mixture; that of the first source if None.
        how: see ``fit_length``.

    Raises:
        PromptError: ``no-member``, ``bad-temperature``, or ``wrong-shape``.
    """
    if not members or len(members) != len(scores):
        raise PromptError("no-member", f"{len(members)} sources with {len(scores)} scores")
    if not temperature > 0:
        raise PromptError("bad-temperature", f"temperature={temperature} must be > 0")
    shapes = [{name: a.shape for name, a in member.head.items()} for member in members]
    if any(shape != shapes[0] for shape in shapes) or len({m.width for m in members}) != 1:
        raise PromptError("wrong-shape", "sources differ in width or head; project them first")
    raw = np.asarray(scores, np.float64)
    with np.errstate(over="ignore"):  # -inf is right where the temperature is next to nothing
        weights = np.exp((raw - raw.max()) / temperature)
    weights /= weights.sum()
    length = members[0].num_tokens if num_tokens is None else num_tokens
    prompts = [fit_length(member.prompt, length, how) for member in members]
    head = {name: _mean(weights, [member.head[name] for member in members]) for name in shapes[0]}
    return Member(_mean(weights, prompts), card, head)


def _mean(
    weights: np.ndarray[tuple[int], np.dtype[np.float64]],
    arrays: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.float32]]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    stacked = np.stack(arrays).astype(np.float64)
    return np.asarray(np.tensordot(weights, stacked, axes=1), dtype=np.float32)
