"""Two processes on loopback; strangers, damage and greed against a server that goes on."""

import contextlib
import dataclasses
import datetime
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fl_app import stream
from fl_app.errors import WireError
from fl_app.payload import Payload
from fl_app.prompts.direct import (
    Identity,
    Neighbour,
    PromptServer,
    ask_adverts,
    fetch,
    make_identity,
)
from fl_app.prompts.errors import PromptError
from fl_app.prompts.transfer import receive
from tests.prompt_fixtures import SMALL_FIT, shelf_on

_ROOT = Path(__file__).parents[3]
_ALICE, _BOB, _EVE = (make_identity(name) for name in ("alice", "bob", "eve"))

_OTHER_PROCESS = """
import sys
from pathlib import Path
from fl_app.prompts.direct import Identity, PromptServer
from tests.prompt_fixtures import shelf_on
folder = Path(sys.argv[1])
identity = Identity((folder / "own.pem").read_bytes(), (folder / "own.key").read_bytes())
with PromptServer(identity, [(folder / "peer.pem").read_text()], lambda: shelf_on(2)) as server:
    print(server.port, flush=True)
    sys.stdin.read()  # until the test closes it
print("closed", flush=True)
"""


@contextmanager
def _serving(peers: tuple[Identity, ...] = (_BOB,)) -> Iterator[tuple[PromptServer, Neighbour]]:
    known = [peer.certificate.decode() for peer in peers]
    with PromptServer(_ALICE, known, lambda: shelf_on(2), timeout_s=5.0) as server:
        yield server, Neighbour("127.0.0.1", server.port, _ALICE.certificate.decode())


def _reason(ask: object) -> str:
    with pytest.raises(WireError) as caught:
        ask()  # type: ignore[operator]
    return caught.value.reason


