"""Hostile prompts at the gate of a federation's devices; loss and damage on the way."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from flwr.app import Message
from numpy.typing import NDArray

from fl_app import step_wire
from fl_app.errors import WireError
from fl_app.features_wire import MAX_BYTES, FeatureWire
from fl_app.fomo.blob import content_hash
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.payload import Payload, read_payload
from fl_app.prompts.advert import read_advert
from fl_app.prompts.packing import unpack
from fl_app.records import blob_of
from fl_app.seeding import generator
from fl_app.transfer_wire import bytes_of, octets
from strategies.feature_server import FeatureServer
from tests.federation_fixtures import CLASSES, Player
from tests.gradient_fixtures import GradientPlayed, Place, Spoil, lying, on, play, rewritten
from tests.transfer_fixtures import (
    NUM_DEVICES,
    PHASE,
    Seen,
    central_loss,
    device_rows,
    transfer_player,
    transfer_words,
)

__all__ = ["transfer_player"]
Prompt = NDArray[np.float32]
_STEPS = 60
_LOSS_OF = {"rolled-back": "loss_own", "zero-shot": "loss_candidate", "tuned": "loss_tuned"}
"""Of what is in use after a transfer ended so."""


@pytest.fixture(scope="module")
def honest(transfer_player: Player) -> GradientPlayed:
    return play(transfer_player, *transfer_words())


def _tuned_on_flipped_labels(honest: GradientPlayed, start: Prompt) -> Prompt:
    """What a poisoner tunes on device 0's own rows and the head of that round."""
    full, task = honest.bench.full, honest.bench.task
    full.write(Seen(honest).adapter() | {PROMPT_NAME: start})
    prompt = full.parameters[PROMPT_NAME]
    encoded, rows = device_rows(honest, 0)
    flipped = [(target + 1) % len(CLASSES) for target in encoded.targets]
    poisoned = dataclasses.replace(encoded, targets=flipped)
    optimiser = torch.optim.AdamW([prompt], lr=0.05)
    batch, losses = task.batch(poisoned, rows.tuned), []
    for _ in range(_STEPS):
        loss = task.loss(full.model, batch)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]  # it has learnt what is wrong
    return prompt.detach().numpy().copy()


def _hostile(honest: GradientPlayed) -> dict[int, Callable[[Prompt], Prompt]]:
    def random(prompt: Prompt) -> Prompt:
        drawn = generator(0, "hostile").normal(0, prompt.std(), prompt.shape)
        return drawn.astype(np.float32)

    def with_nan(prompt: Prompt) -> Prompt:
        return np.where(np.arange(prompt.size).reshape(prompt.shape) == 0, np.nan, prompt)

    start = Seen(honest).prompts()[5].prompt.copy()
    return {
        1: random,
        2: lambda prompt: -prompt,
        3: lambda prompt: np.float32(1e6) * prompt,
        4: with_nan,
        5: lambda _prompt: _tuned_on_flipped_labels(honest, start),
    }


def _poisoning(hostile: dict[int, Callable[[Prompt], Prompt]]) -> Spoil:
    """Hostile devices advertise and give another prompt than their own, well packed."""
    blobs: dict[int, bytes] = {}

    def spoil(place: Place, sent: Message, reply: Message) -> list[Message]:
        if place.device not in hostile or place.kind not in ("advertise", "give"):
            return [reply]
        order = step_wire.read_step(sent)
        if place.kind == "give":
            given = Payload("given", 0, {}, {"given": octets(blobs[place.device])})
            return [rewritten(sent, order, given.to_blob())]
        payload = read_payload(
            blob_of(reply.content.array_records[step_wire.STEP_BLOB]), max_bytes=MAX_BYTES
        )
        advert = read_advert(bytes_of(payload, "advert", 10**6))
        prompt = np.asarray(hostile[place.device](Seen(_HONEST[0]).prompts()[place.device].prompt))
        blobs[place.device] = _packed_like(
            Seen(_HONEST[0]).blob(place.device), prompt.astype(np.float32)
        )
        changed = dataclasses.replace(
            advert,
            blob_hash=content_hash(blobs[place.device]),
            num_bytes=len(blobs[place.device]),
        )
        told = Payload("advert", 0, {}, {"advert": octets(changed.to_blob())})
        return [rewritten(sent, order, told.to_blob())]

    return spoil


_HONEST: list[GradientPlayed] = []


def _packed_like(blob: bytes, prompt: Prompt) -> bytes:
    """Packs without the checks of ``pack``."""
    payload = read_payload(blob, max_bytes=10**6)
    (name,) = payload.arrays
    return dataclasses.replace(payload, arrays={name: prompt}).to_blob()


def test_no_hostile_prompt_passes_the_gate(transfer_player: Player, honest: GradientPlayed) -> None:
    """Five of eight devices are hostile, everybody asks everybody, and only honest ones pass."""
    _HONEST[:] = [honest]
    hostile = _hostile(honest)
    played = play(transfer_player, *transfer_words(), spoil=_poisoning(hostile))
    records = Seen(played).records
    passed = {record["source"] for record in records.values()} - {None}
    assert passed
    assert not passed & set(hostile)
    before = {record["source"] for record in Seen(honest).records.values()}
    assert before & set(hostile)  # their honest prompts did pass
    for device, record in records.items():
        assert record["asked"] == [d for d in range(NUM_DEVICES) if d != device]
        refused = sorted({"huge-norm": 3, "not-finite": 4}.items())
        assert sorted(record["refused"]) == [name for name, d in refused if d != device]
        if record["action"] != "kept":
            assert record[_LOSS_OF[record["action"]]] <= record["loss_own"]


