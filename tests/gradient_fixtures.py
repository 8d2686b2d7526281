"""Federations by gradient download whose every exchange is recorded, and spoiled on demand."""

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from flwr.app import Message

from fl_app import front_wire, step_wire
from fl_app.bench import Bench
from fl_app.client_app import app
from fl_app.features_wire import MAX_BYTES
from fl_app.job import Outcome, federate
from fl_app.local_grid import LocalGrid
from fl_app.payload import Payload, read_payload
from fl_app.records import blob_of, to_blob
from fl_app.step_wire import StepOrder
from fl_app.updates import Update
from tests.fakes import Fault, FaultyGrid
from tests.federation_fixtures import Player

GRADIENT = ("strategy=gradient_download", "strategy.wire_dtype=float32")
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("strategy.variant=prompt", "peft=prompt", "peft.num_tokens=3"),
    "cut": ("strategy.variant=cut", "strategy.cut=2"),
    "lora": ("strategy.variant=lora", "strategy.left=1", "strategy.right=1"),
}
WHOLE: Mapping[str, tuple[str, ...]] = {
    "prompt": ("peft=prompt", "peft.num_tokens=3", "strategy.emulator.middle=-1"),
    "cut": (
        "strategy.emulator.left=2",
        "strategy.emulator.right=0",
        "strategy.emulator.middle=-1",
    ),
    "lora": ("strategy.emulator.middle=-1",),
}
"""The same federation with the whole model on every device."""
STEPS = ("finetune.max_steps=3", "finetune.eps=1e-3")
"""An eps well above float32's noise: AdamW then is a smooth function of the gradient."""


@dataclasses.dataclass(frozen=True)
class Place:
    """One exchange: round, device, what the device was sent, and at which local step."""

    round: int
    device: int
    kind: str
    step: int


@dataclasses.dataclass(frozen=True)
class Exchanged:
    """One exchange as it crossed the wire; answers are empty where the device said nothing."""

    place: Place
    sent: bytes
    received: Sequence[bytes]

    @property
    def down(self) -> Payload:
        """What the device was sent."""
        return read_payload(self.sent, max_bytes=MAX_BYTES)

    @property
    def up(self) -> list[Payload]:
        """What it answered."""
        return [read_payload(blob, max_bytes=MAX_BYTES) for blob in self.received]


Spoil = Callable[[Place, Message, Message], list[Message]]
"""Turns (place, the server's message, the device's answer) into what the server receives."""


class StepGrid(FaultyGrid):
    """An in-process grid that records every exchange and spoils answers.

    Args:
        *given: see ``FaultyGrid``.
        spoil: what happens to answers.
        **named: see ``FaultyGrid``.
    """

    def __init__(self, *given: Any, spoil: Spoil | None = None, **named: Any) -> None:
        super().__init__(*given, **named)
        self._spoil = spoil or (lambda _place, _sent, reply: [reply])
        self.steps: list[Exchanged] = []
        self.fronts: list[tuple[int, int]] = []
        """(device, bytes) of each part of the model that was sent."""

    def deliver(self, message: Message) -> list[Message]:
        """Delivers, spoils, records."""
        sent = copy.deepcopy(message)
        replies = super().deliver(message)
        match sent.metadata.message_type:
            case front_wire.ACTION_FRONT:
                front = front_wire.read_front(sent)
                self.fronts.append((front.device, len(front.blob)))
                return self._spoil(Place(0, front.device, "front", 0), sent, replies[0])
            case step_wire.ACTION_STEP:
                order = step_wire.read_step(sent)
                payload = read_payload(order.blob, max_bytes=MAX_BYTES)
                place = Place(order.round, order.device, payload.kind, payload.step)
                received = self._spoil(place, sent, replies[0])
                blobs = [
                    blob_of(reply.content.array_records[step_wire.STEP_BLOB])
                    for reply in received
                    if not reply.has_error() and step_wire.STEP_BLOB in reply.content
                ]
                self.steps.append(Exchanged(place, order.blob, blobs))
                return received
            case _:
                return replies


