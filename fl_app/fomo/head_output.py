"""What of the head's work crosses the wire where the server holds the adapter but not the labels.

Where the task has a tuned head (classification) the server runs it: what is left to the device is
the loss of the logits, C numbers an example whatever the model's width. A language model's head is
frozen and its logits are wider than its states, so there the last states travel and the device runs
the head.
"""

from types import SimpleNamespace

import torch

from fl_app.fomo.head import Head, LossFunction


class HeadOutput:
    """Last states to output at the server, output to loss at the device (or at the server too).

    Args:
        head: of the device's part; where it is tuned, its parameters are those to run it with.
        is_tuned: whether the task has a head that is tuned.
    """

    def __init__(self, head: Head, *, is_tuned: bool) -> None:
        self._head, self._is_tuned = head, is_tuned

    def of(self, states: torch.Tensor, readout: torch.Tensor) -> torch.Tensor:
        """Returns logits [B, C], or the states as they are.

        Args:
            states: [num_readout, d] last states in the order of ``readout``.
            readout: bool [B, S'], see ``Features``.
        """
        if not self._is_tuned:
            return states
        with torch.no_grad():
            logits: torch.Tensor = self._head(states=states, readout=readout).logits
        return logits

    def loss(
        self,
        output: torch.Tensor,
        readout: torch.Tensor,
        labels: torch.Tensor,
        loss: LossFunction,
    ) -> float:
        """Returns the loss of an output of ``of``.

        Args:
            output: see ``of``.
            readout: see ``of``.
            labels: as in the task's own batch.
            loss: the task's ``local_loss``.
        """
        with torch.no_grad():
            if self._is_tuned:
                value = loss(lambda **_inputs: SimpleNamespace(logits=output), {"labels": labels})
            else:
                value = loss(self._head, self._head.batch(output, readout, labels))
        return float(value)
