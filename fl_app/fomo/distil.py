"""Aligns an emulator's middle with the FoMo's on public data at the server, adapters frozen.

loss = lm_weight * LM + kd_weight * mean(((T(x) - S(x)) / rms(T(x)))^2), where T and S are the
hidden states behind the middle of FoMo and emulator (Xiao, Lin, Han 2023, arXiv:2302.04870).
Only the emulator's middle blocks move. Classification has no language-model term.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fl_app.errors import ModelError
from fl_app.fomo.blocks import stack_paths
from fl_app.fomo.emulator import Split, middle_parameters

Batch = dict[str, torch.Tensor]
_IGNORED = -100  # label of padding, by the convention of transformers


@dataclass(frozen=True)
class Distillation:
    """Settings: ``lr`` of AdamW with linear warm-up over a tenth and cosine decay; loss weights."""

    lr: float
    lm_weight: float
    kd_weight: float
    steps: int


def alignment_loss(
    teacher: torch.Tensor, student: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Returns the relative squared distance of hidden states; zero iff equal, scale-free.

    Args:
        teacher: [batch, tokens, width] hidden states of the FoMo.
        student: same shape, of the emulator.
        mask: [batch, tokens], 1 for real tokens and 0 for padding.
    """
    weight = mask.unsqueeze(-1).to(teacher.dtype)
    count = weight.sum() * teacher.shape[-1]
    energy = ((teacher * weight) ** 2).sum() / count
    return (((teacher - student) * weight) ** 2).sum() / (count * energy)


def distil(
    teacher: Any,
    student: Any,
    split: Split,
    batches: Iterable[Batch],
    loss: Callable[[Any, Batch], torch.Tensor] | None,
    settings: Distillation,
) -> list[float]:
    """Trains the student's middle in place.

    Args:
        teacher: the full model; not changed.
        student: an emulator of it; its middle blocks are changed, and frozen again at the end.
        split: the student's split.
        batches: public batches; at most ``settings.steps`` are taken.
        loss: the language-model loss, None for classification.
        settings: learning rate and weights.

    Returns:
        The loss of each step.

    Raises:
        ModelError: a loss is not finite.
    """
    parameters = list(middle_parameters(student, split).values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=settings.lr)
    warm_up = max(1, settings.steps // 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimiser,
        [
            torch.optim.lr_scheduler.LinearLR(optimiser, 1.0 / warm_up, total_iters=warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, settings.steps - warm_up)),
        ],
        milestones=[warm_up],
    )
    history: list[float] = []
    behind_teacher = split.left + split.num_middle - 1
    behind_student = split.left + split.middle - 1
    for _, batch in zip(range(settings.steps), batches, strict=False):
        with _hidden_states(teacher, behind_teacher) as wanted, torch.no_grad():
            teacher(**_inputs(batch))
        with _hidden_states(student, behind_student) as given:
            task_loss = loss(student, batch) if loss else student(**_inputs(batch)).logits.sum() * 0
        terms = [
            alignment_loss(t, s, mask)
            for t, s, mask in zip(wanted, given, _masks(batch, wanted), strict=True)
        ]
        total = settings.lm_weight * task_loss + settings.kd_weight * torch.stack(terms).mean()
        if not torch.isfinite(total):
            raise ModelError(
                f"distillation diverged at step {len(history) + 1}; lower "
                f"strategy.emulator.distil.lr={settings.lr}"
            )
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        history.append(float(total.detach()))
    for parameter in parameters:
        parameter.requires_grad_(False)
    return history


@contextmanager
def _hidden_states(model: Any, index: int) -> Iterator[list[torch.Tensor]]:
    """Collects what block ``index`` of each stack puts out."""
    states: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        states.append(output if torch.is_tensor(output) else output[0])

    handles = [
        model.get_submodule(f"{stack}.{index}").register_forward_hook(keep)
        for stack in stack_paths(model)
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _inputs(batch: Batch) -> Batch:
    """Everything but class labels; a decoder of an encoder-decoder is driven by its labels."""
    return {k: v for k, v in batch.items() if k != "labels" or v.ndim > 1}


def _masks(batch: Batch, states: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns which states are of real tokens, for each stack (images have no padding)."""
    first = batch.get("attention_mask", torch.ones(states[0].shape[:2]))
    labels = batch.get("labels")
    if labels is not None and labels.ndim > 1 and len(states) > 1:
        return [first, labels != _IGNORED]  # the decoder runs along the labels, with their padding
    return [first] * len(states)
