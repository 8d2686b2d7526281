"""Hostile prompts at the gate of an ensemble, at that of a device, and where no gate is."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.prompts.batched import member_losses
from fl_app.prompts.ensemble import combine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.gate import MAX_DROP, probe, require_use
from fl_app.prompts.hedge import SleepingHedge, bounded_log_loss
from fl_app.prompts.member import Member
from fl_app.prompts.packing import pack, unpack
from fl_app.prompts.pool import Pool
from fl_app.prompts.transfer import adopt
from tests.fixtures_models import LABELS, TinyModels
from tests.poison_fixtures import NUM_HONEST, POISON, World

_PROBE, _TEST = 90, 300


@pytest.fixture(scope="module")
def world(tiny: TinyModels) -> World:
    return World(tiny)


def _accuracy(log_probs: torch.Tensor, labels: torch.Tensor, how: str = "mean") -> float:
    return float((combine(how, log_probs).classes == labels).double().mean())


def _let_in(world: World, pool: Pool, newcomer: Member) -> None:
    """What the owner of a pool does with a prompt that arrives."""
    pool.require(newcomer, now_round=1)
    said = world.together(pool.members, _PROBE, 50)
    labels = world.batch(_PROBE, 50)["labels"]
    require_use(probe(said, world.say(newcomer, _PROBE, 50), labels))
    pool.admit(newcomer)


@pytest.mark.parametrize("kind", POISON)
def test_no_poison_passes_the_gate_of_an_ensemble(world: World, kind: str) -> None:
    """Fit or gate refuses it; so the ensemble stays what it was."""
    pool = Pool(world.fit, capacity=9)
    for member in world.honest:
        pool.admit(member)
    hostile = unpack(pack(POISON[kind](world)), max_bytes=10**6)
    with pytest.raises(PromptError) as caught:
        _let_in(world, pool, hostile)
    assert len(pool) == NUM_HONEST
    assert caught.value.reason in {
        "huge norm": {"huge-norm"},
        "huge head": {"huge-norm"},
        "NaN": {"not-finite"},
        "NaN in the head": {"not-finite"},
    }.get(kind, {"knows-nothing", "harms-ensemble"})


def test_honest_members_pass_it(world: World) -> None:
    """Or the test above would show nothing. The last of them is let in by those before it."""
    labels = world.batch(_PROBE, 50)["labels"]
    for k in range(NUM_HONEST):
        said = world.together(world.honest, _PROBE, 50)[:k]
        found = probe(said, world.say(world.honest[k], _PROBE, 50), labels)
        require_use(found, margin=0.02)
        assert found.loss < found.shares_loss * 0.8


def test_what_the_gate_measures(world: World) -> None:
    labels = world.batch(_PROBE, 50)["labels"]
    said = world.together(world.honest, _PROBE, 50)
    found = probe(said[:2], said[2], labels)
    # 30 rows of each of three classes
    assert found.shares_loss == pytest.approx(np.log(3))
    assert found.loss == pytest.approx(float(member_losses(said, labels)[2]))
    mixed = said.exp().mean(0)[torch.arange(_PROBE), labels]
    assert found.after == pytest.approx(float(-mixed.log().mean()), rel=1e-5)
    assert found.accuracy_after == pytest.approx(_accuracy(said, labels))
    assert found.accuracy_before == pytest.approx(_accuracy(said[:2], labels))
    alone = probe(said[:0], said[2], labels)
    assert (alone.before, alone.accuracy_before) == (float("inf"), 0.0)


@pytest.mark.parametrize("kind", POISON)
def test_no_poison_passes_the_gate_of_a_device(world: World, kind: str) -> None:
    """The receiver's own prompt stays in use, and tuning is never begun."""
    own, hostile = world.honest[1], POISON[kind](world)

    def losses(seed: int) -> Callable[[Sequence[Member]], list[float]]:
        labels = world.batch(_PROBE, seed)["labels"]
        return lambda members: member_losses(world.together(members, _PROBE, seed), labels).tolist()

    def tune(_candidate: Member) -> Member:
        raise AssertionError("tuned from poison")

    found = adopt(own, [hostile], probe=losses(50), validate=losses(51), tune=tune)
    assert (found.action, found.member) == ("kept", own)


def _prequential(world: World, members: Sequence[Member], names: Sequence[str]) -> tuple[Any, Any]:
    """Answers rows one by one with feedback; returns (right answers, weights at the end).

    The last member, if it is a fourth one, joins after 30 rows.
    """
    labels = world.batch(_TEST, 60)["labels"]
    said = world.together(members, _TEST, 60)
    hedge, hits = SleepingHedge(), []
    for row, label in enumerate(labels.tolist()):
        present = names if row >= 30 else names[:NUM_HONEST]
        for name in present:
            hedge.join(name)
        weights = hedge.weights(present)
        table = torch.tensor([weights[name] for name in present])
        answer = combine("mean", said[: len(present), row : row + 1], table)
        hits.append(int(answer.classes[0]) == label)
        losses = {
            name: bounded_log_loss(float(said[j, row, label]), len(LABELS))
            for j, name in enumerate(present)
            if not bool(said[j, row].isnan().any())
        }
        mixed = sum(weights[name] * np.exp(-losses[name]) for name in losses)
        hedge.update(losses, -float(np.log(mixed / sum(weights[name] for name in losses))))
    return np.array(hits), hedge.weights(names)


@pytest.mark.parametrize("kind", POISON)
def test_past_the_gate_it_loses_its_weight(world: World, kind: str) -> None:
    """Even let in it costs at most a point: feedback takes its weight within a few rows."""
    names = ["a", "b", "c", "hostile"]
    without, _ = _prequential(world, world.honest, names[:3])
    hits, weights = _prequential(world, [*world.honest, POISON[kind](world)], names)
    assert hits.mean() >= without.mean() - MAX_DROP
    assert "NaN" in kind or weights["hostile"] < 1e-6
