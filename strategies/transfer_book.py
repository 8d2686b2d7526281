"""What became of every transfer, for ``result.json``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_app.ledger import Ledger, What
from fl_app.transfer_wire import MIXED, NOBODY, Report

_TUNING: tuple[What, ...] = ("features", "slopes", "states", "gradient", "update")
ADOPTED = ("zero-shot", "tuned")


@dataclass
class TransferRecord:
    """One device's search for a prompt in one round.

    Attributes:
        round: server round.
        device: who looked.
        offers: adverts it heard.
        asked: devices it asked for their prompt.
        delivered: those of them whose prompt was brought to it, ascending; over direct links as it
            says itself.
        report: what it says of it; None where it asked nobody, or was lost.
        num_bytes: of the prompts that were sent to it.
        seconds: on air for these, by the contacts' model.
        joules: transmit energy for these.
        retraining_bytes: what tuning had cost the devices whose prompt passed the gate, so far.
    """

    round: int
    device: int
    offers: int = 0
    asked: list[int] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    report: Report | None = None
    num_bytes: int = 0
    seconds: float = 0.0
    joules: float = 0.0
    retraining_bytes: int = 0

    @property
    def is_adopted(self) -> bool:
        """Tells whether another device's prompt, or what tuning made of it, is in use."""
        return self.report is not None and self.report.action in ADOPTED

    @property
    def sources(self) -> list[int]:
        """Returns the devices of what passed the gate: one, or of a mixture all that delivered."""
        taken = NOBODY if self.report is None else self.report.source
        return [one for one in self.delivered if taken in (one, MIXED)]

    def settled(self, last: Report) -> None:
        """Takes in how it ended after tuning."""
        first = self.report
        if first is not None:
            figures = vars(first) | {
                name: getattr(last, name)
                for name in ("action", "loss_own", "loss_candidate", "loss_tuned")
            }
            self.report = Report(**figures)

    def as_dict(self) -> dict[str, Any]:
        """Returns the record with plain values, None for what was not measured."""
        plain: dict[str, Any] = {
            "round": self.round,
            "device": self.device,
            "offers": self.offers,
            "asked": list(self.asked),
            "bytes": self.num_bytes,
            "seconds": self.seconds,
            "joules": self.joules,
            "retraining_bytes": self.retraining_bytes,
        }
        report = self.report or Report("kept", NOBODY)
        plain |= {"action": report.action, "refused": report.refused.split()}
        plain["source"] = report.source if report.source >= 0 else None
        plain["is_mixed"] = report.source == MIXED
        for name in (
            "loss_own",
            "loss_candidate",
            "loss_tuned",
            "probe_own",
            "probe_candidate",
        ):
            value = getattr(report, name)
            plain[name] = value if math.isfinite(value) else None
        return plain


def tuning_bytes(ledger: Ledger, device: int) -> int:
    """Returns the bytes of local steps that a device and the server exchanged so far."""
    return sum(ledger.total_bytes(device=device, what=what) for what in _TUNING)


def transfer_result(records: Sequence[TransferRecord], ledger: Ledger) -> dict[str, Any]:
    """Returns the ``transfer`` entry of ``result.json``."""
    totals = ledger.as_dict()
    return {
        "searches": len(records),
        "adopted": sum(record.is_adopted for record in records),
        "bytes": totals["d2d_bytes"],
        "seconds": totals["d2d_seconds"],
        "joules": totals["d2d_joules"],
        "relay_bytes": totals["relay_bytes"],
        "trial_bytes": totals["trial_bytes"],
        "source_tuning_bytes": sum(
            record.retraining_bytes for record in records if record.is_adopted
        ),
        "devices": [record.as_dict() for record in records],
    }
