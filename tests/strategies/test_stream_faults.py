"""Devices and strangers that misbehave on a stream: each loss has its reason, and is cleaned up."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.stream import serve_stream
from fl_app import step_wire, stream
from fl_app.errors import RunError, WireError
from fl_app.step_wire import StreamOrder
from fl_app.stream import BLOB, FAILED, TOKEN, Channel
from strategies.exchange import Lost
from strategies.stream_exchange import StreamExchange
from strategies.stream_listener import StreamListener
from tests.exchange_fixtures import counting, nothing_left_behind, number, roster_of, threaded

MAX = 100
HOSTILE = 1
Play = Callable[[Channel], None]
Order = Callable[[StreamOrder], None]


def _open(order: StreamOrder) -> Channel:
    """A channel whose own limit stops it from nothing."""
    return Channel(
        order.host, order.port, certificate=order.certificate, max_bytes=2**40, timeout_s=10.0
    )


def _app(act: Order) -> ClientApp:
    """Device 1 does as ``act`` says, all others are honest."""
    app = ClientApp()

    @app.train("stream")
    def stream_(message: Message, context: Context) -> Message:
        order = step_wire.read_stream(message)
        if order.device != HOSTILE:
            return serve_stream(message, counting)
        act(order)
        return step_wire.stream_done(message, order, 0)

    return app


def _admitted(play: Play) -> Order:
    """Proves its token, answers the first exchange honestly, then ``play``s at the second."""

    def act(order: StreamOrder) -> None:
        with _open(order) as channel:
            channel.send(TOKEN, 0, order.token.encode(), timeout_s=10.0)
            channel.send(BLOB, 0, channel.receive(timeout_s=10.0).body, timeout_s=10.0)
            channel.receive(timeout_s=10.0)
            play(channel)
            with suppress(WireError):  # the server hangs up
                channel.receive(timeout_s=30.0)

    return act


def _cut(channel: Channel) -> None:
    channel._socket.sendall(stream.head(BLOB, 1, 8) + b"half")
    channel._socket.shutdown(socket.SHUT_RDWR)


def _raw(data: bytes) -> Play:
    return lambda channel: channel._socket.sendall(data)


def _frames(*frames: tuple[int, int, bytes]) -> Play:
    return _raw(b"".join(stream.head(kind, step, len(b)) + b for kind, step, b in frames))


@contextmanager
def _begun(act: Order, *, num_devices: int = 2) -> Iterator[StreamExchange]:
    """A round in which device 1 does as ``act`` says; nothing may be left of it."""
    with nothing_left_behind(), ExitStack() as stack:
        listener = stack.enter_context(StreamListener())
        grid = stack.enter_context(threaded(_app(act), num_devices))
        begun = StreamExchange(listener, grid, roster_of(num_devices), 1, max_bytes=MAX)
        yield stack.enter_context(begun)


def _run(exchange: StreamExchange, steps: int, deadline_s: float = 20.0) -> list[Lost | bytes]:
    """Runs exchanges; the honest device must not notice anything. Returns the other's answers."""
    answers = []
    for step in range(steps):
        both = exchange.exchange({0: number(1), HOSTILE: number(5)}, deadline_s)
        assert both[0] == number(step + 1)
        answers.append(both[HOSTILE])
    return answers


def _reasons(answers: list[Lost | bytes]) -> list[str]:
    return ["" if isinstance(answer, bytes) else answer.reason for answer in answers]


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        (_raw(stream.head(BLOB, 1, MAX + 1)), "damaged"),
        (_raw(stream.head(BLOB, 1, 2**63)), "damaged"),
        (_raw(b"\xff" * 50), "damaged"),
        (_frames((TOKEN, 1, b"")), "damaged"),
        (_cut, "cut"),
        (lambda channel: channel._socket.shutdown(socket.SHUT_RDWR), "cut"),
        (_frames((FAILED, 1, "schön".encode())), "error"),
        (_frames((BLOB, 0, b"old"), (BLOB, 1, b"new")), "duplicate"),
        (_frames((BLOB, 2, b"of the future")), "wrong-step"),
    ],
)
def test_a_fault_loses_its_device_for_the_round_and_no_other(play: Play, reason: str) -> None:
    with _begun(_admitted(play)) as exchange:
        answers = _run(exchange, 4)
    assert answers[0] == number(5)
    assert _reasons(answers) == ["", reason, reason, reason]


