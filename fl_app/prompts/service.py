"""An ensemble that answers while prompts come in and weights follow feedback; knows no HTTP."""

import math
import statistics
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fl_app.data.examples import Examples
from fl_app.fomo.backbone import Backbone
from fl_app.prompts.batched import Tensors, as_it_is, log_probabilities, tensors_of
from fl_app.prompts.door import BestFile, Door, measured_by
from fl_app.prompts.ensemble import COMBINERS, combine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.hedge import (
    SleepingHedge,
    bounded_log_loss,
    hedge_from,
    load_hedge,
    save_hedge,
)
from fl_app.prompts.member import Member
from fl_app.prompts.packing import unpack
from fl_app.prompts.pool import Pool
from fl_app.tasks import Columns, Encoded, Task

WEIGHTED = "weighted"
"""The mixture with Hedge's weights; all other combiners weigh members alike."""
_REMEMBERED = 1000
_MAX_PROMPT_BYTES = 2**26
_HEDGE, _DOOR = "hedge.json", "door.json"


@dataclass(frozen=True)
class Answer:
    """The answer to one text.

    Attributes:
        id: names it in feedback.
        label: the answer.
        probabilities: by label; shares of the votes with ``vote``.
        num_members: who had a say; 0 if the pool was empty and the model answered as it is.
    """

    id: int
    label: str
    probabilities: dict[str, float]
    num_members: int


