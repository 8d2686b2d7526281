"""Who is let in: devices with a fresh token, over TLS; strangers are turned away."""

import socket
import ssl

import pytest

from fl_app import stream
from fl_app.errors import WireError
from fl_app.step_wire import StreamOrder
from fl_app.stream import BLOB, TOKEN
from strategies.stream_exchange import StreamExchange
from strategies.stream_listener import StreamListener
from tests.exchange_fixtures import (
    HOSTILE,
    begun_stream,
    hostile_app,
    number,
    open_channel,
    roster_of,
    run_both,
    threaded,
)


@pytest.mark.parametrize("token", ["", "guess", "again"])
def test_no_one_is_admitted_without_a_fresh_token(token: str) -> None:
    """A wrong token, and a right one used before by the device itself."""
    turned_away = []

    def act(order: StreamOrder) -> None:
        with open_channel(order) as channel:
            channel.send(TOKEN, 0, order.token.encode(), timeout_s=10.0)
            while (frame := channel.receive(timeout_s=10.0)).kind == BLOB:
                if not turned_away:
                    with open_channel(order) as other:
                        word = order.token if token == "again" else token  # noqa: S105
                        other.send(TOKEN, 0, word.encode(), timeout_s=10.0)
                        with pytest.raises(WireError) as caught:
                            other.receive(timeout_s=10.0)
                        turned_away.append(caught.value.reason)
                channel.send(BLOB, frame.step, frame.body, timeout_s=10.0)

    with begun_stream(act) as exchange:
        assert run_both(exchange, 3) == [number(5)] * 3
    assert turned_away == ["cut"]


def test_strangers_delay_devices_but_do_not_keep_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections, plain text and big first frames: closed, and the devices work on."""
    monkeypatch.setattr("strategies.stream_exchange._STRANGER_S", 0.5)
    strangers = list[socket.socket]()

    def act(order: StreamOrder) -> None:
        for _ in range(80):
            strangers.append(socket.create_connection((order.host, order.port)))
        strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
        with open_channel(order) as big:
            big._socket.sendall(stream.head(BLOB, 0, 1) + b"x")
            with pytest.raises(WireError):
                big.receive(timeout_s=10.0)
        with open_channel(order) as channel:
            channel.send(TOKEN, 0, order.token.encode(), timeout_s=10.0)
            while (frame := channel.receive(timeout_s=10.0)).kind == BLOB:
                channel.send(BLOB, frame.step, frame.body, timeout_s=10.0)
        for stranger in strangers:
            stranger.close()

    with begun_stream(act) as exchange:
        assert run_both(exchange, 3) == [number(5)] * 3


def test_only_tls_is_spoken() -> None:
    with StreamListener() as listener, threaded(hostile_app(lambda _order: None), 1) as grid:
        with StreamExchange(listener, grid, roster_of(1), 1) as exchange:
            assert exchange.exchange({0: number(1)}, 20.0) == {0: number(1)}
            (connection,) = exchange._connections.values()
            assert connection._socket.version() == "TLSv1.3"
            assert connection._socket.context.minimum_version is ssl.TLSVersion.TLSv1_3


def test_devices_are_told_the_advertised_address() -> None:
    seen = list[tuple[str, int]]()
    app = hostile_app(lambda order: seen.append((order.host, order.port)))
    with (
        StreamListener("0.0.0.0", advertised_host="localhost") as listener,  # noqa: S104
        threaded(app, 2) as grid,
        StreamExchange(listener, grid, roster_of(2), 1) as exchange,
    ):
        # The honest device reaches it there; the other only looks.
        assert exchange.exchange({0: number(1), HOSTILE: b""}, 20.0)[0] == number(1)
    assert seen == [("localhost", listener.port)]
