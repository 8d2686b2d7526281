"""Several exchanges per round with many devices: the interface, and one Flower message for each.

A device that fails an exchange is lost for the round: what it computed is forgotten, nothing is
sent to it again, and nobody waits for it twice.
"""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from flwr.app import Message
from flwr.serverapp import Grid
from typing_extensions import override

from fl_app import step_wire
from fl_app.errors import RunError, WireError
from fl_app.step_wire import StepOrder
from strategies.roster import Roster

MAX_BYTES = 2**28
"""The longest blob of an exchange unless said otherwise: 256 MiB."""
_CLOCK_SLACK_S = 600.0


@dataclass(frozen=True)
class Lost:
    """Why a device is lost for the round.

    Attributes:
        reason: what the report books: ``silent`` (no answer by the deadline), ``error`` (it
            raised), ``duplicate``, ``damaged`` (checksum, size or framing), ``cut`` (its connection
            ended), ``missing``, ``wrong-round``, ``wrong-device`` or ``wrong-step``.
        detail: the full text; a device says no more than the kind of its error.
        num_bytes: payload bytes that crossed all the same: answers that came whole and do not
            count.
    """

    reason: str
    detail: str
    num_bytes: int = 0


class Exchange(Protocol):
    """One round's exchanges; used as a context manager."""

    @property
    def max_bytes(self) -> int:
        """Longest blob in either direction, >= 1."""
        ...

    def exchange(self, outgoing: Mapping[int, bytes], deadline_s: float) -> dict[int, bytes | Lost]:
        """Sends each device its blob and waits for the answers.

        Args:
            outgoing: device to blob; need not name the same devices every time.
            deadline_s: seconds for the whole exchange, > 0.

        Returns:
            Every device of ``outgoing``, ascending, with its answer or why it is lost; a device
            that was lost before is lost still, and is sent nothing.

        Raises:
            RunError: a blob is too long or a simulation worker died.
        """
        ...

    def close(self) -> None:
        """Ends the round's exchanges; safe to call twice."""
        ...

    def __enter__(self) -> Self:
        """Returns itself."""
        ...

    def __exit__(self, *_exc: object) -> None:
        """Closes."""
        ...


