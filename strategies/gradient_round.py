"""One round of gradient download: local steps of all devices in lockstep.

Every step goes up as features and comes down as gradients. The server computes the steps of at most
``max_in_flight`` devices at once, in one pass; who is lost on the way is left out of what follows.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fl_app.errors import WireError
from fl_app.features_wire import (
    FEATURES,
    GRADIENT,
    MAX_BYTES,
    NO_FRONT,
    PARAMETER,
    SLOPES,
    STATES,
    UPDATE,
    Arrays,
    parameters_in,
)
from fl_app.fomo.features import FeatureGradient
from fl_app.payload import Payload, read_payload
from strategies.exchange import Exchange, Lost
from strategies.feature_server import Arrived, FeatureServer, Step
from strategies.round_log import RoundLog

log = logging.getLogger("deft")

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
        noise_multiplier: of the noise devices put on features; 0 without.
        releases: how often a round sends one example's features at most, >= 1.
    """

    labels_at_server: bool
    shared: bool
    max_in_flight: int
    timeout_s: float
    noise_multiplier: float = 0.0
    releases: int = 1


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
        answers = self._send(begin, "adapter")
        while answers:
            updates |= {d: p for d, p in answers.items() if p.kind == UPDATE}
            arrived = self._arrived({d: p for d, p in answers.items() if p.kind != UPDATE})
            steps = {d: answers[d].step for d in arrived}
            gradients: dict[int, FeatureGradient] = {}
            losses: dict[int, float] = {}
            heads: dict[int, Arrays] = {}
            for chunk in _chunks(sorted(arrived), self._plan.max_in_flight):
                step = self._server.forward({device: arrived[device] for device in chunk})
                try:
                    slopes = self._slopes(step, steps, losses, heads)
                    gradients |= self._server.backward(step, slopes)
                finally:
                    step.release()
            gradients = self._finite(gradients)
            rows = {device: len(arrived[device].features.readout) for device in gradients}
            if self._plan.shared and gradients:
                gradients, heads = _mean(gradients, heads, rows)
            answers = self._send(
                {
                    device: Payload(
                        GRADIENT,
                        steps[device],
                        {"loss": losses[device]} if device in losses else {},
                        self._server.gradient(gradient, self._number, device, steps[device])
                        | heads.get(device, {}),
                    )
                    for device, gradient in gradients.items()
                },
                GRADIENT,
            )
        return updates

    def _arrived(self, payloads: Mapping[int, Payload]) -> dict[int, Arrived]:
        arrived = {}
        for device, payload in payloads.items():
            try:
                _require_kind(payload, FEATURES)
                arrived[device] = self._server.read(
                    payload, with_labels=self._plan.labels_at_server
                )
            except WireError as error:
                self._drop(device, error)
        return arrived

    def _slopes(
        self,
        step: Step,
        steps: Mapping[int, int],
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
        coded = {
            device: self._server.states(step, self._number, steps[device])[device]
            for device in step.devices
        }
        answers = self._send(
            {d: Payload(STATES, steps[d], {}, arrays) for d, arrays in coded.items()}, STATES
        )
        slopes = {}
        for device, payload in answers.items():
            try:
                _require_kind(payload, SLOPES)
                slopes[device] = self._server.read_slopes(payload, states[device])
                heads[device] = {
                    f"{PARAMETER}|{name}": value.numpy()
                    for name, value in parameters_in(PARAMETER, payload.arrays).items()
                }
            except WireError as error:
                self._drop(device, error)
        return slopes

    def _send(self, outgoing: Mapping[int, Payload], what: str) -> dict[int, Payload]:
        """Makes one exchange; books bytes both ways, and the devices it lost."""
        blobs = {device: payload.to_blob() for device, payload in outgoing.items()}
        for device, blob in blobs.items():
            self._book("downlink", device, what, len(blob))
        answers: dict[int, Payload] = {}
        if not blobs:
            return answers
        for device, answer in self._exchange.exchange(blobs, self._plan.timeout_s).items():
            try:
                payload, size = _opened(answer)
            except WireError as error:
                self._drop(device, error)
                continue
            if payload.kind in (FEATURES, SLOPES):  # an update is booked by its uplink
                self._book("uplink", device, payload.kind, size)
            answers[device] = payload
        return answers

    def _finite(self, gradients: Mapping[int, FeatureGradient]) -> dict[int, FeatureGradient]:
        kept = {}
        for device, gradient in gradients.items():
            if all(bool(torch.isfinite(tensor).all()) for tensor in gradient.tensors):
                kept[device] = gradient
            else:
                self._drop(device, WireError("not-finite", "its gradient overflows"))
        return kept

    def _drop(self, device: int, error: WireError) -> None:
        log.warning("round %d: device %d dropped: %s", self._number, device, error)
        self._log.drop(device, error.reason)


def _opened(answer: bytes | Lost) -> tuple[Payload, int]:
    """Returns what a device answered, and its length in bytes.

    Raises:
        WireError: it was lost, sent no payload, or has no model.
    """
    match answer:
        case Lost(reason, detail):
            raise WireError(reason, detail)
        case _:
            payload = read_payload(answer, max_bytes=MAX_BYTES)
    if payload.kind == NO_FRONT:
        raise WireError("no-emulator", "its part of the model is gone")
    return payload, len(answer)


def _require_kind(payload: Payload, kind: str) -> None:
    if payload.kind != kind:
        raise WireError("wrong-kind", f"got {payload.kind!r}, expected {kind!r}")


def _chunks(devices: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(devices), size):
        yield devices[start : start + size]


def _mean(
    gradients: Mapping[int, FeatureGradient],
    heads: Mapping[int, Arrays],
    rows: Mapping[int, int],
) -> tuple[dict[int, FeatureGradient], dict[int, Arrays]]:
    """Returns the mean gradient for everybody, each device's mean loss weighted by its rows.

    That is the gradient of the mean loss over the examples of all devices: one large batch.
    """
    devices = sorted(gradients)
    total = float(sum(rows[device] for device in devices))
    shares = {device: rows[device] / total for device in devices}
    first = gradients[devices[0]]

    def mean(tensors: Mapping[int, torch.Tensor]) -> torch.Tensor:
        wide = [shares[device] * tensors[device].double() for device in devices]
        return torch.stack(wide).sum(0).float()

    shared = FeatureGradient(
        hidden=None,
        prompt=None
        if first.prompt is None
        else mean({d: g.prompt for d, g in gradients.items() if g.prompt is not None}),
        parameters={
            name: mean({d: g.parameters[name] for d, g in gradients.items()})
            for name in first.parameters
        },
    )
    head = {
        name: sum(
            (shares[d] * heads[d][name].astype(np.float64) for d in devices),
            start=np.zeros(heads[devices[0]][name].shape),
        ).astype(np.float32)
        for name in heads.get(devices[0], {})
    }
    return dict.fromkeys(devices, shared), dict.fromkeys(devices, head)
