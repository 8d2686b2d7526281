"""Both transports on the same devices: the same bytes, and nothing left behind."""

from collections.abc import Callable

import numpy as np
import pytest

from fl_app import step_wire
from fl_app.errors import RunError
from fl_app.payload import Payload, read_payload
from fl_app.seeding import generator
from strategies.exchange import Exchange, Lost, MessageExchange
from strategies.stream_exchange import StreamExchange
from strategies.stream_listener import StreamListener
from tests.exchange_fixtures import (
    counting,
    local,
    nothing_left_behind,
    number,
    roster_of,
    threaded,
    toy_app,
)

NUM_DEVICES, NUM_EXCHANGES, NUM_ROUNDS = 10, 20, 2
Log = list[dict[int, bytes | Lost]]


def _x(round: int, step: int, device: int) -> np.ndarray:
    return generator(0, "toy", round, step, device).normal(size=3).astype(np.float32)


def _outgoing(round: int, step: int) -> dict[int, bytes]:
    """Every third exchange leaves out the odd devices, as a queue would."""
    devices = range(0, NUM_DEVICES, 2) if step % 3 == 2 else range(NUM_DEVICES)
    return {
        d: Payload("x", step, {}, {"x": _x(round, step, d)}).to_blob() for d in reversed(devices)
    }


def _play(begin: Callable[[int], Exchange]) -> Log:
    log = []
    for server_round in range(NUM_ROUNDS):
        with begin(server_round) as exchange:
            for step in range(NUM_EXCHANGES):
                log.append(exchange.exchange(_outgoing(server_round, step), 60.0))
    return log


def _by_messages() -> Log:
    with local(toy_app(), NUM_DEVICES) as grid:
        roster = roster_of(NUM_DEVICES)
        return _play(lambda r: MessageExchange(grid, roster, step_wire.ACTION_STEP, r))


def _by_streams() -> Log:
    roster = roster_of(NUM_DEVICES)
    with StreamListener() as listener, threaded(toy_app(), NUM_DEVICES) as grid:
        return _play(lambda r: StreamExchange(listener, grid, roster, r))


def test_both_transports_give_the_same_bytes_and_leave_nothing_behind() -> None:
    with nothing_left_behind():
        messages = _by_messages()
        streams = _by_streams()
    assert messages == streams
    assert [list(answers) for answers in streams] == [
        sorted(_outgoing(r, s)) for r in range(NUM_ROUNDS) for s in range(NUM_EXCHANGES)
    ]
    # The devices' own memory: the sum over a round of what each was sent, and of nothing else.
    for server_round in range(NUM_ROUNDS):
        for device in range(NUM_DEVICES):
            total = np.zeros(3, np.float32)
            for step in range(NUM_EXCHANGES):
                answer = streams[server_round * NUM_EXCHANGES + step].get(device)
                if answer is None:
                    continue
                assert isinstance(answer, bytes), answer
                total = total + _x(server_round, step, device)
                read = read_payload(answer, max_bytes=10**4)
                np.testing.assert_array_equal(read.arrays["sum"], total)
                assert read.step == step


@pytest.mark.parametrize("kind", ["messages", "streams"])
def test_a_big_and_an_empty_blob_come_through(kind: str) -> None:
    def mirrored(state: bytes | None, blob: bytes) -> tuple[bytes | None, bytes]:
        return b"", (state or b"first" if state is None else b"") + blob[::-1]

    blob = generator(0, "big").bytes(3_000_001)
    with StreamListener() as listener, threaded(toy_app(mirrored), 2) as grid:
        ways: dict[str, Callable[[], Exchange]] = {
            "messages": lambda: MessageExchange(grid, roster_of(2), step_wire.ACTION_STEP, 1),
            "streams": lambda: StreamExchange(listener, grid, roster_of(2), 1),
        }
        with ways[kind]() as exchange:
            assert exchange.exchange({0: b"", 1: blob}, 60.0) == {
                0: b"first",
                1: b"first" + blob[::-1],
            }
            # An empty state is a state, not the absence of one.
            assert exchange.exchange({0: blob, 1: b""}, 60.0) == {0: blob[::-1], 1: b""}


@pytest.mark.parametrize("kind", ["messages", "streams"])
def test_a_device_that_raises_is_lost_for_the_round_and_back_in_the_next(kind: str) -> None:
    def touchy(state: bytes | None, blob: bytes) -> tuple[bytes, bytes]:
        if blob == number(13):
            raise ArithmeticError("unlucky")
        return counting(state, blob)

    roster = roster_of(2)
    with (
        nothing_left_behind(),
        StreamListener() as listener,
        threaded(toy_app(touchy), 2) as grid,
    ):

        def begin(server_round: int) -> Exchange:
            if kind == "messages":
                return MessageExchange(grid, roster, step_wire.ACTION_STEP, server_round)
            return StreamExchange(listener, grid, roster, server_round)

        with begin(1) as exchange:
            assert exchange.exchange({0: number(1), 1: number(1)}, 60.0)[1] == number(1)
            hurt = exchange.exchange({0: number(1), 1: number(13)}, 60.0)
            assert hurt[0] == number(2)
            lost = hurt[1]
            assert isinstance(lost, Lost)
            assert lost.reason == "error"
            assert "ArithmeticError" in lost.detail
            assert "unlucky" not in lost.detail
            assert exchange.exchange({0: number(1), 1: number(1)}, 60.0) == {0: number(3), 1: lost}
        with begin(2) as exchange:
            assert exchange.exchange({0: number(5), 1: number(7)}, 60.0) == {
                0: number(5),
                1: number(7),
            }


@pytest.mark.parametrize("kind", ["messages", "streams"])
def test_too_long_a_blob_is_refused_before_it_is_sent(kind: str) -> None:
    with StreamListener() as listener, threaded(toy_app(counting), 1) as grid:
        ways: dict[str, Callable[[], Exchange]] = {
            "messages": lambda: MessageExchange(grid, roster_of(1), "train.step", 1, max_bytes=8),
            "streams": lambda: StreamExchange(listener, grid, roster_of(1), 1, max_bytes=8),
        }
        with ways[kind]() as exchange:
            with pytest.raises(RunError, match="max_bytes=8"):
                exchange.exchange({0: b"123456789"}, 60.0)
            assert exchange.exchange({0: number(4)}, 60.0) == {0: number(4)}


@pytest.mark.parametrize("kind", ["messages", "streams"])
def test_too_long_an_answer_loses_the_device(kind: str) -> None:
    with (
        nothing_left_behind(),
        StreamListener() as listener,
        threaded(toy_app(lambda _state, blob: (None, blob * 2)), 1) as grid,
    ):
        ways: dict[str, Callable[[], Exchange]] = {
            "messages": lambda: MessageExchange(grid, roster_of(1), "train.step", 1, max_bytes=8),
            "streams": lambda: StreamExchange(listener, grid, roster_of(1), 1, max_bytes=8),
        }
        with ways[kind]() as exchange:
            assert exchange.exchange({0: b"1234"}, 60.0) == {0: b"12341234"}
            lost = exchange.exchange({0: b"12345"}, 60.0)[0]
            assert isinstance(lost, Lost)
            # An honest device says so itself before it sends; by message the server sees it.
            told = {"messages": "10 bytes, allowed are 8", "streams": "WireError: too-large"}
            assert told[kind] in lost.detail
