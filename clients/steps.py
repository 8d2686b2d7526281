"""A device's side of a round with several exchanges, one Flower message each.

The next message may reach another process of the same node, so what a device must remember between
them lies in Flower's ``Context.state``. That travels with every message: keep it to kilobytes.
"""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict

from fl_app import step_wire
from fl_app.errors import WireError
from fl_app.records import blob_of, blob_record

Handle = Callable[[bytes | None, bytes], tuple[bytes | None, bytes]]
"""(state, blob) to (next state, answer). Pure: the state is None in a round's first exchange."""

_PREFIX = "steps"


def answer_step(message: Message, context: Context, handle: Handle) -> Message:
    """Handles one exchange.

    Args:
        message: the server's.
        context: of the node; this round's state is read and written, that of earlier ones deleted.
        handle: what the device does.

    Returns:
        The answer.

    Raises:
        WireError: ``missing`` or ``damaged``; ``wrong-round``, this node has begun a later one;
            ``wrong-step``, the exchange is not the one that follows the last (a repeated message,
            or the node lost its state when it was restarted).
    """
    order = step_wire.read_step(message)
    memory = _Memory(context.state, order.round, order.device)
    memory.forget_earlier_rounds()
    if memory.next_step != order.step:
        raise WireError(
            "wrong-step",
            f"device {order.device} is at exchange {memory.next_step} of round {order.round}, "
            f"asked was {order.step}; it takes part again in the next round",
        )
    state, answer = handle(memory.read(), order.blob)
    memory.write(order.step + 1, state)
    return step_wire.step_reply(message, order, answer)


class _Memory:
    """What a node remembers of one device in one round."""

    def __init__(self, records: RecordDict, server_round: int, device: int) -> None:
        self._records, self._round = records, server_round
        self._place = f"{_PREFIX}.{server_round}.{device}.place"
        self._state = f"{_PREFIX}.{server_round}.{device}.state"

    def forget_earlier_rounds(self) -> None:
        for name in [name for name in self._records if name.startswith(f"{_PREFIX}.")]:
            stored = int(name.split(".")[1])
            if stored > self._round:
                raise WireError(
                    "wrong-round", f"round {stored} has begun, the message is of {self._round}"
                )
            if stored < self._round:
                del self._records[name]

    @property
    def next_step(self) -> int:
        place = self._records.config_records.get(self._place, ConfigRecord({step_wire.STEP: 0}))
        return int(str(place[step_wire.STEP]))

    def read(self) -> bytes | None:
        record = self._records.array_records.get(self._state)
        return None if record is None else blob_of(record)

    def write(self, next_step: int, state: bytes | None) -> None:
        self._records[self._place] = ConfigRecord({step_wire.STEP: next_step})
        self._records.pop(self._state, None)
        if state is not None:
            self._records[self._state] = blob_record(state)
