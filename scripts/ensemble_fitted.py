"""Attention and fusion for windows of members, fitted as the server of a federation does."""

import statistics
import time
from collections.abc import Sequence

import torch

from fl_app.prompts.attentive import FitSettings, Fitted, Heard, fit_fusion, hear
from fl_app.prompts.batched import Tensors
from fl_app.prompts.fit_or_mean import fit_or_mean
from fl_app.prompts.public_rows import fitting_batches
from fl_app.schema import EnsembleFitted
from scripts.ensemble_members import Prepared


def settings_of(kind: str) -> FitSettings:
    """Returns the settings a federation has by default for a key of ``FITS``."""
    default = EnsembleFitted()
    return FitSettings(kind, default.lr, default.epochs, default.hidden)


class PublicFits:
    """Fits on the public rows of a prepared task; members are asked for their answers once.

    Args:
        held: the task, of classes.
        members: all of them.
        seed: of the run, draws rows and starting values as there.
    """

    def __init__(self, held: Prepared, members: Sequence[Tensors], seed: int) -> None:
        batches = fitting_batches(held.bench.task, held.public, seed)
        self._public, self._seed = hear(held.bench.full.bare_model, members, batches), seed

    def fitted(self, kind: str, window: Sequence[int]) -> Fitted:
        """Returns the fit of a kind to these members, or their mean, see ``fit_or_mean``."""
        return fit_or_mean(self._public.of(window), settings_of(kind), self._seed)


def fusion_seconds(held: Prepared, members: Sequence[Tensors], queries: Sequence[int]) -> float:
    """Times one query of a fusion; what is fitted costs as much as what is not, so it is not.

    Args:
        held: the task, of classes.
        members: k >= 2.
        queries: test rows, one at a time.

    Returns:
        The median in seconds.
    """
    model, task, test = held.bench.full.bare_model, held.bench.task, held.bench.test
    batch = task.batch(test, queries[:1])
    fitted = fit_fusion(Heard(model, members, [batch], ()), settings_of("fusion"), 0)
    seconds = []
    with torch.inference_mode():
        for i in queries:
            batch = task.batch(test, [i])
            began = time.perf_counter()
            fitted.answer(model, batch, torch.empty(0))
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
