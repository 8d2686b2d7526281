"""A federation of toy devices for the transports: each keeps a running sum of what it was sent."""

import contextlib
import struct
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.steps import Handle, answer_step
from clients.stream import serve_stream
from fl_app.local_grid import FIRST_NODE_ID, LocalGrid, ThreadedGrid
from fl_app.payload import Payload, read_payload
from strategies.roster import Roster


def running_sum(state: bytes | None, blob: bytes) -> tuple[bytes, bytes]:
    """Adds the array it was sent to its state and answers with both."""
    asked = read_payload(blob, max_bytes=2**20)
    before = np.zeros(3, np.float32) if state is None else np.frombuffer(state, np.float32)
    total = before + asked.arrays["x"]
    answer = Payload("sum", asked.step, {"n": float(total.sum())}, {"sum": total})
    return total.tobytes(), answer.to_blob()


def toy_app(handle: Handle = running_sum) -> ClientApp:
    """Returns a ClientApp that plays both transports' device side."""
    app = ClientApp()

    @app.train("step")
    def step(message: Message, context: Context) -> Message:
        return answer_step(message, context, handle)

    @app.train("stream")
    def stream(message: Message, context: Context) -> Message:
        return serve_stream(message, handle)

    return app


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
    before = me.num_fds(), len(me.net_connections())
    yield
    assert set(threading.enumerate()) <= threads
    assert (me.num_fds(), len(me.net_connections())) == before
