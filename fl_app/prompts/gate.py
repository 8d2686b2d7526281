"""The gate in front of an ensemble: a newcomer is measured on labelled rows the owner trusts.

It is refused if it knows less than the shares of the labels tell on other rows (random prompts,
flipped labels, flipped signs), or if the ensemble with it is worse than without.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.prompts.batched import member_losses
from fl_app.prompts.ensemble import combine
from fl_app.prompts.errors import PromptError

MAX_DROP = 0.01
"""Accuracy that an ensemble may lose on the probe rows by a newcomer: one point."""


@dataclass(frozen=True)
class Probed:
    """What the gate measured, losses in nats.

    Attributes:
        loss: of the newcomer.
        shares_loss: of always answering the labels' shares, see ``blind_loss``.
        before: loss of the ensemble without the newcomer; infinite if there is none, NaN if it
            votes: shares of votes are no probabilities, and accuracy alone says what it is worth.
        after: likewise with it.
        accuracy_before: of the ensemble without it, 0 if there is none.
        accuracy_after: with it.
    """

    loss: float
    shares_loss: float
    before: float
    after: float
    accuracy_before: float
    accuracy_after: float


def guessing_loss(counts: Sequence[int] | NDArray[np.int64], labels: Sequence[int]) -> float:
    """Returns the mean loss in nats of guessing labels by the shares (n_c + 1) / (n + C).

    At most ln C, which guessing evenly costs. Shares of the labels themselves would not do: their
    entropy is too low where rows are few for the classes, and 0 where all have one class.

    Args:
        counts: n_c of every class, [C], on rows that ``labels`` are not of.
        labels: at least one, in [0, C).
    """
    smoothed = np.asarray(counts, np.float64) + 1.0
    losses = np.log(smoothed.sum()) - np.log(smoothed[np.asarray(labels, np.int64)])
    return float(min(losses.mean(), np.log(len(smoothed))))


def blind_loss(labels: torch.Tensor, num_classes: int) -> float:
    """Returns ``guessing_loss`` where there are no other rows: shares of a row from all the others.

    Args:
        labels: [N], N >= 1.
        num_classes: C, or the words of a vocabulary.
    """
    counts = torch.bincount(labels).double()
    shares = counts[labels] / (len(labels) - 1 + num_classes)  # (n_c - 1 + 1) / (N - 1 + C)
    return min(float(-shares.log().mean()), math.log(num_classes))


def probe(
    members: torch.Tensor,
    newcomer: torch.Tensor,
    labels: torch.Tensor,
    *,
    how: str = "mean",
    weights: torch.Tensor | None = None,
    beside: Sequence[int] | None = None,
) -> Probed:
    """Measures a newcomer.

    Args:
        members: log-probabilities [k, N, classes] of the ensemble on the probe rows, k >= 0.
        newcomer: [N, classes]. A NaN is no answer: the loss is infinite.
        labels: [N], N >= 1.
        how: a key of ``ensemble.COMBINERS``, by which the ensemble answers.
        weights: [k + 1], >= 0, not all 0, the newcomer's last; all alike if None.
        beside: places of the members that answer together with the newcomer; all if None. Another
            one stands back for it, where only so many answer.
    """
    guessed = blind_loss(labels, newcomer.shape[-1])
    loss = float(member_losses(newcomer.unsqueeze(0), labels)[0])
    before, accuracy_before = float("inf"), 0.0
    if len(members):
        own = None if weights is None or not float(weights[:-1].sum()) > 0 else weights[:-1]
        before, accuracy_before = _quality(members, labels, how, own)
    stay = list(range(len(members))) if beside is None else list(beside)
    together = torch.cat([members.reshape(-1, *newcomer.shape)[stay], newcomer.unsqueeze(0)])
    if not loss < float("inf"):  # also NaN
        return Probed(float("inf"), guessed, before, float("inf"), accuracy_before, 0.0)
    own = None if weights is None else weights[[*stay, len(members)]]
    after, accuracy_after = _quality(together, labels, how, own)
    return Probed(loss, guessed, before, after, accuracy_before, accuracy_after)


def require_use(found: Probed, *, margin: float = 0.0, best: float = 0.0) -> None:
    """Lets a newcomer pass.

    Args:
        found: what ``probe`` measured.
        margin: nats >= 0 by which it may raise the ensemble's loss.
        best: accuracy in [0, 1] that the ensemble has had before: newcomers may cost it a point
            altogether, not each. One that raises the present accuracy is let in below it, too.

    Raises:
        PromptError: ``knows-nothing`` or ``harms-ensemble``.
    """
    if not found.loss < found.shares_loss:
        raise PromptError(
            "knows-nothing",
            f"its loss of {found.loss:.4g} nats on the probe rows is not below the "
            f"{found.shares_loss:.4g} of guessing by the labels' shares",
        )
    if found.after > found.before + margin:
        raise PromptError(
            "harms-ensemble",
            f"the ensemble's loss would rise from {found.before:.4g} to {found.after:.4g} nats",
        )
    floor = max(found.accuracy_before, best) - MAX_DROP
    if found.accuracy_after < min(floor, found.accuracy_before):
        raise PromptError(
            "harms-ensemble",
            f"accuracy would fall from {found.accuracy_before:.4g} to {found.accuracy_after:.4g}, "
            f"allowed is {MAX_DROP} below the best so far, {floor + MAX_DROP:.4g}",
        )


def _quality(
    log_probs: torch.Tensor, labels: torch.Tensor, how: str, weights: torch.Tensor | None
) -> tuple[float, float]:
    answer = combine(how, log_probs, weights)
    if how == "vote":
        return math.nan, float((answer.classes == labels).double().mean())
    loss = float(member_losses(answer.log_probs.unsqueeze(0), labels)[0])
    return loss, float((answer.classes == labels).double().mean())