def test_an_answer_to_a_much_older_exchange_is_refused() -> None:
    def act(order: StreamOrder) -> None:
        with _open(order) as channel:
            channel.send(TOKEN, 0, order.token.encode(), timeout_s=10.0)
            for step in (0, 1, 0):
                channel.send(BLOB, step, channel.receive(timeout_s=10.0).body, timeout_s=10.0)

    with _begun(act) as exchange:
        assert _reasons(_run(exchange, 4)) == ["", "", "wrong-step", "wrong-step"]


def test_a_second_answer_loses_the_device_at_once_or_in_the_next_exchange() -> None:
    """Whether it comes with the first or behind it is up to the network."""
    with _begun(_admitted(_frames((BLOB, 1, b"one"), (BLOB, 1, b"two")))) as exchange:
        answers = _run(exchange, 4)
    reasons = _reasons(answers)
    assert reasons in (["", "duplicate"] + ["duplicate"] * 2, ["", "", "duplicate", "duplicate"])


def test_a_device_that_never_connects_is_silent_at_the_deadline_and_then_not_admitted() -> None:
    may_connect, outcomes = threading.Event(), list[str]()

    def act(order: StreamOrder) -> None:
        assert may_connect.wait(60.0)
        with _open(order) as channel:
            channel.send(TOKEN, 0, order.token.encode(), timeout_s=10.0)
            with pytest.raises(WireError) as caught:
                channel.receive(timeout_s=30.0)
            outcomes.append(caught.value.reason)

    with _begun(act) as exchange:
        started = time.monotonic()
        answers = _run(exchange, 1, deadline_s=1.0)
        assert 1.0 <= time.monotonic() - started < 20.0
        may_connect.set()
        while not outcomes:  # it is turned away while the round goes on
            answers += _run_on(exchange)
        assert set(_reasons(answers)) == {"silent"}
    assert outcomes == ["cut"]


def _run_on(exchange: StreamExchange) -> list[Lost | bytes]:
    return [exchange.exchange({0: number(0), HOSTILE: number(5)}, 20.0)[HOSTILE]]


def test_a_device_that_hangs_is_silent_and_nobody_waits_for_it_twice() -> None:
    with _begun(_admitted(lambda _channel: None)) as exchange:
        assert _reasons(_run(exchange, 1)) == [""]
        started = time.monotonic()
        hung = exchange.exchange({0: number(1), HOSTILE: number(5)}, 0.5)
        assert 0.5 <= time.monotonic() - started < 20.0
        assert hung[0] == number(2)
        started = time.monotonic()
        again = exchange.exchange({HOSTILE: number(5)}, 60.0)
        assert time.monotonic() - started < 20.0
    assert _reasons([hung[HOSTILE], again[HOSTILE]]) == ["silent", "silent"]


def test_a_trickle_does_not_stretch_the_deadline() -> None:
    def trickle(channel: Channel) -> None:
        with suppress(OSError):
            for byte in stream.head(BLOB, 1, 90) + b"x" * 90:
                channel._socket.sendall(bytes([byte]))
                time.sleep(0.2)

    with _begun(_admitted(trickle)) as exchange:
        assert _reasons(_run(exchange, 1)) == [""]
        started = time.monotonic()
        assert _reasons([exchange.exchange({HOSTILE: number(5)}, 0.5)[HOSTILE]]) == ["silent"]
        assert time.monotonic() - started < 10.0


def test_a_device_that_raises_before_it_connects_is_noticed_before_the_deadline() -> None:
    def act(order: StreamOrder) -> None:
        raise MemoryError("no room")

    with _begun(act) as exchange:
        started = time.monotonic()
        lost = exchange.exchange({0: number(1), HOSTILE: number(1)}, 60.0)[HOSTILE]
        assert time.monotonic() - started < 30.0
    assert isinstance(lost, Lost)
    assert (lost.reason, "no room" in lost.detail) == ("error", True)


