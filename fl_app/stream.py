"""Frames over TLS: what server and device share of the stream transport.

A frame is a header (length of its body in 8 bytes, number of the exchange in 4, kind in 1, all big
endian) and its body. Nothing is unpickled; a body longer than allowed ends the connection before
any of it is kept.
"""

import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509

from fl_app.certificate import subject_of
from fl_app.errors import WireError

_HEADER = struct.Struct(">QIB")
_CHUNK = 2**18
TOKEN, BLOB, FAILED, END = range(1, 5)
"""Kinds: the device proves its token; a blob; the device's error as text; the server is done."""
MAX_CONTROL_BYTES = 4096
"""The longest body of a frame that is no blob."""


@dataclass(frozen=True)
class Frame:
    """One frame: its kind, the number of the exchange it belongs to (from 0), its body."""

    kind: int
    step: int
    body: bytes


def head(kind: int, step: int, length: int) -> bytes:
    """Returns the 13 bytes that precede a body of ``length`` bytes."""
    return _HEADER.pack(length, step, kind)


class FrameReader:
    """Cuts a byte stream into frames, however it was split on the way.

    Args:
        max_bytes: longest blob allowed, may be changed between frames; other kinds may have
            ``MAX_CONTROL_BYTES``.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Takes the next bytes and returns the frames they complete.

        Raises:
            WireError: ``damaged``, a header announces too long a body or an unknown kind.
        """
        self._buffer += data
        frames = []
        while len(self._buffer) >= _HEADER.size:
            length, step, kind = _HEADER.unpack_from(self._buffer)
            allowed = self.max_bytes if kind == BLOB else MAX_CONTROL_BYTES
            if not TOKEN <= kind <= END or length > allowed:
                raise WireError(
                    "damaged",
                    f"a frame of kind {kind} with {length} bytes; allowed are kinds {TOKEN} to "
                    f"{END} and {allowed} bytes",
                )
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            with memoryview(self._buffer) as view:
                frames.append(Frame(kind, step, bytes(view[_HEADER.size : end])))
            del self._buffer[:end]
        return frames

    @property
    def is_between_frames(self) -> bool:
        """Tells whether no frame has been begun."""
        return not self._buffer


def server_context(certificate: bytes, key: bytes, peers: Sequence[str] = ()) -> ssl.SSLContext:
    """Returns the server's TLS settings: TLS 1.3 with the given PEM certificate and key.

    Args:
        certificate: PEM.
        key: PEM.
        peers: PEM certificates of those who may connect, one of which they must then prove to own;
            with none, anybody may.

    Raises:
        WireError: ``damaged``, a peer's certificate cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nobody resumes, and unread tickets would reset a closing connection
    _load_pair(context, certificate, key)
    if peers:
        context.verify_mode = ssl.CERT_REQUIRED
        _believe(context, b"".join(der_of(peer) for peer in peers))
    return context


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="deft-key-") as folder:  # only files can be loaded
        path = Path(folder) / "pair.pem"
        path.touch(mode=0o600)
        path.write_bytes(certificate + key)
        context.load_cert_chain(path)


def client_context(
    certificate: bytes, identity: tuple[bytes, bytes] | None = None
) -> ssl.SSLContext:
    """Returns a device's TLS settings: TLS 1.3, and only this DER certificate is believed.

    Args:
        certificate: the server's, DER.
        identity: own (certificate, key), both PEM, where the server asks who connects.

    Raises:
        WireError: ``damaged``, the bytes are no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate itself is known; its name says nothing
    _believe(context, certificate)
    if identity is not None:
        _load_pair(context, *identity)
    return context


def _believe(context: ssl.SSLContext, certificates: bytes) -> None:
    try:
        context.load_verify_locations(cadata=certificates)
    except (ssl.SSLError, ValueError) as error:
        raise WireError("damaged", f"the order's certificate cannot be read: {error}") from error


def der_of(pem: str) -> bytes:
    """Returns the DER bytes of a PEM certificate, by which it is recognised.

    Raises:
        WireError: ``damaged``, it is not PEM.
    """
    try:
        return ssl.PEM_cert_to_DER_cert(pem)
    except ValueError as error:
        raise WireError("damaged", f"the order's certificate is not PEM: {error}") from error


