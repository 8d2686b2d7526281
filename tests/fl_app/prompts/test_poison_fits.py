"""Hostile prompts among those an attention or a fusion is fitted to, as a server has them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fl_app.prompts.attentive import FITS, FitSettings, hear
from fl_app.prompts.batched import tensors_of
from fl_app.prompts.ensemble import combine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.fit_or_mean import fit_or_mean
from fl_app.prompts.gate import MAX_DROP
from fl_app.prompts.measure import measure
from fl_app.prompts.member import Member
from fl_app.prompts.pool import Pool
from fl_app.prompts.public_rows import PublicRows, fitting_batches
from tests.fixtures_models import TinyModels
from tests.poison_fixtures import POISON, World
from tests.prompt_fixtures import easy_rows

_PUBLIC, _TEST = 180, 300
_HOW = {kind: FitSettings(kind, lr=0.02, epochs=15, hidden=20) for kind in FITS}


@pytest.fixture(scope="module")
def world(tiny: TinyModels) -> World:
    return World(tiny)


def _public(world: World, how: FitSettings) -> PublicRows:
    rows = world.task.encode(easy_rows(_PUBLIC, 40))
    return PublicRows(world.model, world.task, rows, how="mean", eta=None, fit=how, seed=2)


def _accuracy(world: World, members: Sequence[Member], public: PublicRows) -> float:
    fitted = public.fitted(members)
    assert fitted is not None
    assert fitted.failed is None
    rows = world.task.encode(easy_rows(_TEST, 60))
    tensors = [tensors_of(member) for member in members]
    return measure(world.model, tensors, world.task, rows, answer=fitted.answer).ensemble


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("poison", POISON)
def test_poison_costs_a_fit_a_point_at_most(world: World, kind: str, poison: str) -> None:
    """Form or screen takes it out before anything is fitted."""
    public = _public(world, _HOW[kind])
    honest = _accuracy(world, world.honest, public)
    assert honest > 0.6
    pool = Pool(world.fit, capacity=9)
    refused = set()
    for member in (*world.honest, POISON[poison](world)):
        try:
            pool.admit(member)
        except PromptError as error:
            refused.add(error.reason)
    gone = public.screen(pool.members)
    left = [m for place, m in enumerate(pool.members) if place not in gone]
    assert set(world.honest) <= set(left)
    assert refused <= {"huge-norm", "not-finite"}
    assert _accuracy(world, left, public) >= honest - MAX_DROP
    assert len(refused) + len(gone) == 1


@pytest.mark.parametrize("kind", FITS)
def test_the_mean_answers_where_a_fit_is_worse(world: World, kind: str) -> None:
    """A fit that was told wrong labels gives way; the same members with the right ones do not."""
    members = [tensors_of(member) for member in (world.flipped, *world.honest)]
    rows = world.task.encode(easy_rows(_PUBLIC, 40))
    batches = fitting_batches(world.task, rows, 2)
    public = hear(world.model, members, batches)
    turned = [{**batch, "labels": (batch["labels"] + 1) % 3} for batch in batches]
    how = _HOW[kind]
    wrong = FITS[kind](replace(public, batches=turned), how, 3)
    fits = dict.fromkeys([kind], lambda *_args, **_kwargs: wrong)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fl_app.prompts.fit_or_mean.FITS", fits)
        found = fit_or_mean(public, how, 3)
    assert (found.failed, found.weights) == ("worse-than-mean", (0.25,) * 4)
    torch.testing.assert_close(
        found.answer(None, {}, public.said[0]).log_probs, combine("mean", public.said[0]).log_probs
    )
    kept = fit_or_mean(public, how, 3)
    assert kept.failed is None