class RoundExchange(ABC):
    """What every transport does alike: counting each device's exchanges and its loss.

    Args:
        grid: Flower's.
        roster: which node plays which device.
        round: of the server.
        max_bytes: longest blob in either direction, >= 1.
    """

    def __init__(self, grid: Grid, roster: Roster, *, round: int, max_bytes: int) -> None:
        self._grid, self._roster = grid, roster
        self._round, self._max_bytes = round, max_bytes
        self._steps: dict[int, int] = {}
        """Exchanges a device has answered in this round."""
        self._lost: dict[int, Lost] = {}

    @property
    def max_bytes(self) -> int:
        """See ``Exchange``."""
        return self._max_bytes

    def exchange(self, outgoing: Mapping[int, bytes], deadline_s: float) -> dict[int, bytes | Lost]:
        """See ``Exchange``."""
        deadline = time.monotonic() + deadline_s
        for device, blob in outgoing.items():
            if len(blob) > self._max_bytes:
                raise RunError(
                    f"round {self._round}: {len(blob)} bytes for device {device}, but max_bytes="
                    f"{self._max_bytes}; raise it or send less at once"
                )
        alive = {device: outgoing[device] for device in sorted(outgoing) if self._is_alive(device)}
        answers = self._ask(alive, deadline) if alive else {}
        for device, answer in answers.items():
            match answer:
                case Lost():
                    self._lost[device] = answer
                case _:
                    self._steps[device] = self._step(device) + 1
        known: dict[int, bytes | Lost] = {**self._lost, **answers}
        return {device: known[device] for device in sorted(outgoing)}

    @abstractmethod
    def close(self) -> None:
        """See ``Exchange``."""

    @abstractmethod
    def _ask(self, outgoing: dict[int, bytes], deadline: float) -> dict[int, bytes | Lost]:
        """Asks devices that are not lost; answers for each by ``deadline`` (monotonic clock)."""

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Closes."""
        self.close()

    def _is_alive(self, device: int) -> bool:
        return device not in self._lost

    def _step(self, device: int) -> int:
        return self._steps.get(device, 0)

    def _push(self, messages: dict[int, Message]) -> tuple[dict[str, int], dict[int, Lost]]:
        """Hands messages to Flower; returns devices by message id, and those it did not take."""
        taken = set(self._grid.push_messages(list(messages.values())))
        by_id, refused = {}, {}
        for device, message in messages.items():
            if message.metadata.message_id in taken:
                by_id[message.metadata.message_id] = device
            else:
                refused[device] = Lost("error", "Flower did not take the message")
        return by_id, refused


def silent(device: int) -> Lost:
    """Returns the loss of a device that did not answer in time."""
    return Lost("silent", f"device {device} did not answer by the deadline")


def require_living_worker(reason: str) -> None:
    """Refuses to go on with a simulation that lost a worker.

    Raises:
        RunError: a simulation worker died, which poisons every later message.
    """
    if "ActorDiedError" in reason:
        raise RunError(
            "a simulation worker process died (most often: out of memory); lower the number of "
            "parallel workers or choose a smaller model"
        )


class MessageExchange(RoundExchange):
    """One Flower message per device and exchange: works on every grid.

    An exchange costs about 0.1 s in simulation and 6 s or more on real nodes, where every message
    starts a process; ``StreamExchange`` is for those. A node that plays several devices is asked
    for one after the other, each within its share of the time. An in-process grid delivers while it
    is handed the messages, so there the devices' own time is not bounded by the deadline.

    Args:
        grid: Flower's.
        roster: which node plays which device.
        action: message type, for example ``train.step``.
        round: of the server.
        max_bytes: longest blob in either direction, >= 1.
        poll_s: seconds between two looks for answers, > 0.
    """

    def __init__(
        self,
        grid: Grid,
        roster: Roster,
        action: str,
        round: int,
        *,
        max_bytes: int = MAX_BYTES,
        poll_s: float = 0.1,
    ) -> None:
        super().__init__(grid, roster, round=round, max_bytes=max_bytes)
        self._action, self._poll_s = action, poll_s
        self._unanswered: set[str] = set()

    @override
    def close(self) -> None:
        """Takes late answers out of the grid, so that they hold no memory there."""
        if self._unanswered:
            list(self._grid.pull_messages(self._unanswered))
        self._unanswered.clear()

    @override
    def _ask(self, outgoing: dict[int, bytes], deadline: float) -> dict[int, bytes | Lost]:
        answers: dict[int, bytes | Lost] = {}
        waves = self._waves(outgoing)
        for i, wave in enumerate(waves):
            now = time.monotonic()
            share = max(deadline - now, 0.0) / (len(waves) - i)
            answers |= self._ask_wave({device: outgoing[device] for device in wave}, now + share)
        return answers

    def _waves(self, devices: Iterable[int]) -> list[list[int]]:
        """Returns the devices so that no node plays two of one wave.

        A simulated node hands each message a copy of its state and keeps what the last one made of
        it, so of two messages at once one would be forgotten.
        """
        waves: list[list[int]] = []
        busy: Counter[int] = Counter()
        for device in devices:
            node = self._roster.node_of[device]
            if busy[node] == len(waves):
                waves.append([])
            waves[busy[node]].append(device)
            busy[node] += 1
        return waves

    def _ask_wave(self, outgoing: dict[int, bytes], deadline: float) -> dict[int, bytes | Lost]:
        orders = {
            device: StepOrder(self._round, device, self._step(device), blob)
            for device, blob in outgoing.items()
        }
        # A device's clock may be wrong by minutes, and Flower counts a message's age by it.
        ttl_s = max(deadline - time.monotonic(), 0.0) + _CLOCK_SLACK_S
        by_id, refused = self._push(
            {
                device: step_wire.step_message(
                    order, self._roster.node_of[device], action=self._action, ttl_s=ttl_s
                )
                for device, order in orders.items()
            }
        )
        answers: dict[int, bytes | Lost] = {**refused}
        while by_id:
            found: dict[str, list[Message]] = {}
            for reply in self._grid.pull_messages(list(by_id)):
                found.setdefault(reply.metadata.reply_to_message_id, []).append(reply)
            for message_id in by_id.keys() & found.keys():
                device = by_id.pop(message_id)
                answers[device] = self._judge(found[message_id], orders[device])
            remaining = deadline - time.monotonic()
            if not by_id or remaining <= 0:
                break
            time.sleep(min(self._poll_s, remaining))
        self._unanswered |= by_id.keys()
        return {**answers, **{device: silent(device) for device in by_id.values()}}

    def _judge(self, replies: list[Message], order: StepOrder) -> bytes | Lost:
        if len(replies) > 1:
            crossed = sum(map(step_wire.answer_bytes, replies))
            return Lost("duplicate", f"{len(replies)} answers came back to one message", crossed)
        try:
            answer = step_wire.read_answer(replies[0], order)
        except WireError as error:
            require_living_worker(str(error))
            return Lost(error.reason, str(error), step_wire.answer_bytes(replies[0]))
        if len(answer) > self._max_bytes:
            text = f"{len(answer)} bytes, allowed are {self._max_bytes}"
            return Lost("damaged", text, len(answer))
        return answer
