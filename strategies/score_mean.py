"""The mean of what devices say units are worth, in which nobody's say is larger than others'.

Scores and gains have the scale of a device's loss, of its gradient and of its number of steps, and
a device may send any finite numbers. So every device's are brought to one sum before the mean, and
its weight is bounded by the middle one: neither huge scores nor a huge number of examples let one
device decide. Of K devices that score the same units, one moves no mean by more than the share
1 / (floor(K / 2) + 1) of that sum.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def bounded_weights(num_examples: ArrayLike) -> Floats:
    """Returns [K] numbers of examples, each at most the lower median of all.

    Args:
        num_examples: [K] examples of every device, > 0; K may be 0.
    """
    given = np.asarray(num_examples, dtype=np.float64)
    if not given.size:
        return given
    return np.asarray(np.minimum(given, np.sort(given)[(given.size - 1) // 2]))


def mean_scores(
    scores: Sequence[Mapping[int, Floats]],
    num_examples: Sequence[int],
    known: Mapping[int, Floats],
) -> dict[int, Floats]:
    """Returns block to the mean scores of its units; units that nobody scores keep what is known.

    A device's scores are brought to the sum that its units have among the known ones, or, while
    none is known, to its share of all units: sums to 1 where it holds all of them, and who holds
    the best units alone neither raises nor lowers them for that. Who scores all its units 0 says
    nothing and is left out.

    Args:
        scores: of every device, block to the scores >= 0 of its first units; blocks may be missing.
        num_examples: of every device, > 0; see ``bounded_weights``.
        known: block to the scores of all its units from before, 0 for none.
    """
    speaking = [
        (own, count)
        for own, count in zip(scores, num_examples, strict=True)
        if any(row.any() for row in own.values())
    ]
    sums = {block: np.zeros(len(row)) for block, row in known.items()}
    weights = {block: np.zeros(len(row)) for block, row in known.items()}
    for (own, _), weight in zip(speaking, bounded_weights([n for _, n in speaking]), strict=True):
        scale = _target(own, known) / sum(float(row.sum()) for row in own.values())
        for block, row in own.items():
            sums[block][: len(row)] += weight * scale * row
            weights[block][: len(row)] += weight
    return {
        block: np.divide(sums[block], weights[block], out=row.copy(), where=weights[block] > 0.0)
        for block, row in known.items()
    }


def _target(own: Mapping[int, Floats], known: Mapping[int, Floats]) -> float:
    held = sum(float(known[block][: len(row)].sum()) for block, row in own.items())
    num_held = sum(len(row) for row in own.values())
    return held or num_held / sum(len(row) for row in known.values())
