"""Weights that follow feedback: Hedge with sleeping experts.

Members come late, go, and miss rounds (Freund et al. 1997, "Using and combining predictors that
specialize"). A member that is absent is booked the loss of the mixture, one that joins starts with
the mixture's loss so far; both keep the weights of those present as they would be without it.

With log loss, mixtures of probabilities and eta <= 1: for every member j and every sequence,

    sum over the rounds with j present of (mixture loss - loss of j) <= ln(members ever) / eta.

With any convex loss in [0, b]: the same plus eta b^2 / 8 for every round.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fl_app.prompts.errors import PromptError


class SleepingHedge:
    """Losses of all members ever, and the weights that follow.

    Args:
        eta: learning rate, > 0 and finite; 1 is the Bayes mixture for log loss.
    """

    def __init__(self, eta: float = 1.0) -> None:
        if not 0.0 < eta < math.inf:
            raise PromptError("bad-eta", f"eta={eta} must be finite and > 0")
        self.eta = eta
        self.mixture_loss, self.num_rounds = 0.0, 0
        self._losses: dict[str, float] = {}
        self._excess: dict[str, float] = {}

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all members that ever joined, those who left included."""
        return tuple(self._losses)

    def join(self, name: str) -> None:
        """Lets a member in with the mixture's loss so far; one that is known stays as it was."""
        self._losses.setdefault(name, self.mixture_loss)
        self._excess.setdefault(name, 0.0)

    def weights(self, present: Iterable[str]) -> dict[str, float]:
        """Returns the weights of those present; they are > 0 (or underflow to 0) and sum to 1.

        Raises:
            PromptError: ``no-member`` present, or ``unknown-prompt`` that never joined.
        """
        losses = {name: self._loss(name) for name in present}
        if not losses:
            raise PromptError("no-member", "nobody is present")
        least = min(losses.values())
        raw = {name: math.exp(-self.eta * (loss - least)) for name, loss in losses.items()}
        total = math.fsum(raw.values())
        return {name: value / total for name, value in raw.items()}

    def update(self, losses: Mapping[str, float], mixture_loss: float) -> None:
        """Books one round of feedback.

        Args:
            losses: of the members that answered, finite.
            mixture_loss: of the mixture that answered, with the weights from before this call.

        Raises:
            PromptError: ``bad-loss`` or ``unknown-prompt``; nothing is booked then.
        """
        for name, loss in losses.items():
            self._loss(name)
            if not math.isfinite(loss):
                raise PromptError("bad-loss", f"the loss of {name[:12]} is {loss}; bound it")
        if not math.isfinite(mixture_loss):
            raise PromptError("bad-loss", f"mixture_loss={mixture_loss} must be finite")
        for name in self._losses:
            self._losses[name] += losses.get(name, mixture_loss)
        for name, loss in losses.items():
            self._excess[name] += mixture_loss - loss
        self.mixture_loss += mixture_loss
        self.num_rounds += 1

    def regret(self) -> dict[str, float]:
        """Returns mixture loss minus own loss of every member over the rounds it was present."""
        return dict(self._excess)

    def bound(self, loss_range: float = 0.0) -> float:
        """Returns what no regret can exceed.

        Args:
            loss_range: b of a convex loss in [0, b]; 0 for log loss with eta <= 1.
        """
        if not self._losses:
            return 0.0
        slack = self.eta * loss_range**2 / 8 * self.num_rounds
        return math.log(len(self._losses)) / self.eta + slack

    def state(self) -> dict[str, Any]:
        """Returns all of it as JSON can keep it, for ``hedge_from``."""
        return {
            "eta": self.eta,
            "mixture_loss": self.mixture_loss,
            "num_rounds": self.num_rounds,
            "losses": dict(self._losses),
            "excess": dict(self._excess),
        }

    def _loss(self, name: str) -> float:
        if name not in self._losses:
            raise PromptError("unknown-prompt", f"{name[:12]} never joined")
        return self._losses[name]


def hedge_from(state: Mapping[str, Any]) -> SleepingHedge:
    """Rebuilds what ``SleepingHedge.state`` wrote down."""
    hedge = SleepingHedge(float(state["eta"]))
    hedge.mixture_loss = float(state["mixture_loss"])
    hedge.num_rounds = int(state["num_rounds"])
    hedge._losses = {str(name): float(loss) for name, loss in state["losses"].items()}
    hedge._excess = {str(name): float(loss) for name, loss in state["excess"].items()}
    return hedge


def save_hedge(hedge: SleepingHedge, path: Path) -> None:
    """Writes it down; a crash on the way leaves the old file, or none."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(hedge.state()), encoding="utf-8")
    beside.replace(path)


def load_hedge(path: Path, eta: float) -> SleepingHedge:
    """Returns what ``save_hedge`` wrote, or a new one where there is no file.

    Raises:
        PromptError: ``damaged``, or ``bad-eta``, it was made with another one.
    """
    if not path.exists():
        return SleepingHedge(eta)
    try:
        kept = hedge_from(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PromptError("damaged", f"the weights {path} cannot be read: {error}") from error
    if kept.eta != eta:
        raise PromptError(
            "bad-eta",
            f"the weights {path} were made with eta={kept.eta}, asked for is eta={eta}; "
            "delete the file, or start with the eta it has (in (0, 1], or the bound is void)",
        )
    return kept


def bounded_log_loss(log_prob: float, num_classes: int, floor: float = 1e-4) -> float:
    """Returns -ln((1 - floor) p + floor / classes): finite also where a member was sure and wrong.

    Mixing commutes with it, so the bound for log loss holds for probabilities floored like this.
    """
    return -math.log((1.0 - floor) * math.exp(log_prob) + floor / num_classes)
