"""Arithmetic on named arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fl_app.updates import Update, add, is_finite, num_reals, stack, subtract, unstack

_floats = st.floats(-1e6, 1e6, width=32)


@st.composite
def _pairs(draw: st.DrawFn) -> tuple[Update, Update]:
    """Two updates of the same layout, names in any order, scalars and empty arrays among them."""
    names = draw(st.lists(st.text("abz.", min_size=1, max_size=4), min_size=1, unique=True))
    shapes = {name: draw(hnp.array_shapes(min_dims=0, min_side=0, max_side=3)) for name in names}

    def one() -> Update:
        return {
            name: draw(hnp.arrays(np.float32, shape, elements=_floats))
            for name, shape in shapes.items()
        }

    return one(), one()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(_pairs())
def test_arithmetic_is_entry_by_entry_and_leaves_its_inputs(pair: tuple[Update, Update]) -> None:
    """Checked with loops over entries."""
    left, right = pair
    before = {name: array.tobytes() for name, array in left.items()}
    total, difference = add(left, right), subtract(left, right)
    for name, array in left.items():
        for place in np.ndindex(array.shape):
            assert total[name][place] == array[place] + right[name][place]
            assert difference[name][place] == array[place] - right[name][place]
        assert total[name].shape == array.shape
        assert total[name].dtype == np.float32
    assert {name: array.tobytes() for name, array in left.items()} == before


@settings(derandomize=True, max_examples=60, deadline=None)
@given(_pairs())
def test_rows_of_a_stack_unstack_bit_for_bit(pair: tuple[Update, Update]) -> None:
    """Also when the second update lists its names the other way round."""
    one, two = pair
    rows = stack([one, dict(reversed(two.items()))])
    assert rows.shape == (2, num_reals(one))
    for row, update in zip(rows, pair, strict=True):
        back = unstack(row, one)
        assert back.keys() == update.keys()
        assert all(back[name].tobytes() == update[name].tobytes() for name in update)
        assert all(back[name].shape == update[name].shape for name in update)


def test_stack_orders_arrays_by_name() -> None:
    """The layout of a row is a promise: over-the-air sums need the same one everywhere."""
    update = {"b": np.array([[3, 4]], np.float32), "a": np.array([1, 2], np.float32)}
    assert stack([update]).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(("bad", "finite"), [(np.nan, False), (-np.inf, False), (1e38, True)])
def test_one_bad_entry_makes_an_update_not_finite(bad: float, finite: bool) -> None:
    """In the last place of the last array."""
    last: NDArray[np.float32] = np.array([0, 0, bad], np.float32)
    assert is_finite({"a": np.ones(2, np.float32), "b": last}) is finite


def test_num_reals_counts_entries() -> None:
    """q of the closed-form byte counts."""
    assert num_reals({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}) == 10
