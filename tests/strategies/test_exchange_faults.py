"""Devices that misbehave over Flower messages: each is lost for its own reason, and no other."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from flwr.app import Error, Message

from fl_app import step_wire
from fl_app.errors import RunError
from fl_app.local_grid import LocalGrid
from strategies.exchange import Lost, MessageExchange
from tests import fakes
from tests.exchange_fixtures import counting, local, number, roster_of, threaded, toy_app
from tests.fakes import Fault

FAULTY, AT = 1, 2
"""Which device misbehaves, and in which exchange."""


class _FaultyGrid(LocalGrid):
    fault: Fault
    received: list[tuple[int, int]]

    def deliver(self, message: Message) -> list[Message]:
        order = step_wire.read_step(message)
        self.received.append((order.device, order.step))
        replies = super().deliver(message)
        is_due = (order.device, order.step) == (FAULTY, AT)
        return self.fault(message, replies[0]) if is_due else replies


@contextmanager
def _faulty(fault: Fault) -> Iterator[tuple[MessageExchange, _FaultyGrid]]:
    with ExitStack() as stack:
        grid = stack.enter_context(_FaultyGrid(toy_app(counting), num_nodes=3, run_config={}))
        grid.fault, grid.received = fault, []
        begun = MessageExchange(grid, roster_of(3), step_wire.ACTION_STEP, 4, max_bytes=100)
        yield stack.enter_context(begun), grid


def _config(**changes: int) -> Fault:
    return fakes.config(**changes)


def _other_blob(blob: bytes, *, fits: bool) -> Fault:
    def fault(_sent: Message, reply: Message) -> list[Message]:
        order = step_wire.read_step(reply)
        good = step_wire.step_reply(_sent, order, blob)
        if fits:
            return [good]
        reply.content[step_wire.STEP_BLOB] = good.content[step_wire.STEP_BLOB]
        return [reply]

    return fault


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (fakes.raises("MemoryError: out of memory"), "error"),
        (fakes.vanishes, "silent"),
        (fakes.answers_something_else, "silent"),
        (fakes.answers_twice, "duplicate"),
        (fakes.empty, "missing"),
        (fakes.without(step_wire.STEP_BLOB), "missing"),
        (_config(round=3), "wrong-round"),
        (_config(device=0), "wrong-device"),
        (_config(step=AT - 1), "wrong-step"),
        (_other_blob(b"spoilt", fits=False), "damaged"),
        (_other_blob(b"x" * 101, fits=True), "damaged"),
    ],
)
def test_a_fault_loses_its_device_for_the_round_and_no_other(fault: Fault, reason: str) -> None:
    with _faulty(fault) as (exchange, grid):
        for step in range(5):
            answers = exchange.exchange(dict.fromkeys(range(3), number(1)), 0.15)
            assert answers[0] == answers[2] == number(step + 1)
            if step < AT:
                assert answers[FAULTY] == number(step + 1)
                continue
            lost = answers[FAULTY]
            assert isinstance(lost, Lost)
            assert lost.reason == reason
        assert [step for device, step in grid.received if device == FAULTY] == [0, 1, AT]


def test_a_dead_simulation_worker_ends_the_run() -> None:
    outgoing = dict.fromkeys(range(3), number(1))
    with _faulty(fakes.raises("ActorDiedError: the actor died")) as (exchange, _):
        for _step in range(AT):
            exchange.exchange(outgoing, 10.0)
        with pytest.raises(RunError, match="worker process died"):
            exchange.exchange(outgoing, 10.0)


def test_a_message_flower_does_not_take_loses_its_device_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower's grids return fewer ids, or None, for messages they refuse."""
    with _faulty(fakes.vanishes) as (exchange, grid):
        push = grid.push_messages
        monkeypatch.setattr(
            grid, "push_messages", lambda messages: [next(iter(push(messages))), None]
        )
        started = time.monotonic()
        answers = exchange.exchange({0: number(1), 1: number(1)}, 60.0)
        assert time.monotonic() - started < 30
        assert answers[0] == number(1)
        assert isinstance(answers[1], Lost)
        assert answers[1].reason == "error"


def test_the_deadline_is_kept_and_late_answers_are_forgotten() -> None:
    may_go_on = threading.Event()

    def slow(state: bytes | None, blob: bytes) -> tuple[bytes, bytes]:
        assert blob != number(9) or may_go_on.wait(60.0)
        return counting(state, blob)

    with threaded(toy_app(slow), 2) as grid:
        with MessageExchange(grid, roster_of(2), step_wire.ACTION_STEP, 1, poll_s=0.01) as exchange:
            started = time.monotonic()
            answers = exchange.exchange({0: number(1), 1: number(9)}, 0.5)
            assert 0.5 <= time.monotonic() - started < 20.0
            assert answers[0] == number(1)
            assert isinstance(answers[1], Lost)
            assert answers[1].reason == "silent"
            may_go_on.set()
            while not grid._replies:
                time.sleep(0.01)
            # By now the late answer is there; the device is lost all the same.
            assert exchange.exchange({0: number(1), 1: number(1)}, 20.0) == {
                0: number(2),
                1: answers[1],
            }
            assert len(grid._replies) == 1
        assert not grid._replies


def test_every_answer_that_is_there_at_the_deadline_counts() -> None:
    """An in-process grid works while it is handed the messages, however long that takes."""

    def slow(state: bytes | None, blob: bytes) -> tuple[bytes, bytes]:
        time.sleep(0.05)
        return counting(state, blob)

    with (
        local(toy_app(slow), 2) as grid,
        MessageExchange(grid, roster_of(2), step_wire.ACTION_STEP, 1) as exchange,
    ):
        outgoing = {0: number(3), 1: number(4)}
        assert exchange.exchange(outgoing, 0.01) == outgoing


def test_an_error_of_the_superlink_is_booked_for_the_node_it_is_about() -> None:
    """Its sender is the SuperLink (node 1), so only the message it replies to can tell."""

    def unavailable(sent: Message, _reply: Message) -> list[Message]:
        error = Message(Error(5, "Node Unavailable"), reply_to=sent)
        error.metadata.__dict__["_src_node_id"] = 1
        return [error]

    with _faulty(unavailable) as (exchange, _):
        for _step in range(AT + 1):
            answers = exchange.exchange(dict.fromkeys(range(3), number(1)), 10.0)
    assert answers[FAULTY] == Lost("error", "error: Node Unavailable")
