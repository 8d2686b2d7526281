"""The server's half of a local step: features of many devices in, gradients out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fl_app.errors import ModelError, WireError
from fl_app.features_wire import (
    ERROR,
    OWN,
    PARAMETER,
    SLOPES,
    STATES,
    Arrays,
    FeatureWire,
    parameters_in,
    parameters_out,
)
from fl_app.fomo.features import FeatureGradient, Features
from fl_app.fomo.head import Head
from fl_app.fomo.trunk import Held, Trunk
from fl_app.payload import Payload
from fl_app.seeding import generator
from fl_app.tasks import Encoded, LossFunction, Task
from strategies.label_rule import LabelRule


@dataclass(frozen=True)
class Arrived:
    """One device's features, read.

    Attributes:
        features: as the trunk takes them.
        own: its values of parameters that sit here while computing.
        labels: of the batch, where labels are at the server; empty otherwise.
        targets: classes of all its examples, likewise.
        error: relative error that coding made, as the device measured it, >= 0; 0 where nobody did.
    """

    features: Features
    own: dict[str, torch.Tensor]
    labels: torch.Tensor
    targets: list[int]
    error: float = 0.0

    @property
    def num_terms(self) -> int:
        """Terms its loss is the mean of: one a state the head reads."""
        return int(self.features.readout.sum())


@dataclass
class Step:
    """What the server holds of one pass: who is in it, and the graph."""

    devices: Sequence[int]
    arrived: Sequence[Arrived]
    held: Held

    def release(self) -> None:
        """Frees the graph."""
        self.held.release()


class FeatureServer:
    """Runs the trunk on features of many devices at once.

    Args:
        trunk: the server's blocks.
        wire: how tensors travel.
        want: what to differentiate with respect to, see ``Trunk.forward``.
        num_stacks: of the model.
        num_prompt: m, tokens of the soft prompt devices send; 0 without one.
        head: the head, where labels are at the server.
        head_parameters: its tunable parameters by name.
        task: gives the loss, where labels are at the server.
        labels: what labels may be, likewise.
        logit_adjustment: tau of ``Task.local_loss``.
        seed: the run's seed.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        wire: FeatureWire,
        want: Sequence[str],
        num_stacks: int,
        num_prompt: int,
        head: Head,
        head_parameters: Mapping[str, nn.Parameter],
        task: Task,
        labels: LabelRule,
        logit_adjustment: float,
        seed: int,
    ) -> None:
        self._trunk, self._wire, self._want = trunk, wire, want
        self._num_stacks, self._num_prompt, self._labels = num_stacks, num_prompt, labels
        self._head, self._head_parameters = head, dict(head_parameters)
        self._task, self._tau, self._seed = task, logit_adjustment, seed

    def read(self, payload: Payload, *, with_labels: bool) -> Arrived:
        """Reads one device's features.

        Raises:
            WireError: something is missing, not finite, or does not fit the trunk.
        """
        features = read_features(payload, self._wire, self._trunk, self._num_stacks)
        if features.num_prompt != self._num_prompt:
            raise WireError(
                "wrong-shape", f"a prompt of {features.num_prompt}, expected {self._num_prompt}"
            )
        own = parameters_in(OWN, payload.arrays)
        _require_layout(own, self._trunk.shapes | (self._head_shapes if with_labels else {}))
        rule = self._labels if with_labels else None
        labels, targets = read_labels(payload, rule, features)
        measured = payload.scalars.get(ERROR)
        if type(measured) is not float or not 0 <= measured < math.inf:
            raise WireError("missing", f"'{ERROR}'={measured!r} must be a float, finite and >= 0")
        return Arrived(features, own, labels, targets, measured)

    def forward(self, arrived: Mapping[int, Arrived]) -> Step:
        """Runs one pass over these devices; the graph is held until ``backward`` or release."""
        devices = sorted(arrived)
        inputs = [arrived[device] for device in devices]
        own = [{name: one.own[name] for name in self._trunk.shapes} for one in inputs]
        held = self._trunk.forward(
            [one.features for one in inputs], want=self._want, parameters=own
        )
        return Step(devices, inputs, held)

    def states(self, states: torch.Tensor, server_round: int, device: int, number: int) -> Arrays:
        """Codes the last states that a device's head reads.

        Raises:
            WireError: ``not-finite`` or ``overflow``; its features drove the blocks too far.
        """
        if not torch.isfinite(states).all():
            raise WireError("not-finite", "its features make the last states NaN or infinite")
        return self._wire.code(STATES, states, self._rng("states", server_round, device, number))

    def read_slopes(
        self, payload: Payload, states: torch.Tensor, *, with_head: bool
    ) -> tuple[torch.Tensor, Arrays]:
        """Reads the gradient of a device's loss with respect to its last states.

        Args:
            payload: as received.
            states: the states it belongs to.
            with_head: whether gradients of the head come along, to be shared.

        Returns:
            (the gradient, the head's gradients by array name).

        Raises:
            WireError: something does not fit, or is not finite.
        """
        slopes = self._wire.decode(payload.arrays, SLOPES)
        if slopes.shape != states.shape:
            raise WireError(
                "wrong-shape", f"slopes {list(slopes.shape)}, expected {list(states.shape)}"
            )
        head = parameters_in(PARAMETER, payload.arrays)
        _require_layout(head, self._head_shapes if with_head else {})
        return slopes, parameters_out(PARAMETER, head)

    def losses(
        self, step: Step
    ) -> tuple[dict[int, torch.Tensor], dict[int, float], dict[int, Arrays]]:
        """Computes losses here, where the labels are.

        Returns:
            By device: the gradient of the loss with respect to the last states; the loss; the
            gradients of the head's parameters.
        """
        slopes, losses, heads = {}, {}, {}
        for device, one, states in zip(step.devices, step.arrived, step.held.states, strict=True):
            with torch.no_grad():
                for name, parameter in self._head_parameters.items():
                    parameter.copy_(one.own[name])
                    parameter.grad = None
            num_prompt = one.features.num_prompt if self._num_stacks == 1 else 0
            losses[device], slopes[device] = self._head.loss_gradient(
                states,
                one.features.readout,
                one.labels,
                local_loss(self._task, one, self._tau),
                num_prompt,
            )
            heads[device] = parameters_out(
                PARAMETER,
                {
                    name: parameter.grad.clone()
                    for name, parameter in self._head_parameters.items()
                    if parameter.grad is not None
                },
            )
        return slopes, losses, heads

    def backward(
        self, step: Step, slopes: Mapping[int, torch.Tensor]
    ) -> dict[int, FeatureGradient]:
        """Runs one backward pass; devices without slopes have vanished and are left out."""
        answers = self._trunk.backward(step.held, [slopes.get(device) for device in step.devices])
        return {
            device: answer
            for device, answer in zip(step.devices, answers, strict=True)
            if answer is not None
        }

    def gradient(
        self, gradient: FeatureGradient, server_round: int, receiver: int | str, number: int
    ) -> Arrays:
        """Codes what goes back to a device, or to everybody."""
        return self._wire.gradient(gradient, self._rng("gradient", server_round, receiver, number))

    @property
    def _head_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self._head_parameters.items()}

    def _rng(
        self, what: str, server_round: int, receiver: int | str, number: int
    ) -> np.random.Generator:
        return generator(self._seed, what, server_round, receiver, number)


