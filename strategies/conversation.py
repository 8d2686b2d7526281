"""Payloads to the devices of a round and back: bytes are booked, and devices that are lost."""

import logging
from collections.abc import Callable, Iterator, Mapping

from fl_app.errors import WireError
from fl_app.features_wire import MAX_BYTES, NO_FRONT
from fl_app.payload import Payload, read_payload
from strategies.exchange import Exchange, Lost
from strategies.round_log import RoundLog

log = logging.getLogger("deft")

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
        uplink: kind of an answer to what it is booked as; other kinds are booked by who reads them.
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

    def send(self, outgoing: Mapping[int, Payload], what: str) -> dict[int, Payload]:
        """Makes one exchange.

        Args:
            outgoing: device to payload.
            what: what the downlink is booked as.

        Returns:
            The answers, by device; who is lost is dropped.
        """
        blobs = {device: payload.to_blob() for device, payload in outgoing.items()}
        for device, blob in blobs.items():
            self._book("downlink", device, what, len(blob))
        answers: dict[int, Payload] = {}
        if not blobs:
            return answers
        for device, answer in self._exchange.exchange(blobs, self._timeout_s).items():
            try:
                payload, size = _opened(answer)
            except WireError as error:
                self.drop(device, error)
                continue
            if payload.kind in self._uplink:
                self._book("uplink", device, self._uplink[payload.kind], size)
            answers[device] = payload
        return answers

    def drop(self, device: int, error: WireError) -> None:
        """Books a device as dropped."""
        log.warning("round %d: device %d dropped: %s", self._number, device, error)
        self._log.drop(device, error.reason)


def chunks(devices: list[int], size: int) -> Iterator[list[int]]:
    """Yields at most ``size`` devices at a time, in their order."""
    for start in range(0, len(devices), size):
        yield devices[start : start + size]


def _opened(answer: bytes | Lost) -> tuple[Payload, int]:
    """Returns what a device answered, and its length in bytes.

    Raises:
        WireError: it was lost, sent no payload, or has no model.
    """
    match answer:
        case Lost(reason, detail):
            raise WireError(reason, detail)
        case _:
            payload = read_payload(answer, max_bytes=MAX_BYTES)
    if payload.kind == NO_FRONT:
        raise WireError("no-emulator", "its part of the model is gone")
    return payload, len(answer)
