"""One round of tuning by scalars: all devices' local steps in lockstep.

Where the server has the labels it needs a device twice, for its seeds and to tell it the slopes;
with private labels every step is one exchange more: both sides' outputs down, their slope up.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fl_app import scalar_wire
from fl_app.errors import ModelError, WireError
from fl_app.features_wire import FEATURES, UPDATE, require_kind
from fl_app.payload import Payload
from fl_app.scalar_wire import Opening
from fl_app.seed_pool import SeedPool, Walk
from fl_app.updates import Update
from fl_app.zeroth_order import scalar
from strategies.conversation import Book, Conversation, chunks
from strategies.exchange import Exchange
from strategies.feature_cache import FeatureCache
from strategies.feature_reader import Arrived
from strategies.round_log import RoundLog
from strategies.scalar_server import ScalarServer

Sides = tuple[torch.Tensor, torch.Tensor]
Begun = tuple[Walk, Sequence[Arrived]]
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
        max_steps: the most local steps a device may make, >= 1.
    """

    labels_at_server: bool
    max_in_flight: int
    timeout_s: float
    lr: float
    eps: float
    max_steps: int


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
        self._errors: list[float] = []
        self._log = log
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
        digest = scalar_wire.digest(adapter)

        def begun(device: int, payload: Payload) -> Begun:
            seeds, batches = self._begun(device, payload, digest, set(answers))
            return Walk(adapter, seeds, lr=self._plan.lr, eps=self._plan.eps), batches

        found = self._talk.each(answers, begun)
        if self._errors:
            self._log.metrics["feature_error"] = float(np.mean(self._errors))
        walks = {device: walk for device, (walk, _) in found.items()}
        step = 0
        while active := {d: walk for d, walk in walks.items() if not walk.is_done}:
            slopes = self._step(active, {d: found[d][1][step] for d in active}, step)
            moved = self._talk.each({d: (active[d], slopes[d]) for d in slopes}, _moved)
            walks = {d: walk for d, walk in walks.items() if d not in active or d in moved}
            step += 1
        last = self._talk.send({d: self._close(d, walk) for d, walk in walks.items()}, "gradient")
        return {d: Walked(walks[d], word) for d, word in self._talk.each(last, _last).items()}

    # --- what is done for one device, and may fail for it alone -------------------------------

    def _begun(
        self, device: int, payload: Payload, digest: str, busy: Collection[int]
    ) -> tuple[list[int], Sequence[Arrived]]:
        """Reads seeds, and features where they came along; returns both."""
        start = scalar_wire.read_start(payload, num_seeds=len(self._pool), adapter=digest)
        most = self._plan.max_steps
        if len(start.seeds) > most:
            raise WireError("wrong-step", f"{len(start.seeds)} seeds, at most {most} local steps")
        if start.batches:
            arrived = self._server.read(start, with_labels=self._plan.labels_at_server)
            self._cache.keep(device, arrived, busy=busy)
            self._errors += [one.error for one in arrived]
        batches = self._kept(device, len(start.seeds))
        return [self._pool.seeds[place] for place in start.seeds], batches

    def _kept(self, device: int, num_steps: int) -> Sequence[Arrived]:
        if not self._cache.holds(device):
            raise WireError("missing", "it was asked for its features and sent none")
        batches = self._cache.use(device)
        if len(batches) != num_steps:
            self._cache.forget(device)  # other rows than those it has now: it sends them again
            raise WireError("wrong-shape", f"{num_steps} seeds for {len(batches)} batches")
        return batches

    def _measured(self, device: int, sides: Sides, batch: Arrived) -> float:
        """Returns the slope of the losses of both sides; both are computed here."""
        try:
            plus, minus = (self._server.loss(batch, side) for side in sides)
            slope = scalar(plus, minus, self._plan.eps)
        except ModelError as error:
            self._cache.forget(device)  # it may be its features: it sends them again
            raise WireError("not-finite", str(error)) from error
        self._losses.setdefault(device, []).append((plus + minus) / 2)
        return slope

    def _question(self, device: int, sides: Sides, batch: Arrived, step: int) -> Payload:
        """Returns what asks a device for its slope."""
        if not all(bool(torch.isfinite(side).all()) for side in sides):
            self._cache.forget(device)  # as above
            raise WireError("not-finite", "its features or slopes make outputs NaN or infinite")
        return scalar_wire.sides(step, *sides, self._server.readout(batch))

    # --- what is done for all of them --------------------------------------------------------

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

        def computed(device: int, sides: Sides) -> float:
            return self._measured(device, sides, batches[device])

        def asked(device: int, sides: Sides) -> Payload:
            return self._question(device, sides, batches[device], step)

        if self._plan.labels_at_server:
            return self._talk.each(outputs, computed)
        answers = self._talk.send(self._talk.each(outputs, asked), "states")
        return self._talk.each(answers, _slope)

    def _close(self, device: int, walk: Walk) -> Payload:
        losses = self._losses.get(device)
        return scalar_wire.close(
            [pair.coefficient for pair in walk.pairs],
            None if losses is None else math.fsum(losses) / len(losses),
        )


def _slope(_device: int, payload: Payload) -> float:
    return scalar_wire.read_slope(payload)


def _moved(_device: int, given: tuple[Walk, float]) -> None:
    """Makes a device's step."""
    walk, slope = given
    try:
        walk.step(slope)
    except ModelError as error:
        raise WireError("not-finite", str(error)) from error


def _last(_device: int, payload: Payload) -> Payload:
    require_kind(payload, UPDATE)
    return payload
