"""Unequal ranks, combined: what is unbiased, by how much the rest is off, and what SVD discards.

The yardstick is computed apart, in float64 and product by product: the mean over devices of the
server's product plus the change that the device made to the product of its own prefix.
"""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app import updates
from fl_app.layout.prefix import cut, pad
from fl_app.updates import Update
from strategies.combine import Flexible, Gathered, Padded, Whole, build_combine, held_by
from strategies.lora_space import FactorSpace, ProductSpace
from strategies.uplink import Received

D_IN, D_OUT, RANK, BLOCKS = 6, 5, 4, (0, 3)
HEAD = "base_model.model.classifier.weight"
SCALE = 64 * float(np.finfo(np.float32).eps)
cases = settings(derandomize=True, deadline=None, max_examples=20)
layouts = st.lists(
    st.fixed_dictionaries({block: st.integers(0, RANK) for block in BLOCKS}), min_size=2, max_size=5
)


def _factor(block: int, which: str) -> str:
    return f"base_model.model.encoder.layer.{block}.q.lora_{which}.weight"


def _server(rng: np.random.Generator, *, has_a: bool) -> Update:
    arrays = {HEAD: rng.normal(size=(2, 3))}
    for block in BLOCKS:
        arrays[_factor(block, "B")] = rng.normal(size=(D_OUT, RANK))
        if has_a:
            arrays[_factor(block, "A")] = rng.normal(size=(RANK, D_IN))
    return {name: array.astype(np.float32) for name, array in sorted(arrays.items())}


def _round(
    server: Update, given: list[dict[int, int]], rng: np.random.Generator
) -> tuple[Gathered, list[Update], list[Update]]:
    """Returns what the server gathers, and each device's adapter before and after."""
    before = [cut(server, layout) for layout in given]
    made = [
        {name: rng.normal(0, 0.3, a.shape).astype(np.float32) for name, a in each.items()}
        for each in before
    ]
    after = [updates.add(start, change) for start, change in zip(before, made, strict=True)]
    weights = rng.integers(1, 9, len(given)).astype(np.float64)
    gathered = Gathered(
        adapter=server,
        tuned=server,
        received=Received(
            rows=updates.stack([pad(change, server) for change in made]),
            weights=weights,
            is_heard=np.ones(len(given), dtype=np.bool_),
        ),
        presence=held_by(given, server),
        weights=weights,
    )
    return gathered, before, after


def _product(adapter: Update, block: int, a: np.ndarray | None = None) -> np.ndarray:
    """B A in float64; 0 where the device does not have the block. ``a``: the frozen A."""
    b = adapter.get(_factor(block, "B"))
    if b is None:
        return np.zeros((D_OUT, D_IN))
    down = adapter[_factor(block, "A")] if a is None else a[: b.shape[1]]
    return b.astype(np.float64) @ down.astype(np.float64)


def _yardstick(
    gathered: Gathered,
    before: list[Update],
    after: list[Update],
    block: int,
    a: np.ndarray | None = None,
) -> np.ndarray:
    shares = gathered.weights / gathered.weights.sum()
    changes = [
        share * (_product(new, block, a) - _product(old, block, a))
        for share, old, new in zip(shares, before, after, strict=True)
    ]
    return _product(gathered.adapter, block, a) + sum(changes)


def _apply(rows: Sequence[Update], weights: np.ndarray) -> Update:
    """FedAvg in float64."""
    shares = weights / weights.sum()
    return {
        name: sum(
            share * row[name].astype(np.float64) for share, row in zip(shares, rows, strict=True)
        ).astype(np.float32)
        for name in rows[0]
    }


