"""Orders of units: prefixes, permutations, what a channel carries."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.layout.errors import LayoutError
from fl_app.layout.nested import (
    Unit,
    allowance_bytes,
    order_units,
    pack,
    sizes_of,
    units_within,
)
from fl_app.layout.rules import nested
from fl_app.resources.devices import device_class
from fl_app.resources.families import architecture_of
from fl_app.resources.links import Link
from fl_app.resources.price import Pricer
from fl_app.resources.step import StepModel
from fl_app.resources.tuning import lora
from tests.fl_app.resources.tuned_models import config_of

_SCORES = st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=6).filter(any)


@settings(deadline=None)
@given(_SCORES)
def test_every_prefix_of_a_payload_is_a_payload(scores: list[list[int]]) -> None:
    order = order_units(scores)
    rng = np.random.default_rng(0)
    rows = {unit: rng.standard_normal((unit.block + 1, 3)).astype(np.float32) for unit in order}
    whole = pack(order, rows)
    sizes = [4 * 3 * (unit.block + 1) for unit in order]
    for count in range(len(order) + 1):
        part = pack(order[:count], rows)
        assert whole.startswith(part)
        assert len(part) == sum(sizes[:count])


@settings(deadline=None)
@given(_SCORES)
def test_smaller_layouts_lie_within_larger_ones(scores: list[list[int]]) -> None:
    rule = nested(order_units(scores), len(scores))
    layouts = [rule.sizes(count) for count in range(rule.most + 1)]
    for small, large in itertools.pairwise(layouts):
        assert (large - small).sum() == 1
        assert (large >= small).all()
    assert layouts[-1].tolist() == [len(row) for row in scores]


@settings(deadline=None)
@given(st.permutations(range(5)), st.integers(0, 15))
def test_permuting_blocks_permutes_sizes(permutation: list[int], count: int) -> None:
    scores = np.random.default_rng(3).permutation(15.0 + np.arange(15)).reshape(5, 3)
    scores = np.sort(scores, axis=1)[:, ::-1]
    plain = sizes_of(order_units(scores)[:count], 5)
    moved = sizes_of(order_units(scores[permutation])[:count], 5)
    np.testing.assert_array_equal(moved, plain[permutation])


def test_a_block_keeps_the_order_of_its_units() -> None:
    # the second unit of block 0 scores more than its first, which must go before it
    assert order_units([[1.0, 9.0], [5.0]]) == (Unit(1, 0), Unit(0, 0), Unit(0, 1))


@settings(deadline=None)
@given(_SCORES, st.integers(0, 200))
def test_units_that_fit_by_brute_force(scores: list[list[int]], allowance: int) -> None:
    order = order_units(scores)
    unit_bytes = [3 + 2 * block for block in range(len(scores))]
    fitting = [
        count
        for count in range(len(order) + 1)
        if sum(unit_bytes[unit.block] for unit in order[:count]) <= allowance
    ]
    assert units_within(order, unit_bytes, allowance) == max(fitting)


def test_allowance_of_a_round() -> None:
    assert allowance_bytes(1e6, 2.0, 0.5) == 187_500
    assert allowance_bytes(1e6, 2.0, 2.5) == 0


def test_orders_with_gaps_and_scores_without_value_are_named() -> None:
    with pytest.raises(LayoutError, match="unit 1 of block 0 is out of place"):
        nested([Unit(0, 1)], 1)
    with pytest.raises(LayoutError, match="scores of block 1 must be finite"):
        order_units([[1.0], [np.inf]])


def test_priced_bytes_are_those_of_the_payload() -> None:
    shapes = architecture_of(config_of("llama"))
    targets = ("q_proj", "v_proj")
    maps = [each for part in shapes.blocks[0] for each in part.maps if each.name in targets]
    step = StepModel(shapes, lora(*targets), batch=1, sequence=4)
    link = Link(bandwidth_hz=1e6, tx_power_w=0.2, loss_db=100.0)
    pricer = Pricer(step, device_class("phone"), uplink=link, downlink=link)
    order = order_units([[3.0, 1.0], [], [2.0], [5.0, 4.0], [2.0]])
    factors = sum(each.d_in + each.d_out for each in maps)
    rows = {unit: np.zeros(factors, dtype=np.float32) for unit in order}
    for count in range(len(order) + 1):
        sizes = sizes_of(order[:count], 5).tolist()
        assert pricer(sizes).uplink_bytes == len(pack(order[:count], rows))