def read_features(payload: Payload, wire: FeatureWire, trunk: Trunk, num_stacks: int) -> Features:
    """Reads one step's features.

    Raises:
        WireError: something is missing, not finite, or does not fit the trunk.
    """
    features = wire.read_features(payload, num_stacks)
    try:
        trunk.require_fit(features)
    except ModelError as error:
        raise WireError("wrong-shape", str(error)) from error
    return features


def read_labels(
    payload: Payload, rule: LabelRule | None, features: Features
) -> tuple[torch.Tensor, list[int]]:
    """Reads the labels of a batch and the classes of all examples; none without a rule.

    Raises:
        WireError: they are missing or do not fit, see ``LabelRule.read``.
    """
    if rule is None:
        return torch.zeros(0, dtype=torch.int64), []
    labels, targets = rule.read(payload.arrays, features.masks[-1].shape)
    return torch.from_numpy(labels), targets.tolist()


def local_loss(task: Task, arrived: Arrived, logit_adjustment: float) -> LossFunction:
    """Returns the loss of a device whose labels are here."""
    examples = Encoded([None] * len(arrived.targets), arrived.targets, np.zeros(0, np.int64))
    return task.local_loss(examples, logit_adjustment)


def _require_layout(
    given: Mapping[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Checks names and shapes, which a device could choose to hurt the others.

    Raises:
        WireError: ``missing`` or ``wrong-shape``.
    """
    if set(given) != set(wanted):
        raise WireError("missing", f"parameters {sorted(given)[:3]}, expected {sorted(wanted)[:3]}")
    for name, shape in wanted.items():
        if given[name].shape != shape:
            raise WireError(
                "wrong-shape", f"'{name}' is {list(given[name].shape)}, expected {list(shape)}"
            )
