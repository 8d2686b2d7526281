"""Who of an ensemble's members may speak: all are measured together on rows the owner trusts.

A newcomer at the door is judged by ``gate``; here everybody is there already, and some may be
hostile. A member goes if the ensemble is better without it, or if it knows less than guessing and
the ensemble does not need it: one that knows a few classes only may guess badly and still help.

Better is by more than a point (0.01 of the rows, or 0.01 nats a token) and by more than two
standard errors of the difference, label by label; over classes that is McNemar's test.
"""

from collections.abc import Callable, Iterable, Sequence

import torch

from fl_app.prompts.batched import member_losses
from fl_app.prompts.ensemble import combine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.gate import MAX_DROP, blind_loss

Said = tuple[torch.Tensor, torch.Tensor]
"""Log-probabilities [k, N, classes] in nats of all members, and labels [N]."""
_LEAST = -100.0
"""Nats that a token may cost at most, or one impossible token would outweigh all others."""
WeightsOf = Callable[[torch.Tensor], torch.Tensor | None]
"""From the summed losses [j] of the members present to their weights [j], None for alike."""


def screen(
    said: Callable[[], Iterable[Said]],
    *,
    how: str,
    by_class: bool,
    weights_of: WeightsOf = lambda _losses: None,
) -> dict[int, str]:
    """Finds the members that shall have no say; at least one keeps it.

    Args:
        said: goes through the rows, which nobody has tuned on; called again for every member that
            goes where the geometric mean of whole vocabularies has to be taken.
        how: a key of ``ensemble.COMBINERS``.
        by_class: rows have classes, and right answers count; else texts, and nats a token do.
        weights_of: weights of those present.

    Returns:
        Places of those members, with ``harms-ensemble`` or ``knows-nothing``. Nobody goes for the
        latter where nobody knows anything.
    """
    losses, guessed, kept = _measured(said, whole=by_class)
    if len(losses) < 2:
        return {}
    source = said if how == "logit_mean" and not by_class else (lambda: kept)
    num_labels = sum(len(labels) for _, labels in kept)
    knows = (losses < guessed * num_labels).tolist()
    present, gone = list(range(len(losses))), dict[int, str]()
    best: torch.Tensor | None = None
    while len(present) > 1:
        parties = [present, *([i for i in present if i != j] for j in present)]
        scores = _scores(source, parties, losses, how, by_class, weights_of)
        now, without = scores[0], scores[1:]
        if now is None:
            return gone
        if best is None or is_better(now, best):
            best = now
        going = []
        for j, other in zip(present, without, strict=True):
            if other is None:
                continue  # nobody else has an answer everywhere
            harms = is_better(other, now)
            if harms or (any(knows) and not knows[j] and not is_better(best, other)):
                reason = "harms-ensemble" if knows[j] else "knows-nothing"
                loss = float(losses[j].nan_to_num(torch.inf))
                going.append((float(other.mean()), loss, j, reason))
        if not going:
            return gone
        *_, worst, reason = max(going)
        gone[worst] = reason
        present.remove(worst)
    return gone


def _measured(
    said: Callable[[], Iterable[Said]], *, whole: bool
) -> tuple[torch.Tensor, float, list[Said]]:
    """Returns summed losses [k], the mean loss of guessing, and what was said.

    Without ``whole`` only what was said of the labels is kept, as if that were the only class: the
    probability that a mixture gives to a label needs no other.
    """
    losses: torch.Tensor | None = None
    kept, every, num_classes = list[Said](), list[torch.Tensor](), 0
    for log_probs, labels in said():
        if len(labels) == 0:
            continue
        own = member_losses(log_probs, labels).double() * len(labels)
        losses = own if losses is None else losses + own
        num_classes = log_probs.shape[-1]
        every.append(labels)
        if not whole:
            places = labels.expand(len(log_probs), -1).unsqueeze(-1)
            log_probs, labels = log_probs.gather(-1, places), torch.zeros_like(labels)
        kept.append((log_probs, labels))
    if losses is None:
        return torch.zeros(0), 0.0, []
    return losses, blind_loss(torch.cat(every), num_classes), kept


def _scores(
    source: Callable[[], Iterable[Said]],
    parties: Sequence[list[int]],
    losses: torch.Tensor,
    how: str,
    by_class: bool,
    weights_of: WeightsOf,
) -> list[torch.Tensor | None]:
    """Returns what each party scores, [N]; the more the better; None for who cannot answer."""
    found: list[list[torch.Tensor] | None] = [[] for _ in parties]
    for log_probs, labels in source():
        for i, party in enumerate(parties):
            if (scores := found[i]) is None:
                continue
            try:
                answer = combine(how, log_probs[party], weights_of(losses[party]))
            except PromptError:
                found[i] = None
                continue
            if by_class:
                scores.append((answer.classes == labels).double())
            else:
                picked = answer.log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
                scores.append(picked.double().clamp(min=_LEAST))
    return [None if scores is None else torch.cat(scores) for scores in found]


def is_better(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tells whether scores [N] are above others by more than a point and two standard errors."""
    gain = one - other
    error = 2.0 * float((gain.square().mean() / len(gain)).sqrt())
    return float(gain.mean()) > max(MAX_DROP, error)
