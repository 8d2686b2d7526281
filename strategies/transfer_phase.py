"""A transfer phase: adverts and prompts from device to device by way of the server.

The server passes on bytes and runs its blocks on the rows that devices measure candidates on. It
does not choose, does not gate, and cannot change a prompt unnoticed by who holds the advert; what
it sees is said in ``docs/leakage.md``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import WireError
from fl_app.features_wire import MAX_BYTES, require_kind
from fl_app.ledger import Ledger
from fl_app.payload import Payload
from fl_app.prompts.advert import MAX_ADVERT_BYTES, read_advert
from fl_app.prompts.contacts import Contacts
from fl_app.transfer_wire import (
    ADVERT,
    ADVERTISE,
    GIVE,
    GIVEN,
    JUDGE,
    REPORT,
    SETTLE,
    TRIAL,
    TRY,
    WANT,
    Heard,
    Place,
    Report,
    bytes_of,
    may_name,
    octets,
    offers_payload,
    read_report,
    read_search,
    split_trial,
)
from fl_app.updates import Update
from strategies.contact_books import ContactBooks
from strategies.conversation import Conversation
from strategies.exchange import Exchange
from strategies.feature_server import FeatureServer
from strategies.round_log import RoundLog
from strategies.transfer_book import TransferRecord, tuning_bytes

SETTLED = 3
"""Prompts on a trial that settles a transfer: what was in use, the candidate, and it tuned."""
_UPLINK = {ADVERT: "relay", WANT: "relay", GIVEN: "relay", REPORT: "relay", TRIAL: "trial"}


@dataclass(frozen=True)
class TransferTools:
    """What a phase works with in every round: who meets whom, the blocks, the books.

    Attributes:
        contacts: who meets whom.
        server: runs the blocks.
        ledger: every byte is booked here.
        timeout_s: seconds for one exchange.
        max_candidates: the most prompts on one trial, what is in use included.
        mixes: whether mixtures of what a device got are on trial, too.
    """

    contacts: Contacts
    server: FeatureServer
    ledger: Ledger
    timeout_s: float
    max_candidates: int
    mixes: bool


@dataclass(frozen=True)
class Gathered:
    """What one asker got.

    Attributes:
        asked: whom it asked.
        sizes: bytes of each prompt that came, by source.
        blobs: the prompts, where the server has them to hand on.
    """

    asked: list[int]
    sizes: dict[int, int]
    blobs: dict[int, bytes]


class TransferPhase:
    """One round's phase.

    Args:
        tools: what it works with.
        exchange: the way to the devices.
        number: server round.
        model_hash: of the devices' part of the model.
        log: devices lost are booked here.
    """

    def __init__(
        self,
        tools: TransferTools,
        exchange: Exchange,
        *,
        number: int,
        model_hash: str,
        log: RoundLog,
    ) -> None:
        self._tools, self._number, self._model_hash = tools, number, model_hash
        self._log = log
        self._books = ContactBooks(tools.ledger, tools.contacts, number)
        self._talk = Conversation(
            exchange,
            timeout_s=tools.timeout_s,
            number=number,
            log=log,
            book=self._books.book,
            uplink=_UPLINK,
        )

    def search(
        self, askers: Sequence[int], sources: Sequence[int], adapter: Update
    ) -> dict[int, TransferRecord]:
        """Lets devices look for a prompt.

        Args:
            askers: who looks, ascending.
            sources: who has a prompt of its own.
            adapter: the round's; askers need its head.

        Returns:
            One record for every asker.
        """
        records = {device: TransferRecord(self._number, device) for device in askers}
        outgoing = {}
        for device, found in self.gather(askers, sources, records).items():
            record = records[device]
            record.asked, record.delivered = found.asked, sorted(found.sizes)
            for source, size in found.sizes.items():
                self._books.prompt(record, source, size)
            arrays: dict[str, NDArray[Any]] = {f"adapter|{n}": a for n, a in adapter.items()}
            arrays |= {f"blob|{source}": octets(blob) for source, blob in found.blobs.items()}
            outgoing[device] = Payload(TRY, 0, {}, arrays)

        def read(device: int, payload: Payload) -> Report:
            sources = may_name(records[device].delivered, mixes=self._tools.mixes)
            return read_search(payload, sources)

        for device, report in self._judged(self.send(outgoing, "relay"), read).items():
            record = records[device]
            record.report = report
            ledger = self._tools.ledger
            record.retraining_bytes = sum(tuning_bytes(ledger, one) for one in record.sources)
        return records

    def gather(
        self,
        askers: Sequence[int],
        sources: Sequence[int],
        records: Mapping[int, TransferRecord],
    ) -> dict[int, Gathered]:
        """Brings every asker what it chose among what it heard; those who ask nobody are left out.

        Args:
            askers: see ``search``.
            sources: see ``search``.
            records: noted there is how many adverts each asker heard.
        """
        adverts = self._adverts(askers, sources)
        heard = {device: self._heard(device, adverts) for device in askers}
        for device, offers in heard.items():
            records[device].offers = len(offers)
        wanted = self._wanted({d: offers for d, offers in heard.items() if offers}, adverts)
        blobs = self._given(wanted, adverts)
        own = {d: {s: blobs[s] for s in asked if s in blobs} for d, asked in wanted.items()}
        return {
            device: Gathered(asked, {s: len(b) for s, b in own[device].items()}, own[device])
            for device, asked in wanted.items()
        }

    def settle(self, devices: Sequence[int]) -> dict[int, Report]:
        """Lets devices that tuned from a candidate keep what is best; returns their reports."""
        outgoing = {device: self._place(device).to_payload(SETTLE) for device in devices}
        return self._judged(self.send(outgoing, "relay"), lambda _device, one: read_report(one))

    def send(self, outgoing: Mapping[int, Payload], what: str) -> dict[int, Payload]:
        """Makes one exchange with those who are not lost yet; see ``Conversation.send``."""
        lost = {device for devices in self._log.dropped.values() for device in devices}
        alive = {device: one for device, one in outgoing.items() if device not in lost}
        return self._talk.send(alive, what)

    # --- parts -------------------------------------------------------------------------------

    def _adverts(self, askers: Sequence[int], sources: Sequence[int]) -> dict[int, bytes]:
        near = {
            other
            for device in askers
            for other in self._tools.contacts.neighbours(self._number, device)
        }
        orders = {s: self._place(s).to_payload(ADVERTISE) for s in sources if s in near}
        answers = self.send(orders, "relay")

        def read(_device: int, payload: Payload) -> bytes:
            require_kind(payload, ADVERT)
            if not payload.arrays:  # it has no prompt any more
                return b""
            blob = bytes_of(payload, ADVERT, MAX_ADVERT_BYTES)
            read_advert(blob)
            return blob

        adverts = {s: blob for s, blob in self._talk.each(answers, read).items() if blob}
        for source, blob in adverts.items():
            self._books.advert(source, askers, len(blob))
        return adverts

    def _heard(self, device: int, adverts: Mapping[int, bytes]) -> list[Heard]:
        met = [s for s in self._tools.contacts.neighbours(self._number, device) if s in adverts]
        links = {s: self._tools.contacts.link(self._number, device, s) for s in met}
        return [
            Heard(source, link.rate_bps, link.contact_s, adverts[source])
            for source, link in links.items()
        ]

    def _wanted(
        self, heard: Mapping[int, Sequence[Heard]], adverts: Mapping[int, bytes]
    ) -> dict[int, list[int]]:
        """Returns whom each device asks; those who ask nobody are left out."""
        outgoing = {d: offers_payload(self._place(d), offers) for d, offers in heard.items()}
        answers = self.send(outgoing, "relay")

        def read(device: int, payload: Payload) -> list[int]:
            require_kind(payload, WANT)
            names = {str(h.source): read_advert(adverts[h.source]).blob_hash for h in heard[device]}
            return sorted(
                int(source) for source, name in payload.scalars.items() if names.get(source) == name
            )

        return {d: asked for d, asked in self._talk.each(answers, read).items() if asked}

    def _given(
        self, wanted: Mapping[int, Sequence[int]], adverts: Mapping[int, bytes]
    ) -> dict[int, bytes]:
        """Fetches every prompt once, however many ask for it."""
        orders = {}
        for source in sorted({s for asked in wanted.values() for s in asked}):
            name = read_advert(adverts[source]).blob_hash
            place = self._place(source)
            orders[source] = Payload(GIVE, 0, {**vars(place), "blob_hash": name})
        answers = self.send(orders, "relay")

        def read(source: int, payload: Payload) -> bytes:
            require_kind(payload, GIVEN)
            allowed = min(read_advert(adverts[source]).num_bytes, MAX_BYTES)
            return bytes_of(payload, GIVEN, allowed) if payload.arrays else b""

        return {s: blob for s, blob in self._talk.each(answers, read).items() if blob}

    def _judged(
        self, answers: Mapping[int, Payload], read: Callable[[int, Payload], Report]
    ) -> dict[int, Report]:
        """Runs the blocks on every trial; returns all reports."""
        trials = {d: p for d, p in answers.items() if p.kind == TRIAL}
        coded = self._talk.each(trials, self._states)
        outgoing = {d: Payload(JUDGE, 0, {}, arrays) for d, arrays in coded.items()}
        reports = {d: p for d, p in answers.items() if d not in trials}
        reports |= self.send(outgoing, "trial")
        return self._talk.each(reports, read)

    def _states(self, device: int, payload: Payload) -> dict[str, NDArray[Any]]:
        server = self._tools.server
        arrays: dict[str, NDArray[Any]] = {}
        payloads = split_trial(payload, most=self._tools.max_candidates)
        candidates = {k: server.read(one, with_labels=False) for k, one in payloads.items()}
        for k, candidate in candidates.items():
            step = server.forward({device: candidate})
            try:
                found = server.states(step.held.states[0], self._number, device, -1 - k)
            except WireError:
                if k == 0:
                    raise
                continue  # another device's prompt: the asker has not deserved to be lost for it
            finally:
                step.release()
            arrays |= {f"{k}|{name}": np.asarray(array) for name, array in found.items()}
        return arrays

    def _place(self, device: int) -> Place:
        return Place(self._number, device, self._model_hash)
