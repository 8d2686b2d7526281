"""What a report calls things: emulator download and gradient download differ in words alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fl_app.result import RunResult


class Rung(NamedTuple):
    """One step of the ladder: ``key`` in ``RunResult.final``, its letter, what it is in words."""

    key: str
    letter: str
    words: str

    @property
    def label(self) -> str:
        """Letter and words, as printed."""
        return f"({self.letter}) {self.words}"


@dataclass(frozen=True)
class Wording:
    """Words of one kind of federation.

    Attributes:
        title: of the page.
        introduction: what happens, in a paragraph.
        ladder: the figures of the final table, in order.
        headline: begins the sentence that gives the run's own figure.
        compared_with: what each other figure stands for, by key.
        gap: the distance to the full model on every device.
        piece: what devices download once.
        names: short names of the curves, by key.
        score: the run's own figure, as the heading of a column.
        uplink: what goes up every round.
        downlink: what comes down every round.
    """

    title: str
    introduction: str
    ladder: tuple[Rung, ...]
    headline: str
    compared_with: Mapping[str, str]
    gap: str
    piece: str
    names: Mapping[str, str]
    score: str
    uplink: str
    downlink: str


_NAMES = {
    "frozen": "frozen",
    "emulator": "on the emulator",
    "plug_in": "plugged in",
    "federated_full": "full on devices",
    "centralised": "centralised",
}
_COMPARED_WITH = {
    "frozen": "the frozen model",
    "centralised": "tuning in one place on the data of all devices",
}

EMULATOR = Wording(
    title="Device-edge fine-tuning with an emulator",
    introduction=(
        "A foundation model (FoMo) is often too large, or too valuable, to hand to every device, "
        "and the data on the devices are private. So the server sends each device an emulator: the "
        "first and last blocks of the model as they are and a compressed stand-in for the blocks "
        "between. Each device tunes a small adapter against the emulator on its own data and "
        "uploads only the change. The server averages the changes of all devices, round by round, "
        "and plugs the adapter into the full model, which no device ever held."
    ),
    ladder=(
        Rung("frozen", "a", "frozen FoMo, head only"),
        Rung("emulator", "b", "adapter on the emulator (what a device sees)"),
        Rung("plug_in", "c", "adapter plugged into the full FoMo"),
        Rung("federated_full", "d", "same federation, full FoMo on every device"),
        Rung("centralised", "e", "centralised tuning"),
    ),
    headline="Plugged into the full model, the adapter reaches",
    compared_with={
        "frozen": _COMPARED_WITH["frozen"],
        "emulator": "the same adapter on the emulator, which is all that a device can see",
        "federated_full": (
            "the same federation with the full model on every device (the plug-in gap)"
        ),
        "centralised": _COMPARED_WITH["centralised"],
    },
    gap="plug-in gap",
    piece="emulator",
    names=_NAMES,
    score="plug-in",
    uplink="updates",
    downlink="adapters, control",
)
GRADIENT = Wording(
    title="Device-edge fine-tuning by gradient download",
    introduction=(
        "A foundation model (FoMo) is often too large, or too valuable, to hand to every device, "
        "and the data on the devices are private. So the blocks of the model stay at the server. "
        "In every local step each device uploads features of its own examples, the server runs "
        "its blocks on those of many devices at once, and the device downloads gradients for the "
        "small adapter it tunes. At the end of a round it uploads how the adapter changed, and the "
        "server averages the changes of all devices."
    ),
    ladder=(
        Rung("frozen", "a", "frozen FoMo, head only"),
        Rung("plug_in", "b", "adapter tuned by gradient download"),
        Rung("federated_full", "c", "same federation, full FoMo on every device"),
        Rung("centralised", "d", "centralised tuning"),
    ),
    headline="Tuned by gradient download, the adapter reaches",
    compared_with={
        "frozen": _COMPARED_WITH["frozen"],
        "federated_full": "the same federation with the full model on every device",
        "centralised": _COMPARED_WITH["centralised"],
    },
    gap="gap",
    piece="device part",
    names={**_NAMES, "plug_in": "gradient download"},
    score="adapter",
    uplink="features, updates",
    downlink="gradients, adapters",
)


def wording_of(result: RunResult) -> Wording:
    """Returns the words for a run; those of emulator download where its kind is not known."""
    strategy = result.config.get("strategy", {})
    return GRADIENT if "variant" in strategy else EMULATOR
