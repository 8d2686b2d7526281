"""What travels where devices of a transfer phase have direct links, as payloads.

``identify`` down and ``identity`` up (certificates), then ``meet`` down (whom to meet) and ``met``
up (whom it heard, and the sizes).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fl_app.errors import WireError
from fl_app.payload import Payload, Scalar
from fl_app.transfer_wire import Place, number_of

IDENTIFY, IDENTITY = "identify", "identity"
MEET, MET = "meet", "met"


@dataclass(frozen=True)
class Peer:
    """Another device as a direct link sees it.

    Attributes:
        device: partition id.
        address: host:port where it listens.
        certificate: PEM, which it must own.
        rate_bps: bit/s of the link, >= 0.
        contact_s: seconds for which the contact lasts.
    """

    device: int
    address: str
    certificate: str
    rate_bps: float
    contact_s: float


_PEER = ("address", "certificate", "rate_bps", "contact_s")


def meet_payload(
    place: Place, *, address: str, peers: Sequence[Peer], is_asker: bool, seconds: float
) -> Payload:
    """Tells a device where to listen, whom to know, and whether to look for a prompt."""
    scalars: dict[str, Scalar] = {**vars(place), "address": address, "is_asker": is_asker}
    scalars |= {"seconds": seconds, "peers": " ".join(str(peer.device) for peer in peers)}
    for peer in peers:
        scalars |= {f"{name}|{peer.device}": getattr(peer, name) for name in _PEER}
    return Payload(MEET, 0, scalars)


def read_peers(payload: Payload) -> list[Peer]:
    """Reads whom a device meets.

    Raises:
        WireError: ``missing``.
    """
    found = payload.scalars
    names = str(found.get("peers", "")).split()
    if any(f"{field}|{name}" not in found for name in names for field in _PEER):
        raise WireError("missing", f"a meeting of {names} lacks something of a peer")
    return [
        Peer(
            int(name),
            str(found[f"address|{name}"]),
            str(found[f"certificate|{name}"]),
            number_of(payload, f"rate_bps|{name}"),
            number_of(payload, f"contact_s|{name}"),
        )
        for name in names
    ]
