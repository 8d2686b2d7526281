"""Tuning k prompts together, in one batched pass for each step, with a loss of the ensemble.

L = a CE(sum_j w_j p_j, y) + g (1/k) sum_j CE(p_j, y) - d D, with D = H(mean_j p_j) - mean_j H(p_j),
the Jensen-Shannon divergence of the members (0 where all agree, at most ln k nats).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fl_app import updates
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.parameters import write_parameters
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.prompts.batched import Tensors, log_probabilities, member_losses
from fl_app.prompts.ensemble import combine
from fl_app.tasks import Batch, Encoded, LossFunction, Task
from fl_app.updates import Update


@dataclass(frozen=True)
class JointLoss:
    """Weights of the three parts of the loss.

    Attributes:
        ensemble: a >= 0, of the mixture's cross-entropy.
        member: g >= 0, of the members' mean cross-entropy; 0 lets the ensemble divide the work.
        diversity: d >= 0, of what is taken off for members that disagree.
        weights: w, >= 0, one for each member; uniform if None.
    """

    ensemble: float = 1.0
    member: float = 1.0
    diversity: float = 0.0
    weights: tuple[float, ...] | None = None

    def __call__(self, log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the loss in nats of log-probabilities [k, N, classes] and labels [N]."""
        weights = None if self.weights is None else torch.tensor(self.weights)
        mixed = combine("mean", log_probs, weights).log_probs.unsqueeze(0)
        loss = self.ensemble * member_losses(mixed, labels)[0]
        if self.member:
            loss = loss + self.member * member_losses(log_probs, labels).mean()
        if self.diversity:
            loss = loss - self.diversity * diversity(log_probs)
        return loss


def diversity(log_probs: torch.Tensor) -> torch.Tensor:
    """Returns the Jensen-Shannon divergence in nats of [k, N, classes], its mean over N."""
    mean = log_probs.logsumexp(0) - float(np.log(len(log_probs)))
    return (_entropy(mean) - _entropy(log_probs).mean(0)).mean()


class JointAdapter:
    """Several members on one frozen model, all tuned; stands where one ``Adapter`` does.

    Args:
        adapter: a soft prompt on the model; members begin with its values. It is not changed.
        num_members: k >= 1.
    """

    def __init__(self, adapter: Adapter, num_members: int) -> None:
        self._model = adapter.bare_model
        joined = updates.join([adapter.read()] * num_members)
        self.parameters = {
            name: nn.Parameter(torch.from_numpy(joined[name].copy())) for name in sorted(joined)
        }
        """The members' parameters by their joint names, see ``fl_app.updates.join``; sorted."""

    @property
    def model(self) -> "JointAdapter":
        """What a ``JointTask`` asks."""
        return self

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs all members in one pass; see ``log_probabilities``."""
        named = self.parameters.items()
        leads = dict.fromkeys(name.removesuffix(updates.own_name(name)) for name, _ in named)
        members = [
            _tensors({updates.own_name(name): p for name, p in named if name.startswith(lead)})
            for lead in leads
        ]
        return log_probabilities(self._model, members, batch)

    def read(self) -> Update:
        """Returns a float32 copy of the members."""
        return {name: p.detach().numpy().copy() for name, p in self.parameters.items()}

    def write(self, arrays: Update) -> None:
        """Sets the members.

        Raises:
            ModelError: names or shapes differ from theirs.
        """
        write_parameters(self.parameters, arrays)

    def layout_hash(self) -> str:
        """Returns the SHA-256 of names, shapes and dtypes."""
        return updates.layout_hash(self.read())


@dataclass(frozen=True)
class JointTask:
    """A task for several members at once, as ``fl_app.finetune.tune`` needs it.

    Attributes:
        task: of one member.
        loss: what they minimise together.
    """

    task: Task
    loss: JointLoss

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> Batch:
        """Assembles one padded batch."""
        return self.task.batch(encoded, indices)

    def local_loss(self, encoded: Encoded, logit_adjustment: float) -> LossFunction:
        """Returns the loss of a ``JointAdapter``; every member's logits are adjusted.

        Its gradient is scaled by k / (ensemble + member): where members agree each one's is then
        that of a prompt tuned alone, so learning rates, clipping norms and AdamW's eps mean the
        same.
        """
        offset = self.task.logit_offset(self.task.class_counts(encoded), logit_adjustment)
        parts = self.loss.ensemble + self.loss.member

        def loss_of(members: JointAdapter, batch: Batch) -> torch.Tensor:
            log_probs, labels = members(batch)
            value = self.loss((log_probs + offset).log_softmax(-1), labels)
            scale = len(log_probs) / parts
            return value.detach() + scale * (value - value.detach())

        return loss_of


def _entropy(log_probs: torch.Tensor) -> torch.Tensor:
    entropies: torch.Tensor = torch.special.entr(log_probs.exp()).sum(-1)
    return entropies


def _tensors(named: Mapping[str, torch.Tensor]) -> Tensors:
    head = {name: tensor for name, tensor in named.items() if name != PROMPT_NAME}
    return Tensors(named[PROMPT_NAME], head)
