"""Devices that meet on direct links: each serves its own prompt, and asks the others for theirs."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from fl_app.errors import WireError
from fl_app.meeting_wire import Peer
from fl_app.prompts.advert import read_advert
from fl_app.prompts.direct import (
    Identity,
    Neighbour,
    PromptServer,
    Shelf,
    ask_adverts,
    fetch,
)
from fl_app.transfer_wire import Heard

_PAUSE_S = 0.1
T = TypeVar("T")
Choice = Callable[[Sequence[Heard]], Mapping[int, str]]
"""Adverts to whom to ask for which blob, see ``clients.prompt_choice.wanted``."""


@dataclass
class Met:
    """What a meeting brought.

    Attributes:
        heard: adverts.
        blobs: packed prompts by source; empty bytes where one was asked for and did not come.
    """

    heard: list[Heard] = field(default_factory=list)
    blobs: dict[int, bytes] = field(default_factory=dict)


def meet(
    identity: Identity,
    address: str,
    peers: Sequence[Peer],
    shelf: Shelf,
    choose: Choice | None,
    *,
    seconds: float,
) -> Met:
    """Listens for the whole time; meanwhile asks all peers, chooses, and fetches.

    Args:
        identity: of this device.
        address: host:port to listen on.
        peers: whom it meets; nobody else is answered.
        shelf: what it gives away.
        choose: whom to ask; None for a device that looks for nothing.
        seconds: how long, > 0. Who has all it wants stays, for others may come late.

    Raises:
        OSError: the address cannot be bound.
        WireError: a peer's certificate cannot be read.
    """
    until, met = time.monotonic() + seconds, Met()
    if not peers:
        return met
    host, _, port = address.rpartition(":")
    certificates = [peer.certificate for peer in peers]
    with PromptServer(
        identity, certificates, lambda: shelf, host=host, port=int(port), timeout_s=seconds
    ):
        if choose is not None:
            met.heard = _hear(identity, peers, until)
            wanted = choose(met.heard)
            adverts = {one.source: one.advert for one in met.heard}
            jobs = {
                peer.device: partial(_fetch, identity, peer, adverts[peer.device], until)
                for peer in peers
                if peer.device in wanted
            }
            met.blobs = dict.fromkeys(jobs, b"") | _in_time(jobs, until)
        while (rest := until - time.monotonic()) > 0:
            time.sleep(min(rest, _PAUSE_S))
    return met


def _hear(identity: Identity, peers: Sequence[Peer], until: float) -> list[Heard]:
    """Asks everybody at once, until all have answered or half of the time is over."""
    half = time.monotonic() + (until - time.monotonic()) / 2
    heard = _in_time({peer.device: partial(_ask, identity, peer, half) for peer in peers}, half)
    return [one for device in sorted(heard) for one in heard[device]]


def _ask(identity: Identity, peer: Peer, until: float) -> list[Heard]:
    """Asks one peer again and again, for it may not be there yet."""
    while (rest := until - time.monotonic()) > 0:
        try:
            adverts = ask_adverts(_neighbour(peer), identity, timeout_s=rest)
        except WireError:
            time.sleep(_PAUSE_S)
            continue
        return [
            Heard(peer.device, peer.rate_bps, peer.contact_s, advert.to_blob())
            for advert in adverts[:1]
        ]
    return []


def _in_time(jobs: Mapping[int, Callable[[], T]], until: float) -> dict[int, T]:
    """Returns what is done by then; a peer that keeps silent costs the others no time.

    What is not done goes on in its thread, whose own deadline is no later, and is forgotten.
    """
    if not jobs:
        return {}
    pool = ThreadPoolExecutor(len(jobs), thread_name_prefix="meet")
    futures = {pool.submit(job): device for device, job in jobs.items()}
    done, _ = wait(futures, timeout=max(until - time.monotonic(), 0.0))
    pool.shutdown(wait=False, cancel_futures=True)
    return {futures[one]: one.result() for one in done}


def _fetch(identity: Identity, peer: Peer, advert: bytes, until: float) -> bytes:
    rest = max(until - time.monotonic(), _PAUSE_S)
    try:
        return fetch(_neighbour(peer), identity, read_advert(advert), timeout_s=rest)
    except WireError:  # its loss is reported like that of a damaged one
        return b""


def _neighbour(peer: Peer) -> Neighbour:
    host, _, port = peer.address.rpartition(":")
    return Neighbour(host, int(port), peer.certificate)
