"""Options of scores and gains, by which layout rules prefer some LoRA units to others."""

from dataclasses import dataclass
from math import inf

from fl_app.schema.checks import one_of, require


@dataclass
class ScoresConfig:
    """AdaLoRA's scores (arXiv:2303.10512) and its falling budget.

    With t rounds behind it the server holds R(t) units: the first ``warmup`` rounds cut nothing,
    the last ``final`` are tuned at the budget of the other rules.
    """

    beta1: float = 0.85
    """Smoothing of the importance |theta * gradient| over the steps of a round, [0, 1)."""
    beta2: float = 0.85
    """Smoothing of its uncertainty, [0, 1)."""
    start: float = 1.5
    """Units at first over those at last, >= 1."""
    warmup: int = 1
    """Rounds t_i after which as many units stay as at first."""
    final: int = 1
    """Rounds t_f that are tuned with the units at last."""

    def __post_init__(self) -> None:
        """Checks the ranges; whether there are rounds enough is checked where that is known."""
        for key in ("beta1", "beta2"):
            value = getattr(self, key)
            require(f"peft.layout.scores.{key}", value, 0 <= value < 1, "must be in [0, 1)")
        first = self.start
        ok = 1 <= first < inf
        require("peft.layout.scores.start", first, ok, "must be >= 1 and finite")
        for key in ("warmup", "final"):
            value = getattr(self, key)
            require(f"peft.layout.scores.{key}", value, value >= 0, "must be >= 0 rounds")


@dataclass
class ProfileConfig:
    """The look at the gradient of frozen maps before the first round."""

    by: str = "auto"
    """server (on its public rows, the full model: no traffic), devices (on their rows, the
    emulator: gains are sent), or auto (the server if it has public rows)."""
    batches: int = 8
    """Batches of finetune.batch_size rows that the gradient is the mean of."""
    head_steps: int = 32
    """Steps that the task head is tuned alone before, and then put back: behind a head as drawn at
    random the gradient says little."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        one_of("peft.layout.profile.by", self.by, ("auto", "server", "devices"))
        batches, steps = self.batches, self.head_steps
        require("peft.layout.profile.batches", batches, batches >= 1, "must be >= 1")
        require("peft.layout.profile.head_steps", steps, steps >= 0, "must be >= 0")