def test_a_dead_simulation_worker_ends_the_run() -> None:
    class ActorDiedError(Exception):
        pass

    def act(order: StreamOrder) -> None:
        raise ActorDiedError

    with _begun(act) as exchange, pytest.raises(RunError, match="worker process died"):
        exchange.exchange({0: number(1), HOSTILE: number(1)}, 60.0)


@pytest.mark.parametrize("token", ["", "guess", "again"])
def test_no_one_is_admitted_without_a_fresh_token(token: str) -> None:
    """A wrong token, and a right one used before by the device itself."""
    turned_away = []

    def act(order: StreamOrder) -> None:
        with _open(order) as channel:
            channel.send(TOKEN, 0, order.token.encode(), timeout_s=10.0)
            while (frame := channel.receive(timeout_s=10.0)).kind == BLOB:
                if not turned_away:
                    with _open(order) as other:
                        word = order.token if token == "again" else token  # noqa: S105
                        other.send(TOKEN, 0, word.encode(), timeout_s=10.0)
                        with pytest.raises(WireError) as caught:
                            other.receive(timeout_s=10.0)
                        turned_away.append(caught.value.reason)
                channel.send(BLOB, frame.step, frame.body, timeout_s=10.0)

    with _begun(act) as exchange:
        assert _run(exchange, 3) == [number(5)] * 3
    assert turned_away == ["cut"]


def test_strangers_delay_devices_but_do_not_keep_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections, plain text and big first frames: closed, and the devices work on."""
    monkeypatch.setattr("strategies.stream_exchange._STRANGER_S", 0.5)
    strangers = list[socket.socket]()

    def act(order: StreamOrder) -> None:
        for _ in range(80):
            strangers.append(socket.create_connection((order.host, order.port)))
        strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
        with _open(order) as big:
            big._socket.sendall(stream.head(BLOB, 0, 1) + b"x")
            with pytest.raises(WireError):
                big.receive(timeout_s=10.0)
        with _open(order) as channel:
            channel.send(TOKEN, 0, order.token.encode(), timeout_s=10.0)
            while (frame := channel.receive(timeout_s=10.0)).kind == BLOB:
                channel.send(BLOB, frame.step, frame.body, timeout_s=10.0)
        for stranger in strangers:
            stranger.close()

    with _begun(act) as exchange:
        assert _run(exchange, 3) == [number(5)] * 3


def test_only_tls_is_spoken() -> None:
    with StreamListener() as listener, threaded(_app(lambda _order: None), 1) as grid:
        with StreamExchange(listener, grid, roster_of(1), 1) as exchange:
            assert exchange.exchange({0: number(1)}, 20.0) == {0: number(1)}
            (connection,) = exchange._connections.values()
            assert connection._socket.version() == "TLSv1.3"
            assert connection._socket.context.minimum_version is ssl.TLSVersion.TLSv1_3


def test_devices_are_told_the_advertised_address() -> None:
    seen = list[tuple[str, int]]()
    app = _app(lambda order: seen.append((order.host, order.port)))
    with (
        StreamListener("0.0.0.0", advertised_host="localhost") as listener,  # noqa: S104
        threaded(app, 2) as grid,
        StreamExchange(listener, grid, roster_of(2), 1) as exchange,
    ):
        # The honest device reaches it there; the other only looks.
        assert exchange.exchange({0: number(1), HOSTILE: b""}, 20.0)[0] == number(1)
    assert seen == [("localhost", listener.port)]


def test_closing_twice_and_closing_unused_do_no_harm() -> None:
    with nothing_left_behind(), StreamListener() as listener, threaded(_app(print), 1) as grid:
        exchange = StreamExchange(listener, grid, roster_of(1), 1)
        exchange.close()
        exchange.close()


def test_an_exception_at_the_server_closes_every_stream() -> None:
    ended = list[str]()

    def act(order: StreamOrder) -> None:
        with _open(order) as channel:
            channel.send(TOKEN, 0, order.token.encode(), timeout_s=10.0)
            channel.send(BLOB, 0, channel.receive(timeout_s=10.0).body, timeout_s=10.0)
            ended.append(str(channel.receive(timeout_s=10.0).kind == stream.END))

    def fail() -> None:
        with _begun(act) as exchange:
            _run(exchange, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ended == ["True"]