def _changed_byte(payload: Payload) -> Payload:
    given = payload.arrays["given"].copy()
    given[-1] ^= 1
    return dataclasses.replace(payload, arrays={"given": given})


@pytest.mark.parametrize(
    ("fault", "reason", "dropped"),
    [
        (lambda _sent, _reply: [], "lost", {"silent": [3]}),
        (lying(_changed_byte), "wrong-hash", {}),
        (lying(lambda p: dataclasses.replace(p, arrays={})), "lost", {}),
        (lying(lambda p: dataclasses.replace(p, kind="gift")), "lost", {"wrong-kind": [3]}),
    ],
)
def test_what_is_lost_or_damaged_on_the_way_is_thrown_away(
    transfer_player: Player, fault: Any, reason: str, dropped: dict[str, list[int]]
) -> None:
    words = transfer_words("finetune.max_steps=1", "strategy.exchange_timeout_s=1")
    with patch("logging.Logger.warning"):
        played = play(
            transfer_player, *words, spoil=on("give", fault, devices=(3,), rounds=(PHASE,))
        )
    assert played.dropped(PHASE) == dropped
    lost = {d for devices in dropped.values() for d in devices}
    for device, record in Seen(played).records.items():
        assert record["refused"] == ([reason] if device != 3 and device not in lost else [])
        assert record["source"] != 3
    assert played.devices(PHASE) == sorted(set(range(NUM_DEVICES)) - lost)


def test_a_candidate_that_cannot_travel_costs_nobody_the_round(transfer_player: Player) -> None:
    """The first candidate of every trial overflows its coding; the others are measured as ever."""
    whole, coded = FeatureWire.code, list[str]()

    def code(self: FeatureWire, name: str, *given: Any, **named: Any) -> Any:
        coded.append(name)
        if coded[-3:] == ["hidden0", "prompt", "prompt"] and not named:
            raise WireError("overflow", "too large for half precision")
        return whole(self, name, *given, **named)

    words = transfer_words("finetune.max_steps=1")
    with patch.object(FeatureWire, "code", code):
        played = play(transfer_player, *words)
    assert played.dropped(PHASE) == {}
    seen = Seen(played)
    for device, record in seen.records.items():
        assert record["source"] != record["asked"][0]
        encoded, rows = device_rows(played, device)
        losses = [
            central_loss(played, seen.adapter(), seen.prompts()[s].prompt, encoded, rows.probe)
            for s in record["asked"][1:]
        ]
        assert record["probe_candidate"] == pytest.approx(min(losses), abs=2e-5)
    for one in seen.of("try").values():
        names = {name.partition("|")[0] for name in one.up[0].arrays if "|" in name}
        assert names == {f"candidate{k}" for k in range(2, NUM_DEVICES)}


def test_a_candidate_that_breaks_the_blocks_costs_nobody_the_round(transfer_player: Player) -> None:
    whole = FeatureServer.states

    def states(self: FeatureServer, given: torch.Tensor, number: int, device: int, k: int) -> Any:
        return whole(self, given * (torch.nan if k == -2 else 1.0), number, device, k)

    words = transfer_words("finetune.max_steps=1")
    with patch.object(FeatureServer, "states", states):
        played = play(transfer_player, *words)
    assert played.dropped(PHASE) == {}
    for record in Seen(played).records.values():
        assert record["source"] != record["asked"][0]
        assert record["probe_candidate"] is not None


def _with_candidates(numbers: Sequence[object]) -> Callable[[Payload], Payload]:
    def changed(payload: Payload) -> Payload:
        prompt = payload.arrays["prompt.values"]
        more = {f"candidate{i}|prompt.values": prompt for i in numbers}
        return dataclasses.replace(payload, arrays={**payload.arrays, **more})

    return changed


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [(range(1, NUM_DEVICES + 2), "too-large"), ([900], "too-large"), (["9" * 5000], "missing")],
    ids=["many", "high", "long"],
)
def test_nobody_has_the_server_measure_more_than_was_asked_for(
    transfer_player: Player, numbers: Sequence[object], reason: str
) -> None:
    words = transfer_words("finetune.max_steps=1")
    spoil = on("try", lying(_with_candidates(numbers)), rounds=(PHASE,))
    with patch("logging.Logger.warning"):
        played = play(transfer_player, *words, spoil=spoil)
    assert played.dropped(PHASE) == {reason: [1]}
    assert played.devices(PHASE) == [d for d in range(NUM_DEVICES) if d != 1]


def test_a_prompt_is_the_one_its_owner_uses(honest: GradientPlayed) -> None:
    """What is given is, bit for bit, what enters the model in the owner's next local step."""
    seen = Seen(honest)
    for device, one in seen.of("try").items():
        (features,) = {step.tobytes() for step in [one.up[0].arrays["prompt.values"]]}
        others = [
            other.up[0].arrays[name].tobytes()
            for asker, other in seen.of("try").items()
            for i, source in enumerate(seen.records[asker]["asked"], start=1)
            if source == device
            for name in (f"candidate{i}|prompt.values",)
        ]
        assert len(others) == NUM_DEVICES - 1
        assert set(others) == {features}
    assert unpack(seen.blob(0), max_bytes=10**6).num_tokens == 3
