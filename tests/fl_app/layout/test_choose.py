"""Rules by name."""

import itertools
from typing import Any

import numpy as np
import pytest

from fl_app.layout.budgets import Budgets
from fl_app.layout.choose import RULES, choose
from fl_app.layout.errors import LayoutError
from tests.fl_app.layout.toys import toy_price

_SCORES = [np.arange(4.0, 0.0, -1.0) * weight for weight in (1.0, 5.0, 2.0)]


def chosen(rule: str, budgets: Budgets, **changes: Any) -> list[int]:
    settings: dict[str, Any] = {"num_tuned": 2, "scores": _SCORES, "largest": 4} | changes
    price_of = toy_price([1] * 3, span_s=1.0)
    sizes = choose(rule, price_of=price_of, budgets=budgets, num_blocks=3, **settings)
    return [int(size) for size in sizes]


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        ("uniform", [2, 2, 2]),
        ("top_n", [0, 3, 3]),
        ("linear_up", [1, 2, 3]),
        ("linear_down", [3, 2, 1]),
        ("u_shape", [2, 1, 3]),  # 2.4, 1.2, 2.4: the one left over goes nearest to the loss
        ("sensitivity", [0, 4, 2]),  # scores 20, 15, 10, 8, 6, 5
        ("cost_aware", [0, 4, 2]),
        ("channel_aware", [0, 4, 2]),
    ],
)
def test_every_rule_spends_six_units(rule: str, sizes: list[int]) -> None:
    assert chosen(rule, Budgets(params=6, round_s=100.0)) == sizes
    assert rule in RULES


def test_channel_aware_layouts_of_all_rates_are_nested() -> None:
    layouts = [chosen("channel_aware", Budgets(params=n, round_s=9.0)) for n in range(1, 13)]
    for small, large in itertools.pairwise(layouts):
        assert all(a <= b for a, b in zip(small, large, strict=True))


@pytest.mark.parametrize(
    ("rule", "changes", "words"),
    [
        ("widest", {}, "rule 'widest' is unknown; choose one of uniform"),
        ("channel_aware", {}, "needs a deadline; set the budget round_s"),
        ("top_n", {"num_tuned": None}, "needs the number of blocks to tune"),
        ("sensitivity", {"scores": None}, "needs scores of 3 blocks, none given"),
        ("cost_aware", {"scores": _SCORES[:2]}, "needs scores of 3 blocks, 2 given"),
    ],
)
def test_what_a_rule_lacks_is_named(rule: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        chosen(rule, Budgets(params=6), **changes)
