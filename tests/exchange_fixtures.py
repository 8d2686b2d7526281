"""A federation of toy devices for the transports; one of them misbehaves on demand."""

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.exchange_app import exchange_app
from clients.steps import Handle
from clients.stream import serve_stream
from fl_app import step_wire
from fl_app.local_grid import FIRST_NODE_ID, LocalGrid, ThreadedGrid
from fl_app.payload import Payload, read_payload
from fl_app.step_wire import StreamOrder
from fl_app.stream import Channel
from strategies.exchange import Lost
from strategies.roster import Roster
from strategies.stream_exchange import StreamExchange
from strategies.stream_listener import StreamListener


def running_sum(state: bytes | None, blob: bytes) -> tuple[bytes, bytes]:
    """Adds the array it was sent to its state and answers with both."""
    asked = read_payload(blob, max_bytes=2**20)
    before = np.zeros(3, np.float32) if state is None else np.frombuffer(state, np.float32)
    total = before + asked.arrays["x"]
    answer = Payload("sum", asked.step, {"n": float(total.sum())}, {"sum": total})
    return total.tobytes(), answer.to_blob()


def toy_app(handle: Handle = running_sum) -> ClientApp:
    return exchange_app(handle)


def roster_of(num_devices: int) -> Roster:
    return Roster(node_of={d: FIRST_NODE_ID + d for d in range(num_devices)})


def local(app: ClientApp, num_nodes: int) -> LocalGrid:
    return LocalGrid(app, num_nodes=num_nodes, run_config={})


def threaded(app: ClientApp, num_nodes: int) -> ThreadedGrid:
    return ThreadedGrid(app, num_nodes=num_nodes, run_config={})


def number(value: int) -> bytes:
    return struct.pack(">q", value)


def counting(state: bytes | None, blob: bytes) -> tuple[bytes, bytes]:
    """Answers state + blob, both as 8-byte integers: the smallest handler with a memory."""
    total = struct.unpack(">q", state or number(0))[0] + struct.unpack(">q", blob)[0]
    return number(total), number(total)


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fails if the block leaves a thread or an open socket behind."""
    me: Any = psutil.Process()
    threads = set(threading.enumerate())
    files, connections = me.num_fds(), len(me.net_connections())
    yield
    assert set(threading.enumerate()) <= threads
    # Fewer is possible: garbage of an earlier test.
    assert me.num_fds() <= files
    assert len(me.net_connections()) <= connections


# --- a device that misbehaves on its stream ------------------------------------------------------

HOSTILE = 1
MAX = 100
Act = Callable[[StreamOrder], None]


def open_channel(order: StreamOrder) -> Channel:
    """A channel whose own limit stops it from nothing."""
    return Channel(
        order.host, order.port, certificate=order.certificate, max_bytes=2**40, timeout_s=10.0
    )


def hostile_app(act: Act) -> ClientApp:
    """Device 1 does as ``act`` says, all others count."""
    app = ClientApp()

    @app.train("stream")
    def stream(message: Message, context: Context) -> Message:
        order = step_wire.read_stream(message)
        if order.device != HOSTILE:
            return serve_stream(message, counting)
        act(order)
        return step_wire.stream_done(message, order, 0)

    return app


@contextlib.contextmanager
def begun_stream(act: Act) -> Iterator[StreamExchange]:
    """A round of two devices; nothing may be left of it."""
    with nothing_left_behind(), contextlib.ExitStack() as stack:
        listener = stack.enter_context(StreamListener())
        grid = stack.enter_context(threaded(hostile_app(act), 2))
        begun = StreamExchange(listener, grid, roster_of(2), 1, max_bytes=MAX)
        yield stack.enter_context(begun)


def run_both(exchange: StreamExchange, steps: int, deadline_s: float = 20.0) -> list[Lost | bytes]:
    """Runs exchanges; the honest device must not notice anything. Returns the other's answers."""
    answers = []
    for step in range(steps):
        both = exchange.exchange({0: number(1), HOSTILE: number(5)}, deadline_s)
        assert both[0] == number(step + 1)
        answers.append(both[HOSTILE])
    return answers
