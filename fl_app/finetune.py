"""One device's local fine-tuning: a plain loop that knows no Flower and no emulator."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_app.errors import ModelError
from fl_app.fomo.adapter import is_head
from fl_app.tasks import Encoded, Goal
from fl_app.updates import by_part

_BATCHES_PER_POOL = 8
"""Batches of like length are cut from pools of this many batches, so that chance stays in."""


@dataclass(frozen=True)
class LocalTuning:
    """Settings of local fine-tuning.

    Attributes:
        epochs: passes over the device's data, >= 1.
        max_steps: at most this many steps, None for no limit.
        batch_size: examples per local step.
        lr: AdamW learning rate of the LoRA factors or the soft prompt.
        head_lr: AdamW learning rate of the task head.
        eps: AdamW's denominator constant. A first step is lr g / (|g| + eps), so a gradient well
            below eps moves little, where the usual 1e-8 makes any gradient a full step.
        weight_decay: AdamW's decoupled weight decay.
        clip_norm: gradients are scaled down to this norm; of members tuned together each one's.
        logit_adjustment: tau of ``Task.local_loss``.
        proximal_mu: FedProx (Li et al. 2020, arXiv:1812.06127) adds mu/2 ||w - w_received||^2.
        lr_final: share of both rates that is left at the end of the run, in (0, 1].
        progress: shares of the run that are over at the first local step and after the last.
        cycle: the same of a cycle of rounds, over which both rates fall along half a cosine to 0
            (Huang et al. 2017, arXiv:1704.00109); None for no cycles.
    """

    epochs: int
    max_steps: int | None
    batch_size: int
    lr: float
    head_lr: float
    eps: float
    weight_decay: float
    clip_norm: float
    logit_adjustment: float
    proximal_mu: float
    lr_final: float = 1.0
    progress: tuple[float, float] = (0.0, 0.0)
    cycle: tuple[float, float] | None = None

    def rate_share(self, step: int, num_steps: int) -> float:
        """Returns the share of both rates at a local step, from 0.

        It is ``lr_final`` to the power of the run's progress p, and in cycles, c of one over, times
        (1 + cos(pi c)) / 2.
        """

        def over(shares: tuple[float, float]) -> float:
            return shares[0] + (shares[1] - shares[0]) * step / num_steps

        share = float(self.lr_final ** over(self.progress))
        return share if self.cycle is None else share * (1 + cos(pi * over(self.cycle))) / 2


def num_local_steps(num_rows: int, settings: LocalTuning) -> int:
    """Returns how many local steps a device with so many rows makes in a round."""
    steps = settings.epochs * -(-num_rows // settings.batch_size)
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def local_batches(
    encoded: Encoded, *, batch_size: int, epochs: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Yields index lists: each epoch sees every example once, batched by like length.

    Args:
        encoded: the device's examples.
        batch_size: examples per batch; the last of a pool may be smaller.
        epochs: passes over the data.
        rng: the only source of randomness.
    """
    pool_size = batch_size * _BATCHES_PER_POOL
    for _ in range(epochs):
        order = rng.permutation(len(encoded))
        batches = []
        for start in range(0, len(order), pool_size):
            pool = order[start : start + pool_size]
            pool = pool[np.argsort(encoded.lengths[pool], kind="stable")]
            batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        for i in rng.permutation(len(batches)):
            yield [int(index) for index in batches[i]]


def optimiser_of(
    parameters: Mapping[str, nn.Parameter], settings: LocalTuning, rate_share: float = 1.0
) -> torch.optim.AdamW:
    """Returns AdamW with one learning rate for adapters and one for heads, or a share of both."""
    body = [p for name, p in parameters.items() if not is_head(name)]
    head = [p for name, p in parameters.items() if is_head(name)]
    groups = [
        {"params": body, "lr": settings.lr * rate_share},
        {"params": head, "lr": settings.head_lr * rate_share},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def tune(
    model: Any,
    parameters: Mapping[str, nn.Parameter],
    task: Goal,
    encoded: Encoded,
    settings: LocalTuning,
    rng: np.random.Generator,
    watch: Callable[[], None] | None = None,
) -> tuple[float, int]:
    """Tunes the parameters in place.

    Args:
        model: the (wrapped) model the parameters belong to, in ``eval`` mode.
        parameters: tunable parameters by name; ``is_head`` tells which rate is theirs.
        task: gives batches and the loss.
        encoded: the device's examples, at least one.
        settings: learning rates and lengths.
        rng: orders the examples.
        watch: called in every step while the parameters hold the gradients of the loss, before
            FedProx's pull is added and they are clipped and used; None for nothing.

    Returns:
        (mean loss over the steps, number of steps).

    Raises:
        ModelError: a loss is not finite.
    """
    optimiser = optimiser_of(parameters, settings)
    received = [p.detach().clone() for p in parameters.values()]
    losses: list[float] = []
    local_loss = task.local_loss(encoded, settings.logit_adjustment)
    batches = local_batches(
        encoded, batch_size=settings.batch_size, epochs=settings.epochs, rng=rng
    )
    num_steps = num_local_steps(len(encoded), settings)
    rates = [group["lr"] for group in optimiser.param_groups]
    parts = [list(part.values()) for part in by_part(parameters)]
    for step, indices in enumerate(itertools.islice(batches, num_steps)):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * settings.rate_share(step, num_steps)
        loss = local_loss(model, task.batch(encoded, indices))
        if not torch.isfinite(loss):
            raise ModelError(
                f"the loss is {loss.item()} at local step {step + 1}; lower finetune.lr="
                f"{settings.lr} or finetune.head_lr={settings.head_lr}"
            )
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if watch is not None:
            watch()
        if settings.proximal_mu > 0.0:
            for p, start in zip(parameters.values(), received, strict=True):
                pull = settings.proximal_mu * (p.detach() - start)  # of mu/2 ||p - start||^2
                p.grad = pull if p.grad is None else p.grad + pull
        for part in parts:
            torch.nn.utils.clip_grad_norm_(part, settings.clip_norm)
        optimiser.step()
    return float(np.mean(losses)), len(losses)
