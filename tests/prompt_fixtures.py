"""Members with drawn values, and the slow way to ask each of them alone."""

from typing import Any

import numpy as np
import torch

from fl_app.fomo.adapter import Adapter
from fl_app.fomo.backbone import Backbone, head_modules
from fl_app.fomo.soft_prompt import PromptSpec
from fl_app.prompts.fit import Fit, fit_of
from fl_app.prompts.member import Card, Member
from fl_app.seeding import generator
from tests.fixtures_models import DEPTH, MAX_LENGTH, TinyModels, logits_of

CLASSES = "sequence_classification"


def fit_for(backbone: Backbone) -> Fit:
    """Returns what a tiny model takes."""
    return fit_of(backbone, max_length=MAX_LENGTH, max_tokens=12)


def card_for(fit: Fit, device: int = 0, **fields: Any) -> Card:
    """Returns a card that fits."""
    return Card(fit.model_hash, fit.tokenizer_hash, device, **{"task": "t", "round": 1, **fields})


def drawn_member(
    fit: Fit, num_tokens: int, seed: int = 0, *, with_head: bool = False, **card: Any
) -> Member:
    """Draws a member whose values are large enough to show in the logits."""
    rng = generator(seed, "member", num_tokens)
    prompt = rng.normal(0, 0.5, (num_tokens, fit.width)).astype(np.float32)
    head = {n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in fit.head_shapes.items()}
    return Member(prompt, card_for(fit, seed, **card), head if with_head else {})


def prompted(backbone: Backbone, member: Member) -> Adapter:
    """Wraps a model with one member by ``PromptedModel``, which tests compare with PEFT."""
    adapter = Adapter(
        backbone.model,
        blocks=range(DEPTH),
        tuned_blocks=(),
        heads=head_modules(backbone.model, backbone.task),
        spec=PromptSpec(member.num_tokens),
        seed=0,
    )
    adapter.write({**adapter.read(), **member.arrays()})
    return adapter


def alone(
    tiny: TinyModels, family: str, task: str, member: Member, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Returns the logits of one member in a pass of its own, on a fresh model."""
    return logits_of(prompted(tiny.load(family, task), member).model, batch)
