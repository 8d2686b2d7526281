"""How a round's exchanges are opened, over Flower's messages or over streams."""

from typing import Protocol

from flwr.serverapp import Grid

from fl_app.features_wire import MAX_BYTES
from fl_app.step_wire import ACTION_STEP
from strategies.exchange import Exchange, MessageExchange
from strategies.roster import Roster
from strategies.stream_exchange import StreamExchange
from strategies.stream_listener import StreamListener


class Transport(Protocol):
    """Opens the exchanges of a round; closed at the end of the run."""

    def open(self, grid: Grid, server_round: int) -> Exchange:
        """Returns a round's exchanges, a context manager."""
        ...

    def close(self) -> None:
        """Frees what was held for the run."""
        ...


class MessageTransport:
    """One Flower message per device and exchange."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def open(self, grid: Grid, server_round: int) -> Exchange:
        """Returns a round's exchanges."""
        return MessageExchange(grid, self._roster, ACTION_STEP, server_round, max_bytes=MAX_BYTES)

    def close(self) -> None:
        """Nothing is held."""


class StreamTransport:
    """One stream per device and round; the server listens as long as the run lasts.

    Args:
        roster: which node plays which device.
        host: address to bind.
        port: port to bind, 0 for any.
        advertised_host: address devices are told; None for ``host``.
        idle_s: seconds after which a device gives up a silent server, > 0; more than it ever waits
            while the server asks others.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        host: str,
        port: int,
        advertised_host: str | None,
        idle_s: float,
    ) -> None:
        self._roster, self._idle_s = roster, idle_s
        self._listener = StreamListener(host, port, advertised_host=advertised_host)

    def open(self, grid: Grid, server_round: int) -> Exchange:
        """Returns a round's exchanges."""
        return StreamExchange(
            self._listener,
            grid,
            self._roster,
            server_round,
            max_bytes=MAX_BYTES,
            idle_s=self._idle_s,
        )

    def close(self) -> None:
        """Stops listening."""
        self._listener.close()
