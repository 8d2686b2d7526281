"""An ensemble of honest members tuned on easy rows, and the prompts a hostile device may send."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch

from fl_app.prompts.batched import log_probabilities, tensors_of
from fl_app.prompts.member import Member
from fl_app.seeding import generator
from tests.fixtures_models import TinyModels
from tests.prompt_fixtures import CLASSES, card_for, easy_rows, fit_for, tuned_member

NUM_HONEST = 3


class World:
    """An ensemble of honest members, rows for the gate, and rows nobody has seen."""

    def __init__(self, tiny: TinyModels) -> None:
        self.model = tiny.load("bert", CLASSES).model
        self.task = tiny.task("bert", CLASSES)
        self.fit = fit_for(tiny.load("bert", CLASSES))
        self.honest = [tuned_member(tiny, seed) for seed in range(NUM_HONEST)]
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


POISON: dict[str, Callable[[World], Member]] = {
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
