"""Cost-aware allocation against exhaustive search and closed forms."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.layout.budgets import Budgets
from fl_app.layout.errors import LayoutError
from fl_app.layout.greedy import cost_aware, exact_gains, first_order_gains
from fl_app.resources.devices import device_class
from fl_app.resources.families import architecture_of
from fl_app.resources.links import Link
from fl_app.resources.price import Pricer
from fl_app.resources.step import StepModel
from fl_app.resources.tuning import lora
from tests.fl_app.layout.toys import toy_price
from tests.fl_app.resources.tuned_models import config_of

_GAINS = st.lists(
    st.lists(st.integers(1, 50), min_size=3, max_size=3).map(lambda row: sorted(row)[::-1]),
    min_size=1,
    max_size=4,
)


def total(gains: Sequence[Any], sizes: Sequence[int]) -> float:
    return float(sum(sum(row[:size]) for row, size in zip(gains, sizes, strict=True)))


@settings(deadline=None)
@given(_GAINS, st.integers(1, 12))
def test_equals_exhaustive_search_where_units_cost_the_same(
    gains: list[list[int]], num_units: int
) -> None:
    rows = [np.array(row, dtype=np.float64) for row in gains]
    sizes = cost_aware(rows, toy_price([5] * len(rows)), Budgets(params=5 * num_units))
    best = max(
        total(gains, choice)
        for choice in itertools.product(range(4), repeat=len(gains))
        if sum(choice) <= num_units
    )
    assert total(gains, sizes.tolist()) == best


@settings(deadline=None)
@given(_GAINS, st.integers(8, 60), st.data())
def test_unequal_costs_keep_the_budget_and_leave_no_unit_that_fits(
    gains: list[list[int]], limit: int, data: st.DataObject
) -> None:
    rows = [np.array(row, dtype=np.float64) for row in gains]
    costs = data.draw(st.lists(st.integers(1, 8), min_size=len(rows), max_size=len(rows)))
    sizes = cost_aware(rows, toy_price(costs), Budgets(params=limit))
    spent = int(np.dot(costs, sizes))
    assert spent <= limit
    for cost, size in zip(costs, sizes, strict=True):
        assert size == 3 or spent + cost > limit


def test_a_deep_block_must_be_worth_the_blocks_between() -> None:
    """Equal gains: with a price on the span the blocks near the loss fill first."""
    rows = [np.array([4.0, 3.0, 2.0])] * 4
    budgets = Budgets(params=6, step_s=10.0)
    free = cost_aware(rows, toy_price([1] * 4), budgets)
    assert free.tolist() == [1, 1, 2, 2]
    priced = cost_aware(rows, toy_price([1] * 4, span_s=5.0), budgets)
    assert priced.tolist() == [0, 0, 3, 3]
    rich = [np.array([400.0, 300.0, 200.0]), *rows[1:]]
    opened = cost_aware(rich, toy_price([1] * 4, span_s=2.0), budgets)
    assert opened[0] == 3


def test_a_real_model_under_all_budgets_at_once() -> None:
    shapes = architecture_of(config_of("llama"))
    step = StepModel(shapes, lora("q_proj", "v_proj"), batch=2, sequence=8)
    link = Link(bandwidth_hz=1e6, tx_power_w=0.2, loss_db=110.0)
    pricer = Pricer(step, device_class("phone"), uplink=link, downlink=link)
    rows = [np.arange(4.0, 0.0, -1.0)] * 5
    everything = pricer([4] * 5)
    for name in ("params", "uplink_bytes", "step_s", "memory_bytes", "round_s"):
        middle = (getattr(everything, name) + getattr(pricer([0, 0, 0, 0, 1]), name)) / 2
        budgets = Budgets(**{name: middle})
        sizes = cost_aware(rows, pricer, budgets)
        assert 0 < sizes.sum() < 20
        assert not budgets.exceeded(pricer(sizes.tolist())), name


def test_gain_curve_is_what_the_best_low_rank_change_gains() -> None:
    """Alternating least squares from a random start reaches half the sum of the gains."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6))
    y = x @ rng.standard_normal((6, 4)) + rng.standard_normal((400, 4))
    moment, cross = x.T @ x / 400, y.T @ x / 400
    for rank in (1, 2, 3):
        b = rng.standard_normal((4, rank))
        for _ in range(4000):
            a = np.linalg.solve(b.T @ b, b.T @ cross) @ np.linalg.inv(moment)
            b = cross @ a.T @ np.linalg.inv(a @ moment @ a.T)
        change = b @ a
        lowered = 0.5 * (y**2).sum(1).mean() - 0.5 * ((y - x @ change.T) ** 2).sum(1).mean()
        assert exact_gains(cross, moment, rank).sum() == pytest.approx(lowered, rel=1e-9)


def test_first_order_gain_of_the_first_rank_is_the_steepest_descent() -> None:
    gradient = np.random.default_rng(1).standard_normal((5, 7))
    gains = first_order_gains(gradient, 5)
    assert gains.sum() == pytest.approx((gradient**2).sum())
    assert np.all(np.diff(gains) <= 0.0)


@pytest.mark.parametrize(
    ("gains", "budgets", "words"),
    [
        ([[1.0]], Budgets(), "needs at least one limit"),
        ([[1.0, 2.0]], Budgets(params=9), "gains of block 0 must be finite, >= 0 and falling"),
        ([[0.0]], Budgets(params=9), "gains are all 0"),
        ([[1.0]], Budgets(params=4), "budget params=4: the smallest layout takes 5"),
    ],
)
def test_impossible_requests_are_named(gains: Any, budgets: Budgets, words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        cost_aware([np.array(row) for row in gains], toy_price([5]), budgets)
