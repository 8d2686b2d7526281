"""What the radio links of a run take: channel uses, seconds and joules, added up by round.

Figures of models and predictions, unlike the bytes of ``fl_app.ledger``, which are counted.
"""

import math
import operator
from collections import Counter, defaultdict
from typing import NamedTuple

from fl_app.errors import RunError


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


class LinkCosts:
    """Time and energy of radio uplinks, neural connections, device links, and schedules."""

    def __init__(self) -> None:
        """Starts with nothing booked."""
        self._channel_uses: Counter[int] = Counter()
        self._radio_seconds: dict[int, float] = {}
        self._crossings: defaultdict[int, list[_Crossing]] = defaultdict(list)
        self._joules: dict[tuple[int, int], float] = {}
        self._d2d: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        self._turns: defaultdict[int, list[_Turn]] = defaultdict(list)

    @property
    def rounds(self) -> set[int]:
        """Rounds with a booking of a radio uplink, a connection or a schedule."""
        return {*self._channel_uses, *self._crossings, *self._turns}

    def totals(self, round: int | None = None) -> dict[str, float]:
        """Returns the totals by name of one round, or of all; 0 where nothing was booked."""
        return {
            **self._between_devices(round),
            **self._radio(round),
            **self._connection(round),
            **self._schedule(round),
        }

    def book_airtime(self, *, round: int, channel_uses: int, seconds: float) -> None:
        """Books what one round took of the radio uplink, all devices together; adds up.

        Args:
            round: server round, >= 0.
            channel_uses: complex symbols, >= 0.
            seconds: time on air by the channel's model, finite and >= 0.

        Raises:
            RunError: a value is not allowed; nothing is booked then.
        """
        number, uses = count("round", round), count("channel_uses", channel_uses)
        spent = amount("seconds", seconds)
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
        number = count("round", round)
        crossing = _Crossing(
            count("uses", uses),
            amount("seconds", seconds),
            amount("joules", joules),
            amount("server_joules", server_joules),
        )
        self._crossings[number].append(crossing)

    def book_joules(self, *, round: int, device: int, joules: float) -> None:
        """Books a device's transmit energy in one round; adds up.

        Raises:
            RunError: a value is not allowed; nothing is booked then.
        """
        place = count("round", round), count("device", device)
        self._joules[place] = self._joules.get(place, 0.0) + amount("joules", joules)

    def book_d2d(self, *, round: int, seconds: float, joules: float) -> None:
        """Books what one send from device to device takes; its bytes are booked by ``book``.

        Args:
            round: server round, >= 0.
            seconds: time on air by the contacts' model, finite and >= 0.
            joules: transmit energy of the sender, finite and >= 0.

        Raises:
            RunError: a value is not allowed; nothing is booked then.
        """
        number = count("round", round)
        self._d2d[number].append((amount("seconds", seconds), amount("joules", joules)))

    def _between_devices(self, round: int | None = None) -> dict[str, float]:
        """Returns the totals of sends from device to device of one round, or of all."""
        sends = [
            send
            for number, booked in self._d2d.items()
            if round is None or round == number
            for send in booked
        ]
        return {
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
        number = count("round", round)
        turn = _Turn(amount("compute_s", compute_s), amount("uplink_s", uplink_s))
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


def amount(field: str, value: float) -> float:
    """Returns ``value``, finite and >= 0."""
    if not (math.isfinite(value) and value >= 0):
        raise RunError(f"ledger {field}={value!r} must be finite and >= 0; measure again")
    return float(value)


def count(field: str, value: int) -> int:
    """Returns ``value`` as a plain int >= 0 (NumPy integers are welcome, floats are not)."""
    try:
        number = operator.index(value)
    except TypeError:
        raise RunError(f"ledger {field}={value!r} must be an integer >= 0; pass a count") from None
    if number < 0:
        raise RunError(f"ledger {field}={number} must be >= 0; pass a count")
    return number
