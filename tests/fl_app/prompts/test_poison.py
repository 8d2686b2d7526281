"""Hostile prompts at the gate of an ensemble, at that of a device, and where no gate is."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.prompts.batched import log_probabilities, member_losses, tensors_of
from fl_app.prompts.ensemble import combine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.gate import MAX_DROP, probe, require_use
from fl_app.prompts.hedge import SleepingHedge, bounded_log_loss
from fl_app.prompts.member import Member
from fl_app.prompts.packing import pack, unpack
from fl_app.prompts.pool import Pool
from fl_app.prompts.transfer import adopt
from fl_app.seeding import generator
from tests.fixtures_models import LABELS, TinyModels
from tests.prompt_fixtures import CLASSES, card_for, easy_rows, fit_for, tuned_member

_PROBE, _TEST = 90, 300
_NUM_HONEST = 3


class World:
    """An ensemble of honest members, rows for the gate, and rows nobody has seen."""

    def __init__(self, tiny: TinyModels) -> None:
        self.model = tiny.load("bert", CLASSES).model
        self.task = tiny.task("bert", CLASSES)
        self.fit = fit_for(tiny.load("bert", CLASSES))
        self.honest = [tuned_member(tiny, seed) for seed in range(_NUM_HONEST)]
        self.flipped = tuned_member(tiny, 7, flipped=True)

    @cache  # noqa: B019 - a handful of members, gone with the module
    def say(self, member: Member, num_rows: int, seed: int) -> torch.Tensor:
        """Returns log-probabilities [N, classes] on drawn rows."""
        with torch.inference_mode():
            return log_probabilities(self.model, [tensors_of(member)], self.batch(num_rows, seed))[
                0
            ][0]

    def batch(self, num_rows: int, seed: int) -> dict[str, torch.Tensor]:
        encoded = self.task.encode(easy_rows(num_rows, seed))
        return self.task.batch(encoded, range(num_rows))

    def together(self, members: Sequence[Member], num_rows: int, seed: int) -> torch.Tensor:
        return torch.stack([self.say(member, num_rows, seed) for member in members])


@pytest.fixture(scope="module")
def world(tiny: TinyModels) -> World:
    return World(tiny)


def _random(world: World, size: float = 0.5) -> Member:
    rng, good = generator(0, "poison"), world.honest[0]
    head = {n: rng.normal(0, 1, a.shape).astype(np.float32) for n, a in good.head.items()}
    prompt = rng.normal(0, size, good.prompt.shape).astype(np.float32)
    return Member(prompt, card_for(world.fit, 9, validation_loss=0.0), head)


def _scaled(world: World, prompt: float, head: float) -> Member:
    good = world.honest[0]
    return Member(
        good.prompt * np.float32(prompt),
        card_for(world.fit, 9, validation_loss=0.0),
        {n: a * np.float32(head) for n, a in good.head.items()},
    )


def _with_nan(world: World) -> Member:
    prompt = world.honest[0].prompt.copy()
    prompt[0, 0] = np.nan
    return Member(prompt, card_for(world.fit, 9), world.honest[0].head)


def _with_nan_in_head(world: World) -> Member:
    head = {n: np.full_like(a, np.nan) for n, a in world.honest[0].head.items()}
    return Member(world.honest[0].prompt, card_for(world.fit, 9), head)


_POISON: dict[str, Callable[[World], Member]] = {
    "random": _random,
    "random and loud": lambda world: _random(world, 20.0),
    "sign-flipped": lambda world: _scaled(world, -1.0, -1.0),
    "sign-flipped head": lambda world: _scaled(world, 1.0, -1.0),
    "huge norm": lambda world: _scaled(world, 1e6, 1.0),
    "huge head": lambda world: _scaled(world, -1.0, 1e6),
    "NaN": _with_nan,
    "NaN in the head": _with_nan_in_head,
    "flipped labels": lambda world: world.flipped,
}


def _accuracy(log_probs: torch.Tensor, labels: torch.Tensor, how: str = "mean") -> float:
    return float((combine(how, log_probs).classes == labels).double().mean())


def _let_in(world: World, pool: Pool, newcomer: Member) -> None:
    """What the owner of a pool does with a prompt that arrives."""
    pool.require(newcomer, now_round=1)
    said = world.together(pool.members, _PROBE, 50)
    labels = world.batch(_PROBE, 50)["labels"]
    require_use(probe(said, world.say(newcomer, _PROBE, 50), labels))
    pool.admit(newcomer)


@pytest.mark.parametrize("kind", _POISON)
def test_no_poison_passes_the_gate_of_an_ensemble(world: World, kind: str) -> None:
    """Fit or gate refuses it; so the ensemble stays what it was."""
    pool = Pool(world.fit, capacity=9)
    for member in world.honest:
        pool.admit(member)
    hostile = unpack(pack(_POISON[kind](world)), max_bytes=10**6)
    with pytest.raises(PromptError) as caught:
        _let_in(world, pool, hostile)
    assert len(pool) == _NUM_HONEST
    assert caught.value.reason in {
        "huge norm": {"huge-norm"},
        "huge head": {"huge-norm"},
        "NaN": {"not-finite"},
        "NaN in the head": {"not-finite"},
    }.get(kind, {"knows-nothing", "harms-ensemble"})


def test_honest_members_pass_it(world: World) -> None:
    """Or the test above would show nothing. The last of them is let in by those before it."""
    labels = world.batch(_PROBE, 50)["labels"]
    for k in range(_NUM_HONEST):
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


@pytest.mark.parametrize("kind", _POISON)
def test_no_poison_passes_the_gate_of_a_device(world: World, kind: str) -> None:
    """The receiver's own prompt stays in use, and tuning is never begun."""
    own, hostile = world.honest[1], _POISON[kind](world)

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
        present = names if row >= 30 else names[:_NUM_HONEST]
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


@pytest.mark.parametrize("kind", _POISON)
def test_past_the_gate_it_loses_its_weight(world: World, kind: str) -> None:
    """Even let in it costs at most a point: feedback takes its weight within a few rows."""
    names = ["a", "b", "c", "hostile"]
    without, _ = _prequential(world, world.honest, names[:3])
    hits, weights = _prequential(world, [*world.honest, _POISON[kind](world)], names)
    assert hits.mean() >= without.mean() - MAX_DROP
    assert "NaN" in kind or weights["hostile"] < 1e-6
