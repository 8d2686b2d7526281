"""How a round's exchanges are opened, over Flower's messages or over streams."""

import math
from typing import Protocol

from flwr.serverapp import Grid

from fl_app.errors import ConfigError
from fl_app.features_wire import MAX_BYTES
from fl_app.schema import Config, GradientDownloadStrategy, SimulationFederation
from fl_app.step_wire import ACTION_STEP
from strategies.exchange import Exchange, MessageExchange
from strategies.roster import Roster
from strategies.stream_exchange import StreamExchange
from strategies.stream_listener import StreamListener

_IDLE_S = 600.0
"""Seconds the server may compute between two exchanges."""


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
    """One stream per device and round; the server listens from the first one to the run's end.

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
        self._address, self._advertised_host = (host, port), advertised_host
        self._listener: StreamListener | None = None

    def open(self, grid: Grid, server_round: int) -> Exchange:
        """Returns a round's exchanges.

        Raises:
            OSError: the address cannot be bound.
        """
        if self._listener is None:  # not sooner: whoever fails before the first round holds no port
            self._listener = StreamListener(*self._address, advertised_host=self._advertised_host)
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
        if self._listener is not None:
            self._listener.close()


def build_transport(
    config: Config, strategy: GradientDownloadStrategy, roster: Roster, num_devices: int
) -> Transport:
    """Turns the choice of a transport into what opens a round's exchanges.

    Args:
        config: the run's configuration.
        strategy: its strategy.
        roster: which node plays which device.
        num_devices: devices of a round, >= 1.

    Raises:
        ConfigError: streams, and a node that plays several devices.
    """
    match strategy.transport, config.federation:
        case ("messages", _) | ("auto", SimulationFederation()):
            return MessageTransport(roster)
    if len(set(roster.node_of.values())) < len(roster.devices):
        raise ConfigError(
            f"strategy.transport=stream: {len(roster.devices)} devices are played by "
            f"{len(set(roster.node_of.values()))} nodes, and a node serves one stream at a time; "
            "set strategy.transport=messages, or start a node for each device"
        )
    # While the server waits for others, a device hears nothing: one exchange a pass, and two more.
    passes = math.ceil(num_devices / strategy.max_in_flight)
    return StreamTransport(
        roster,
        host=strategy.stream.host,
        port=strategy.stream.port,
        advertised_host=strategy.stream.advertised_host,
        idle_s=_IDLE_S + (passes + 2) * strategy.exchange_timeout_s,
    )
