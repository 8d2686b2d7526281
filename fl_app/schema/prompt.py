"""Options of prompt ensembles: several soft prompts instead of one."""

from dataclasses import dataclass, field
from math import inf
from typing import ClassVar

from typing_extensions import override

from fl_app.schema.checks import require

MEMBER_SOURCES = ("groups", "joint", "snapshots")


@dataclass
class PromptConfig:
    """Soft prompts."""


@dataclass
class NoPrompt(PromptConfig):
    """One adapter for all devices, no ensemble."""


@dataclass
class JointConfig:
    """The loss of members that are tuned together, see ``fl_app.prompts.joint``.

    Its gradient is scaled so that where members agree each moves as a prompt tuned alone.
    """

    ensemble: float = 1.0
    """Weight >= 0 of the mixture's cross-entropy."""
    member: float = 1.0
    """Weight >= 0 of the members' mean cross-entropy."""
    diversity: float = 0.0
    """Weight >= 0 of what is taken off for members that disagree, at most ln k nats; above
    ``ensemble`` disagreement may pay more than right answers."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for key in ("ensemble", "member", "diversity"):
            value = getattr(self, key)
            require(f"prompt.joint.{key}", value, 0 <= value < inf, "must be >= 0 and finite")
        total = self.ensemble + self.member
        require("prompt.joint.ensemble", self.ensemble, total > 0, "or member must be above 0")


@dataclass
class EnsembleConfig(PromptConfig):
    """Several members, each a prompt with its head; all of them answer."""

    combiner: ClassVar[str] = ""
    """How answers become one, see ``fl_app.prompts.ensemble``."""
    num_members: int | None = 5
    """k >= 1. Of groups at most federation.num_devices, null: every device is a group; of snapshots
    at most strategy.num_rounds."""
    members_from: str = "groups"
    """groups: devices are dealt into k groups, each tunes one member. joint: every device tunes all
    members in one batched pass, to the loss below. snapshots: all devices tune one prompt, the rate
    falls to 0 in each of k cycles of rounds, and what a cycle ends with is a member."""
    joint: JointConfig = field(default_factory=JointConfig)
    """For members_from=joint."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        members, source = self.num_members, self.members_from
        ok = members is None or members >= 1
        require("prompt.num_members", members, ok, "must be >= 1, or null for one per device")
        ok = source in MEMBER_SOURCES
        require("prompt.members_from", source, ok, f"must be one of {', '.join(MEMBER_SOURCES)}")
        ok = members is not None or source == "groups"
        require("prompt.num_members", members, ok, f"must be a number with members_from={source}")


@dataclass
class EnsembleVote(EnsembleConfig):
    """Majority vote; of language models on decoded strings, beside the mean's perplexity."""

    combiner: ClassVar[str] = "vote"
    decoded_rows: int = 100
    """Language models only: test rows completed by all members at the end of the run; 0: none."""
    max_new_tokens: int = 16
    """Language models only: the longest completion, >= 1."""

    @override
    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        rows, tokens = self.decoded_rows, self.max_new_tokens
        require("prompt.decoded_rows", rows, rows >= 0, "must be >= 0")
        require("prompt.max_new_tokens", tokens, tokens >= 1, "must be >= 1")


@dataclass
class EnsembleMean(EnsembleConfig):
    """The mean of the members' probabilities; without public rows a hostile group moves it."""

    combiner: ClassVar[str] = "mean"


@dataclass
class EnsembleLogitMean(EnsembleConfig):
    """Their geometric mean; without public rows one loud hostile group decides it."""

    combiner: ClassVar[str] = "logit_mean"


@dataclass
class EnsembleMedian(EnsembleConfig):
    """The median of each class's probability, which less than half of the members cannot move."""

    combiner: ClassVar[str] = "median"


@dataclass
class EnsembleWeighted(EnsembleConfig):
    """The mean, weights proportional to exp(-eta loss) by the sum over public rows' labels."""

    combiner: ClassVar[str] = "mean"
    eta: float = 1.0
    """Learning rate >= 0: 0 weighs members alike, 1 is the Bayes mixture after the public rows
    (of texts: after all their predicted tokens). With some hundred labels it all but picks the
    best member."""

    @override
    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        require("prompt.eta", self.eta, 0 <= self.eta < inf, "must be >= 0 and finite")


@dataclass
class EnsembleFitted(EnsembleConfig):
    """A small attention of texts to members, fitted on public rows after every round measured."""

    lr: float = 3e-3
    """AdamW's rate while it is fitted, > 0."""
    epochs: int = 5
    """Passes over the public rows (at most 512 of them), >= 1."""
    hidden: int = 100
    """Width of its bottleneck, >= 1."""

    @override
    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        num = self.num_members
        require("prompt.num_members", num, num != 1, "must be >= 2: one member has all the weight")
        require("prompt.lr", self.lr, 0 < self.lr < inf, "must be > 0 and finite")
        for key in ("epochs", "hidden"):
            value = getattr(self, key)
            require(f"prompt.{key}", value, value >= 1, "must be >= 1")


@dataclass
class EnsembleAttention(EnsembleFitted):
    """The mean with weights of each text's own (sample-specific attention); for classes."""

    combiner: ClassVar[str] = "attention"


@dataclass
class EnsembleFusion(EnsembleFitted):
    """One pass for each text with a prompt mixed of all members' (attentional fusion); for classes.

    The prompt added to them and the head behind them are fitted as well.
    """

    combiner: ClassVar[str] = "fusion"
