"""The ledger: every send of a run is booked here; bytes are counted and never estimated.

The ledger knows no message format. Whoever sends books the length of what was really serialised;
the report only adds up. Byte totals are integers and therefore the same whatever the order of the
bookings; measured seconds are kept apart, so that two runs of one seed have equal ledgers.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from fl_app.errors import RunError
from fl_app.link_costs import LinkCosts, amount, count

Link = Literal["downlink", "uplink", "d2d"]
What = Literal[
    "adapter",
    "emulator",
    "states",
    "gradient",
    "update",
    "features",
    "slopes",
    "scores",
    "relay",
    "trial",
    "advert",
    "prompt",
    "control",
]

# A later link or kind of payload is one more entry here and nothing else.
PAYLOADS: Mapping[str, tuple[What, ...]] = MappingProxyType(
    {
        "downlink": ("adapter", "emulator", "states", "gradient", "control", "relay", "trial"),
        "uplink": ("update", "features", "slopes", "scores", "control", "relay", "trial"),
        "d2d": ("advert", "prompt"),
    }
)


class _Entry(NamedTuple):
    """What one counter is kept for."""

    round: int
    device: int
    link: str
    what: str


class Ledger(LinkCosts):
    """Byte and time account of one run.

    Devices are named by their stable partition index (or any other non-negative integer the
    caller uses throughout).
    """

    def __init__(self) -> None:
        """Starts with nothing booked."""
        super().__init__()
        self._bytes: Counter[_Entry] = Counter()
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)

    def book(self, *, round: int, device: int, link: Link, what: What, num_bytes: int) -> None:
        """Books one send.

        Args:
            round: server round, >= 0 (0 is what happens before the first round).
            device: receiver of a downlink or sender of an uplink or d2d link, >= 0.
            link: "downlink" (server to device), "uplink" (device to server) or "d2d" (device to
                device, by the contacts' model, whether the server relays or not).
            what: kind of payload; which kinds a link carries is listed in ``PAYLOADS``.
            num_bytes: length of the serialised payload in bytes, >= 0.

        Raises:
            RunError: a value is not allowed; nothing is booked then.
        """
        if link not in PAYLOADS:
            raise RunError(f"ledger link={link!r} is unknown; choose one of {', '.join(PAYLOADS)}")
        if what not in PAYLOADS[link]:
            raise RunError(
                f"ledger what={what!r} does not travel on the {link}; "
                f"choose one of {', '.join(PAYLOADS[link])}"
            )
        entry = _Entry(count("round", round), count("device", device), link, what)
        self._bytes[entry] += count("num_bytes", num_bytes)

    def book_seconds(self, *, round: int, device: int, phase: str, seconds: float) -> None:
        """Books how long a device (or the server on its behalf) spent in one phase.

        Args:
            round: server round, >= 0.
            device: the device that was busy, >= 0.
            phase: short name, for example "fit" or "evaluate".
            seconds: measured wall-clock seconds, finite and >= 0.

        Raises:
            RunError: a value is not allowed; nothing is booked then.
        """
        count("round", round)
        count("device", device)
        if not phase:
            raise RunError("ledger phase='' is empty; name the phase, for example 'fit'")
        spent = amount("seconds", seconds)
        self._seconds[phase].append(spent)

    def total_bytes(
        self,
        *,
        round: int | None = None,
        device: int | None = None,
        link: Link | None = None,
        what: What | None = None,
    ) -> int:
        """Returns the bytes booked under all given conditions (None: any)."""
        wanted = (round, device, link, what)
        return sum(
            num_bytes
            for entry, num_bytes in self._bytes.items()
            if all(want is None or want == have for want, have in zip(wanted, entry, strict=True))
        )

    def seconds_by_phase(self) -> dict[str, float]:
        """Returns the device seconds per phase, summed over devices and rounds.

        The sum is exact before rounding (``math.fsum``), hence free of the booking order.
        """
        return {phase: math.fsum(self._seconds[phase]) for phase in sorted(self._seconds)}

    def as_dict(self) -> dict[str, float | list[dict[str, float]]]:
        """Returns the totals for ``result.json``.

        Returns:
            ``uplink_bytes`` and ``downlink_bytes``; the parts of the downlink ``emulator_bytes``
            (the device's part of the model, for gradient download), ``adapter_downlink_bytes`` and
            ``gradient_bytes`` (with last states); ``feature_bytes``, the part of the uplink that
            was features and gradients of last states; ``score_bytes``, scores of LoRA units;
            ``relay_bytes`` of both links, what the server passed on between devices;
            ``trial_bytes`` of both links, what measuring other devices' prompts cost;
            ``control_bytes`` of both links, what is none of these; ``d2d_bytes``, ``d2d_seconds``
            and ``d2d_joules`` of sends from device to device, 0 without any; ``channel_uses``,
            ``radio_seconds`` and ``radio_joules`` of a radio uplink, 0 without one;
            ``connection_uses``, ``connection_seconds``, ``connection_joules`` (of devices) and
            ``connection_server_joules`` of neural connections, 0 without one;
            ``scheduled_compute_s`` and ``scheduled_uplink_s`` of all devices and ``scheduled_s`` of
            rounds, as predicted by a schedule, 0 without one; and ``per_round``, one row with
            ``round``, ``uplink_bytes``, ``downlink_bytes``, ``emulator_bytes`` and the figures of
            radio and connections for every round with a booking, ascending.
        """
        return {
            "uplink_bytes": self.total_bytes(link="uplink"),
            "downlink_bytes": self.total_bytes(link="downlink"),
            "emulator_bytes": self.total_bytes(what="emulator"),
            "adapter_downlink_bytes": self.total_bytes(link="downlink", what="adapter"),
            "gradient_bytes": self.total_bytes(what="gradient") + self.total_bytes(what="states"),
            "feature_bytes": self.total_bytes(what="features") + self.total_bytes(what="slopes"),
            "score_bytes": self.total_bytes(what="scores"),
            "relay_bytes": self.total_bytes(what="relay"),
            "trial_bytes": self.total_bytes(what="trial"),
            "control_bytes": self.total_bytes(what="control"),
            "d2d_bytes": self.total_bytes(link="d2d"),
            **self.totals(),
            "per_round": [
                {
                    "round": number,
                    "uplink_bytes": self.total_bytes(round=number, link="uplink"),
                    "downlink_bytes": self.total_bytes(round=number, link="downlink"),
                    "emulator_bytes": self.total_bytes(round=number, what="emulator"),
                    "d2d_bytes": self.total_bytes(round=number, link="d2d"),
                    **self.totals(number),
                }
                for number in sorted({entry.round for entry in self._bytes} | self.rounds)
            ],
        }
