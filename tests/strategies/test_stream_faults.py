"""Devices and strangers that misbehave on a stream: each loss has its reason, and is cleaned up."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from fl_app import stream
from fl_app.errors import RunError, WireError
from fl_app.step_wire import StreamOrder
from fl_app.stream import BLOB, FAILED, TOKEN, Channel
from strategies.exchange import Lost
from strategies.stream_exchange import StreamExchange
from strategies.stream_listener import StreamListener
from tests.exchange_fixtures import (
    HOSTILE,
    MAX,
    Act,
    begun_stream,
    hostile_app,
    nothing_left_behind,
    number,
    open_channel,
    roster_of,
    run_both,
    threaded,
)

Play = Callable[[Channel], None]


def _admitted(play: Play) -> Act:
    """Proves its token, answers the first exchange honestly, then ``play``s at the second."""

    def act(order: StreamOrder) -> None:
        with open_channel(order) as channel:
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
    with begun_stream(_admitted(play)) as exchange:
        answers = run_both(exchange, 4)
    assert answers[0] == number(5)
    assert _reasons(answers) == ["", reason, reason, reason]


def test_an_answer_to_a_much_older_exchange_is_refused() -> None:
    def act(order: StreamOrder) -> None:
        with open_channel(order) as channel:
            channel.send(TOKEN, 0, order.token.encode(), timeout_s=10.0)
            for step in (0, 1, 0):
                channel.send(BLOB, step, channel.receive(timeout_s=10.0).body, timeout_s=10.0)

    with begun_stream(act) as exchange:
        assert _reasons(run_both(exchange, 4)) == ["", "", "wrong-step", "wrong-step"]


def test_a_second_answer_loses_the_device_at_once_or_in_the_next_exchange() -> None:
    """Whether it comes with the first or behind it is up to the network."""
    with begun_stream(_admitted(_frames((BLOB, 1, b"one"), (BLOB, 1, b"two")))) as exchange:
        answers = run_both(exchange, 4)
    reasons = _reasons(answers)
    assert reasons in (["", "duplicate"] + ["duplicate"] * 2, ["", "", "duplicate", "duplicate"])


def test_what_crossed_in_vain_is_said() -> None:
    with begun_stream(_admitted(_frames((BLOB, 2, b"of the future")))) as exchange:
        late = run_both(exchange, 2)[1]
    assert isinstance(late, Lost)
    assert late.num_bytes == len(b"of the future")
    with begun_stream(_admitted(_frames((BLOB, 1, b"four"), (BLOB, 1, b"seventy")))) as exchange:
        answers = run_both(exchange, 4)
    counted = sum(len(a) for a in answers[1:] if isinstance(a, bytes))
    (lost,) = {a for a in answers[1:] if isinstance(a, Lost)}
    assert counted + lost.num_bytes == len(b"four") + len(b"seventy")


def test_a_device_that_never_connects_is_silent_at_the_deadline_and_then_not_admitted() -> None:
    may_connect, outcomes = threading.Event(), list[str]()

    def act(order: StreamOrder) -> None:
        assert may_connect.wait(60.0)
        with open_channel(order) as channel:
            channel.send(TOKEN, 0, order.token.encode(), timeout_s=10.0)
            with pytest.raises(WireError) as caught:
                channel.receive(timeout_s=30.0)
            outcomes.append(caught.value.reason)

    with begun_stream(act) as exchange:
        started = time.monotonic()
        answers = run_both(exchange, 1, deadline_s=1.0)
        assert 1.0 <= time.monotonic() - started < 20.0
        may_connect.set()
        while not outcomes:  # it is turned away while the round goes on
            answers += _run_on(exchange)
        assert set(_reasons(answers)) == {"silent"}
    assert outcomes == ["cut"]


def _run_on(exchange: StreamExchange) -> list[Lost | bytes]:
    return [exchange.exchange({0: number(0), HOSTILE: number(5)}, 20.0)[HOSTILE]]


def test_a_device_that_hangs_is_silent_and_nobody_waits_for_it_twice() -> None:
    with begun_stream(_admitted(lambda _channel: None)) as exchange:
        assert _reasons(run_both(exchange, 1)) == [""]
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

    with begun_stream(_admitted(trickle)) as exchange:
        assert _reasons(run_both(exchange, 1)) == [""]
        started = time.monotonic()
        assert _reasons([exchange.exchange({HOSTILE: number(5)}, 0.5)[HOSTILE]]) == ["silent"]
        assert time.monotonic() - started < 10.0


def test_a_device_that_raises_before_it_connects_is_noticed_before_the_deadline() -> None:
    def act(order: StreamOrder) -> None:
        raise MemoryError("no room")

    with begun_stream(act) as exchange:
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

    with begun_stream(act) as exchange, pytest.raises(RunError, match="worker process died"):
        exchange.exchange({0: number(1), HOSTILE: number(1)}, 60.0)


def test_closing_twice_and_closing_unused_do_no_harm() -> None:
    with (
        nothing_left_behind(),
        StreamListener() as listener,
        threaded(hostile_app(print), 1) as grid,
    ):
        exchange = StreamExchange(listener, grid, roster_of(1), 1)
        exchange.close()
        exchange.close()


def test_an_exception_at_the_server_closes_every_stream() -> None:
    ended = list[str]()

    def act(order: StreamOrder) -> None:
        with open_channel(order) as channel:
            channel.send(TOKEN, 0, order.token.encode(), timeout_s=10.0)
            channel.send(BLOB, 0, channel.receive(timeout_s=10.0).body, timeout_s=10.0)
            ended.append(str(channel.receive(timeout_s=10.0).kind == stream.END))

    def fail() -> None:
        with begun_stream(act) as exchange:
            run_both(exchange, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ended == ["True"]