@dataclasses.dataclass(frozen=True)
class GradientPlayed:
    """What a federation left behind."""

    bench: Bench
    start: Update
    outcome: Outcome
    grid: Any

    @property
    def adapter(self) -> Update:
        """The last adapter."""
        return self.outcome.adapter

    def dropped(self, number: int) -> dict[str, list[int]]:
        """Devices dropped in one round, by reason."""
        record = next(r for r in self.outcome.rounds if r.round == number)
        return {reason: list(devices) for reason, devices in record.dropped.items()}

    def devices(self, number: int) -> list[int]:
        """Devices aggregated in one round."""
        return list(next(r for r in self.outcome.rounds if r.round == number).devices)

    def metrics(self, number: int) -> Mapping[str, float | None]:
        """Figures of one round."""
        return next(r for r in self.outcome.rounds if r.round == number).metrics


def words_of(variant: str, *more: str) -> tuple[str, ...]:
    """Returns overrides of a gradient download."""
    return (*GRADIENT, *VARIANTS[variant], *STEPS, *more)


def play(
    player: Player,
    *words: str,
    spoil: Spoil | None = None,
    shuffle: int | None = None,
    num_nodes: int | None = None,
    grid_type: type[LocalGrid] = StepGrid,
    reference: str = "",
    before: Callable[[Bench], None] = lambda _bench: None,
) -> GradientPlayed:
    """Runs one federation to its end; ``before`` sees the server first."""
    overrides = player.tiny.overrides(*words)
    bench, start = player.bench(overrides, reference)
    options: dict[str, Any] = {}
    if issubclass(grid_type, StepGrid):
        options = {"spoil": spoil, "shuffle": shuffle}
    grid = grid_type(
        app,
        num_nodes=num_nodes or bench.config.federation.num_devices,
        run_config={"overrides": overrides, "reference": reference},
        **options,
    )
    before(bench)
    with grid, patch.multiple("strategies.roster", _SETTLE_S=0.02, _POLL_S=0.01):
        outcome = federate(grid, bench, measure_rounds=False)
    return GradientPlayed(bench, start, outcome, grid)


def relative(left: Update, right: Update, start: Update) -> float:
    """Returns ||left - right|| over how far ``right`` moved."""
    off = sum(float(((left[n].astype(np.float64) - right[n]) ** 2).sum()) for n in right)
    way = sum(float(((start[n].astype(np.float64) - right[n]) ** 2).sum()) for n in right)
    assert way > 0
    return float(np.sqrt(off / way))


def equal_bits(left: Update, right: Update) -> bool:
    """Tells whether two adapters are the same, bit for bit."""
    return to_blob(left) == to_blob(right)


# --- spoiling ----------------------------------------------------------------------------------


def on(
    kind: str,
    fault: Fault,
    *,
    devices: Collection[int] = (1,),
    rounds: Collection[int] = (1,),
    step: int = 0,
) -> Spoil:
    """Applies a fault to the answers of these devices to one kind of message; others are honest."""

    def spoil(place: Place, sent: Message, reply: Message) -> list[Message]:
        is_meant = place.kind == kind and place.device in devices
        is_now = place.round in rounds and place.step == step
        return fault(sent, reply) if is_meant and is_now else [reply]

    return spoil


def lying(change: Callable[[Payload], Payload]) -> Fault:
    """The device answers with another payload, well packed."""

    def fault(sent: Message, reply: Message) -> list[Message]:
        order = step_wire.read_step(sent)
        blob = blob_of(reply.content.array_records[step_wire.STEP_BLOB])
        changed = change(read_payload(blob, max_bytes=MAX_BYTES)).to_blob()
        return [rewritten(sent, order, changed)]

    return fault


def rewritten(sent: Message, order: StepOrder, blob: bytes) -> Message:
    """Returns an answer with another blob and a checksum that fits."""
    return step_wire.step_reply(sent, order, blob)


def arrays(**changed: Callable[[Any], Any] | None) -> Callable[[Payload], Payload]:
    """Changes arrays by name (``__`` stands for a dot); None takes one away."""

    def change(payload: Payload) -> Payload:
        found = dict(payload.arrays)
        for key, make in changed.items():
            name = key.replace("__", ".")
            if make is None:
                del found[name]
            else:
                found[name] = make(found.get(name))
        return dataclasses.replace(payload, arrays=found)

    return change
