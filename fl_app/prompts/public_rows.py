"""What public rows tell of an ensemble's members: who may speak, and with what weight."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from fl_app.prompts.attentive import FitSettings, Fitted, hear
from fl_app.prompts.batched import Batch, Tensors, log_probabilities, tensors_of
from fl_app.prompts.ensemble import exponential_weights
from fl_app.prompts.errors import PromptError
from fl_app.prompts.fit_or_mean import fit_or_mean
from fl_app.prompts.measure import weights_on
from fl_app.prompts.member import Member
from fl_app.prompts.screen import Said, screen
from fl_app.seeding import generator
from fl_app.tasks import Encoded, Task

log = logging.getLogger("deft")
MOST_SCREENED = 512
"""Rows on which members are screened, at most: two standard errors are 4 points then."""
_FIT_BATCH = 32
"""Texts of one step of a fit."""
ROWS_AT_ONCE = 64
"""Texts of all members together in one pass."""


class PublicRows:
    """Labelled rows nobody tunes on. What was found last is kept, by the members' content.

    Args:
        model: the full model, not wrapped.
        task: gives batches.
        rows: any number.
        how: a key of ``ensemble.COMBINERS``, by which members answer together.
        eta: of exponential weights; None for members that count alike.
        fit: of an attention; None where there is none.
        seed: draws the rows for screening and fitting, and the attention's starting values.
    """

    def __init__(
        self,
        model: Any,
        task: Task,
        rows: Encoded,
        *,
        how: str,
        eta: float | None,
        fit: FitSettings | None,
        seed: int,
    ) -> None:
        self._model, self._task, self._rows = model, task, rows
        self._how, self._eta, self._fit, self._seed = how, eta, fit, seed
        self._screen_rows = trusted_rows(rows, seed)
        self._screened: dict[tuple[str, ...], dict[int, str]] = {}
        self._weighed: dict[tuple[str, ...], tuple[float, ...]] = {}
        self._fitted: dict[tuple[str, ...], Fitted] = {}

    @property
    def num_screened(self) -> int:
        """Rows on which members are screened; 0: nobody is."""
        return len(self._screen_rows)

    def screen(self, members: Sequence[Member]) -> dict[int, str]:
        """Returns places and reasons of members that do harm, or know nothing; see ``screen``."""
        if not self._screen_rows or len(members) < 2:
            return {}
        key = tuple(member.content_hash for member in members)
        if key not in self._screened:
            found = screen(
                partial(self._say, [tensors_of(member) for member in members]),
                how=self._how,
                by_class=self._task.higher_is_better,
                weights_of=self._weights_of,
            )
            log.info("of %d members screened %d have no say: %s", len(members), len(found), found)
            self._screened = {key: found}
        return self._screened[key]

    def weights(self, members: Sequence[Member]) -> tuple[float, ...] | None:
        """Returns exponential weights by the losses on all rows; None without ``eta``.

        Raises:
            PromptError: no member has a finite loss, or there are no rows.
        """
        if self._eta is None:
            return None
        key = tuple(member.content_hash for member in members)
        if key not in self._weighed:
            found = weights_on(
                self._model,
                [tensors_of(member) for member in members],
                self._task,
                self._rows,
                eta=self._eta,
                batch_size=texts_at_once(len(members)),
            )
            self._weighed = {key: found}
        return self._weighed[key]

    def fitted(self, members: Sequence[Member]) -> Fitted | None:
        """Returns the attention fitted to these members, or their mean, see ``fit_or_mean``.

        None without ``fit``.

        Raises:
            PromptError: ``no-rows``.
        """
        if self._fit is None:
            return None
        key = tuple(member.content_hash for member in members)
        if key not in self._fitted:
            batches = fitting_batches(self._task, self._rows, self._seed)
            public = hear(self._model, [tensors_of(member) for member in members], batches)
            self._fitted = {key: fit_or_mean(public, self._fit, self._seed)}
        return self._fitted[key]

    def _say(self, members: Sequence[Tensors]) -> Iterator[Said]:
        size = texts_at_once(len(members))
        with torch.inference_mode():
            for start in range(0, len(self._screen_rows), size):
                batch = self._task.batch(self._rows, self._screen_rows[start : start + size])
                yield log_probabilities(self._model, members, batch)

    def _weights_of(self, losses: torch.Tensor) -> torch.Tensor | None:
        return None if self._eta is None else exponential_weights(losses, self._eta)


def trusted_rows(rows: Encoded, seed: int) -> list[int]:
    """Returns the rows members are screened on, at most ``MOST_SCREENED``, from short to long."""
    drawn = generator(seed, "screen").permutation(len(rows))[:MOST_SCREENED]
    return sorted(map(int, drawn), key=lambda i: int(rows.lengths[i]))


def fitting_batches(task: Task, rows: Encoded, seed: int) -> list[Batch]:
    """Returns the batches a fit goes through: the rows of the screen, in an order of its own.

    Raises:
        PromptError: ``no-rows``.
    """
    order = generator(seed, "attention-rows").permutation(trusted_rows(rows, seed)).tolist()
    if not order:
        raise PromptError("no-rows", "an attention needs public rows to be fitted on")
    starts = range(0, len(order), _FIT_BATCH)
    return [task.batch(rows, order[start : start + _FIT_BATCH]) for start in starts]


def texts_at_once(num_members: int) -> int:
    """Returns the texts of a pass, >= 1, in which every member reads each of them."""
    return max(1, ROWS_AT_ONCE // max(num_members, 1))
