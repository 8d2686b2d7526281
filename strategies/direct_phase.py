"""A transfer phase over direct links: the server introduces devices and passes on no prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from fl_app.certificate import device_name
from fl_app.errors import WireError
from fl_app.features_wire import require_kind
from fl_app.meeting_wire import IDENTIFY, IDENTITY, MET, Peer, meet_payload
from fl_app.payload import Payload
from fl_app.stream import require_certificate
from fl_app.transfer_wire import bytes_of, count_of
from strategies.transfer_book import TransferRecord
from strategies.transfer_phase import Gathered, TransferPhase

_MAX_CERTIFICATE_BYTES = 2**16


class DirectPhase(TransferPhase):
    """Tells every device the addresses and certificates of those it meets, and lets them talk.

    Args:
        *given: see ``TransferPhase``.
        addresses: host:port of every device, by partition id.
        seconds: for which they meet.
        **named: see ``TransferPhase``.
    """

    def __init__(self, *given: Any, addresses: Sequence[str], seconds: float, **named: Any) -> None:
        super().__init__(*given, **named)
        self._addresses, self._seconds = addresses, seconds

    @override
    def gather(
        self,
        askers: Sequence[int],
        sources: Sequence[int],
        records: Mapping[int, TransferRecord],
    ) -> dict[int, Gathered]:
        """See ``TransferPhase.gather``; sizes are as the asker reports them."""
        contacts = self._tools.contacts
        present = sorted({*askers, *sources})
        near = {
            d: [o for o in contacts.neighbours(self._number, d) if o in present] for d in present
        }
        meeting = [d for d in present if near[d]]
        orders = {d: self._place(d).to_payload(IDENTIFY) for d in meeting}
        certificates = self._talk.each(self.send(orders, "relay"), _certificate)
        outgoing = {
            device: meet_payload(
                self._place(device),
                address=self._addresses[device],
                peers=[
                    self._peer(device, o, certificates[o])
                    for o in near[device]
                    if o in certificates
                ],
                is_asker=device in askers,
                seconds=self._seconds,
            )
            for device in certificates
        }
        answers = self.send(outgoing, "relay")

        def read(device: int, payload: Payload) -> Gathered:
            return self._met(device, near[device], payload)

        # what others say they heard is nobody's business; nothing was to be read by them
        found = {d: one for d, one in self._talk.each(answers, read).items() if d in records}
        for device in found:
            records[device].offers = int(answers[device].scalars["offers"])
        heard = {source for device in found for source in _sources(answers[device], "advert")}
        for source in sorted(heard):
            sizes = [_sources(answers[d], "advert").get(source, 0) for d in found]
            self._books.advert(source, askers, max(sizes))
        return {d: one for d, one in found.items() if one.asked}

    def _peer(self, device: int, other: int, certificate: str) -> Peer:
        link = self._tools.contacts.link(self._number, device, other)
        return Peer(other, self._addresses[other], certificate, link.rate_bps, link.contact_s)

    def _met(self, device: int, near: Sequence[int], payload: Payload) -> Gathered:
        require_kind(payload, MET)
        offers = payload.scalars.get("offers")
        if type(offers) is not int or not 0 <= offers <= len(near):
            raise WireError("missing", f"device {device} does not say what it heard")
        sizes = _sources(payload, "blob")
        if strange := (set(sizes) | set(_sources(payload, "advert"))) - set(near):
            raise WireError("missing", f"device {device} heard {sorted(strange)[:3]} from afar")
        asked = sorted(sizes)
        return Gathered(asked, {s: size for s, size in sizes.items() if size}, {})


def _certificate(device: int, payload: Payload) -> str:
    require_kind(payload, IDENTITY)
    pem = bytes_of(payload, IDENTITY, _MAX_CERTIFICATE_BYTES).decode(errors="replace")
    # or those who meet its owner could not start, or would take it for somebody else
    require_certificate(pem, device_name(device))
    return pem


def _sources(payload: Payload, what: str) -> dict[int, int]:
    """Returns the sizes that a device reports, by source.

    Raises:
        WireError: ``missing``: not a size.
    """
    found = {}
    for name, size in payload.scalars.items():
        lead, _, source = name.partition("|")
        if lead != what:
            continue
        if type(size) is not int or not 0 <= size < 2**31:
            raise WireError("missing", f"{name[:40]!r} should be a count of bytes")
        found[count_of(source)] = size
    return found
