"""Hostile devices in a meeting on direct links: what they tell the server costs nobody else."""

import ssl
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest

from fl_app.certificate import device_name, make_certificate
from fl_app.errors import WireError
from fl_app.ledger import Ledger
from fl_app.meeting_wire import IDENTITY, MET, read_peers
from fl_app.payload import Payload, Scalar, read_payload
from fl_app.prompts.contacts import Contacts
from fl_app.prompts.direct import Neighbour, PromptServer, ask_adverts, make_identity
from fl_app.schema import TransferPrompt
from fl_app.stream import der_of
from fl_app.transfer_wire import NOBODY, Report, octets, read_search
from strategies.direct_phase import DirectPhase
from strategies.round_log import RoundLog
from strategies.transfer_book import TransferRecord
from strategies.transfer_phase import Gathered, TransferTools

_DEVICES = 3
_PEM = [make_certificate(device_name(d))[0] for d in range(_DEVICES)]


class _Devices:
    """Answers as devices would, without any."""

    max_bytes = 10**6

    def __init__(self, certificates: list[bytes], met: Mapping[int, Mapping[str, Scalar]]) -> None:
        self.certificates, self.met = certificates, met
        self.peers: dict[int, list[int]] = {}

    def exchange(self, blobs: Mapping[int, bytes], _timeout_s: float) -> dict[int, bytes]:
        return {device: self._answer(device, blob) for device, blob in blobs.items()}

    def _answer(self, device: int, blob: bytes) -> bytes:
        order = read_payload(blob, max_bytes=self.max_bytes)
        if order.kind == "identify":
            found = {IDENTITY: octets(self.certificates[device])}
            return Payload(IDENTITY, 0, {}, found).to_blob()
        self.peers[device] = [peer.device for peer in read_peers(order)]
        return Payload(MET, 0, {"offers": 1, **self.met.get(device, {})}).to_blob()


def _gather(
    devices: _Devices, askers: list[int]
) -> tuple[dict[int, Gathered], Ledger, dict[str, list[int]]]:
    settings = TransferPrompt()
    settings.contacts.area_m = 20.0  # everybody meets everybody
    ledger, log = Ledger(), RoundLog()
    tools = TransferTools(
        Contacts(_DEVICES, settings.contacts, seed=0),
        cast("Any", SimpleNamespace()),
        ledger,
        1.0,
        2,
        mixes=False,
    )
    phase = DirectPhase(
        tools,
        cast("Any", devices),
        addresses=[f"127.0.0.1:{7000 + d}" for d in range(_DEVICES)],
        seconds=1.0,
        number=2,
        model_hash="m",
        log=log,
    )
    records = {device: TransferRecord(2, device) for device in askers}
    with patch("logging.Logger.warning"):
        found = phase.gather(askers, list(range(_DEVICES)), records)
    return found, ledger, log.dropped


def _with_head_of_another(pem: bytes) -> bytes:
    """A good certificate with the start of a second one behind it, which OpenSSL takes."""
    return ssl.DER_cert_to_PEM_cert(der_of(pem.decode()) + b"\x30\x82").encode()


@pytest.mark.parametrize(
    "bad",
    [
        b"no PEM",
        ssl.DER_cert_to_PEM_cert(b"anything but a certificate").encode(),
        ssl.DER_cert_to_PEM_cert(der_of(_PEM[2].decode())[:-1]).encode(),
        _with_head_of_another(_PEM[2]),
    ],
    ids=["no PEM", "no certificate", "cut", "two"],
)
def test_who_has_no_certificate_is_lost_alone(bad: bytes) -> None:
    """Nobody is told of it, for whoever cannot load a peer's certificate cannot start."""
    devices = _Devices([*_PEM[:2], bad], {0: {"advert|1": 10, "blob|1": 100}})
    found, _, dropped = _gather(devices, [0, 1])
    assert devices.peers == {0: [1], 1: [0]}
    assert dropped == {"damaged": [2]}
    assert {d: one.asked for d, one in found.items()} == {0: [1]}


