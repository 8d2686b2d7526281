"""Rounding, profiles and budgets: what must hold for every input."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fl_app.layout.budgets import Budgets, fit
from fl_app.layout.errors import LayoutError
from fl_app.layout.nested import order_units
from fl_app.layout.rounding import apportion
from fl_app.layout.rules import (
    PROFILES,
    linear_down,
    linear_up,
    nested,
    profile,
    top_n,
    u_shape,
    uniform,
)
from tests.fl_app.layout.toys import toy_price

_WEIGHTS = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=12)
_RULES = st.sampled_from([*PROFILES, "top_n", "sensitivity"])


def some_rule(name: str, num_blocks: int, largest: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    if name == "sensitivity":
        return nested(order_units(rng.random((num_blocks, largest))), num_blocks)
    chosen = top_n(num_blocks, 1 + seed % num_blocks) if name == "top_n" else None
    weights = PROFILES[name](num_blocks) if chosen is None else chosen
    return profile(weights, largest=largest)


@settings(deadline=None)
@given(_WEIGHTS, st.integers(0, 3), st.integers(1, 9), st.data())
def test_the_sum_is_exact_and_bounds_are_kept(
    weights: list[float], smallest: int, extra: int, data: st.DataObject
) -> None:
    active = sum(weight > 0.0 for weight in weights)
    assume(active)
    largest = smallest + extra
    total = data.draw(st.integers(smallest * active, largest * active))
    sizes = apportion(weights, total, smallest=smallest, largest=largest)
    assert sizes.sum() == total
    for weight, size in zip(weights, sizes, strict=True):
        assert size == 0 if weight == 0.0 else smallest <= size <= largest


@settings(deadline=None)
@given(_WEIGHTS, st.integers(0, 60))
def test_unbounded_sizes_are_within_one_of_their_quota(weights: list[float], total: int) -> None:
    assume(sum(weights) > 1e-6)
    sizes = apportion(weights, total, largest=total + 1)
    quotas = np.array(weights) / sum(weights) * total
    assert np.abs(sizes - quotas).max() < 1.0 + 1e-6


@settings(deadline=None)
@given(_WEIGHTS, st.integers(0, 60), st.integers(1, 9))
def test_a_greater_weight_never_gets_less(weights: list[float], total: int, largest: int) -> None:
    active = sum(weight > 0.0 for weight in weights)
    assume(active)
    sizes = apportion(weights, min(total, largest * active), largest=largest)
    for (a, size_a), (b, size_b) in itertools.permutations(zip(weights, sizes, strict=True), 2):
        if a > b * (1.0 + 1e-6) + 1e-6:
            assert size_a >= size_b


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 60), st.floats(1e-3, 1e3))
def test_equal_weights_and_equal_scores_are_uniform(
    num_blocks: int, total: int, weight: float
) -> None:
    total = min(total, 6 * num_blocks)
    by_weight = apportion([weight] * num_blocks, total, largest=6)
    assert by_weight.max() - by_weight.min() <= 1
    by_score = nested(order_units(np.full((num_blocks, 6), weight)), num_blocks).sizes(total)
    np.testing.assert_array_equal(by_score, by_weight)  # both put the rest nearest to the loss


def test_quotas_by_hand() -> None:
    # 10 units at 1:2:4 are 1.43, 2.86, 5.71: floors 1, 2, 5, the two largest remainders win
    assert apportion([1.0, 2.0, 4.0], 10, largest=10).tolist() == [1, 3, 6]
    # the cap of 4 binds the third; the other two share 6 at 1:2
    assert apportion([1.0, 2.0, 4.0], 10, largest=4).tolist() == [2, 4, 4]


def test_shapes_of_profiles() -> None:
    assert uniform(3).tolist() == [1.0, 1.0, 1.0]
    assert top_n(4, 2).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert linear_up(4).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert linear_down(4).tolist() == [4.0, 3.0, 2.0, 1.0]
    assert u_shape(4).tolist() == [2.0, 1.0, 1.0, 2.0]
    assert u_shape(5).tolist() == [3.0, 2.0, 1.0, 2.0, 3.0]
    assert apportion(linear_up(4), 20, largest=8).tolist() == [2, 4, 6, 8]


@settings(deadline=None)
@given(_RULES, st.integers(1, 8), st.integers(1, 6), st.integers(0, 99), st.data())
def test_budgets_are_never_exceeded_and_one_more_unit_would(
    name: str, num_blocks: int, largest: int, seed: int, data: st.DataObject
) -> None:
    rule = some_rule(name, num_blocks, largest, seed)
    price_of = toy_price(
        data.draw(st.lists(st.integers(1, 9), min_size=num_blocks, max_size=num_blocks)), span_s=1.0
    )
    limit = data.draw(st.integers(1, 300))
    seconds = data.draw(st.sampled_from([None, 2.5, 4.0]))
    budgets = Budgets(params=limit, step_s=seconds)
    first = price_of(rule.sizes(rule.fewest).tolist())
    if budgets.exceeded(first):
        with pytest.raises(LayoutError, match=rf"budget {budgets.exceeded(first)[0]}="):
            fit(rule, price_of, budgets)
        return
    sizes = fit(rule, price_of, budgets)
    assert not budgets.exceeded(price_of(sizes.tolist()))
    if sizes.sum() < rule.most:
        assert budgets.exceeded(price_of(rule.sizes(int(sizes.sum()) + 1).tolist()))


@settings(deadline=None)
@given(_RULES, st.integers(1, 8), st.integers(1, 6), st.integers(0, 99), st.integers(1, 60))
def test_more_budget_never_makes_a_smaller_layout_and_an_attainable_one_is_met(
    name: str, num_blocks: int, largest: int, seed: int, units: int
) -> None:
    rule, price_of = some_rule(name, num_blocks, largest, seed), toy_price([7] * num_blocks)
    units = min(units, rule.most)
    assert fit(rule, price_of, Budgets(params=7 * units)).sum() == units
    assert fit(rule, price_of, Budgets(params=7 * units + 6)).sum() == units
    assert fit(rule, price_of, Budgets(uplink_bytes=28 * units)).sum() == units


def test_minimum_sizes_make_small_budgets_impossible_by_name() -> None:
    rule = profile(uniform(4), smallest=2, largest=8)
    assert rule.fewest == 8
    with pytest.raises(
        LayoutError, match=r"budget params=70: the smallest layout takes 80; allow more parameters"
    ):
        fit(rule, toy_price([10] * 4), Budgets(params=70))
    with pytest.raises(LayoutError, match=r"budget step_s=3\.5.*takes 4; use a smaller batch"):
        fit(rule, toy_price([10] * 4, span_s=1.0), Budgets(params=80, step_s=3.5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: apportion([], 1, largest=1), "weights are all 0"),
        (lambda: apportion([0.0, 0.0], 1, largest=1), "weights are all 0"),
        (lambda: apportion([1.0, -1.0], 1, largest=1), "finite numbers >= 0"),
        (lambda: apportion([1.0, np.nan], 1, largest=1), "finite numbers >= 0"),
        (lambda: apportion([1.0], 5, largest=4), "5 units do not fit 1 blocks of 0 to 4"),
        (lambda: apportion([1.0], 1, smallest=2, largest=4), "give 2 to 4"),
        (lambda: apportion([1.0], 0, largest=0), "sizes from 0 to 0"),
        (lambda: top_n(4, 5), "top 5 of 4 blocks: give 1 to 4"),
        (lambda: nested([], 3), "the order holds no unit"),
        (lambda: Budgets(params=0), "budget params=0 must be > 0"),
        (lambda: Budgets(step_s=float("nan")), "budget step_s=nan must be > 0"),
    ],
)
def test_impossible_requests_are_named(call: Any, words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        call()
