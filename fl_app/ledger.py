"""The ledger: every send of a run is booked here; bytes are counted and never estimated.

The ledger knows no message format. Whoever sends books the length of what was really serialised;
the report only adds up. Byte totals are integers and therefore the same whatever the order of the
bookings; measured seconds are kept apart, so that two runs of one seed have equal ledgers.
"""

import math
import operator
from collections import Counter, defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from fl_app.errors import RunError

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


class _Crossing(NamedTuple):
    """What one device's neural connection cost in one round."""

    uses: int
    seconds: float
    joules: float
    server_joules: float


class _Turn(NamedTuple):
    """What one device takes in one round by schedule."""

    compute_s: float
    uplink_s: float


class Ledger:
    """Byte and time account of one run.

    Devices are named by their stable partition index (or any other non-negative integer the
    caller uses throughout).
    """

    def __init__(self) -> None:
        """Starts with nothing booked."""
        self._bytes: Counter[_Entry] = Counter()
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._channel_uses: Counter[int] = Counter()
        self._radio_seconds: dict[int, float] = {}
        self._crossings: defaultdict[int, list[_Crossing]] = defaultdict(list)
        self._joules: dict[tuple[int, int], float] = {}
        self._d2d: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        self._turns: defaultdict[int, list[_Turn]] = defaultdict(list)

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
        entry = _Entry(_count("round", round), _count("device", device), link, what)
        self._bytes[entry] += _count("num_bytes", num_bytes)

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
        _count("round", round)
        _count("device", device)
        if not phase:
            raise RunError("ledger phase='' is empty; name the phase, for example 'fit'")
        spent = _amount("seconds", seconds)
        self._seconds[phase].append(spent)

    def book_airtime(self, *, round: int, channel_uses: int, seconds: float) -> None:
        """Books what one round took of the radio uplink, all devices together; adds up.

        Args:
            round: server round, >= 0.
            channel_uses: complex symbols, >= 0.
            seconds: time on air by the channel's model, finite and >= 0.

        Raises:
            RunError: a value is not allowed; nothing is booked then.
        """
        number, uses = _count("round", round), _count("channel_uses", channel_uses)
        spent = _amount("seconds", seconds)
        self._radio_seconds[number] = self._radio_seconds.get(number, 0.0) + spent
        self._channel_uses[number] += uses

    def book_connection(
        self, *, round: int, uses: int, seconds: float, joules: float, server_joules: float
    ) -> None:
        """Books what one device's neural connection cost, both directions together; adds up.

        Args:
            round: server round, >= 0.
            uses: complex symbols in time, >= 0.
            seconds: time on air, finite and >= 0.
            joules: transmit energy of the device, finite and >= 0.
            server_joules: transmit energy of the server, which sends gradients back.

        Raises:
            RunError: a value is not allowed; nothing is booked then.
        """
        number = _count("round", round)
        crossing = _Crossing(
            _count("uses", uses),
            _amount("seconds", seconds),
            _amount("joules", joules),
            _amount("server_joules", server_joules),
        )
        self._crossings[number].append(crossing)

    def book_joules(self, *, round: int, device: int, joules: float) -> None:
        """Books a device's transmit energy in one round; adds up.

        Raises:
            RunError: a value is not allowed; nothing is booked then.
        """
        place = _count("round", round), _count("device", device)
        self._joules[place] = self._joules.get(place, 0.0) + _amount("joules", joules)

    def book_d2d(self, *, round: int, seconds: float, joules: float) -> None:
        """Books what one send from device to device takes; its bytes are booked by ``book``.

        Args:
            round: server round, >= 0.
            seconds: time on air by the contacts' model, finite and >= 0.
            joules: transmit energy of the sender, finite and >= 0.

        Raises:
            RunError: a value is not allowed; nothing is booked then.
        """
        number = _count("round", round)
        self._d2d[number].append((_amount("seconds", seconds), _amount("joules", joules)))

    def _between_devices(self, round: int | None = None) -> dict[str, float]:
        """Returns the totals of sends from device to device of one round, or of all."""
        sends = [
            send
            for number, booked in self._d2d.items()
            if round is None or round == number
            for send in booked
        ]
        return {
            "d2d_bytes": self.total_bytes(round=round, link="d2d"),
            "d2d_seconds": math.fsum(seconds for seconds, _ in sends),
            "d2d_joules": math.fsum(joules for _, joules in sends),
        }

    def book_turn(self, *, round: int, compute_s: float, uplink_s: float) -> None:
        """Books what one device takes in one round by the schedule's prediction.

        Args:
            round: server round, >= 0.
            compute_s: seconds of its local steps, finite and >= 0.
            uplink_s: seconds of its uplink, which follows, finite and >= 0.

        Raises:
            RunError: a value is not allowed; nothing is booked then.
        """
        number = _count("round", round)
        turn = _Turn(_amount("compute_s", compute_s), _amount("uplink_s", uplink_s))
        self._turns[number].append(turn)

    def _schedule(self, round: int | None = None) -> dict[str, float]:
        """Returns the schedules' totals of one round, or of all."""
        booked = {n: turns for n, turns in self._turns.items() if round is None or n == round}
        turns = [turn for own in booked.values() for turn in own]
        ends = [max(turn.compute_s + turn.uplink_s for turn in own) for own in booked.values()]
        return {
            "scheduled_compute_s": math.fsum(turn.compute_s for turn in turns),
            "scheduled_uplink_s": math.fsum(turn.uplink_s for turn in turns),
            "scheduled_s": math.fsum(ends),
        }

    def _radio(self, round: int | None = None) -> dict[str, float]:
        """Returns the radio's totals of one round, or of all."""
        rounds = set(self._channel_uses) if round is None else {round}
        joules = [spent for (number, _), spent in sorted(self._joules.items()) if number in rounds]
        return {
            "channel_uses": sum(self._channel_uses[number] for number in rounds),
            "radio_seconds": math.fsum(self._radio_seconds.get(number, 0.0) for number in rounds),
            "radio_joules": math.fsum(joules),
        }

    def _connection(self, round: int | None = None) -> dict[str, float]:
        """Returns the neural connections' totals of one round, or of all."""
        crossings = [
            crossing
            for number, booked in self._crossings.items()
            if round is None or round == number
            for crossing in booked
        ]
        return {
            "connection_uses": sum(c.uses for c in crossings),
            "connection_seconds": math.fsum(c.seconds for c in crossings),
            "connection_joules": math.fsum(c.joules for c in crossings),
            "connection_server_joules": math.fsum(c.server_joules for c in crossings),
        }

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
            **self._between_devices(),
            **self._radio(),
            **self._connection(),
            **self._schedule(),
            "per_round": [
                {
                    "round": number,
                    "uplink_bytes": self.total_bytes(round=number, link="uplink"),
                    "downlink_bytes": self.total_bytes(round=number, link="downlink"),
                    "emulator_bytes": self.total_bytes(round=number, what="emulator"),
                    **self._between_devices(number),
                    **self._radio(number),
                    **self._connection(number),
                    **self._schedule(number),
                }
                for number in sorted(
                    {entry.round for entry in self._bytes}
                    | {*self._channel_uses, *self._crossings, *self._turns}
                )
            ],
        }


def _amount(field: str, value: float) -> float:
    """Returns ``value``, finite and >= 0."""
    if not (math.isfinite(value) and value >= 0):
        raise RunError(f"ledger {field}={value!r} must be finite and >= 0; measure again")
    return float(value)


def _count(field: str, value: int) -> int:
    """Returns ``value`` as a plain int >= 0 (NumPy integers are welcome, floats are not)."""
    try:
        number = operator.index(value)
    except TypeError:
        raise RunError(f"ledger {field}={value!r} must be an integer >= 0; pass a count") from None
    if number < 0:
        raise RunError(f"ledger {field}={number} must be >= 0; pass a count")
    return number