@cases
@given(given_layouts=layouts, seed=st.integers(0, 99))
def test_zero_with_a_frozen_is_unbiased(given_layouts: list[dict[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(RANK, D_IN))
    gathered, before, after = _round(_server(rng, has_a=False), given_layouts, rng)
    combined, _ = Padded(all_weights=True).next_adapter(gathered, FactorSpace(), _apply)
    for block in BLOCKS:
        wanted = _yardstick(gathered, before, after, block, a)
        given_product = combined[_factor(block, "B")].astype(np.float64) @ a
        assert np.abs(given_product - wanted).max() <= SCALE * max(np.abs(wanted).max(), 1)


@cases
@given(given_layouts=layouts, seed=st.integers(0, 99))
def test_pad_divides_by_the_weights_present(given_layouts: list[dict[int, int]], seed: int) -> None:
    """Unit by unit, by hand; what nobody holds stays as it was."""
    rng = np.random.default_rng(seed)
    server = _server(rng, has_a=True)
    gathered, before, after = _round(server, given_layouts, rng)
    combined, _ = Padded(all_weights=False).next_adapter(gathered, FactorSpace(), _apply)
    for block in BLOCKS:
        for unit in range(RANK):
            holders = [k for k, layout in enumerate(given_layouts) if layout[block] > unit]
            for which in "AB":
                name = _factor(block, which)
                place = (slice(None), unit) if which == "B" else (unit,)
                change = np.zeros(D_OUT if which == "B" else D_IN)
                for k in holders:
                    made = after[k][name].astype(np.float64) - before[k][name]
                    change += gathered.weights[k] * made[place]
                if holders:
                    change /= gathered.weights[holders].sum()
                wanted = server[name][place] + change
                assert np.abs(combined[name][place] - wanted).max() <= SCALE * 4


def test_pad_is_biased_where_units_are_missing() -> None:
    """Two equal devices, one without the last unit: its step counts whole instead of half."""
    rng = np.random.default_rng(0)
    a, full = rng.normal(size=(RANK, D_IN)), dict.fromkeys(BLOCKS, RANK)
    server = _server(rng, has_a=False)
    gathered, before, after = _round(server, [full, {**full, 3: RANK - 1}], rng)
    gathered = Gathered(**{**vars(gathered), "weights": np.ones(2)})
    combined, _ = Padded(all_weights=False).next_adapter(gathered, FactorSpace(), _apply)
    off = combined[_factor(3, "B")].astype(np.float64) @ a
    off = off - _yardstick(gathered, before, after, 3, a)
    made = (after[0][_factor(3, "B")] - before[0][_factor(3, "B")]).astype(np.float64)
    bias = np.outer(made[:, -1], a[-1]) / 2
    assert np.abs(off - bias).max() <= SCALE * 4
    assert np.abs(bias).max() > 0.01


@cases
@given(given_layouts=layouts, seed=st.integers(0, 99), has_cores=st.booleans())
def test_flex_is_the_yardstick_but_for_what_svd_discards(
    given_layouts: list[dict[int, int]], seed: int, *, has_cores: bool
) -> None:
    """The best approximation of the server's rank; and the figure says how far it is off."""
    rng = np.random.default_rng(seed)
    gathered, before, after = _round(_server(rng, has_a=True), given_layouts, rng)
    ranks = {0: 2, 3: RANK}
    space = ProductSpace(RANK, ranks, has_cores=has_cores)
    combined, figures = Flexible().next_adapter(gathered, space, _apply)
    lost, whole = 0.0, 0.0
    for block in BLOCKS:
        wanted = _yardstick(gathered, before, after, block)
        values = np.linalg.svd(wanted, compute_uv=False)
        off = np.linalg.norm(_product(combined, block) - wanted)
        least = np.sqrt(np.square(values[ranks[block] :]).sum())
        assert abs(off - least) <= SCALE * max(values[0], 1) * 4
        lost, whole = lost + off**2, whole + np.square(values).sum()
        for rank in range(1, ranks[block]):  # what a device of this rank is sent is the best, too
            part = _product(cut(combined, {0: 2, 3: RANK} | {block: rank}), block)
            best = np.sqrt(np.square(values[rank:]).sum())
            assert abs(np.linalg.norm(part - wanted) - best) <= SCALE * max(values[0], 1) * 4
    assert figures["discarded"] == pytest.approx(np.sqrt(lost / whole), abs=SCALE * 4)


@pytest.mark.parametrize("combine", [Padded(all_weights=False), Padded(all_weights=True)])
def test_factors_of_unequal_devices_are_biased(combine: Padded) -> None:
    """Means of A and of B apart are not the mean of products; the yardstick tells."""
    rng = np.random.default_rng(1)
    gathered, before, after = _round(
        _server(rng, has_a=True), [{0: 4, 3: 4}, {0: 2, 3: 1}, {0: 0, 3: 3}], rng
    )
    combined, _ = combine.next_adapter(gathered, FactorSpace(), _apply)
    off = _product(combined, 3) - _yardstick(gathered, before, after, 3)
    assert np.abs(off).max() > 0.05


@pytest.mark.parametrize("name", ["pad", "zero", "flex"])
def test_nobody_moves_and_nothing_moves(name: str) -> None:
    """Where devices change nothing the adapter keeps its products, though they hold less."""
    rng = np.random.default_rng(2)
    server = _server(rng, has_a=True)
    gathered, _, _ = _round(server, [{0: 1, 3: 0}, {0: 2, 3: 2}], rng)
    received = Received(**{**vars(gathered.received), "rows": 0 * gathered.received.rows})
    gathered = Gathered(**{**vars(gathered), "received": received})
    space = ProductSpace(RANK, has_cores=True) if name == "flex" else FactorSpace()
    combined, _ = build_combine(name, is_shared=False).next_adapter(gathered, space, _apply)
    for block in BLOCKS:
        kept = _product(server, block)
        assert np.abs(_product(combined, block) - kept).max() <= SCALE * np.abs(kept).max()


@pytest.mark.parametrize("name", ["pad", "zero", "flex"])
def test_where_all_hold_all_the_rules_agree_with_the_plain_one(name: str) -> None:
    rng = np.random.default_rng(3)
    full = dict.fromkeys(BLOCKS, RANK)
    gathered, _, _ = _round(_server(rng, has_a=True), [full] * 3, rng)
    space = ProductSpace(RANK) if name == "flex" else FactorSpace()
    one, _ = build_combine(name, is_shared=False).next_adapter(gathered, space, _apply)
    two, _ = Whole().next_adapter(gathered, space, _apply)
    for block in BLOCKS:
        bound = SCALE * np.abs(_product(two, block)).max()
        assert np.abs(_product(one, block) - _product(two, block)).max() <= bound
    assert np.abs(one[HEAD] - two[HEAD]).max() <= SCALE * 4
    assert type(build_combine(name, is_shared=True)) is Whole


@pytest.mark.parametrize("has_cores", [False, True])
def test_a_block_that_nobody_of_the_round_held_can_still_be_tuned(has_cores: bool) -> None:
    """From B = 0: its A stays as drawn, and spare units elsewhere come back with an A, too."""
    rng = np.random.default_rng(4)
    server = _server(rng, has_a=True)
    for block in BLOCKS:
        server[_factor(block, "B")] *= 0
    gathered, before, after = _round(server, [{0: 0, 3: 1}, {0: 0, 3: 2}], rng)
    combined, _ = Flexible().next_adapter(gathered, ProductSpace(RANK, has_cores=has_cores), _apply)
    for which in "AB":
        assert np.array_equal(combined[_factor(0, which)], server[_factor(0, which)])
    wanted = _yardstick(gathered, before, after, 3)
    used = np.linalg.matrix_rank(wanted)
    assert used == 3 < RANK  # two devices of ranks 1 and 2, whose changes share no directions
    assert np.abs(_product(combined, 3) - wanted).max() <= SCALE * max(np.abs(wanted).max(), 1)
    spare = combined[_factor(3, "A")][used:].astype(np.float64)
    # B's gradient is G A^T: alive only where A is
    assert np.linalg.norm(spare, axis=1) == pytest.approx(1 / np.sqrt(3), rel=SCALE)
    assert not combined[_factor(3, "B")][:, used:].any()
