"""Which devices' rows are stacked in one pass of the trunk: those of like length.

Stacked rows are padded to the longest. Where a matrix product is paid by the token (any CPU) the
padding of a short device beside a long one costs more than a pass of its own, so a step is cut into
the groups that cost least.
"""

from collections.abc import Sequence

PASS_TOKENS = 64
"""What a pass costs beside its tokens, in tokens: measured with MiniLM-L6 on one CPU core, where it
is 40 to 70 (``scripts/bench_gradient.py``)."""


def grouped(
    num_rows: Sequence[int], lengths: Sequence[int], *, pass_tokens: int = PASS_TOKENS
) -> list[list[int]]:
    """Returns the grouping of least cost.

    A group costs ``pass_tokens`` plus its rows times its longest length. Groups are runs of the
    order by length, which is no restriction where devices have equally many rows; over runs the
    search is exact.

    Args:
        num_rows: rows of each device, >= 1.
        lengths: tokens of each device's rows, padding within the device and prompt included.
        pass_tokens: price of a pass, >= 0.

    Returns:
        Groups of indices, each in the order given, from short to long; every index is in one.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    least, cut = [0], [0]
    for end in range(1, len(order) + 1):
        rows, best, place = 0, -1, 0
        for start in range(end - 1, -1, -1):
            rows += num_rows[order[start]]
            cost = least[start] + pass_tokens + rows * lengths[order[end - 1]]
            if best < 0 or cost <= best:  # of equal costs the fewest passes
                best, place = cost, start
        least.append(best)
        cut.append(place)
    groups: list[list[int]] = []
    end = len(order)
    while end > 0:
        groups.append(sorted(order[cut[end] : end]))
        end = cut[end]
    return groups[::-1]