def test_a_prompt_goes_from_process_to_process(tmp_path: Path) -> None:
    (tmp_path / "own.pem").write_bytes(_ALICE.certificate)
    (tmp_path / "own.key").write_bytes(_ALICE.key)
    (tmp_path / "peer.pem").write_bytes(_BOB.certificate)
    other = subprocess.Popen(
        [sys.executable, "-c", _OTHER_PROCESS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
    )
    with other:
        assert other.stdout is not None
        assert other.stdin is not None
        port = int(other.stdout.readline())
        alice = Neighbour("127.0.0.1", port, _ALICE.certificate.decode())
        adverts = ask_adverts(alice, _BOB, timeout_s=20.0)
        shelf = shelf_on(2)
        assert [advert.blob_hash for advert in adverts] == sorted(shelf)
        for advert in adverts:
            blob = fetch(alice, _BOB, advert, timeout_s=20.0)
            assert blob == shelf[advert.blob_hash][1]
            assert receive(blob, advert, SMALL_FIT).num_tokens == 3
        assert _reason(lambda: ask_adverts(alice, _EVE, timeout_s=20.0)) == "cut"
        other.stdin.close()
        assert other.stdout.read() == "closed\n"
    assert other.returncode == 0


def test_both_sides_must_be_known() -> None:
    """A stranger, somebody without certificate, and a server that is not who it should be."""
    with _serving() as (server, alice):
        assert _reason(lambda: ask_adverts(alice, _EVE, timeout_s=5.0)) == "cut"
        impostor = dataclasses.replace(alice, certificate=_EVE.certificate.decode())
        assert _reason(lambda: ask_adverts(impostor, _BOB, timeout_s=5.0)) == "wrong-certificate"
        context = stream.client_context(stream.der_of(alice.certificate))
        with (
            socket.create_connection((alice.host, alice.port)) as plain,
            context.wrap_socket(plain) as secure,
            pytest.raises(ssl.SSLError),
        ):
            secure.recv(1)
        assert len(ask_adverts(alice, _BOB, timeout_s=5.0)) == 2
    assert len(server.refused) == 3


def test_several_peers_may_be_known() -> None:
    with _serving((_BOB, _EVE)) as (server, alice):
        assert len(ask_adverts(alice, _BOB, timeout_s=5.0)) == 2
        assert len(ask_adverts(alice, _EVE, timeout_s=5.0)) == 2
    assert server.refused == []


def test_an_identity_signed_by_a_known_peer_is_no_known_peer() -> None:
    """The library would believe the chain; the server compares the certificate itself."""
    with _serving() as (server, alice):
        delegate = _signed_by(_BOB)
        assert _reason(lambda: ask_adverts(alice, delegate, timeout_s=5.0)) == "cut"
    assert any("wrong-certificate" in reason for reason in server.refused)


def test_what_is_larger_than_advertised_is_not_taken() -> None:
    advert, blob = next(iter(shelf_on(1).values()))
    with _serving() as (_, alice):
        smaller = dataclasses.replace(advert, num_bytes=len(blob) - 1)
        assert _reason(lambda: fetch(alice, _BOB, smaller, timeout_s=5.0)) == "damaged"
        huge = dataclasses.replace(advert, num_bytes=2**40)
        assert _reason(lambda: fetch(alice, _BOB, huge, timeout_s=5.0)) == "too-large"
        gone = dataclasses.replace(advert, blob_hash="0" * 64)
        assert _reason(lambda: fetch(alice, _BOB, gone, timeout_s=5.0)) == "refused"
        swapped = dataclasses.replace(advert, num_bytes=10 * len(blob))
        other = sorted(set(shelf_on(2)) - {advert.blob_hash})[0]
        wrong = fetch(alice, _BOB, dataclasses.replace(swapped, blob_hash=other), timeout_s=5.0)
        with pytest.raises(PromptError, match="wrong-hash"):
            receive(wrong, swapped, SMALL_FIT)


def test_the_server_outlives_nonsense() -> None:
    with _serving() as (_, alice):
        with socket.create_connection((alice.host, alice.port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                plain.recv(100)  # an alert or nothing, but the connection ends
        known = {
            "certificate": alice.certificate,
            "max_bytes": 10_000,
            "timeout_s": 5.0,
            "identity": (_BOB.certificate, _BOB.key),
        }
        questions = [
            (stream.BLOB, b"nonsense", stream.FAILED),
            (stream.TOKEN, b"", stream.FAILED),
            (stream.BLOB, Payload("other", 0).to_blob(), stream.FAILED),
            (stream.BLOB, Payload("ask", 0, {"blob_hash": 3}).to_blob(), stream.FAILED),
        ]
        for kind, body, answer in questions:
            with stream.Channel(alice.host, alice.port, **known) as channel:  # type: ignore[arg-type]
                channel.send(kind, 0, body, timeout_s=5.0)
                assert channel.receive(timeout_s=5.0).kind == answer
                channel.send(stream.END, 0, b"", timeout_s=5.0)
        with stream.Channel(alice.host, alice.port, **known) as channel:  # type: ignore[arg-type]
            channel.send(stream.BLOB, 0, bytes(9000), timeout_s=5.0)  # too long a question
            assert _reason(lambda: channel.receive(timeout_s=5.0)) == "cut"
        assert len(ask_adverts(alice, _BOB, timeout_s=5.0)) == 2
    assert _reason(lambda: ask_adverts(alice, _BOB, timeout_s=1.0)) == "unreachable"
    with pytest.raises(PromptError, match="no-peers"):
        PromptServer(_ALICE, [], lambda: {})


def test_strangers_who_keep_silent_starve_nobody() -> None:
    """More of them than may be in the handshake at once, and none has a key."""
    with _serving() as (_, alice), contextlib.ExitStack() as held:
        for _ in range(80):
            held.enter_context(socket.create_connection((alice.host, alice.port)))
        assert len(ask_adverts(alice, _BOB, timeout_s=4.0)) == 2


def test_a_known_peer_who_keeps_silent_starves_itself_alone() -> None:
    with _serving((_BOB, _EVE)) as (server, alice), contextlib.ExitStack() as held:
        for _ in range(6):
            held.enter_context(
                stream.Channel(
                    alice.host,
                    alice.port,
                    certificate=alice.certificate,
                    max_bytes=100,
                    timeout_s=4.0,
                    identity=(_EVE.certificate, _EVE.key),
                )
            )
        assert len(ask_adverts(alice, _BOB, timeout_s=4.0)) == 2
        assert _reason(lambda: ask_adverts(alice, _EVE, timeout_s=4.0)) == "cut"
    assert sum("busy" in reason for reason in server.refused) == 5  # two of seven were let in


def _signed_by(issuer: Identity) -> Identity:
    above = x509.load_pem_x509_certificate(issuer.certificate)
    signer = serialization.load_pem_private_key(issuer.key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "delegate")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(above.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2000, 1, 1))
        .not_valid_after(datetime.datetime(9000, 1, 1))
        .sign(signer, hashes.SHA256())
    )
    return Identity(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