def require_certificate(pem: str, name: str) -> None:
    """Checks that a stranger's certificate is one, and just one, that all others can load.

    Args:
        pem: the certificate.
        name: the common name it must bear, and nothing else. OpenSSL looks trusted certificates up
            by name, so one that bore the name of another would lock the other out.

    Raises:
        WireError: ``damaged``, or ``wrong-certificate``: it bears another name.
    """
    der = der_of(pem)
    try:
        # OpenSSL takes a certificate with the beginning of another one behind it, and that would
        # swallow those of honest peers
        subject = x509.load_der_x509_certificate(der).subject
    except ValueError as error:
        raise WireError("damaged", f"the certificate cannot be read: {error}") from error
    if subject != subject_of(name):
        found = subject.rfc4514_string()[:80]
        raise WireError("wrong-certificate", f"a certificate of {found!r}, expected CN={name}")
    _believe(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), der)


def _connect(host: str, port: int, context: ssl.SSLContext, timeout_s: float) -> ssl.SSLSocket:
    plain = socket.create_connection((host, port), timeout=timeout_s)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(plain)  # the handshake; takes the socket over
    except OSError:
        plain.close()
        raise


class FrameSocket:
    """One end of a stream; blocking, used as a context manager.

    Args:
        secure: a connected socket, its handshake done.
        max_bytes: longest blob in either direction.
    """

    def __init__(self, secure: ssl.SSLSocket, max_bytes: int) -> None:
        self._socket = secure
        self._reader, self._frames = FrameReader(max_bytes), list[Frame]()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Closes the connection."""
        self._socket.close()

    def allow(self, max_bytes: int) -> None:
        """Sets the longest blob from now on, in either direction."""
        self._reader.max_bytes = max_bytes

    def send(self, kind: int, step: int, body: bytes, *, timeout_s: float) -> None:
        """Sends one frame.

        Raises:
            WireError: ``too-large``; ``cut``, the connection is gone or does not take it in time.
        """
        if kind == BLOB and len(body) > self._reader.max_bytes:
            raise WireError("too-large", f"{len(body)} bytes, allowed are {self._reader.max_bytes}")
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(head(kind, step, len(body)))
            self._socket.sendall(body)
        except OSError as error:
            raise WireError("cut", f"the stream broke while sending: {error}") from error

    def receive(self, *, timeout_s: float) -> Frame:
        """Waits for the next frame.

        Raises:
            WireError: ``cut``, the connection ended or stayed silent; ``damaged``, see
                ``FrameReader``.
        """
        deadline = time.monotonic() + timeout_s
        while not self._frames:
            try:
                self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
                data = self._socket.recv(_CHUNK)
            except OSError as error:
                raise WireError("cut", f"the stream broke while receiving: {error}") from error
            if not data:
                raise WireError("cut", "the other side closed the stream")
            self._frames = self._reader.feed(data)
        return self._frames.pop(0)


class Channel(FrameSocket):
    """The end of a stream that connects: the device's, or that of a device asking another one.

    Args:
        host: the server's address.
        port: the server's port.
        certificate: the server's, PEM; no other is accepted.
        max_bytes: longest blob in either direction.
        timeout_s: seconds until connection and handshake are given up, > 0.
        identity: own (certificate, key), PEM, where the server asks who connects. A server that
            does not know it cuts the stream at the first frame.

    Raises:
        WireError: ``unreachable``, ``wrong-certificate``, or ``damaged`` (no certificate).
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        certificate: str,
        max_bytes: int,
        timeout_s: float,
        identity: tuple[bytes, bytes] | None = None,
    ) -> None:
        known = der_of(certificate)
        try:
            secure = _connect(host, port, client_context(known, identity), timeout_s)
        except ssl.SSLCertVerificationError as error:
            raise WireError("wrong-certificate", f"{host}:{port}: {error}") from error
        except OSError as error:
            raise WireError("unreachable", f"{host}:{port}: {error}") from error
        if secure.getpeercert(binary_form=True) != known:
            secure.close()
            raise WireError("wrong-certificate", f"{host}:{port} shows another certificate")
        super().__init__(secure, max_bytes)