@pytest.mark.parametrize(
    "name", [device_name(2), device_name(2).upper(), "", device_name(0) + " "], ids=repr
)
def test_nobody_bears_the_name_of_another(name: str) -> None:
    """Who trusts both would take the first for the second, and not hear the second (below)."""
    taken = make_certificate(name or "stranger")[0]
    devices = _Devices([taken, *_PEM[1:]], {1: {"advert|2": 10, "blob|2": 100}})
    found, _, dropped = _gather(devices, [0, 1])
    assert devices.peers == {1: [2], 2: [1]}
    assert dropped == {"wrong-certificate": [0]}
    assert {d: one.asked for d, one in found.items()} == {1: [2]}


def test_one_certificate_for_two_devices_is_that_of_one() -> None:
    devices = _Devices([_PEM[1], *_PEM[1:]], {})
    assert _gather(devices, [0, 1])[2] == {"wrong-certificate": [0]}
    assert devices.peers == {1: [2], 2: [1]}


def test_why_names_must_differ() -> None:
    """Real identities: of two certificates with one name the first hides the second."""
    ours, honest, thief = (make_identity(device_name(d)) for d in (0, 2, 2))
    known = [one.certificate.decode() for one in (thief, honest)]
    with PromptServer(ours, known, dict, timeout_s=5.0) as server:
        us = Neighbour("127.0.0.1", server.port, ours.certificate.decode())
        with pytest.raises(WireError, match="cut"):
            ask_adverts(us, honest, timeout_s=5.0)


def test_what_a_device_heard_that_asks_nobody_is_not_booked() -> None:
    """Device 2 looks for nothing, yet tells of an advert of the only asker, whom nobody heard."""
    lie: dict[str, Scalar] = {"advert|0": 10**9, "advert|1": 10**9}
    devices = _Devices(_PEM, {0: {"advert|1": 10, "blob|1": 100}, 2: lie})
    found, ledger, dropped = _gather(devices, [0])
    assert dropped == {}
    assert {d: one.sizes for d, one in found.items()} == {0: {1: 100}}
    assert ledger.total_bytes(link="d2d", what="advert") == 10


@pytest.mark.parametrize("name", ["9" * 5000, "\u0663", "1 ", "x", ""])
def test_who_names_no_device_is_lost_alone(name: str) -> None:
    """Python's own int() would end the run at the first of them."""
    devices = _Devices(_PEM, {0: {f"blob|{name}": 3}, 1: {"advert|2": 10, "blob|2": 100}})
    found, _, dropped = _gather(devices, [0, 1])
    assert dropped == {"missing": [0]}
    assert {d: one.sizes for d, one in found.items()} == {1: {2: 100}}


@pytest.mark.parametrize("offers", [-1, _DEVICES, 1.0, True])
def test_who_heard_more_than_there_is_is_lost_alone(offers: Scalar) -> None:
    devices = _Devices(_PEM, {0: {"offers": offers}, 1: {"advert|2": 10, "blob|2": 100}})
    found, _, dropped = _gather(devices, [0, 1])
    assert dropped == {"missing": [0]}
    assert {d: one.sizes for d, one in found.items()} == {1: {2: 100}}


def test_a_search_ends_at_somebody_who_was_asked_and_before_tuning() -> None:
    """Zero-shot use that does worse than the prompt of before is rolled back without tuning."""
    ends = ("passed", 2), ("zero-shot", 1), ("rolled-back", 1)
    for action, source in (("kept", NOBODY), *ends):
        assert read_search(Report(action, source).to_payload(), {1, 2}).source == source
    for action, source in (("passed", 3), ("tuned", 1), ("kept", -2)):
        with pytest.raises(WireError, match="missing"):
            read_search(Report(action, source).to_payload(), {1, 2})
