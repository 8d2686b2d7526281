"""Grouping devices into passes, against the best of all partitions."""

from collections.abc import Iterator

import numpy as np
import pytest

from fl_app.fomo.passes import grouped


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Yields every way to cut a set into groups."""
    if not items:
        yield []
        return
    first, *others = items
    for smaller in partitions(others):
        yield [[first], *smaller]
        for i, group in enumerate(smaller):
            yield [*smaller[:i], [first, *group], *smaller[i + 1 :]]


def cost(groups: list[list[int]], rows: list[int], lengths: list[int], price: int) -> int:
    """Adds up what padded passes cost."""
    return sum(price + sum(rows[i] for i in g) * max(lengths[i] for i in g) for g in groups)


@pytest.mark.parametrize("price", [0, 7, 64, 1000])
def test_no_partition_is_cheaper(price: int) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        lengths = rng.integers(1, 40, size=6).tolist()
        rows = [4] * len(lengths)
        groups = grouped(rows, lengths, pass_tokens=price)
        assert sorted(i for group in groups for i in group) == list(range(6))
        least = min(cost(other, rows, lengths, price) for other in partitions(list(range(6))))
        assert cost(groups, rows, lengths, price) == least


def test_with_unequal_rows_it_beats_one_pass_and_one_each() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        lengths, rows = rng.integers(1, 80, size=(2, 9)).tolist()
        found = cost(grouped(rows, lengths), rows, lengths, 64)
        assert found <= cost([list(range(9))], rows, lengths, 64)
        assert found <= cost([[i] for i in range(9)], rows, lengths, 64)


def test_equal_lengths_share_one_pass_and_very_unequal_ones_do_not() -> None:
    assert grouped([8] * 5, [40] * 5) == [[0, 1, 2, 3, 4]]
    assert grouped([8] * 4, [90, 10, 90, 10]) == [[1, 3], [0, 2]]
    assert grouped([], []) == []
