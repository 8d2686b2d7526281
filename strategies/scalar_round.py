"""One round of tuning by scalars: all devices' local steps in lockstep.

Where the server has the labels it needs a device twice, for its seeds and to tell it the slopes;
with private labels every step is one exchange more: both sides' outputs down, their slope up.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fl_app import scalar_wire
from fl_app.errors import DeftError, ModelError, WireError
from fl_app.features_wire import FEATURES, UPDATE
from fl_app.payload import Payload
from fl_app.scalar_wire import Opening
from fl_app.seed_pool import SeedPool, Walk
from fl_app.updates import Update
from fl_app.zeroth_order import scalar
from strategies.conversation import Book, Conversation, chunks
from strategies.exchange import Exchange
from strategies.feature_cache import FeatureCache
from strategies.feature_server import Arrived
from strategies.round_log import RoundLog
from strategies.scalar_server import ScalarServer

Sides = tuple[torch.Tensor, torch.Tensor]
_UPLINK = {
    FEATURES: "features",
    scalar_wire.SEEDS: "update",
    scalar_wire.SLOPE: "slopes",
    UPDATE: "update",
}


@dataclass(frozen=True)
class ScalarPlan:
    """How a round goes.

    Attributes:
        labels_at_server: the loss is computed here; otherwise outputs go down, slopes come up.
        max_in_flight: devices in one pass (with both sides of each), >= 1.
        timeout_s: seconds for one exchange.
        lr: learning rate of theta - lr g z.
        eps: step of the two-point estimate.
    """

    labels_at_server: bool
    max_in_flight: int
    timeout_s: float
    lr: float
    eps: float


@dataclass(frozen=True)
class Walked:
    """One device's round: its steps, and its last word."""

    walk: Walk
    last: Payload


class ScalarRound:
    """Runs one round.

    Args:
        server: computes.
        exchange: the way to the devices.
        plan: how the round goes.
        pool: of directions.
        cache: devices' features.
        number: server round.
        log: devices lost are booked here.
        book: bytes are booked here.
    """

    def __init__(
        self,
        server: ScalarServer,
        exchange: Exchange,
        plan: ScalarPlan,
        *,
        pool: SeedPool,
        cache: FeatureCache,
        number: int,
        log: RoundLog,
        book: Book,
    ) -> None:
        self._server, self._plan, self._pool, self._cache = server, plan, pool, cache
        self._losses: dict[int, list[float]] = {}
        self._talk = Conversation(
            exchange, timeout_s=plan.timeout_s, number=number, log=log, book=book, uplink=_UPLINK
        )

    def run(self, openings: Mapping[int, Opening], adapter: Update) -> dict[int, Walked]:
        """Runs all local steps.

        Args:
            openings: what opens each device's round.
            adapter: what they stand for; the same for all.

        Returns:
            What every device that came through made.
        """
        answers = self._talk.send({d: o.to_payload() for d, o in openings.items()}, "adapter")
        walks, batches = self._started(answers, adapter)
        step = 0
        while active := {d: walk for d, walk in walks.items() if not walk.is_done}:
            slopes = self._step(active, {d: batches[d][step] for d in active}, step)
            walks = {
                device: walk
                for device, walk in walks.items()
                if walk.is_done or self._moved(device, walk, slopes)
            }
            step += 1
        last = self._talk.send({d: self._close(d, walk) for d, walk in walks.items()}, "gradient")
        return {d: Walked(walks[d], word) for d, word in last.items() if self._is_last(d, word)}

    def _started(
        self, answers: Mapping[int, Payload], adapter: Update
    ) -> tuple[dict[int, Walk], dict[int, Sequence[Arrived]]]:
        """Reads seeds, and features where they came along."""
        digest = scalar_wire.digest(adapter)
        walks, batches = {}, {}
        for device, payload in answers.items():
            try:
                start = scalar_wire.read_start(payload, num_seeds=len(self._pool), adapter=digest)
                if start.batches:
                    arrived = self._server.read(start, with_labels=self._plan.labels_at_server)
                    self._cache.keep(device, arrived, busy=answers)
                batches[device] = self._kept(device, len(start.seeds))
            except WireError as error:
                self._talk.drop(device, error)
                continue
            seeds = [self._pool.seeds[place] for place in start.seeds]
            walks[device] = Walk(adapter, seeds, lr=self._plan.lr, eps=self._plan.eps)
        return walks, batches

    def _kept(self, device: int, num_steps: int) -> Sequence[Arrived]:
        if not self._cache.holds(device):
            raise WireError("missing", "it was asked for its features and sent none")
        batches = self._cache.use(device)
        if len(batches) != num_steps:
            self._cache.forget(device)  # other rows than those it has now: it sends them again
            raise WireError("wrong-shape", f"{num_steps} seeds for {len(batches)} batches")
        return batches

    def _step(
        self, walks: Mapping[int, Walk], batches: Mapping[int, Arrived], step: int
    ) -> dict[int, float]:
        """Returns the slopes of one step of every device that has one."""
        outputs: dict[int, Sides] = {}
        for chunk in chunks(sorted(walks), self._plan.max_in_flight):
            adapters = [side for device in chunk for side in walks[device].sides()]
            inputs = [batches[device] for device in chunk for _ in range(2)]
            found = self._server.outputs(inputs, adapters)
            outputs |= {device: (found[2 * i], found[2 * i + 1]) for i, device in enumerate(chunk)}
        if self._plan.labels_at_server:
            return self._computed(outputs, batches)
        return self._asked(outputs, batches, step)

    def _computed(
        self, outputs: Mapping[int, Sides], batches: Mapping[int, Arrived]
    ) -> dict[int, float]:
        slopes = {}
        for device, sides in outputs.items():
            try:
                plus, minus = (self._server.loss(batches[device], side) for side in sides)
                slopes[device] = scalar(plus, minus, self._plan.eps)
                self._losses.setdefault(device, []).append((plus + minus) / 2)
            except DeftError as error:
                self._cache.forget(device)
                self._talk.drop(device, _wire(error))
        return slopes

    def _asked(
        self, outputs: Mapping[int, Sides], batches: Mapping[int, Arrived], step: int
    ) -> dict[int, float]:
        answers = self._talk.send(
            {
                device: scalar_wire.sides(step, *sides, self._server.readout(batches[device]))
                for device, sides in outputs.items()
            },
            "states",
        )
        slopes = {}
        for device, payload in answers.items():
            try:
                slopes[device] = scalar_wire.read_slope(payload, step)
            except WireError as error:
                self._talk.drop(device, error)
        return slopes

    def _moved(self, device: int, walk: Walk, slopes: Mapping[int, float]) -> bool:
        """Makes a device's step; tells whether it goes on."""
        if device not in slopes:
            return False
        try:
            walk.step(slopes[device])
        except ModelError as error:
            self._talk.drop(device, _wire(error))
            return False
        return True

    def _close(self, device: int, walk: Walk) -> Payload:
        losses = self._losses.get(device)
        return scalar_wire.close(
            [pair.coefficient for pair in walk.pairs],
            None if losses is None else math.fsum(losses) / len(losses),
        )

    def _is_last(self, device: int, payload: Payload) -> bool:
        try:
            scalar_wire.require_kind(payload, UPDATE)
        except WireError as error:
            self._talk.drop(device, error)
            return False
        return True


def _wire(error: DeftError) -> WireError:
    """Returns the error with a reason for the books."""
    match error:
        case WireError():
            return error
        case _:
            return WireError("not-finite", str(error))
