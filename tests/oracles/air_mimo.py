"""Neural connections by brute force: every pairing and grouping; Hadamard matrices by parity."""

import itertools
import math
from collections.abc import Sequence


def least_pairing(strengths: Sequence[float], sigmas: Sequence[float]) -> float:
    """Returns the least (sum w_i / sigma_j)^2 over all ways to put components on eigenchannels."""
    return min(
        math.fsum(w / s for w, s in zip(strengths, chosen, strict=True)) ** 2
        for chosen in itertools.permutations(sigmas, len(strengths))
    )


def least_grouping(strengths: Sequence[float], sigmas: Sequence[float]) -> float:
    """Returns the least sum over uses, all partitions into ceil(rank / n) groups of at most n."""
    num_uses = math.ceil(len(strengths) / len(sigmas))
    best = math.inf
    for labels in itertools.product(range(num_uses), repeat=len(strengths)):
        groups = [
            [w for w, g in zip(strengths, labels, strict=True) if g == u] for u in range(num_uses)
        ]
        if max(map(len, groups)) <= len(sigmas):
            best = min(best, math.fsum(least_pairing(g, sigmas) for g in groups))
    return best


def consecutive_grouping(strengths: Sequence[float], sigmas: Sequence[float]) -> float:
    """Returns the same sum for components in order, n to a use."""
    n = len(sigmas)
    groups = [strengths[i : i + n] for i in range(0, len(strengths), n)]
    return math.fsum(
        math.fsum(w / s for w, s in zip(group, sigmas, strict=False)) ** 2 for group in groups
    )


def hadamard_entry(row: int, column: int) -> int:
    """Returns +1 or -1: the parity of common bits, Sylvester's order."""
    return -1 if bin(row & column).count("1") % 2 else 1
