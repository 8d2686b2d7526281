"""Several exchanges per round over one TLS stream per device, opened by one long Flower message.

On real nodes every Flower message starts a process; a stream pays that once a round. The server
serves all streams from the thread that calls it, with a selector: a deadline then is one number to
look at, and there is no thread to be left behind.
"""

import hmac
import logging
import secrets
import selectors
import time
from dataclasses import replace

from flwr.serverapp import Grid
from typing_extensions import override

from fl_app import step_wire, stream
from fl_app.step_wire import StreamOrder
from fl_app.stream import Frame
from strategies.exchange import MAX_BYTES, Lost, RoundExchange, require_living_worker, silent
from strategies.roster import Roster
from strategies.stream_listener import Connection, StreamListener

log = logging.getLogger("deft")

_TICK_S = 0.1
_REPLY_POLL_S = 1.0
"""How often Flower is asked about devices that have not connected: one HTTP request each time."""
_STRANGER_S = 10.0
_MAX_STRANGERS = 64
"""Strangers beyond the devices that are awaited; the next ones wait until these are gone."""
_GOODBYE_S = 1.0


class StreamExchange(RoundExchange):
    """One TLS stream per device and round.

    The grid must deliver in the background, as Flower's own do, and every device needs a worker of
    its own while the round lasts (one real node each): a simulation with fewer workers than devices
    would leave the rest ``silent``. A device's first exchange includes the delivery of its long
    message; give it a longer deadline. Token and certificate travel in that message, so a stream is
    as safe from listeners as Flower's own connection was.

    Args:
        listener: where devices connect; lives as long as the run.
        grid: Flower's.
        roster: which node plays which device.
        round: of the server.
        max_bytes: longest blob in either direction, >= 1.
        idle_s: seconds after which a device gives up a silent server, > 0; more than the server
            ever computes between two exchanges.
        linger_s: seconds to wait at the end for the devices' last word over Flower, >= 0.
    """

    def __init__(
        self,
        listener: StreamListener,
        grid: Grid,
        roster: Roster,
        round: int,
        *,
        max_bytes: int = MAX_BYTES,
        idle_s: float = 600.0,
        linger_s: float = 1.0,
    ) -> None:
        super().__init__(grid, roster, round=round, max_bytes=max_bytes)
        self._listener, self._idle_s, self._linger_s = listener, float(idle_s), linger_s
        self._tokens: dict[int, str] = {}
        """Tokens not yet used."""
        self._connections: dict[int, Connection] = {}
        self._strangers: list[Connection] = []
        self._orders: dict[str, int] = {}
        """Message ids of orders without an answer, and their devices."""
        self._ordered: set[int] = set()
        self._outgoing: dict[int, bytes] = {}
        self._answers: dict[int, bytes | Lost] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, None)

    # --- the exchange ------------------------------------------------------------------------

    @override
    def _ask(self, outgoing: dict[int, bytes], deadline: float) -> dict[int, bytes | Lost]:
        self._outgoing, self._answers = outgoing, {}
        self._order([device for device in outgoing if device not in self._ordered])
        for device in outgoing.keys() & self._connections.keys():
            self._hand_over(device)
        next_poll = time.monotonic() + _REPLY_POLL_S
        while outgoing.keys() - self._answers.keys():
            now = time.monotonic()
            if now >= deadline:
                break
            self._serve(min(_TICK_S, deadline - now))
            if time.monotonic() >= next_poll:
                self._poll_flower()
                next_poll = time.monotonic() + _REPLY_POLL_S
        for device in outgoing.keys() - self._answers.keys():
            self._lose(device, silent(device))
        answers, self._answers, self._outgoing = self._answers, {}, {}
        return answers

    def _order(self, devices: list[int]) -> None:
        """Sends the long message to devices that take part for the first time."""
        messages = {}
        for device in devices:
            self._tokens[device] = secrets.token_urlsafe(32)
            order = StreamOrder(
                round=self._round,
                device=device,
                host=self._listener.host,
                port=self._listener.port,
                token=self._tokens[device],
                certificate=self._listener.certificate,
                max_bytes=self._max_bytes,
                idle_s=self._idle_s,
            )
            messages[device] = step_wire.stream_message(order, self._roster.node_of[device])
        if not messages:
            return
        by_id, refused = self._push(messages)
        self._orders |= by_id
        self._ordered |= messages.keys()
        for device, lost in refused.items():
            self._lose(device, lost)

    def _hand_over(self, device: int) -> None:
        connection = self._connections[device]
        connection.send(stream.BLOB, self._step(device), self._outgoing[device])
        self._advance(connection)

    def _serve(self, wait_s: float) -> None:
        """Waits at most ``wait_s`` for something to happen, and handles it."""
        if self._room() and self._listener not in self._selector.get_map():
            self._selector.register(self._listener, selectors.EVENT_READ, None)
        for key, _ in self._selector.select(wait_s):
            if key.data is None:
                self._welcome()
            else:
                self._advance(key.data)
        for connection in list(self._strangers):
            if time.monotonic() - connection.born > _STRANGER_S:
                self._drop(connection)

    def _welcome(self) -> None:
        for connection in self._listener.accept(self._room()):
            self._strangers.append(connection)
            self._selector.register(connection, connection.events, connection)
        if not self._room():
            self._selector.unregister(self._listener)

    def _room(self) -> int:
        return max(_MAX_STRANGERS + len(self._tokens) - len(self._strangers), 0)

    def _advance(self, connection: Connection) -> None:
        for frame in connection.advance():
            if connection.device is None:
                self._prove(connection, frame)
            else:
                self._take(connection.device, frame)
        if connection.fileno() < 0:
            return  # closed by what its frames said
        if connection.broken is None:
            self._selector.modify(connection, connection.events, connection)
        elif connection.device is None:
            self._drop(connection)
        else:
            self._lose(connection.device, Lost(connection.broken.reason, str(connection.broken)))

    def _prove(self, connection: Connection, frame: Frame) -> None:
        """Admits a stranger whose token was sent to a device and not used before."""
        if connection.fileno() < 0:
            return
        # Every token is compared, so that the time says nothing about any of them.
        known = [d for d, t in self._tokens.items() if hmac.compare_digest(t.encode(), frame.body)]
        if frame.kind != stream.TOKEN or not known:
            log.warning("round %d: closed a connection with a wrong token", self._round)
            self._drop(connection)
            return
        device = known[0]
        del self._tokens[device]
        self._strangers.remove(connection)
        connection.admit(device, self._max_bytes)
        self._connections[device] = connection
        if device in self._outgoing:
            self._hand_over(device)

    def _take(self, device: int, frame: Frame) -> None:
        """Judges one frame of an admitted device."""
        if device not in self._connections:
            return  # an earlier frame lost it
        step, has_answered = self._step(device), device in self._answers
        is_asked = device in self._outgoing and not has_answered
        match frame.kind:
            case stream.FAILED:
                text = frame.body.decode(errors="replace")
                self._lose(device, Lost("error", text))
            case stream.BLOB if is_asked and frame.step == step:
                self._answers[device] = frame.body
            case stream.BLOB if frame.step == (step if has_answered else step - 1):
                text = f"exchange {frame.step} was answered twice"
                self._lose(device, Lost("duplicate", text, len(frame.body)))
            case stream.BLOB:
                text = f"answers exchange {frame.step}, is at {step}"
                self._lose(device, Lost("wrong-step", text, len(frame.body)))
            case _:
                self._lose(device, Lost("damaged", f"a frame of kind {frame.kind}"))

    # --- losing and ending -------------------------------------------------------------------

    def _lose(self, device: int, lost: Lost) -> None:
        """Forgets a device for the rest of the round."""
        self._tokens.pop(device, None)
        # A whole answer counts though the connection ended after it; a second answer spoils it.
        counts = lost.reason == "cut" and device in self._answers
        match self._answers.get(device):
            case bytes(answer) if not counts:
                lost = replace(lost, num_bytes=lost.num_bytes + len(answer))
        self._lost[device] = lost
        if device in self._outgoing and not counts:
            self._answers[device] = lost
        connection = self._connections.pop(device, None)
        if connection is not None:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        if connection in self._strangers:
            self._strangers.remove(connection)
        self._selector.unregister(connection)
        connection.close()

    def _poll_flower(self) -> None:
        """Notes which devices failed before they connected."""
        unseen = {i: d for i, d in self._orders.items() if d in self._tokens and self._is_alive(d)}
        if not unseen:
            return
        for reply in self._grid.pull_messages(list(unseen)):
            device = self._orders.pop(reply.metadata.reply_to_message_id)
            text = str(reply.error.reason) if reply.has_error() else "ended without connecting"
            require_living_worker(text)
            self._lose(device, Lost("error", text))

    @override
    def close(self) -> None:
        """Ends every stream, closes every connection, and hears the devices' last word."""
        if self._selector.get_map() is None:
            return
        try:
            for connection in self._connections.values():
                connection.send(stream.END, 0, b"")
                connection.advance()
            deadline = time.monotonic() + _GOODBYE_S
            while time.monotonic() < deadline and not all(
                c.is_flushed or c.broken for c in self._connections.values()
            ):
                time.sleep(0.01)
                for connection in self._connections.values():
                    connection.advance()
        finally:
            ended = set(self._connections)
            for connection in [*self._connections.values(), *self._strangers]:
                connection.close()
            self._connections.clear()
            self._strangers.clear()
            self._tokens.clear()
            self._selector.close()
        self._hear_last_words(ended)

    def _hear_last_words(self, ended: set[int]) -> None:
        """Takes the answers to the long messages out of the grid."""
        deadline = time.monotonic() + self._linger_s
        while self._orders:
            for reply in self._grid.pull_messages(list(self._orders)):
                device = self._orders.pop(reply.metadata.reply_to_message_id)
                if device in ended and reply.has_error():
                    reason = str(reply.error.reason)[:300]
                    log.warning("round %d: device %d ended with %s", self._round, device, reason)
            if not ended & set(self._orders.values()) or time.monotonic() >= deadline:
                return
            time.sleep(_TICK_S)
