"""One round of gradient download: local steps of all devices in lockstep.

Every step goes up as features and comes down as gradients. The server computes the steps of at most
``max_in_flight`` devices at once, in one pass; who is lost on the way is left out of what follows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fl_app.errors import WireError
from fl_app.features_wire import (
    FEATURES,
    GRADIENT,
    SLOPES,
    STATES,
    UPDATE,
    Arrays,
    require_kind,
)
from fl_app.fomo.features import FeatureGradient
from fl_app.payload import Payload
from strategies.conversation import Book, Conversation, chunks
from strategies.exchange import Exchange
from strategies.feature_crossings import FeatureCrossings
from strategies.feature_reader import Arrived
from strategies.feature_server import FeatureServer, Step
from strategies.round_log import RoundLog
from strategies.shared_gradient import mean_gradient

_UPLINK = {FEATURES: "features", SLOPES: "slopes", UPDATE: "update"}


@dataclass(frozen=True)
class GradientPlan:
    """How a round goes.

    Attributes:
        labels_at_server: the loss is computed here; otherwise states go down, slopes come up.
        shared: everybody gets the mean gradient, weighted by terms of the loss (examples, or
            predicted tokens) in the batch.
        max_in_flight: devices in one pass, >= 1.
        timeout_s: seconds for one exchange.
        max_steps: the most local steps a device may make, >= 1.
        noise_multiplier: of the noise devices put on features; 0 without.
        releases: how often a round sends one example's features at most, >= 1.
    """

    labels_at_server: bool
    shared: bool
    max_in_flight: int
    timeout_s: float
    max_steps: int
    noise_multiplier: float = 0.0
    releases: int = 1


class GradientRound:
    """Runs one round.

    Args:
        server: computes.
        exchange: the way to the devices.
        plan: how the round goes.
        number: server round.
        log: devices lost are booked here, and ``feature_error``, the mean over devices and steps of
            the relative error that coding made.
        book: bytes are booked here.
        crossings: what crosses a neural connection is booked here; None without one.
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
        crossings: FeatureCrossings | None = None,
    ) -> None:
        self._server, self._plan = server, plan
        self._number, self._log = number, log
        self._talk = Conversation(
            exchange,
            timeout_s=plan.timeout_s,
            number=number,
            log=log,
            book=book,
            uplink=_UPLINK,
            crossings=crossings,
        )

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
        answers = self._talk.send(begin, "adapter")
        while answers:
            updates |= {d: p for d, p in answers.items() if p.kind == UPDATE}
            going_on = {d: p for d, p in answers.items() if p.kind != UPDATE}
            arrived = self._talk.each(going_on, self._read)
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
        for chunk in chunks(sorted(arrived), self._plan.max_in_flight):
            step = self._server.forward({device: arrived[device] for device in chunk})
            try:
                slopes = self._slopes(step, number, losses, heads)
                gradients |= self._server.backward(step, slopes)
            finally:
                step.release()
        whole = {device: (one, heads.get(device, {})) for device, one in gradients.items()}
        gradients = self._talk.each(whole, _finite)
        terms = {device: arrived[device].num_terms for device in gradients}
        coded = self._coded(gradients, heads, terms, number)
        told = {d: {"loss": losses[d]} if d in losses else {} for d in coded}
        outgoing = {d: Payload(GRADIENT, number, told[d], coded[d]) for d in coded}
        return self._talk.send(outgoing, GRADIENT, ahead=1)

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
        coded = self._talk.each(
            states, lambda device, one: self._server.states(one, self._number, device, number)
        )
        outgoing = {d: Payload(STATES, number, {}, arrays) for d, arrays in coded.items()}

        def read(device: int, payload: Payload) -> tuple[torch.Tensor, Arrays]:
            require_kind(payload, SLOPES)
            with_head = self._plan.shared
            return self._server.read_slopes(payload, states[device], with_head=with_head)

        found = self._talk.each(self._talk.send(outgoing, STATES), read)
        heads.update({device: head for device, (_, head) in found.items()})
        return {device: slopes for device, (slopes, _) in found.items()}

    def _read(self, _device: int, payload: Payload) -> Arrived:
        require_kind(payload, FEATURES)
        if payload.step >= self._plan.max_steps:
            raise WireError("wrong-step", f"features after {self._plan.max_steps} local steps")
        return self._server.read(payload, with_labels=self._plan.labels_at_server)

    def _coded(
        self,
        gradients: Mapping[int, FeatureGradient],
        heads: Mapping[int, Arrays],
        terms: Mapping[int, int],
        number: int,
    ) -> dict[int, Arrays]:
        """Returns what each device is sent; where gradients are shared, everybody the same."""
        if self._plan.shared and gradients:
            mean, head = mean_gradient(gradients, heads, terms)
            arrays = self._server.gradient(mean, self._number, "everybody", number)
            return dict.fromkeys(gradients, arrays | head)
        coded = self._talk.each(
            gradients, lambda device, one: self._server.gradient(one, self._number, device, number)
        )
        return {device: arrays | heads.get(device, {}) for device, arrays in coded.items()}


def _finite(_device: int, given: tuple[FeatureGradient, Arrays]) -> FeatureGradient:
    """Judges a device's gradients before they are shared: its own head may overflow too."""
    gradient, head = given
    is_finite = all(bool(torch.isfinite(tensor).all()) for tensor in gradient.tensors)
    if not is_finite or not all(bool(np.isfinite(array).all()) for array in head.values()):
        raise WireError("not-finite", "its gradient overflows")
    return gradient
