"""A device's side of a round with several exchanges over one stream.

One long Flower message says where the server listens; the same handler that would answer messages
is looped here, with its state in memory.
"""

from contextlib import suppress

from flwr.app import Message

from clients.discreet import kind_of
from clients.steps import Handle
from fl_app import step_wire, stream
from fl_app.errors import WireError
from fl_app.step_wire import StreamOrder
from fl_app.stream import Channel

_CONNECT_S = 30.0


def serve_stream(message: Message, handle: Handle) -> Message:
    """Opens the stream an order names and answers until the server ends it.

    Args:
        message: the server's order.
        handle: what the device does in each exchange.

    Returns:
        A short note that all went well.

    Raises:
        WireError: ``missing``; ``unreachable`` or ``wrong-certificate``, see ``stream.Channel``;
            ``cut``, the server closed the stream or was silent for ``idle_s``; ``wrong-step``.
        Exception: whatever ``handle`` raised, after the server was told of what kind it is.
    """
    order = step_wire.read_stream(message)
    with Channel(
        order.host,
        order.port,
        certificate=order.certificate,
        max_bytes=order.max_bytes,
        timeout_s=_CONNECT_S,
    ) as channel:
        try:
            steps = _answer_all(channel, order, handle)
        except Exception as error:
            with suppress(WireError):  # a broken stream needs no telling
                channel.send(stream.FAILED, 0, kind_of(error).encode(), timeout_s=1.0)
            raise
    return step_wire.stream_done(message, order, steps)


def _answer_all(channel: Channel, order: StreamOrder, handle: Handle) -> int:
    """Returns the number of exchanges."""
    channel.send(stream.TOKEN, 0, order.token.encode(), timeout_s=_CONNECT_S)
    state: bytes | None = None
    steps = 0
    while (frame := channel.receive(timeout_s=order.idle_s)).kind != stream.END:
        if (frame.kind, frame.step) != (stream.BLOB, steps):
            raise WireError(
                "wrong-step", f"got kind {frame.kind}, exchange {frame.step}; expected {steps}"
            )
        state, answer = handle(state, frame.body)
        channel.send(stream.BLOB, steps, answer, timeout_s=order.idle_s)
        steps += 1
    return steps
