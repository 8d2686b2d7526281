"""The books of one transfer phase: what crosses links, and the air between devices."""

from collections.abc import Collection

from fl_app.ledger import Ledger
from fl_app.prompts.contacts import Contacts
from strategies.transfer_book import TransferRecord


class ContactBooks:
    """Books bytes, and the seconds and joules that the contacts' model gives them.

    Args:
        ledger: everything is booked here.
        contacts: who meets whom, at what rate.
        number: server round.
    """

    def __init__(self, ledger: Ledger, contacts: Contacts, number: int) -> None:
        self._ledger, self._contacts, self._number = ledger, contacts, number

    def book(self, link: str, device: int, what: str, num_bytes: int) -> None:
        """Books bytes on a link of a device; names as ``Ledger.book`` has them."""
        self._ledger.book(
            round=self._number,
            device=device,
            link=link,  # type: ignore[arg-type]
            what=what,  # type: ignore[arg-type]
            num_bytes=num_bytes,
        )

    def prompt(self, record: TransferRecord, source: int, num_bytes: int) -> None:
        """Books a prompt sent to the record's device, there too."""
        seconds = self._contacts.link(self._number, record.device, source).transfer_s(num_bytes)
        record.num_bytes += num_bytes
        record.seconds += seconds
        record.joules += self._contacts.joules(seconds)
        self._on_air(source, "prompt", num_bytes, seconds)

    def advert(self, source: int, askers: Collection[int], num_bytes: int) -> None:
        """Books one broadcast, at the rate of its slowest listener among the askers."""
        links = [
            self._contacts.link(self._number, source, device)
            for device in self._contacts.neighbours(self._number, source)
            if device in askers
        ]
        seconds = max(link.transfer_s(num_bytes) for link in links)
        self._on_air(source, "advert", num_bytes, seconds)

    def _on_air(self, source: int, what: str, num_bytes: int, seconds: float) -> None:
        self.book("d2d", source, what, num_bytes)
        joules = self._contacts.joules(seconds)
        self._ledger.book_d2d(round=self._number, seconds=seconds, joules=joules)
