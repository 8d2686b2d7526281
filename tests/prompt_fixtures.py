"""Members with drawn values, and the slow way to ask each of them alone."""

from typing import Any

import numpy as np
import torch

from fl_app.data.examples import Examples
from fl_app.finetune import LocalTuning, tune
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.backbone import Backbone, head_modules
from fl_app.fomo.blob import content_hash
from fl_app.fomo.soft_prompt import PromptSpec
from fl_app.prompts.advert import Advert, advert_of
from fl_app.prompts.fit import Fit, fit_of
from fl_app.prompts.member import Card, Member, member_of
from fl_app.prompts.packing import pack
from fl_app.seeding import generator
from tests.fixtures_models import DEPTH, LABELS, MAX_LENGTH, TinyModels, logits_of

CLASSES = "sequence_classification"
SMALL_FIT = Fit("m" * 64, "t" * 64, 4, 6, 50.0)
"""A model that exists in name only."""


def fit_for(backbone: Backbone) -> Fit:
    """Returns what a tiny model takes."""
    return fit_of(backbone, max_length=MAX_LENGTH, max_tokens=12)


def card_for(fit: Fit, device: int = 0, **fields: Any) -> Card:
    """Returns a card that fits."""
    own = {"model_hash": fit.model_hash, "tokenizer_hash": fit.tokenizer_hash, "device": device}
    return Card(**{**own, "task": "t", "round": 1, **fields})


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


def easy_rows(num_rows: int, seed: int = 0, *, flipped: bool = False) -> Examples:
    """Draws texts whose label is told by their words: every class has ten words of its own.

    ``flipped`` gives each text the label of the next class.
    """
    rng, texts, labels = generator(seed, "easy"), list[str](), list[str]()
    for row in range(num_rows):
        label = row % len(LABELS)
        words = rng.integers(0, 10, int(rng.integers(3, 8))) + 10 * label
        texts.append(" ".join(f"w{word}" for word in words))
        labels.append(LABELS[(label + flipped) % len(LABELS)])
    return Examples({"text": texts, "label": labels})


def settings(**changes: object) -> LocalTuning:
    """Returns settings that learn ``easy_rows`` in a few dozen steps."""
    plain: dict[str, Any] = {
        "epochs": 20,
        "max_steps": 80,
        "batch_size": 12,
        "lr": 0.05,
        "head_lr": 0.05,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "logit_adjustment": 0.0,
        "proximal_mu": 0.0,
    }
    return LocalTuning(**{**plain, **changes})


def tuned_member(
    tiny: TinyModels,
    seed: int,
    *,
    flipped: bool = False,
    num_tokens: int = 4,
    num_rows: int = 48,
    **changes: object,
) -> Member:
    """Tunes a member of the tiny BERT on easy rows of its own, right or flipped."""
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    fit = fit_for(backbone)
    start = drawn_member(fit, num_tokens, seed, with_head=True)
    adapter = prompted(backbone, start)
    encoded = task.encode(easy_rows(num_rows, seed, flipped=flipped))
    rng = generator(seed, "tune")
    tune(adapter.model, adapter.parameters, task, encoded, settings(**changes), rng)
    return member_of(adapter.read(), card_for(fit, seed))


def shelf_on(num: int) -> dict[str, tuple[Advert, bytes]]:
    """Returns prompts of nobody's model, packed and advertised, by the hash of the blob."""
    shelf = {}
    for seed in range(num):
        member = drawn_member(SMALL_FIT, 3, seed)
        blob = pack(member)
        shelf[content_hash(blob)] = advert_of(member.card, blob, member.prompt.mean(0)), blob
    return shelf
