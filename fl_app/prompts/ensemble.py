"""Combiners: from what k members say about every sample to one answer.

All take log-probabilities [k, N, classes] in nats and weights, [k] or [k, N] for other weights at
every sample. A member with NaN at a sample is left out there and the other weights are scaled up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fl_app.prompts.errors import PromptError

_CLOSE = 1e-9
_LEAST = -1e4


@dataclass(frozen=True, eq=False)
class Combined:
    """One answer per sample.

    Attributes:
        classes: [N] the answers.
        log_probs: [N, classes] in nats, adding up to probability 1; of ``vote`` the shares of the
            votes.
    """

    classes: torch.Tensor
    log_probs: torch.Tensor


Combiner = Callable[[torch.Tensor, torch.Tensor], Combined]


def combine(how: str, log_probs: torch.Tensor, weights: torch.Tensor | None = None) -> Combined:
    """Combines the members' answers.

    Args:
        how: a key of ``COMBINERS``.
        log_probs: [k, N, classes].
        weights: [k] or [k, N], >= 0, not all 0 at any sample; uniform if None.

    Raises:
        PromptError: ``unknown-combiner``, ``no-member`` (nobody has finite log-probabilities, or
            weight, at some sample), or ``bad-weights``.
    """
    if how not in COMBINERS:
        raise PromptError("unknown-combiner", f"{how!r} must be one of {', '.join(COMBINERS)}")
    return COMBINERS[how](*_usable(log_probs, weights))


def vote(log_probs: torch.Tensor, weights: torch.Tensor) -> Combined:
    """The class with most votes; a member's vote counts its weight.

    Ties go to the tied class of the highest mean probability, then to the first of them. A member
    that finds two classes equally likely votes for the first.
    """
    votes = torch.nn.functional.one_hot(log_probs.argmax(-1), log_probs.shape[-1])
    shares = (weights.unsqueeze(-1) * votes).sum(0)
    tied = shares >= shares.max(-1, keepdim=True).values - _CLOSE
    mean = (weights.unsqueeze(-1) * log_probs.exp()).sum(0)
    return Combined(mean.masked_fill(~tied, -1.0).argmax(-1), shares.log())


def mean_probability(log_probs: torch.Tensor, weights: torch.Tensor) -> Combined:
    """The mixture sum_j w_j p_j."""
    return _most_likely((log_probs + weights.log().unsqueeze(-1)).logsumexp(0))


def scored_mixture(log_probs: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The mixture by softmax weights, for fits: its gradient is finite whatever the weights are.

    A weight that underflows to 0 has an infinite derivative of its logarithm, so weights stay
    logarithms here. A member with NaN or infinity at a sample is left out there.

    Args:
        log_probs: [k, N, classes].
        scores: [k, N], finite; the weights are their softmax over the members.

    Returns:
        [N, classes] in nats; what is less likely than exp(-10000) counts as that likely.

    Raises:
        PromptError: ``no-member``, nobody has finite log-probabilities at some sample.
    """
    speaks = _speaks(log_probs)
    if not bool(speaks.any(0).all()):
        raise PromptError("no-member", "no member has finite outputs at some sample")
    log_weights = scores.masked_fill(~speaks, -torch.inf).log_softmax(0).clamp(min=_LEAST)
    clean = torch.where(speaks.unsqueeze(-1), log_probs, 0.0).clamp(min=_LEAST)
    return (clean + log_weights.unsqueeze(-1)).logsumexp(0)


def logit_mean(log_probs: torch.Tensor, weights: torch.Tensor) -> Combined:
    """The geometric mean, prod_j p_j^w_j scaled to probability 1."""
    shares = weights.unsqueeze(-1)
    # what weighs nothing shall not count, not even an impossible class (0 times infinity)
    return _most_likely(torch.where(shares > 0, shares * log_probs, 0.0).sum(0).log_softmax(-1))


def median(log_probs: torch.Tensor, weights: torch.Tensor) -> Combined:
    """The weighted median of every class's probability, scaled to sum 1.

    Less than half of the weight cannot move it out of the range of the others. Where all medians
    are 0 (members that are sure of different classes) it is the mixture.
    """
    order = log_probs.argsort(0)
    sorted_weights = weights.unsqueeze(-1).expand_as(log_probs).gather(0, order)
    below = sorted_weights.cumsum(0)
    first = (below < 0.5 - _CLOSE).sum(0, keepdim=True).clamp(max=len(log_probs) - 1)
    middle = log_probs.gather(0, order).gather(0, first).squeeze(0)
    empty = (middle == -torch.inf).all(-1, keepdim=True)
    mixture = mean_probability(log_probs, weights).log_probs
    return _most_likely(torch.where(empty, mixture, middle).log_softmax(-1))


COMBINERS: dict[str, Combiner] = {
    "vote": vote,
    "mean": mean_probability,
    "logit_mean": logit_mean,
    "median": median,
}
"""Combiners by name; weights make ``mean`` the exponentially weighted one, or the attentive one."""


def exponential_weights(losses: torch.Tensor, eta: float) -> torch.Tensor:
    """Returns [k] weights proportional to exp(-eta loss_j).

    Args:
        losses: [k] summed losses; who has NaN or infinity gets weight 0, whatever eta.
        eta: >= 0. 0 is uniform, infinity the members of least loss, in equal parts.

    Raises:
        PromptError: ``no-member``, no loss is finite.
    """
    finite = losses.isfinite()
    if not bool(finite.any()):
        raise PromptError("no-member", f"no member has a finite loss: {losses.tolist()}")
    # measured from the best one, so that a weight never overflows
    above = (losses - losses[finite].min()).masked_fill(~finite, torch.inf)
    if eta == float("inf"):
        best = (above <= 0).to(losses.dtype)
        return best / best.sum()
    return (-eta * above).masked_fill(~finite, -torch.inf).softmax(0)


def _most_likely(log_probs: torch.Tensor) -> Combined:
    return Combined(log_probs.argmax(-1), log_probs)


def _speaks(log_probs: torch.Tensor) -> torch.Tensor:
    return ~log_probs.isnan().any(-1) & ~(log_probs == torch.inf).any(-1)


def _usable(
    log_probs: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns log-probabilities without NaN and weights [k, N] that sum to 1 at every sample."""
    k, num_samples, _ = log_probs.shape
    given = torch.full((k,), 1.0) if weights is None else weights
    given = given.to(log_probs.dtype)
    table = given.reshape(k, -1).expand(k, num_samples)
    if not bool(((table >= 0) & table.isfinite()).all()):
        raise PromptError("bad-weights", f"weights {given.tolist()} must be finite and >= 0")
    speaks = _speaks(log_probs)
    table = table * speaks
    total = table.sum(0)
    if bool((total <= 0).any()):
        raise PromptError("no-member", "no member with a weight has finite outputs at some sample")
    clean = torch.where(speaks.unsqueeze(-1), log_probs, 0.0)
    return clean, table / total
