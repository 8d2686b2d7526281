"""Updates that are finite entry by entry, and overflow in sums, norms or frozen weights."""

import numpy as np
import pytest

from fl_app import updates
from fl_app.errors import RunError
from fl_app.updates import Update
from strategies.lora_space import ProductSpace, largest_norm
from strategies.round_start import Stacking
from tests import fakes
from tests.federation_fixtures import ALL_DEVICES, SKEW, Player, player, tiny_federation
from tests.layout_fixtures import FixedLayouts

__all__ = ["player", "tiny_federation"]

EXACT = "peft.aggregation=exact"
CLASSES = (
    "federation.classes=[{name:weak,devices:[1],params:140},{name:strong,devices:[0,2,3]}]",
    "peft=lora_linear_up",
    "peft.rank=3",
)
STACK = "peft.combine=stack"
A, B = "layer.0.q.lora_A.weight", "layer.0.q.lora_B.weight"


def _rank_one(size: float) -> fakes.Fault:
    """One unit whose product has entries of size^2 while its norm may be beyond float32."""

    def change(old: Update) -> Update:
        new = {name: np.zeros_like(array) for name, array in old.items()}
        for name, array in new.items():
            if ".lora_A." in name and array.size:
                array[0] = size
            if ".lora_B." in name and array.size:
                array[:, 0] = size
        return new

    return fakes.update(change)


@pytest.mark.parametrize("size", [1e19, 1e10])
@pytest.mark.parametrize(
    "words",
    [(EXACT,), (EXACT, "peft.combine=flex", *CLASSES), (EXACT, STACK), (EXACT, STACK, *CLASSES)],
    ids=["exact", "flex", "stack", "stack of classes"],
)
def test_a_finite_update_that_overflows_costs_its_device_one_round(
    player: Player, words: tuple[str, ...], size: float
) -> None:
    """At 1e19 entries of the product are 1e38, its core is infinite; 1e20 blows up a model."""
    played = player.play(*words, SKEW, faults={(1, 2): _rank_one(size)})
    assert (played.dropped(1), played.devices(1)) == ({"not-finite": [2]}, [0, 1, 3])
    assert (played.dropped(2), played.devices(2)) == ({}, ALL_DEVICES)
    assert largest_norm(played.outcome.adapter) < 1e3


def test_the_norm_is_that_of_factors_and_of_units_even_where_these_cancel() -> None:
    ones = np.ones(4, np.float32)
    adapter = {A: np.stack([ones, ones]) * 3, B: np.stack([ones, -ones], axis=1) * 5}
    assert not (adapter[B] @ adapter[A]).any()
    assert largest_norm(adapter) == pytest.approx(2 * (3 * 2) * (5 * 2), rel=1e-6)
    assert largest_norm({**adapter, "head": np.full(9, 1e38, np.float32)}) == pytest.approx(3e38)
    assert largest_norm({A: adapter[A]}) == pytest.approx(3 * np.sqrt(8))
    assert largest_norm({}) == 0.0
    assert np.isnan(largest_norm({**adapter, "head": np.array([np.nan], np.float32)}))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_product_that_is_not_finite_never_reaches_the_svd(value: float) -> None:
    """LAPACK may not return from it."""
    product = np.ones((8, 8), np.float32)
    product[3, 4] = value
    with pytest.raises(RunError, match=r"layer\.0\.q.*not finite"):
        ProductSpace(2).leave({"layer.0.q.lora_product": product})


def test_a_sum_of_stacks_that_overflows_leaves_what_was_there() -> None:
    """Past the rank from which sums are re-factored; each stack alone is finite."""
    stacking = Stacking(FixedLayouts({0: 2}), seed=1)
    rng = np.random.default_rng(0)
    good = {A: rng.normal(size=(3, 4)), B: rng.normal(size=(4, 3))}
    first = {name: array.astype(np.float32) for name, array in good.items()}
    adapter = stacking.end(1, first)
    bad = {A: np.full((2, 4), 3e38, np.float32), B: np.full((4, 2), 3e38, np.float32)}
    with pytest.raises(RunError, match=r"layer\.0\.q"):
        stacking.end(2, bad)
    assert len(stacking.stacks or {}) == 1
    again = stacking.end(3, {A: np.zeros((0, 4), np.float32), B: np.zeros((4, 0), np.float32)})
    assert updates.is_finite(again)
    assert all((again[name] == adapter[name]).all() for name in adapter)


def test_a_block_that_nobody_tuned_is_no_obstacle_where_another_reaches_its_size() -> None:
    """Device classes may leave a block out; its stacks have rank 0."""
    other_a, other_b = A.replace("0", "1"), B.replace("0", "1")
    stacking = Stacking(FixedLayouts({0: 2, 1: 2}), seed=1)
    rng = np.random.default_rng(0)
    total = np.zeros((6, 6))
    for number in range(1, 6):
        stack = {
            A: rng.normal(size=(2, 6)).astype(np.float32),
            B: rng.normal(size=(6, 2)).astype(np.float32),
            other_a: np.zeros((0, 6), np.float32),
            other_b: np.zeros((6, 0), np.float32),
        }
        total += stack[B].astype(np.float64) @ stack[A]
        adapter = stacking.end(number, stack)
        bound = 64 * float(np.finfo(np.float32).eps) * np.abs(total).max()
        assert np.abs(adapter[B].astype(np.float64) @ adapter[A] - total).max() <= bound
        assert adapter[other_a].shape == (2, 6)
        assert not adapter[other_b].any()
    assert stacking.server == {0: 6, 1: 2}
    assert len(stacking.stacks or {}) == 5


def test_a_product_of_no_units_comes_back_as_new_units() -> None:
    empty = {A: np.zeros((0, 5), np.float32), B: np.zeros((4, 0), np.float32)}
    space = ProductSpace(2, has_cores=True).around([empty])
    back = space.leave(space.enter(empty))
    assert (back[A].shape, back[B].shape) == ((2, 5), (4, 2))
    assert not back[B].any()
