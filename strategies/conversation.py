"""Payloads to the devices of a round and back: bytes are booked, and devices that are lost."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from fl_app.errors import WireError
from fl_app.features_wire import MAX_BYTES, NO_FRONT
from fl_app.payload import Payload, read_payload
from strategies.exchange import Exchange, Lost
from strategies.round_log import RoundLog

log = logging.getLogger("deft")

Given = TypeVar("Given")
Made = TypeVar("Made")

Book = Callable[[str, int, str, int], None]
"""(link, device, what, bytes)."""
_OTHER = "control"


class Conversation:
    """One round's payloads.

    Args:
        exchange: the way to the devices.
        timeout_s: seconds for one exchange.
        number: server round.
        log: devices lost are booked here.
        book: bytes are booked here.
        uplink: kind of an answer to what it is booked as; what is of another kind is ``control``.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        timeout_s: float,
        number: int,
        log: RoundLog,
        book: Book,
        uplink: Mapping[str, str],
    ) -> None:
        self._exchange, self._timeout_s, self._number = exchange, timeout_s, number
        self._log, self._book, self._uplink = log, book, uplink

    def send(
        self, outgoing: Mapping[int, Payload], what: str, *, step: int | None = None
    ) -> dict[int, Payload]:
        """Makes one exchange.

        Args:
            outgoing: device to payload.
            what: what the downlink is booked as.
            step: local step that answers must name; None where their reader checks that.

        Returns:
            The answers, by device; who is lost is dropped.
        """
        blobs = {device: payload.to_blob() for device, payload in outgoing.items()}
        for device, blob in blobs.items():
            self._book("downlink", device, what, len(blob))
        answers = self._exchange.exchange(blobs, self._timeout_s) if blobs else {}
        return self.each(answers, lambda device, answer: self._opened(device, answer, step))

    def each(
        self, given: Mapping[int, Given], make: Callable[[int, Given], Made]
    ) -> dict[int, Made]:
        """Returns ``make(device, given)`` of each device; drops those it raises WireError for."""
        made = {}
        for device, one in given.items():
            try:
                made[device] = make(device, one)
            except WireError as error:
                self.drop(device, error)
        return made

    def drop(self, device: int, error: WireError) -> None:
        """Books a device as dropped."""
        log.warning("round %d: device %d dropped: %s", self._number, device, error)
        self._log.drop(device, error.reason)

    def _opened(self, device: int, answer: bytes | Lost, step: int | None) -> Payload:
        """Reads an answer and books its bytes.

        Raises:
            WireError: it was lost, is no payload or of another step, or has no model.
        """
        match answer:
            case Lost(reason, detail):
                raise WireError(reason, detail)
        try:
            payload = read_payload(answer, max_bytes=MAX_BYTES)
        except WireError:
            self._book("uplink", device, _OTHER, len(answer))
            raise
        self._book("uplink", device, self._uplink.get(payload.kind, _OTHER), len(answer))
        if payload.kind == NO_FRONT:
            raise WireError("no-emulator", "its part of the model is gone")
        if step is not None and payload.step != step:
            raise WireError("wrong-step", f"answers local step {payload.step}, is at {step}")
        return payload


def chunks(devices: list[int], size: int) -> Iterator[list[int]]:
    """Yields at most ``size`` devices at a time, in their order."""
    for start in range(0, len(devices), size):
        yield devices[start : start + size]
