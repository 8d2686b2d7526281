"""What answers where an attention is to be fitted: the fit, or the members' mean beside it.

Members of ``attention`` and ``fusion`` are screened as a mean, so the screen says nothing of what a
fit makes of them. Where the mean is clearly better on the same rows, it answers: a hostile member,
or a rate too large, costs the fit and not the run.
"""

import logging
from typing import Any

import torch

from fl_app.prompts.attentive import FITS, FitSettings, Fitted, Heard
from fl_app.prompts.batched import Batch
from fl_app.prompts.ensemble import Combined, combine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.screen import is_better

log = logging.getLogger("deft")


def fit_or_mean(public: Heard, settings: FitSettings, seed: int) -> Fitted:
    """Fits, and takes the members' mean if the fit fails or the mean is better.

    Better is what ``screen.is_better`` says of right answers on the batches. The fit has seen
    them, so the comparison favours it. Arguments as for ``attentive.fit_attention``.

    Returns:
        The fit; or the mean, ``failed`` with ``worse-than-mean`` or the reason of the fit's error.
    """
    kind = settings.kind
    try:
        found = FITS[kind](public, settings, seed)
        _require_no_worse(found, public)
    except PromptError as error:
        log.warning("%s: %s; the mean answers instead, lower prompt.lr", kind, error)
        return mean_instead(len(public.members), error.reason)
    log.info("%s fitted: %.4f -> %.4f", kind, found.losses[0], found.losses[-1])
    return found


def mean_instead(num_members: int, failed: str) -> Fitted:
    """Returns the members' mean, for where a fit has failed for this reason."""

    def answer(_on: Any, _batch: Batch, log_probs: torch.Tensor) -> Combined:
        return combine("mean", log_probs)

    return Fitted((1 / num_members,) * num_members, answer, (), failed)


def _require_no_worse(found: Fitted, public: Heard) -> None:
    """Raises PromptError ``worse-than-mean``, or what stands in the way of an answer."""
    fit: list[torch.Tensor] = []
    mean: list[torch.Tensor] = []
    with torch.no_grad():
        for batch, log_probs in zip(public.batches, public.said, strict=True):
            fit.append(found.answer(public.model, batch, log_probs).classes == batch["labels"])
            mean.append(combine("mean", log_probs).classes == batch["labels"])
    by_fit, by_mean = torch.cat(fit).double(), torch.cat(mean).double()
    if is_better(by_mean, by_fit):
        raise PromptError(
            "worse-than-mean",
            f"{float(by_fit.mean()):.4g} of the public rows are right by the fit, "
            f"{float(by_mean.mean()):.4g} by the mean of the members",
        )
