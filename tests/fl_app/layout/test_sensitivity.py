"""AdaLoRA's scores and schedule against its own PEFT implementation and by hand."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.adalora.layer import RankAllocator

from fl_app.layout.errors import LayoutError
from fl_app.layout.sensitivity import BudgetSchedule, Sensitivity, keep_best, triplet_scores


def test_scores_are_those_of_pefts_adalora() -> None:
    allocator: Any = RankAllocator.__new__(RankAllocator)
    allocator.beta1, allocator.beta2, allocator.adapter_name = 0.85, 0.85, "default"
    allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc = {}, {}, {}
    rng = np.random.default_rng(0)
    model = torch.nn.ParameterDict(
        {
            name: torch.nn.Parameter(torch.zeros(2, 3))
            for name in ("lora_A_default", "lora_B_default")
        }
    )
    ours = Sensitivity()
    for _ in range(6):
        values, gradients = {}, {}
        for name, parameter in model.items():
            values[name] = rng.standard_normal((2, 3)).astype(np.float32)
            gradients[name] = rng.standard_normal((2, 3)).astype(np.float32)
            parameter.data = torch.from_numpy(values[name])
            parameter.grad = torch.from_numpy(gradients[name])
        allocator.update_ipt(model)
        ours.update(values, gradients)
    for name in model:
        theirs = allocator._element_score(name).numpy()
        np.testing.assert_allclose(ours.score(name), theirs, rtol=2e-5)


def test_first_step_by_hand() -> None:
    score = Sensitivity(beta1=0.5, beta2=0.75)
    value, gradient = np.array([2.0], dtype=np.float32), np.array([-3.0], dtype=np.float32)
    score.update({"w": value}, {"w": gradient})
    assert score.score("w")[0] == pytest.approx(3.0 * (0.25 * 3.0))


def test_triplets_add_the_entry_and_two_means() -> None:
    a, b = np.array([[1.0, 3.0], [0.0, 2.0]]), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    np.testing.assert_allclose(triplet_scores(a, b, np.array([10.0, 20.0])), [15.0, 25.0])
    np.testing.assert_allclose(triplet_scores(a, b), [5.0, 5.0])


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 9), st.integers(0, 9), st.data())
def test_schedule_falls_from_start_to_end(
    end: int, extra: int, warmup: int, final: int, data: st.DataObject
) -> None:
    steps = warmup + final + data.draw(st.integers(1, 40))
    schedule = BudgetSchedule(start=end + extra, end=end, warmup=warmup, final=final, steps=steps)
    units = [schedule.units(step) for step in range(steps + 1)]
    assert all(after <= before for before, after in itertools.pairwise(units))
    assert units[: warmup + 1] == [end + extra] * (warmup + 1)
    assert units[steps - final :] == [end] * (final + 1)
    for step in range(warmup, steps - final):
        rest = 1.0 - (step - warmup) / (steps - final - warmup)
        assert abs(units[step] - (end + extra * rest**3)) < 1.0 + 1e-9


@settings(deadline=None)
@given(st.integers(0, 12), st.permutations(range(4)))
def test_exactly_the_best_stay_whatever_the_order_of_maps(
    num_units: int, permutation: list[int]
) -> None:
    scores = list(np.random.default_rng(2).permutation(12).reshape(4, 3).astype(np.float64))
    masks = keep_best(scores, num_units)
    kept = np.concatenate([row[mask] for row, mask in zip(scores, masks, strict=True)])
    assert sorted(kept) == list(range(12 - num_units, 12))
    moved = keep_best([scores[place] for place in permutation], num_units)
    for place, mask in zip(permutation, moved, strict=True):
        np.testing.assert_array_equal(mask, masks[place])


def test_ties_do_not_prune_more_than_asked_and_take_turns() -> None:
    masks = keep_best([np.ones(3)] * 4, 6)
    assert [int(mask.sum()) for mask in masks] == [2, 2, 1, 1]
    assert all(mask.all() for mask in keep_best([np.ones(3)] * 4, 12))  # target = start


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Sensitivity(beta1=1.0), "beta1=1.0"),
        (lambda: Sensitivity().score("w"), "no score of 'w'"),
        (lambda: keep_best([np.ones(2)], 3), "num_units=3 must be 0 to 2"),
        (lambda: keep_best([np.array([np.nan])], 1), "scores of map 0 must be finite"),
        (
            lambda: BudgetSchedule(start=1, end=2, warmup=0, final=0, steps=5),
            "end=2 must be 1 to start=1",
        ),
        (
            lambda: BudgetSchedule(start=3, end=2, warmup=3, final=2, steps=5),
            "steps=5 must be more than warmup=3",
        ),
    ],
)
def test_impossible_requests_are_named(call: Any, words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        call()
