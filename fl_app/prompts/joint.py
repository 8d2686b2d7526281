"""Tuning k prompts together, in one batched pass for each step, with a loss of the ensemble.

L = a CE(sum_j w_j p_j, y) + g (1/k) sum_j CE(p_j, y) - d D, with D = H(mean_j p_j) - mean_j H(p_j),
the Jensen-Shannon divergence of the members (0 where all agree, at most ln k nats).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_app.finetune import LocalTuning, local_batches, optimiser_of
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.prompts.batched import Tensors, log_probabilities, member_losses
from fl_app.prompts.ensemble import combine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.member import Member, member_of
from fl_app.tasks import Encoded, Task


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
    member: float = 0.0
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


def tune_together(
    model: Any,
    members: Sequence[Member],
    task: Task,
    encoded: Encoded,
    settings: LocalTuning,
    rng: np.random.Generator,
    loss: JointLoss,
) -> tuple[list[Member], list[float]]:
    """Tunes all members on the same batches.

    Args:
        model: the frozen model, not wrapped.
        members: starting values, with or without heads; not changed.
        task: gives batches.
        encoded: labelled examples.
        settings: as for one prompt; every member has an optimiser and a clipping norm of its own.
        rng: orders the examples.
        loss: what is minimised.

    Returns:
        (the tuned members, without a claimed loss; the loss of every step).

    Raises:
        PromptError: ``unsupported-setting`` (``logit_adjustment`` and ``proximal_mu`` must be 0),
            or ``not-finite`` loss.
    """
    if settings.logit_adjustment or settings.proximal_mu:
        raise PromptError(
            "unsupported-setting", "joint tuning needs logit_adjustment=0 and proximal_mu=0"
        )
    parameters = [
        {name: nn.Parameter(torch.from_numpy(array)) for name, array in member.arrays().items()}
        for member in members
    ]
    tensors = [_tensors(named) for named in parameters]
    optimisers = [optimiser_of(named, settings) for named in parameters]
    losses: list[float] = []
    for indices in local_batches(
        encoded, batch_size=settings.batch_size, epochs=settings.epochs, rng=rng
    ):
        if settings.max_steps is not None and len(losses) >= settings.max_steps:
            break
        value = loss(*log_probabilities(model, tensors, task.batch(encoded, indices)))
        if not torch.isfinite(value):
            raise PromptError(
                "not-finite", f"the loss is {value.item()}; lower finetune.lr={settings.lr}"
            )
        losses.append(float(value.detach()))
        for optimiser in optimisers:
            optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        for named, optimiser in zip(parameters, optimisers, strict=True):
            nn.utils.clip_grad_norm_(list(named.values()), settings.clip_norm)
            optimiser.step()
    return [_tuned(m, named) for m, named in zip(members, parameters, strict=True)], losses


def tune_snapshots(
    model: Any,
    parameters: Mapping[str, nn.Parameter],
    task: Task,
    encoded: Encoded,
    settings: LocalTuning,
    rng: np.random.Generator,
    *,
    num_cycles: int,
) -> list[dict[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    """Tunes one prompt with a cyclic learning rate and keeps what each cycle ends with.

    Within a cycle of n steps, step t has lr (1 + cos(pi t / n)) / 2 (Huang et al. 2017,
    arXiv:1704.00109): small at the end, where the snapshot is taken, and back up at once.

    Args:
        model: a model wrapped with a prompt, see ``Adapter``; tuned in place.
        parameters: its tunable parameters by name.
        task: gives batches and the loss.
        encoded: labelled examples.
        settings: highest learning rates and length of all cycles together.
        rng: orders the examples.
        num_cycles: c >= 1; of equal length but for the last, which may be shorter.

    Returns:
        c arrays by name, as ``Adapter.read`` gives them, for ``member_of``.

    Raises:
        PromptError: ``too-few-steps`` for that many cycles, ``unsupported-setting``.
    """
    if settings.proximal_mu:
        raise PromptError("unsupported-setting", "snapshots need proximal_mu=0")
    batches = list(
        local_batches(encoded, batch_size=settings.batch_size, epochs=settings.epochs, rng=rng)
    )[: settings.max_steps]
    length = -(-len(batches) // max(num_cycles, 1))
    if num_cycles < 1 or -(-len(batches) // max(length, 1)) != num_cycles:
        raise PromptError(
            "too-few-steps", f"{len(batches)} steps make no {num_cycles} cycles; change either"
        )
    optimiser = optimiser_of(parameters, settings)
    highest = [float(group["lr"]) for group in optimiser.param_groups]
    local_loss = task.local_loss(encoded, settings.logit_adjustment)
    snapshots = []
    for step, indices in enumerate(batches):
        share = (1.0 + np.cos(np.pi * (step % length) / length)) / 2.0
        for group, rate in zip(optimiser.param_groups, highest, strict=True):
            group["lr"] = rate * float(share)
        optimiser.zero_grad()
        local_loss(model, task.batch(encoded, indices)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(list(parameters.values()), settings.clip_norm)
        optimiser.step()
        if (step + 1) % length == 0 or step + 1 == len(batches):
            snapshots.append({n: p.detach().numpy().copy() for n, p in parameters.items()})
    return snapshots


def _entropy(log_probs: torch.Tensor) -> torch.Tensor:
    entropies: torch.Tensor = torch.special.entr(log_probs.exp()).sum(-1)
    return entropies


def _tensors(named: Mapping[str, nn.Parameter]) -> Tensors:
    head = {name: tensor for name, tensor in named.items() if name != PROMPT_NAME}
    return Tensors(named[PROMPT_NAME], head)


def _tuned(member: Member, named: Mapping[str, nn.Parameter]) -> Member:
    arrays = {name: p.detach().numpy().copy() for name, p in named.items()}
    return member_of(arrays, dataclasses.replace(member.card, validation_loss=None))
