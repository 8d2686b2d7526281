"""One round of gradient download: local steps of all devices in lockstep.

Every step goes up as features and comes down as gradients. The server computes the steps of at most
``max_in_flight`` devices at once, in one pass; who is lost on the way is left out of what follows.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from fl_app.errors import WireError
from fl_app.features_wire import (
    FEATURES,
    GRADIENT,
    MAX_BYTES,
    NO_FRONT,
    SLOPES,
    STATES,
    UPDATE,
    Arrays,
)
from fl_app.fomo.features import FeatureGradient
from fl_app.payload import Payload, read_payload
from strategies.exchange import Exchange, Lost
from strategies.feature_server import Arrived, FeatureServer, Step
from strategies.round_log import RoundLog
from strategies.shared_gradient import mean_gradient

log = logging.getLogger("deft")
Given = TypeVar("Given")
Made = TypeVar("Made")

Book = Callable[[str, int, str, int], None]
"""(link, device, what, bytes)."""


@dataclass(frozen=True)
class GradientPlan:
    """How a round goes.

    Attributes:
        labels_at_server: the loss is computed here; otherwise states go down, slopes come up.
        shared: everybody gets the mean gradient, weighted by examples in the batch.
        max_in_flight: devices in one pass, >= 1.
        timeout_s: seconds for one exchange.
        max_steps: the most local steps a device may make; None for no limit.
    """

    labels_at_server: bool
    shared: bool
    max_in_flight: int
    timeout_s: float
    max_steps: int | None = None


class GradientRound:
    """Runs one round.

    Args:
        server: computes.
        exchange: the way to the devices.
        plan: how the round goes.
        number: server round.
        log: devices lost are booked here.
        book: bytes are booked here.
    """

    def __init__(
        self,
        server: FeatureServer,
        exchange: Exchange,
        plan: GradientPlan,
        *,
        number: int,
        log: RoundLog,
        book: Book,
    ) -> None:
        self._server, self._exchange, self._plan = server, exchange, plan
        self._number, self._log, self._book = number, log, book

    def run(self, begin: Mapping[int, Payload]) -> dict[int, Payload]:
        """Runs all local steps.

        Args:
            begin: what opens each device's round.

        Returns:
            The update of every device that came through, as it was sent.
        """
        updates: dict[int, Payload] = {}
        errors: list[float] = []
        number = 0
        answers = self._send(begin, "adapter", number)
        while answers:
            updates |= {d: p for d, p in answers.items() if p.kind == UPDATE}
            arrived = self._each(
                {d: p for d, p in answers.items() if p.kind != UPDATE}, self._read, number
            )
            errors += [one.error for one in arrived.values()]
            answers = self._step(arrived, number)
            number += 1
        if errors:
            self._log.metrics["feature_error"] = float(np.mean(errors))
        return updates

    def _step(self, arrived: Mapping[int, Arrived], number: int) -> dict[int, Payload]:
        """Makes one local step of these devices; returns what they answer to their gradients."""
        gradients: dict[int, FeatureGradient] = {}
        losses: dict[int, float] = {}
        heads: dict[int, Arrays] = {}
        for chunk in _chunks(sorted(arrived), self._plan.max_in_flight):
            step = self._server.forward({device: arrived[device] for device in chunk})
            try:
                slopes = self._slopes(step, number, losses, heads)
                gradients |= self._server.backward(step, slopes)
            finally:
                step.release()
        gradients = self._each(gradients, _finite, number)
        coded: dict[int, Arrays] = {}
        if self._plan.shared and gradients:
            weights = {device: arrived[device].num_terms for device in gradients}
            mean, head = mean_gradient(gradients, heads, weights)
            arrays = self._server.gradient(mean, self._number, "everybody", number)
            coded = dict.fromkeys(gradients, arrays | head)
        else:
            coded = self._each(gradients, self._coded_gradient, number)
            coded = {device: arrays | heads.get(device, {}) for device, arrays in coded.items()}
        told = {d: {"loss": losses[d]} if d in losses else {} for d in coded}
        outgoing = {d: Payload(GRADIENT, number, told[d], coded[d]) for d in coded}
        return self._send(outgoing, GRADIENT, number + 1)

    def _slopes(
        self,
        step: Step,
        number: int,
        losses: dict[int, float],
        heads: dict[int, Arrays],
    ) -> dict[int, torch.Tensor]:
        """Returns gradients of the losses with respect to the last states; asks for them."""
        if self._plan.labels_at_server:
            slopes, loss, head = self._server.losses(step)
            losses.update(loss)
            heads.update(head)
            return slopes
        states = dict(zip(step.devices, step.held.states, strict=True))
        coded = self._each(states, self._coded_states, number)
        answers = self._send(
            {d: Payload(STATES, number, {}, arrays) for d, arrays in coded.items()}, STATES, number
        )

        def read(device: int, payload: Payload, _number: int) -> tuple[torch.Tensor, Arrays]:
            _require_kind(payload, SLOPES)
            with_head = self._plan.shared
            return self._server.read_slopes(payload, states[device], with_head=with_head)

        found = self._each(answers, read, number)
        heads.update({device: head for device, (_, head) in found.items()})
        return {device: slopes for device, (slopes, _) in found.items()}

    # --- what is done for one device, and may fail for it alone -------------------------------

    def _read(self, _device: int, payload: Payload, number: int) -> Arrived:
        _require_kind(payload, FEATURES)
        if self._plan.max_steps is not None and number >= self._plan.max_steps:
            raise WireError("wrong-step", f"features after {self._plan.max_steps} local steps")
        return self._server.read(payload, with_labels=self._plan.labels_at_server)

    def _coded_states(self, device: int, states: torch.Tensor, number: int) -> Arrays:
        return self._server.states(states, self._number, device, number)

    def _coded_gradient(self, device: int, gradient: FeatureGradient, number: int) -> Arrays:
        return self._server.gradient(gradient, self._number, device, number)

    def _opened(self, device: int, answer: bytes | Lost, number: int) -> Payload:
        """Reads an answer and books its bytes; what is of no known kind counts as control."""
        match answer:
            case Lost(reason, detail):
                raise WireError(reason, detail)
        try:
            payload = read_payload(answer, max_bytes=MAX_BYTES)
        except WireError:
            self._book("uplink", device, "control", len(answer))
            raise
        booked = payload.kind if payload.kind in (FEATURES, SLOPES, UPDATE) else "control"
        self._book("uplink", device, booked, len(answer))
        if payload.kind == NO_FRONT:
            raise WireError("no-emulator", "its part of the model is gone")
        if payload.step != number:
            raise WireError("wrong-step", f"answers local step {payload.step}, is at {number}")
        return payload

    def _send(self, outgoing: Mapping[int, Payload], what: str, number: int) -> dict[int, Payload]:
        """Makes one exchange; books bytes both ways, and the devices it lost.

        Args:
            outgoing: what each device is sent.
            what: the ledger's name for it.
            number: local step the answers must belong to.
        """
        blobs = {device: payload.to_blob() for device, payload in outgoing.items()}
        for device, blob in blobs.items():
            self._book("downlink", device, what, len(blob))
        answers = self._exchange.exchange(blobs, self._plan.timeout_s) if blobs else {}
        return self._each(answers, self._opened, number)

    def _each(
        self, given: Mapping[int, Given], make: Callable[[int, Given, int], Made], number: int
    ) -> dict[int, Made]:
        """Returns ``make(device, given, number)`` of each device; drops those it fails for."""
        made = {}
        for device, one in given.items():
            try:
                made[device] = make(device, one, number)
            except WireError as error:
                log.warning("round %d: device %d dropped: %s", self._number, device, error)
                self._log.drop(device, error.reason)
        return made


def _finite(_device: int, gradient: FeatureGradient, _number: int) -> FeatureGradient:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in gradient.tensors):
        raise WireError("not-finite", "its gradient overflows")
    return gradient


def _require_kind(payload: Payload, kind: str) -> None:
    if payload.kind != kind:
        raise WireError("wrong-kind", f"got {payload.kind!r}, expected {kind!r}")


def _chunks(devices: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(devices), size):
        yield devices[start : start + size]
