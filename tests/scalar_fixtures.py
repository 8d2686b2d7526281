"""Tiny federations tuned by scalars; everything that crosses the wire is kept, or spoilt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from flwr.app import Error, Message

from fl_app import step_wire
from fl_app.bench import Bench
from fl_app.client_app import app
from fl_app.job import Outcome, federate
from fl_app.payload import Payload, read_payload
from fl_app.updates import Update
from tests.fakes import FaultyGrid
from tests.federation_fixtures import Player

SCALAR = (
    "strategy=gradient_download",
    "strategy.variant=scalar",
    "strategy.wire_dtype=float32",
    "strategy.left=1",
    "strategy.right=1",
    "strategy.scalar.lr=0.03",
    "finetune.max_steps=3",
)
LABELS = ("private", "server")
Spoil = Callable[[Payload], Payload | None]
"""What becomes of an answer; None: the device raises."""


@dataclass(frozen=True)
class Crossing:
    """One exchange with one device."""

    round: int
    device: int
    sent: bytes
    received: bytes

    @property
    def down(self) -> Payload:
        """What the server sent."""
        return read_payload(self.sent, max_bytes=2**28)

    @property
    def up(self) -> Payload:
        """What the device answered, before it was spoilt."""
        return read_payload(self.received, max_bytes=2**28)


class SpoiltGrid(FaultyGrid):
    """Keeps all exchanges, and spoils answers by (round, device, kind)."""

    def __init__(
        self, *args: Any, spoil: Mapping[tuple[int, int, str], Spoil], **named: Any
    ) -> None:
        super().__init__(*args, **named)
        self._spoil = dict(spoil)
        self.crossings: list[Crossing] = []

    def deliver(self, message: Message) -> list[Message]:
        if message.metadata.message_type != step_wire.ACTION_STEP:
            return super().deliver(message)
        order = step_wire.read_step(message)
        replies = super().deliver(message)
        if replies[0].has_error():
            return replies
        answer = step_wire.read_answer(replies[0], order)
        self.crossings.append(Crossing(order.round, order.device, order.blob, answer))
        payload = read_payload(answer, max_bytes=2**28)
        spoil = self._spoil.get((order.round, order.device, payload.kind))
        if spoil is None:
            return replies
        spoilt = spoil(payload)
        if spoilt is None:
            return [Message(Error(2, "it raised"), reply_to=message)]
        return [step_wire.step_reply(message, order, spoilt.to_blob())]


@dataclass(frozen=True)
class Tuned:
    """What a federation left behind."""

    bench: Bench
    start: Update
    outcome: Outcome
    grid: SpoiltGrid

    def of(self, server_round: int, device: int) -> list[Crossing]:
        """Exchanges of a device in a round, in their order."""
        crossings = self.grid.crossings
        return [c for c in crossings if (c.round, c.device) == (server_round, device)]

    def dropped(self, server_round: int) -> dict[str, list[int]]:
        """Devices dropped in a round, by reason."""
        return {r: list(d) for r, d in self.outcome.rounds[server_round].dropped.items()}

    def devices(self, server_round: int) -> list[int]:
        """Devices aggregated in a round."""
        return list(self.outcome.rounds[server_round].devices)


def tune(
    player: Player,
    *more: str,
    spoil: Mapping[tuple[int, int, str], Spoil] | None = None,
    shuffle: int | None = None,
) -> Tuned:
    """Runs one federation to its end."""
    overrides = player.tiny.overrides(*SCALAR, *more)
    bench, start = player.bench(overrides)
    grid = SpoiltGrid(
        app,
        num_nodes=bench.config.federation.num_devices,
        run_config={"overrides": overrides, "reference": ""},
        shuffle=shuffle,
        spoil=spoil or {},
    )
    with grid, patch.multiple("strategies.roster", _SETTLE_S=0.02, _POLL_S=0.01):
        outcome = federate(grid, bench, measure_rounds=False)
    return Tuned(bench, start, outcome, grid)


def scalars(**changes: Any) -> Spoil:
    """The answer says something else."""
    return lambda payload: replace(payload, scalars={**payload.scalars, **changes})


def arrays(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    """The answer carries other arrays."""
    return lambda payload: replace(payload, arrays=change(dict(payload.arrays)))
