"""Federations by gradient download: what devices tune is what they would with the whole model."""

import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.bench import Bench
from fl_app.fomo.adapter import is_head
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.fomo.trunk import Held, Trunk
from fl_app.local_grid import ThreadedGrid
from fl_app.material import load_material
from fl_app.updates import Update
from tests.exchange_fixtures import nothing_left_behind
from tests.federation_fixtures import NUM_DEVICES, Player, player, tiny_federation
from tests.gradient_fixtures import STEPS, VARIANTS, WHOLE, equal_bits, play, relative, words_of
from tests.oracles.adamw import tuned
from tests.oracles.central_gradient import prompt_gradient

__all__ = ["player", "tiny_federation"]

ONE_BATCH = (
    "strategy.num_rounds=1",
    "finetune.max_steps=1",
    "finetune.batch_size=64",
    "data.partition.kind=quantity",
)
"""One step on all rows of every device; devices have different numbers of them."""
ROUNDING = 1e-5
"""Float32 sums in another order, relative to the step: some ten roundings (6e-8) of each of the
gradient's terms, which cancel to about a tenth of their size."""


@pytest.mark.parametrize("labels", ["private", "server"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_federation_with_the_whole_model_on_every_device(
    player: Player, variant: str, labels: str
) -> None:
    """Two rounds of three AdamW steps; only the order of float32 sums differs."""
    there = play(player, *words_of(variant, f"strategy.labels={labels}"))
    whole = player.play(*WHOLE[variant], *STEPS)
    assert [r.devices for r in there.outcome.rounds] == [r.devices for r in whole.outcome.rounds]
    assert relative(there.adapter, whole.outcome.adapter, whole.start) < 6 * ROUNDING  # steps
    for ours, theirs in zip(there.outcome.rounds[1:], whole.outcome.rounds[1:], strict=True):
        assert ours.metrics["train_loss"] == pytest.approx(theirs.metrics["train_loss"], rel=1e-5)


@pytest.mark.parametrize("variant", ["prompt", "cut"])
def test_rates_fall_as_with_the_whole_model(player: Player, variant: str) -> None:
    """To a twentieth, over rounds and local steps; one step too early or late is a third off."""
    falling = ("finetune.lr_final=0.05", "strategy.labels=private")
    there = play(player, *words_of(variant, *falling))
    whole = player.play(*WHOLE[variant], *STEPS, *falling[:1])
    assert relative(there.adapter, whole.outcome.adapter, whole.start) < 6 * ROUNDING


# --- one large batch ---------------------------------------------------------------------------


def _all_rows(bench: Bench) -> dict[str, torch.Tensor]:
    """Every device's rows as one batch."""
    material = load_material(bench.config)
    sizes = [len(material.of_device(device)) for device in range(NUM_DEVICES)]
    assert len(set(sizes)) > 1
    encoded = bench.task.encode(material.train)
    assert len(encoded) == sum(sizes)
    return bench.task.batch(encoded, range(len(encoded)))


def _central_gradient(bench: Bench, start: Update, variant: str) -> Update:
    """PEFT's own gradient of the mean loss over all rows, on the whole model."""
    batch = _all_rows(bench)
    if variant != "prompt":
        bench.full.write(start)
        bench.task.loss(bench.full.model, batch).backward()
        found = {n: p.grad.numpy().copy() for n, p in bench.full.parameters.items()}  # type: ignore[union-attr]
        for parameter in bench.full.parameters.values():
            parameter.grad = None
        return found
    state = bench.backbone.model.state_dict()
    model = type(bench.backbone.model)(bench.backbone.model.config)
    model.load_state_dict(state)
    prompt = torch.from_numpy(start[PROMPT_NAME].copy())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"base_model.model.{name}" in start:
                parameter.copy_(torch.from_numpy(start[f"base_model.model.{name}"]))
    _, gradients = prompt_gradient(model, "sequence_classification", prompt, batch)
    named = {f"base_model.{n}": g.numpy() for n, g in gradients.items() if n != "prompt"}
    wanted = {name.replace("base_model.model.", "base_model."): name for name in start}
    return {PROMPT_NAME: gradients["prompt"].numpy()} | {
        wanted[name]: g for name, g in named.items() if name in wanted
    }


@pytest.mark.parametrize("labels", ["private", "server"])
@pytest.mark.parametrize("variant", ["prompt", "lora"])
def test_a_shared_gradient_is_one_central_step_on_everybodys_rows(
    player: Player, variant: str, labels: str
) -> None:
    words = ("strategy.shared_gradient=true", f"strategy.labels={labels}", *ONE_BATCH)
    played = play(player, *words_of(variant, *words))
    gradient = _central_gradient(played.bench, played.start, variant)
    assert set(gradient) == set(played.start)
    rates = {name: 0.05 if is_head(name) else 0.01 for name in gradient}
    wanted, norms = tuned(
        played.start,
        lambda _now, _step: {n: g.astype(np.float64) for n, g in gradient.items()},
        rates,
        num_steps=1,
        eps=1e-3,
        weight_decay=0.0,
        clip_norm=1.0,
        proximal_mu=0.0,
    )
    assert norms[0] > 0
    assert relative(played.adapter, wanted, played.start) < ROUNDING  # type: ignore[arg-type]
    unshared = play(player, *words_of(variant, f"strategy.labels={labels}", *ONE_BATCH))
    assert relative(unshared.adapter, wanted, played.start) > 100 * ROUNDING  # type: ignore[arg-type]


# --- bounds, order, transport ------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers of device graphs that were alive after each forward pass."""
    alive: list[weakref.ref[torch.Tensor]] = []
    counts: list[int] = []
    forward = Trunk.forward

    def watched(trunk: Trunk, *given: Any, **named: Any) -> Held:
        result = forward(trunk, *given, **named)
        assert result._graph is not None
        alive.extend(weakref.ref(state) for state in result._graph[0])
        counts.append(sum(ref() is not None for ref in alive))
        return result

    monkeypatch.setattr(Trunk, "forward", watched)
    yield counts
    assert not [ref for ref in alive if ref() is not None]  # nothing is held behind the round


@pytest.mark.parametrize("variant", VARIANTS)
def test_devices_in_chunks_give_the_same_adapter(
    player: Player, variant: str, held: list[int]
) -> None:
    made = {}
    for most in (1, 2, NUM_DEVICES):
        words = (f"strategy.max_in_flight={most}", "strategy.num_rounds=1")
        played = play(player, *words_of(variant, *words))
        made[most] = played.adapter
        assert held == [most] * (3 * NUM_DEVICES // most)  # three steps
        held.clear()
    for most in (1, 2):
        assert relative(made[most], made[NUM_DEVICES], played.start) < 3 * ROUNDING


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("features", ["float32", "int8"])
def test_the_order_of_answers_does_not_matter(player: Player, variant: str, features: str) -> None:
    words = words_of(variant, f"strategy.features={features}", "strategy.num_rounds=1")
    plain, *shuffled = (play(player, *words, shuffle=seed).adapter for seed in (None, 1, 2))
    assert all(equal_bits(plain, other) for other in shuffled)
    other = play(player, *words, "seed=1").adapter
    assert not equal_bits(plain, other)


@pytest.mark.parametrize(
    ("variant", "labels"), [("prompt", "private"), ("cut", "server"), ("lora", "private")]
)
def test_streams_and_messages_give_the_same_bits(player: Player, variant: str, labels: str) -> None:
    words = words_of(variant, f"strategy.labels={labels}", "strategy.max_in_flight=3")
    messages = play(player, *words)
    with nothing_left_behind():
        streams = play(player, *words, "strategy.transport=stream", grid_type=ThreadedGrid)
    assert equal_bits(messages.adapter, streams.adapter)
    assert messages.outcome.ledger.as_dict() == streams.outcome.ledger.as_dict()
    assert [dataclasses.replace(r, seconds=0.0) for r in messages.outcome.rounds] == [
        dataclasses.replace(r, seconds=0.0) for r in streams.outcome.rounds
    ]
