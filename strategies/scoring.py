"""Units by score: what becomes of the server's adapter between two rounds.

Devices score the units they tune (``fl_app.unit_scores``) and send the scores along with their
update. The server takes their mean (``strategies.score_mean``), puts the units of every block into
falling order, and cuts what the budget no longer holds. A cut is for good: AdaLoRA's reference
keeps pruned units at 0 and may wake them up again, but here nobody tunes them.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_app.layout.prefix import Layout, cut, reorder
from fl_app.layout.sensitivity import BudgetSchedule, keep_best
from fl_app.updates import Update
from fl_app.wire import Reply
from strategies.score_mean import mean_scores

Floats = NDArray[np.float64]


class Scoring(Protocol):
    """Decides on units by their scores."""

    @property
    def units(self) -> Mapping[int, Sequence[int]]:
        """Of every block, which rows of A as drawn the server's units are.

        Empty where they are the first rows, and where A itself is tuned and sent.
        """
        ...

    def is_wanted(self, server_round: int) -> bool:
        """Tells whether devices are to score their units in a round."""
        ...

    def settle(self, server_round: int, adapter: Update, replies: Sequence[Reply]) -> Update:
        """Returns the adapter that the next round begins with.

        Args:
            server_round: the round that is over.
            adapter: the server's, combined; not changed.
            replies: the answers that count, with scores where they were wanted.
        """
        ...

    def finish(self, adapter: Update) -> Update:
        """Returns the adapter that the run ends with, which keeps the budget.

        Args:
            adapter: the server's after the last round; not changed.
        """
        ...


class Unscored:
    """Layouts that no score changes."""

    units: Mapping[int, Sequence[int]] = {}

    def is_wanted(self, server_round: int) -> bool:
        """Never."""
        return False

    def settle(self, server_round: int, adapter: Update, replies: Sequence[Reply]) -> Update:
        """Returns the adapter."""
        return adapter

    def finish(self, adapter: Update) -> Update:
        """Returns the adapter."""
        return adapter


class ScoredUnits:
    """The server's units with their scores.

    Args:
        server: the server's layout at the start.
        is_a_sent: whether A travels; if not, devices must be told which rows of A they use.
    """

    def __init__(self, server: Layout, *, is_a_sent: bool) -> None:
        self._rows = {block: np.arange(rank) for block, rank in server.items()}
        self._is_a_sent = is_a_sent
        self.scores: dict[int, Floats] = {block: np.zeros(rank) for block, rank in server.items()}
        """Of every block the units' latest scores; 0 before the first."""

    @property
    def layout(self) -> dict[int, int]:
        """Rank of every block."""
        return {block: len(rows) for block, rows in self._rows.items()}

    @property
    def units(self) -> dict[int, tuple[int, ...]]:
        """See ``Scoring.units``."""
        is_first = all((rows == np.arange(len(rows))).all() for rows in self._rows.values())
        if self._is_a_sent or is_first:
            return {}
        return {block: tuple(rows.tolist()) for block, rows in self._rows.items()}

    def learn(self, replies: Sequence[Reply]) -> None:
        """Takes the mean scores of a round; see ``mean_scores``."""
        scores = [reply.scores for reply in replies]
        counts = [reply.num_examples for reply in replies]
        self.scores = mean_scores(scores, counts, self.scores)

    def sort(self, adapter: Update) -> Update:
        """Puts every block's units into falling order of score; equal ones keep theirs."""
        order = {block: np.argsort(-own, kind="stable") for block, own in self.scores.items()}
        self.scores = {block: own[order[block]] for block, own in self.scores.items()}
        self._rows = {block: rows[order[block]] for block, rows in self._rows.items()}
        return reorder(adapter, order)

    def keep(self, adapter: Update, num_units: int) -> Update:
        """Keeps the best units of all blocks, which ``sort`` has put first."""
        masks = keep_best(list(self.scores.values()), num_units)
        layout = {block: int(mask.sum()) for block, mask in zip(self.scores, masks, strict=True)}
        self.scores = {block: own[: layout[block]] for block, own in self.scores.items()}
        self._rows = {block: rows[: layout[block]] for block, rows in self._rows.items()}
        return cut(adapter, layout)


class OrderedUnits:
    """Layouts of which the server's, whose units go by score, holds every device's of a round."""

    def __init__(self, server: Layout, *, is_a_sent: bool) -> None:
        self._held = ScoredUnits(server, is_a_sent=is_a_sent)

    @property
    def server(self) -> Layout:
        """The server's layout of the round that comes next, or is under way."""
        return self._held.layout

    @property
    def units(self) -> Mapping[int, Sequence[int]]:
        """See ``Scoring.units``."""
        return self._held.units

    def at(self, server_round: int, device: int) -> Layout:
        """Returns the server's layout, whoever asks."""
        return self._held.layout


class SensitivityLayouts(OrderedUnits):
    """AdaLoRA in the federation: one layout for all, smaller from round to round.

    It is both the run's ``Layouts`` and its ``Scoring``. A round in which no update counts cuts
    nothing; the next one catches up, and after the last round ``finish`` does.

    Args:
        server: the server's layout at the start, of ``schedule.start`` units.
        schedule: units after every round.
        is_a_sent: whether A travels.
    """

    is_shared = True

    def __init__(self, server: Layout, schedule: BudgetSchedule, *, is_a_sent: bool) -> None:
        super().__init__(server, is_a_sent=is_a_sent)
        self._schedule = schedule

    def is_wanted(self, server_round: int) -> bool:
        """Tells whether units are cut after this round."""
        return self._schedule.units(server_round) < sum(self.server.values())

    def settle(self, server_round: int, adapter: Update, replies: Sequence[Reply]) -> Update:
        """See ``Scoring.settle``."""
        if not self.is_wanted(server_round):
            return adapter
        self._held.learn(replies)
        return self._held.keep(self._held.sort(adapter), self._schedule.units(server_round))

    def finish(self, adapter: Update) -> Update:
        """Cuts what the last rounds should have cut, by the scores known (equal ones uniformly)."""
        if self._schedule.end >= sum(self.server.values()):
            return adapter
        return self._held.keep(self._held.sort(adapter), self._schedule.end)
