"""The server's half of tuning by scalars: features and adapters in, losses out, no gradient."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fl_app.features_wire import COUNTS, ERROR, FEATURES
from fl_app.fomo.head import Head
from fl_app.fomo.head_output import HeadOutput
from fl_app.fomo.trunk import Trunk
from fl_app.payload import Payload, Scalar
from fl_app.scalar_wire import Start
from fl_app.tasks import Task
from fl_app.updates import Update
from strategies.feature_reader import Arrived, FeatureReader


class ScalarServer:
    """Runs trunk and head for many adapters in one pass.

    Args:
        trunk: the server's blocks.
        reader: reads features.
        head: the head.
        head_parameters: its tunable parameters by name; empty where none are.
        task: gives the loss, where labels are at the server.
        logit_adjustment: tau of ``Task.local_loss``.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        reader: FeatureReader,
        head: Head,
        head_parameters: Mapping[str, nn.Parameter],
        task: Task,
        logit_adjustment: float,
    ) -> None:
        self._trunk, self._reader = trunk, reader
        self._head_parameters = dict(head_parameters)
        self._output = HeadOutput(head, is_tuned=bool(head_parameters))
        self._task, self._tau = task, logit_adjustment

    def read(self, start: Start, *, with_labels: bool) -> list[Arrived]:
        """Reads one device's features of all steps.

        Raises:
            WireError: something is missing, not finite, or does not fit the trunk.
        """
        counts = {} if start.counts is None else {COUNTS: start.counts}
        told: dict[str, Scalar] = {} if start.error is None else {ERROR: start.error}
        return [
            self._reader.read(
                Payload(FEATURES, step, told, {**arrays, **counts}), {}, with_labels=with_labels
            )
            for step, arrays in enumerate(start.batches)
        ]

    def outputs(self, batches: Sequence[Arrived], adapters: Sequence[Update]) -> list[torch.Tensor]:
        """Returns the output of every batch at its own adapter, see ``HeadOutput``.

        All go through the trunk in one pass, without a graph.

        Args:
            batches: at least one.
            adapters: all tuned values by name, one for each batch.
        """
        weights = [
            {name: torch.from_numpy(adapter[name]) for name in self._trunk.shapes}
            for adapter in adapters
        ]
        held = self._trunk.forward(
            [batch.features for batch in batches], want=(), parameters=weights
        )
        outputs = []
        for batch, adapter, states in zip(batches, adapters, held.states, strict=True):
            with torch.no_grad():
                for name, parameter in self._head_parameters.items():
                    parameter.copy_(torch.from_numpy(adapter[name]))
            outputs.append(self._output.of(states, batch.features.readout))
        return outputs

    def loss(self, batch: Arrived, output: torch.Tensor) -> float:
        """Returns the loss of an output, where labels are here."""
        loss = self._task.counted_loss(batch.counts, self._tau)
        return self._output.loss(output, batch.features.readout, batch.labels, loss)

    def readout(self, batch: Arrived) -> torch.Tensor | None:
        """Returns which states an output holds; None where outputs are logits."""
        return None if self._head_parameters else batch.features.readout