class EnsembleService:
    """Answers, takes feedback, takes prompts in; may be called from many threads.

    Args:
        backbone: the frozen model and its labels.
        task: prepares texts of the default columns ``text`` and ``label``.
        pool: the members, possibly none yet.
        probe_rows: labelled rows for the gate; without any nobody is let in.
        how: a key of ``COMBINERS``, or ``weighted``.
        eta: of Hedge, in (0, 1], where its bound for log loss holds.
        most: at most this many members answer, those with most weight; bounds the time of a query.
        folder: where pool, weights and the door's memory are kept; None keeps them nowhere.

    Raises:
        PromptError: ``unknown-combiner``, ``bad-eta`` (also: not that of the weights kept in the
            folder), ``bad-capacity``, or ``damaged`` weights or memory of the door.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        pool: Pool,
        *,
        probe_rows: Examples | None = None,
        how: str = WEIGHTED,
        eta: float = 1.0,
        most: int | None = None,
        folder: Path | None = None,
    ) -> None:
        if how != WEIGHTED and how not in COMBINERS:
            known = ", ".join((WEIGHTED, *COMBINERS))
            raise PromptError("unknown-combiner", f"{how!r} must be one of {known}")
        if not 0.0 < eta <= 1.0:
            raise PromptError("bad-eta", f"eta={eta} must be in (0, 1], or the bound is void")
        if most is not None and most < 1:
            raise PromptError("bad-capacity", f"most={most} must be >= 1")
        self._backbone, self._task, self._pool = backbone, task, pool
        self._how, self._most, self._folder = how, most, folder
        self._lock = threading.Lock()
        path = None if folder is None else folder / _HEDGE
        self._hedge = SleepingHedge(eta) if path is None else load_hedge(path, eta)
        self._probe = None if probe_rows is None else task.encode(probe_rows)
        self._tensors = {m.content_hash: tensors_of(m) for m in pool.members}
        targets = [] if self._probe is None else self._probe.targets
        self._door = Door(torch.tensor(targets), self._mixes, self._best_file())
        for name, tensors in self._tensors.items():
            self._hedge.join(name)
            if self._probe is not None:
                self._door.seat(name, self._run([tensors], self._probe)[0])
        self._asked: OrderedDict[int, dict[str, torch.Tensor] | None] = OrderedDict()
        self._num_asked = 0
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """Answers texts in one pass of all members.

        Raises:
            PromptError: ``no-member``, no member has finite outputs.
        """
        with self._lock:
            began = time.perf_counter()
            names = self._awake()
            members = [self._tensors[name] for name in names] or [as_it_is(self._backbone.model)]
            # a query has no label, but a table of the task needs one
            unknown = [self._backbone.labels[0]] * len(texts)
            rows = self._task.encode(Examples({"text": list(texts), "label": unknown}))
            log_probs = self._run(members, rows)
            shares = self._hedge.weights(names) if names and self._how == WEIGHTED else {}
            weights = torch.tensor([shares[name] for name in names]) if shares else None
            combined = combine(self._mixes, log_probs, weights)
            answers = [
                self._remember(
                    int(combined.classes[row]),
                    combined.log_probs[row],
                    {name: log_probs[j, row] for j, name in enumerate(names)},
                )
                for row in range(len(texts))
            ]
            self._seconds.append(time.perf_counter() - began)
            return answers

    def feedback(self, answer_id: int, label: str) -> dict[str, float]:
        """Books the right label of an answer, once, and returns the new weights.

        Losses are those of the members that answered, and of their mixture with the weights at the
        time of the feedback; where feedback follows at once, of the answer given with ``weighted``.

        Raises:
            PromptError: ``unknown-label``, ``unknown-query`` (or one of long ago), or
                ``feedback-given``.
        """
        with self._lock:
            labels = self._backbone.labels
            if label not in labels:
                raise PromptError("unknown-label", f"{label!r} must be one of {', '.join(labels)}")
            if answer_id not in self._asked:
                raise PromptError("unknown-query", f"no answer {answer_id} is remembered")
            said = self._asked[answer_id]
            if said is None:
                raise PromptError("feedback-given", f"answer {answer_id} has its feedback already")
            self._asked[answer_id] = None
            right = labels.index(label)
            losses = {
                name: bounded_log_loss(float(log_probs[right]), len(labels))
                for name, log_probs in said.items()
                if not bool(log_probs.isnan().any())
            }
            if losses:
                weights = self._hedge.weights(losses)
                mixed = math.fsum(weights[name] * math.exp(-losses[name]) for name in losses)
                self._hedge.update(losses, -math.log(mixed))
            return self._weights()

    def accept(self, blob: bytes) -> tuple[Member, Member | None]:
        """Takes a packed prompt in, if it fits and passes the gate.

        Returns:
            (the newcomer, the member that had to go for it).

        Raises:
            WireError: ``no-probe`` rows to measure it on; it is damaged, does not fit, is here
                already, or is refused by the gate or a full pool.
        """
        if self._probe is None:
            raise PromptError("no-probe", "the service was started without probe rows")
        member = unpack(blob, max_bytes=_MAX_PROMPT_BYTES)
        with self._lock:
            # there are no rounds here, so nothing grows old
            now_round = member.card.round
            self._pool.require(member, now_round=now_round)
            tensors = tensors_of(member)
            said = self._run([tensors], self._probe)[0]
            loss = self._door.loss(said)
            leaver = self._pool.leaver(member, loss)
            awake = self._awake()
            stay = [name for name in awake if leaver is None or name != leaver.content_hash]
            self._door.require(
                said,
                answering=awake,
                beside=stay if self._most is None else stay[: self._most - 1],
                weights=self._weights_with(awake, member.content_hash),
            )
            leaver = self._pool.admit(member, now_round=now_round, measured_loss=loss)
            if leaver is not None:
                del self._tensors[leaver.content_hash]
                self._door.dismiss(leaver.content_hash)
            self._tensors[member.content_hash] = tensors
            self._door.seat(member.content_hash, said)
            self._hedge.join(member.content_hash)
            self._keep()
            return member, leaver

    def state(self) -> dict[str, Any]:
        """Returns members, weights, regret with its bound, and latency in seconds."""
        with self._lock:
            weights, regret = self._weights(), self._hedge.regret()
            seconds = sorted(self._seconds)
            return {
                "combiner": self._how,
                "labels": list(self._backbone.labels),
                "members": [
                    {
                        "content_hash": entry.member.content_hash,
                        "device": entry.member.card.device,
                        "round": entry.member.card.round,
                        "task": entry.member.card.task,
                        "num_tokens": entry.member.num_tokens,
                        "measured_loss": entry.measured_loss,
                        "weight": weights[entry.member.content_hash],
                        "regret": regret[entry.member.content_hash],
                    }
                    for entry in self._pool.entries
                ],
                "num_queries": self._num_asked,
                "num_feedback": self._hedge.num_rounds,
                "regret_bound": self._hedge.bound(),
                "latency_s": {
                    "median": statistics.median(seconds) if seconds else None,
                    "p95": seconds[math.ceil(0.95 * len(seconds)) - 1] if seconds else None,
                },
            }

    def keep(self) -> None:
        """Writes pool and weights to the folder, if there is one."""
        with self._lock:
            self._keep()

    def _keep(self) -> None:
        if self._folder is not None:
            self._pool.save(self._folder)
            save_hedge(self._hedge, self._folder / _HEDGE)

    def _best_file(self) -> BestFile | None:
        if self._folder is None or self._probe is None:
            return None
        return BestFile(self._folder / _DOOR, measured_by(self._probe, self._how))

    @property
    def _mixes(self) -> str:
        """The combiner that answers."""
        return "mean" if self._how == WEIGHTED else self._how

    def _weights_with(self, awake: Sequence[str], newcomer: str) -> torch.Tensor | None:
        """Returns the weights of those who answer and of a newcomer; None if all weigh alike."""
        if self._how != WEIGHTED:
            return None
        trial = hedge_from(self._hedge.state())  # who is refused shall not have joined
        trial.join(newcomer)
        weights = trial.weights([*awake, newcomer])
        return torch.tensor([*weights.values()])

    def _weights(self) -> dict[str, float]:
        return self._hedge.weights(self._tensors) if self._tensors else {}

    def _awake(self) -> list[str]:
        weights = self._weights()
        names = sorted(weights, key=lambda name: -weights[name])
        return names[: self._most]

    def _run(self, members: Sequence[Tensors], encoded: Encoded) -> torch.Tensor:
        with torch.inference_mode():
            batch = self._task.batch(encoded, range(len(encoded)))
            return log_probabilities(self._backbone.model, members, batch)[0]

    def _remember(
        self, best: int, log_probs: torch.Tensor, said: dict[str, torch.Tensor]
    ) -> Answer:
        self._num_asked += 1
        self._asked[self._num_asked] = said
        while len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)
        labels = self._backbone.labels
        shares = dict(zip(labels, log_probs.exp().tolist(), strict=True))
        return Answer(self._num_asked, labels[best], shares, len(said))


def columns() -> Columns:
    """Returns the columns a service's task must read."""
    return Columns(text="text", label="label")
