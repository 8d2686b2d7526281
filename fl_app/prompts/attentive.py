"""Ensembles that look at the text: what public rows fit, and how it answers.

``attention`` weighs the members' answers text by text; ``fusion`` mixes their prompts text by text,
adds a prompt of its own and answers with one head, in a pass as long as one member's. The members
stay as they are. Both read the whole text, so they are for classes: the text that a language model
is measured on holds the answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fl_app.prompts.attention import PromptAttention, fused, pooled_texts
from fl_app.prompts.batched import Batch, Tensors, log_probabilities, member_losses
from fl_app.prompts.ensemble import Combined, combine, scored_mixture
from fl_app.prompts.fitting import fit_parameters

Answer = Callable[[Any, Batch, torch.Tensor], Combined]
"""From a model (full or emulator), a batch and the members' log-probabilities [k, N, classes]."""


@dataclass(frozen=True)
class FitSettings:
    """How an attention is fitted.

    Attributes:
        kind: a key of ``FITS``.
        lr: AdamW's, > 0.
        epochs: passes over the public rows, >= 1.
        hidden: width of its bottleneck, >= 1.
    """

    kind: str
    lr: float
    epochs: int
    hidden: int


@dataclass(frozen=True)
class Fitted:
    """A fitted way to answer.

    Attributes:
        weights: mean weight of each member over the public rows.
        answer: answers a batch.
        losses: of every step of the fit, in nats.
        failed: why the fit failed, so that the members' mean answers instead; None if it did not.
    """

    weights: tuple[float, ...]
    answer: Answer
    losses: tuple[float, ...]
    failed: str | None = None


@dataclass(frozen=True, eq=False)
class Heard:
    """What a fit sees.

    Attributes:
        model: the full model, not wrapped; frozen.
        members: k >= 1.
        batches: labelled texts nobody tunes on.
        said: what the members say of each batch, [k, N, classes] in nats, without gradient.
    """

    model: Any
    members: Sequence[Tensors]
    batches: Sequence[Batch]
    said: Sequence[torch.Tensor]

    def of(self, window: Sequence[int]) -> "Heard":
        """Returns the same of some of the members, by index."""
        members = [self.members[j] for j in window]
        said = [one[list(window)] for one in self.said]
        return replace(self, members=members, said=said)


def hear(model: Any, members: Sequence[Tensors], batches: Sequence[Batch]) -> Heard:
    """Asks members once; they do not change while something is fitted to them."""
    with torch.no_grad():
        said = [log_probabilities(model, members, batch)[0] for batch in batches]
    return Heard(model, members, batches, said)


def fit_attention(public: Heard, settings: FitSettings, seed: int) -> Fitted:
    """Fits weights of each text for the mixture of the members' answers.

    Args:
        public: members and texts.
        settings: of the fit.
        seed: draws starting values.

    Raises:
        PromptError: ``not-finite`` loss, or a member has no finite answer.
    """
    model, batches = public.model, public.batches
    attention = _attention(public.members, settings, seed)
    prompts = [member.prompt for member in public.members]
    known = {id(batch): own for batch, own in zip(batches, public.said, strict=True)}

    def loss_of(batch: Batch) -> torch.Tensor:
        scores = attention.scores(pooled_texts(model, batch), prompts)
        mixed = scored_mixture(known[id(batch)], scores)
        return member_losses(mixed.unsqueeze(0), batch["labels"])[0]

    losses = fit_parameters(
        loss_of, list(attention.parameters()), batches, lr=settings.lr, epochs=settings.epochs
    )

    def answer(on: Any, batch: Batch, log_probs: torch.Tensor) -> Combined:
        return combine("mean", log_probs, attention(pooled_texts(on, batch), prompts))

    return Fitted(_mean_weights(attention, model, prompts, batches), answer, tuple(losses))


def fit_fusion(public: Heard, settings: FitSettings, seed: int) -> Fitted:
    """Fits the attention of mixed prompts, the prompt added to them, and the head behind them.

    The added prompt starts at 0, the head at the mean of the members'. Arguments and errors as for
    ``fit_attention``; prompts are of one length (PromptError ``wrong-shape``).
    """
    model, members, batches = public.model, public.members, public.batches
    attention = _attention(members, settings, seed)
    prompts = [member.prompt for member in members]
    target = nn.Parameter(torch.zeros_like(prompts[0]))
    heads = {name: [member.head[name] for member in members] for name in members[0].head}
    head = {name: nn.Parameter(torch.stack(own).mean(0)) for name, own in heads.items()}

    def mixed(on: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        weights = attention(pooled_texts(on, batch), prompts)
        one = Tensors(fused(weights, prompts, target).prompt, _tensors(head))
        return log_probabilities(on, [one], batch)

    losses = fit_parameters(
        lambda batch: member_losses(*mixed(model, batch))[0],
        [*attention.parameters(), target, *head.values()],
        batches,
        lr=settings.lr,
        epochs=settings.epochs,
    )

    def answer(on: Any, batch: Batch, _log_probs: torch.Tensor) -> Combined:
        return combine("mean", mixed(on, batch)[0])

    return Fitted(_mean_weights(attention, model, prompts, batches), answer, tuple(losses))


FITS: dict[str, Callable[[Heard, FitSettings, int], Fitted]] = {
    "attention": fit_attention,
    "fusion": fit_fusion,
}
"""Ways to fit by the name of the combiner."""


def _attention(members: Sequence[Tensors], settings: FitSettings, seed: int) -> PromptAttention:
    width = int(members[0].prompt.shape[-1])
    return PromptAttention(width, seed=seed, hidden=settings.hidden)


def _mean_weights(
    attention: PromptAttention,
    model: Any,
    prompts: Sequence[torch.Tensor],
    batches: Sequence[Batch],
) -> tuple[float, ...]:
    with torch.no_grad():
        every = [attention(pooled_texts(model, batch), prompts) for batch in batches]
    weights = torch.cat(every, 1).double().mean(1)
    return tuple((weights / weights.sum()).tolist())


def _tensors(head: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return dict(head)
