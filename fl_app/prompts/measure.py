"""How good members and their ensemble are: the triple of Lester et al. 2021, table 3."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fl_app.prompts.attentive import Answer
from fl_app.prompts.batched import Tensors, log_probabilities, member_losses
from fl_app.prompts.ensemble import combine, exponential_weights
from fl_app.prompts.errors import PromptError
from fl_app.tasks import Encoded, Task


@dataclass(frozen=True)
class Measured:
    """Measures over the same rows.

    Attributes:
        members: measure of each member: accuracy in [0, 1], or perplexity >= 1.
        ensemble: measure of the ensemble.
        losses: mean loss of each member in nats.
        ensemble_loss: mean loss of the ensemble in nats; infinite where a vote left no share.
        weights: of the members, summing to 1.
        higher_is_better: of the measure.
        num_labels: what ``losses`` are means over: rows of classes, predicted tokens of texts.
    """

    members: tuple[float, ...]
    ensemble: float
    losses: tuple[float, ...]
    ensemble_loss: float
    weights: tuple[float, ...]
    higher_is_better: bool
    num_labels: int

    def as_result(self) -> dict[str, Any]:
        """Returns the ``ensemble`` entry of ``result.json``."""
        best = max(self.members) if self.higher_is_better else min(self.members)
        return {
            "member_mean": float(np.mean(self.members)),
            "member_best": best,
            "ensemble": self.ensemble,
            "weights": list(self.weights),
        }


def measure(
    model: Any,
    members: Sequence[Tensors],
    task: Task,
    encoded: Encoded,
    *,
    how: str = "mean",
    weights: Sequence[float] | None = None,
    batch_size: int = 32,
    answer: Answer | None = None,
) -> Measured:
    """Measures members and ensemble in one go.

    Args:
        model: the frozen model, not wrapped.
        members: k >= 1.
        task: gives batches and says what is measured.
        encoded: labelled examples, at least one.
        how: a key of ``ensemble.COMBINERS``; for texts it combines token by token, and ``vote``
            is refused, see ``generate.vote_strings``.
        weights: one per member, >= 0; uniform if None.
        batch_size: texts of a pass; k times as many rows.
        answer: how the ensemble answers, where that is no combiner, see ``attentive``; ``how`` is
            not read then, and ``weights`` are for the result alone.

    Raises:
        PromptError: ``no-rows``, or ``unsupported-setting`` (a vote on tokens).
    """
    by_class = task.higher_is_better
    if how == "vote" and not by_class:
        raise PromptError(
            "unsupported-setting", "a vote on tokens mixes sentences; vote on decoded strings"
        )
    shares = _shares(len(members), weights)
    order = np.argsort(encoded.lengths, kind="stable")
    own, own_loss = torch.zeros(len(members)), torch.zeros(len(members), dtype=torch.float64)
    all_loss = hits = count = 0.0
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = task.batch(encoded, [int(i) for i in order[start : start + batch_size]])
            log_probs, labels = log_probabilities(model, members, batch)
            if len(labels) == 0:
                continue
            whole = answer(model, batch, log_probs) if answer else combine(how, log_probs, shares)
            own += (log_probs.argmax(-1) == labels).sum(-1)
            own_loss += member_losses(log_probs, labels).double() * len(labels)
            hits += float((whole.classes == labels).sum())
            mixed = member_losses(whole.log_probs.unsqueeze(0), labels)
            all_loss += float(mixed) * len(labels)
            count += len(labels)
    if count == 0:
        raise PromptError("no-rows", "there is nothing to measure on")
    losses = own_loss / count
    return Measured(
        members=tuple(((own / count) if by_class else losses.exp()).tolist()),
        ensemble=hits / count if by_class else float(np.exp(all_loss / count)),
        losses=tuple(losses.tolist()),
        ensemble_loss=all_loss / count,
        weights=tuple(shares.tolist()),
        higher_is_better=by_class,
        num_labels=int(count),
    )


def weights_on(
    model: Any,
    members: Sequence[Tensors],
    task: Task,
    encoded: Encoded,
    *,
    eta: float = 1.0,
    batch_size: int = 32,
) -> tuple[float, ...]:
    """Returns exponential weights by the members' losses, summed over all labels of these rows.

    With eta = 1 the posterior of a Bayes mixture that began with equal weights, whether a row has
    one label (its class) or many (its predicted tokens).
    """
    found = measure(model, members, task, encoded, batch_size=batch_size)
    summed = torch.tensor(found.losses, dtype=torch.float64) * found.num_labels
    return tuple(exponential_weights(summed, eta).tolist())


def _shares(k: int, weights: Sequence[float] | None) -> torch.Tensor:
    given = torch.tensor([1.0] * k if weights is None else list(weights), dtype=torch.float64)
    if len(given) != k or not bool((given >= 0).all()) or not float(given.sum()) > 0:
        raise PromptError("bad-weights", f"weights={weights} must be {k} numbers >= 0, not all 0")
    return given / given.sum()
