"""Prefix slices: cutting, padding and masks agree, and nothing but units is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.fomo.lora import a_drawn
from fl_app.layout.errors import LayoutError
from fl_app.layout.prefix import (
    block_number,
    cut,
    is_within,
    layout_of,
    pad,
    presence,
    unit_axis,
)
from fl_app.updates import Update

RANKS = {1: 3, 4: 5}
HEAD = "base_model.model.classifier.weight"


def _name(block: int, factor: str, what: str = "q") -> str:
    return f"base_model.model.bert.encoder.layer.{block}.{what}.lora_{factor}.weight"


def _adapter(ranks: dict[int, int] = RANKS, seed: int = 0) -> Update:
    rng = np.random.default_rng(seed)
    arrays = {HEAD: rng.normal(size=(3, 7))}
    for block, rank in ranks.items():
        for what, d_in, d_out in (("q", 7, 7), ("up", 7, 9)):
            arrays[_name(block, "A", what)] = rng.normal(size=(rank, d_in))
            arrays[_name(block, "B", what)] = rng.normal(size=(d_out, rank))
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def test_names_tell_block_and_axis() -> None:
    assert block_number("base_model.model.encoder.block.11.layer.0.SelfAttention.q") == 11
    assert [unit_axis(_name(1, "A")), unit_axis(_name(1, "B")), unit_axis(HEAD)] == [0, 1, None]
    with pytest.raises(LayoutError, match="no block"):
        block_number("base_model.model.classifier")
    assert layout_of(_adapter()) == RANKS


@settings(derandomize=True, deadline=None, max_examples=30)
@given(low=st.integers(0, 3), high=st.integers(0, 5))
def test_what_is_cut_and_padded_is_masked(low: int, high: int) -> None:
    whole, layout = _adapter(), {1: low, 4: high}
    part = cut(whole, layout)
    masks = presence(whole, layout)
    assert layout_of(part) == {block: rank for block, rank in layout.items() if rank}
    back = pad(part, whole)
    for name, array in whole.items():
        assert back[name].dtype == np.float32
        assert np.array_equal(back[name], np.where(masks[name], array, 0))
    units = 14 * 2 * low // 2 + 16 * 2 * low // 2  # d_in + d_out of both maps
    units += 14 * high + 16 * high
    held = sum(int(mask.sum()) for mask in masks.values())
    assert held == sum(array.size for array in part.values()) == 21 + units
    assert np.array_equal(part[HEAD], whole[HEAD])


def test_a_smaller_layout_is_contained_in_a_larger_one() -> None:
    whole = _adapter()
    once, twice = cut(whole, {1: 1, 4: 2}), cut(cut(whole, {1: 2, 4: 4}), {1: 1, 4: 2})
    assert all(np.array_equal(once[name], twice[name]) for name in once)
    assert [is_within({1: 1}, {1: 1, 4: 2}), is_within({1: 2}, {1: 1})] == [True, False]
    assert [is_within({2: 0}, {}), is_within({2: 1}, {})] == [True, False]


@pytest.mark.parametrize("layout", [{1: 4, 4: 1}, {1: 1}, {1: -1, 4: 0}])
def test_a_layout_that_does_not_fit_is_refused(layout: dict[int, int]) -> None:
    with pytest.raises(LayoutError, match="block"):
        cut(_adapter(), layout)
    with pytest.raises(LayoutError, match="block"):
        presence(_adapter(), layout)


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_a_of_a_smaller_rank_is_a_byte_prefix(rank: int) -> None:
    """Oracle: payload(r) is a byte prefix of payload(r + 1)."""
    smaller, larger = (a_drawn(3, "x.1.lora_A.weight", (r, 13)) for r in (rank, rank + 1))
    assert larger.tobytes().startswith(smaller.tobytes())
    assert larger[-1].std() > 0
