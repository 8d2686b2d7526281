"""The server's half of a local step: features of many devices in, gradients out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fl_app.errors import WireError
from fl_app.features_wire import (
    PARAMETER,
    SLOPES,
    STATES,
    Arrays,
    FeatureWire,
    parameters_in,
    parameters_out,
)
from fl_app.fomo.features import FeatureGradient
from fl_app.fomo.head import Head
from fl_app.fomo.trunk import Held, Trunk
from fl_app.payload import Payload
from fl_app.seeding import generator
from fl_app.tasks import Task
from strategies.feature_reader import Arrived, FeatureReader, require_layout


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
        reader: reads features.
        want: what to differentiate with respect to, see ``Trunk.forward``.
        num_stacks: of the model.
        head: the head, where labels are at the server.
        head_parameters: its tunable parameters by name.
        task: gives the loss, where labels are at the server.
        logit_adjustment: tau of ``Task.local_loss``.
        seed: the run's seed.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        wire: FeatureWire,
        reader: FeatureReader,
        want: Sequence[str],
        num_stacks: int,
        head: Head,
        head_parameters: Mapping[str, nn.Parameter],
        task: Task,
        logit_adjustment: float,
        seed: int,
    ) -> None:
        self._trunk, self._wire, self._reader = trunk, wire, reader
        self._want, self._num_stacks = want, num_stacks
        self._head, self._head_parameters = head, dict(head_parameters)
        self._task, self._tau, self._seed = task, logit_adjustment, seed

    def read(self, payload: Payload, *, with_labels: bool) -> Arrived:
        """Reads one device's features.

        Raises:
            WireError: something is missing, not finite, or does not fit the trunk.
        """
        own = self._trunk.shapes | (self._head_shapes if with_labels else {})
        return self._reader.read(payload, own, with_labels=with_labels)

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
        slopes = self._wire.decode(payload.arrays, SLOPES, dims=2, relative=True)
        if slopes.shape != states.shape:
            raise WireError(
                "wrong-shape", f"slopes {list(slopes.shape)}, expected {list(states.shape)}"
            )
        head = parameters_in(PARAMETER, payload.arrays)
        require_layout(head, self._head_shapes if with_head else {})
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
                self._task.counted_loss(one.counts, self._tau),
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
        return {name: tuple(parameter.shape) for name, parameter in self._head_parameters.items()}

    def _rng(
        self, what: str, server_round: int, receiver: int | str, number: int
    ) -> np.random.Generator:
        return generator(self._seed, what, server_round, receiver, number)
