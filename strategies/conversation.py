"""Payloads to the devices of a round and back: bytes are booked, and devices that are lost."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from fl_app.errors import WireError
from fl_app.features_wire import MAX_BYTES, NO_FRONT
from fl_app.payload import Payload, read_payload
from strategies.exchange import Exchange, Lost
from strategies.feature_crossings import FeatureCrossings
from strategies.round_log import RoundLog

log = logging.getLogger("deft")
Given = TypeVar("Given")
Made = TypeVar("Made")

Book = Callable[[str, int, str, int], None]
"""(link, device, what, bytes)."""


class Conversation:
    """One round's payloads.

    Args:
        exchange: the way to the devices.
        timeout_s: seconds for one exchange.
        number: server round.
        log: devices lost are booked here.
        book: bytes are booked here.
        uplink: kind of an answer to what it is booked as; what is of no such kind is control.
        crossings: books what crossed a neural connection; None where everything travels as bytes.
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
        crossings: FeatureCrossings | None = None,
    ) -> None:
        self._exchange, self._timeout_s, self._number = exchange, timeout_s, number
        self._log, self._book, self._uplink = log, book, uplink
        self._crossings = crossings

    def send(
        self, outgoing: Mapping[int, Payload], what: str, *, ahead: int = 0
    ) -> dict[int, Payload]:
        """Makes one exchange.

        Args:
            outgoing: device to payload.
            what: what the downlink is booked as.
            ahead: local steps a device makes before it answers.

        Returns:
            The answers, by device; who is lost, or answers another local step, is dropped, and so
            is a device for which the payload is too long.
        """
        blobs = self.each(outgoing, self._packed)
        for device, blob in blobs.items():
            self._book_payload("downlink", device, outgoing[device], what, len(blob))
        answers = self._exchange.exchange(blobs, self._timeout_s) if blobs else {}

        def opened(device: int, answer: bytes | Lost) -> Payload:
            return self._opened(device, answer, outgoing[device].step + ahead)

        return self.each(answers, opened)

    def each(
        self, given: Mapping[int, Given], make: Callable[[int, Given], Made]
    ) -> dict[int, Made]:
        """Does something for every device that may fail for it alone.

        Args:
            given: by device.
            make: called with (device, given); a ``WireError`` drops the device, and only it.

        Returns:
            What was made, by device, without those dropped.
        """
        made = {}
        for device, one in given.items():
            try:
                made[device] = make(device, one)
            except WireError as error:
                log.warning("round %d: device %d dropped: %s", self._number, device, error)
                self._log.drop(device, error.reason)
        return made

    def _packed(self, _device: int, payload: Payload) -> bytes:
        blob, most = payload.to_blob(), self._exchange.max_bytes
        if len(blob) > most:
            raise WireError(
                "too-large",
                f"{len(blob)} bytes of {payload.kind} for it, allowed are {most}; lower "
                "finetune.batch_size, or choose strategy.features=int8",
            )
        return blob

    def _opened(self, device: int, answer: bytes | Lost, step: int) -> Payload:
        """Reads an answer and books its bytes.

        Raises:
            WireError: it was lost, is no payload or of another step, or the device has no model.
        """
        match answer:
            case Lost(reason, detail, num_bytes):
                if num_bytes > 0:
                    self._book("uplink", device, "control", num_bytes)
                raise WireError(reason, detail)
        try:
            payload = read_payload(answer, max_bytes=MAX_BYTES)
        except WireError:
            self._book("uplink", device, "control", len(answer))
            raise
        what = self._uplink.get(payload.kind, "control")
        self._book_payload("uplink", device, payload, what, len(answer))
        if payload.kind == NO_FRONT:
            raise WireError("no-emulator", "its part of the model is gone")
        if payload.step != step:
            raise WireError("wrong-step", f"answers local step {payload.step}, is at {step}")
        if self._crossings is not None:
            self._crossings.arrived(device, payload)
        return payload

    def _book_payload(
        self, link: str, device: int, payload: Payload, what: str, num_bytes: int
    ) -> None:
        if self._crossings is not None:
            what, num_bytes = self._crossings.digital(payload, what, num_bytes)
        self._book(link, device, what, num_bytes)


def chunks(devices: list[int], size: int) -> Iterator[list[int]]:
    """Yields at most ``size`` devices at a time, in their order."""
    for start in range(0, len(devices), size):
        yield devices[start : start + size]
