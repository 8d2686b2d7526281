"""Prompts from one device straight to another: frames over TLS, both sides with known certificates.

The certificates are told to both beforehand (in a federation, by the server's orders). Between them
goes one question and one answer for each connection: all adverts, or one prompt by the hash of its
blob. Nobody else can read or change either; what a listener on the way sees are addresses, times
and lengths. A relay by Flower's server, which is used where no direct link is configured, does see
adverts and prompts.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from fl_app import stream
from fl_app.certificate import make_certificate
from fl_app.errors import WireError
from fl_app.payload import Payload, read_payload
from fl_app.prompts.advert import MAX_ADVERT_BYTES, Advert, read_advert
from fl_app.prompts.errors import PromptError

_ASK, _ADVERTS = "ask", "adverts"
_MAX_ASK_BYTES = 4096
_MAX_ADVERTS_BYTES = 16 * MAX_ADVERT_BYTES
_MAX_BLOB_BYTES = 2**31
_STRANGERS = 32
"""Connections that have not shown a known certificate yet; of more the oldest are cut off."""
_PER_PEER = 2
"""Connections of one known peer at a time."""
_HANDSHAKE_S = 2.0
_GRACE_S = 1.0
"""Seconds for those being answered when a server stops; who is silent then is cut off."""


@dataclass(frozen=True)
class Identity:
    """Who a device is: its certificate and private key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Neighbour:
    """Where another device listens, and the certificate (PEM) it must own."""

    host: str
    port: int
    certificate: str


Shelf = Mapping[str, tuple[Advert, bytes]]
"""What a device gives away: advert and packed prompt, by the hash of the latter."""


def make_identity(name: str) -> Identity:
    """Makes a new key and certificate; give every device a name of its own, see ``certificate``."""
    return Identity(*make_certificate(name))


class PromptServer:
    """Answers known devices in threads of its own; used as a context manager.

    Args:
        identity: of this device.
        peers: PEM certificates of those who may ask, at least one.
        shelf: called for each question, returns what there is just now.
        host: address to listen on.
        port: port, 0 for any free one.
        timeout_s: seconds for every wait on a known peer. Who has not shown a known certificate
            has half of it, and 2 at most; strangers and peers cannot take the place of others,
            however many connections they open.

    Raises:
        PromptError: ``no-peers``.
        WireError: ``damaged``, a peer's certificate cannot be read.
    """

    def __init__(
        self,
        identity: Identity,
        peers: Sequence[str],
        shelf: Callable[[], Shelf],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        timeout_s: float = 30.0,
    ) -> None:
        if not peers:
            raise PromptError("no-peers", "name the certificates of those who may ask")
        self._known = frozenset(stream.der_of(peer) for peer in peers)
        self._context = stream.server_context(identity.certificate, identity.key, peers)
        self._shelf, self._timeout_s = shelf, timeout_s
        self.refused: list[str] = []
        """Why connections ended early, in words; for the log."""
        self._listener = socket.create_server((host, port))
        self.port: int = self._listener.getsockname()[1]
        self._is_closing = threading.Event()
        # those who were cut off need a moment to end, so there is room for as many again
        most = 2 * (_STRANGERS + _PER_PEER * len(self._known))
        self._workers = ThreadPoolExecutor(most, thread_name_prefix="prompts")
        self._answering: list[Future[None]] = []
        self._talking: dict[ssl.SSLSocket, bytes | None] = {}
        """Open connections, oldest first, with the certificate of those who have shown theirs."""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, name="prompts-accept")
        self._thread.start()

    def __enter__(self) -> "PromptServer":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops listening; those being answered have a second left, then they are cut off."""
        self._is_closing.set()
        with socket.socket(self._listener.family) as knock:  # wakes the thread that waits
            knock.settimeout(1.0)
            knock.connect_ex(self._listener.getsockname()[:2])
        self._thread.join()
        self._listener.close()
        wait(self._answering, timeout=_GRACE_S)
        with self._lock:
            for secure in self._talking:
                _cut_off(secure)
        self._workers.shutdown(wait=True)

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError as error:  # for example too many open files; the next may work
                self.refused.append(f"accept: {error}")
                if self._is_closing.wait(0.1):
                    return
                continue
            if self._is_closing.is_set():
                plain.close()
                return
            try:
                plain.settimeout(min(_HANDSHAKE_S, self._timeout_s / 2))
                secure = self._context.wrap_socket(
                    plain, server_side=True, do_handshake_on_connect=False
                )
            except OSError as error:  # gone again
                plain.close()
                self.refused.append(str(error))
                continue
            self._admit(secure)
            answering = self._workers.submit(self._answer, secure)
            self._answering = [one for one in self._answering if not one.done()] + [answering]
            answering.add_done_callback(self._note)

    def _admit(self, secure: ssl.SSLSocket) -> None:
        """Notes a connection; the oldest stranger goes if there are too many."""
        with self._lock:
            self._talking[secure] = None
            strangers = [one for one, shown in self._talking.items() if shown is None]
            for one in strangers[: max(len(strangers) - _STRANGERS, 0)]:
                _cut_off(one)

    def _answer(self, secure: ssl.SSLSocket) -> None:
        try:
            with secure, self._noted(secure):
                secure.do_handshake()
                self._require_known(secure)
                with stream.FrameSocket(secure, _MAX_ASK_BYTES) as frames:
                    self._converse(frames)
        except (OSError, WireError) as error:
            self.refused.append(str(error))

    def _require_known(self, secure: ssl.SSLSocket) -> None:
        shown = secure.getpeercert(binary_form=True)
        # a known peer could have signed a certificate for somebody else
        if shown not in self._known:
            raise PromptError("wrong-certificate", "not one of the known peers")
        with self._lock:
            if list(self._talking.values()).count(shown) >= _PER_PEER:
                raise PromptError("busy", f"a peer may have {_PER_PEER} connections at a time")
            self._talking[secure] = shown

    @contextlib.contextmanager
    def _noted(self, secure: ssl.SSLSocket) -> Iterator[None]:
        """Lets a connection be cut off while the context lasts."""
        try:
            yield
        finally:
            with self._lock:
                self._talking.pop(secure, None)

    def _note(self, answered: "Future[None]") -> None:
        """Keeps what only a bug, or a failing shelf, can raise."""
        if (error := answered.exception()) is not None:
            self.refused.append(repr(error))

    def _converse(self, frames: stream.FrameSocket) -> None:
        asked = frames.receive(timeout_s=self._timeout_s)
        try:
            kind, body = stream.BLOB, _answer_to(asked, self._shelf())
        except WireError as error:
            kind, body = stream.FAILED, str(error).encode()[: stream.MAX_CONTROL_BYTES]
        frames.allow(max(len(body), _MAX_ASK_BYTES))
        frames.send(kind, 0, body, timeout_s=self._timeout_s)
        frames.receive(timeout_s=self._timeout_s)  # END: the answer has arrived whole


def _cut_off(secure: ssl.SSLSocket) -> None:
    with contextlib.suppress(OSError):  # gone by itself meanwhile
        # of the plain socket, whose other side may keep silent within the handshake
        socket.socket.shutdown(secure, socket.SHUT_RDWR)


def ask_adverts(neighbour: Neighbour, identity: Identity, *, timeout_s: float) -> list[Advert]:
    """Returns what a neighbour advertises, sorted by hash.

    Raises:
        WireError: ``unreachable``, ``wrong-certificate``, ``cut`` (it does not know us either),
            ``refused``, or something is damaged.
    """
    body = _ask(neighbour, identity, "", _MAX_ADVERTS_BYTES, timeout_s)
    payload = read_payload(body, max_bytes=_MAX_ADVERTS_BYTES)
    if payload.kind != _ADVERTS:
        raise PromptError("wrong-kind", f"got a {payload.kind!r}, expected {_ADVERTS!r}")
    return [read_advert(array.tobytes()) for array in payload.arrays.values()]


def fetch(neighbour: Neighbour, identity: Identity, advert: Advert, *, timeout_s: float) -> bytes:
    """Returns the blob of an advertised prompt, for ``transfer.receive`` to check.

    No byte beyond the advertised length is kept.

    Raises:
        WireError: as ``ask_adverts``, or ``damaged``: a longer blob was announced.
    """
    if advert.num_bytes > _MAX_BLOB_BYTES:
        raise PromptError("too-large", f"{advert.num_bytes} bytes, at most {_MAX_BLOB_BYTES}")
    return _ask(neighbour, identity, advert.blob_hash, advert.num_bytes, timeout_s)


def _ask(
    neighbour: Neighbour, identity: Identity, blob_hash: str, max_bytes: int, timeout_s: float
) -> bytes:
    until = time.monotonic() + timeout_s  # for all of it together

    def rest() -> float:
        return max(until - time.monotonic(), 1e-3)

    question = Payload(_ASK, 0, {"blob_hash": blob_hash}).to_blob()
    with stream.Channel(
        neighbour.host,
        neighbour.port,
        certificate=neighbour.certificate,
        max_bytes=max(max_bytes, len(question)),
        timeout_s=timeout_s,
        identity=(identity.certificate, identity.key),
    ) as channel:
        channel.send(stream.BLOB, 0, question, timeout_s=rest())
        channel.allow(max_bytes)
        answer = channel.receive(timeout_s=rest())
        channel.send(stream.END, 0, b"", timeout_s=rest())
    if answer.kind != stream.BLOB:
        raise PromptError("refused", answer.body.decode(errors="replace")[:200])
    return answer.body


def _answer_to(asked: stream.Frame, shelf: Shelf) -> bytes:
    payload = read_payload(asked.body, max_bytes=_MAX_ASK_BYTES)
    wanted = payload.scalars.get("blob_hash")
    if asked.kind != stream.BLOB or payload.kind != _ASK or type(wanted) is not str:
        raise PromptError("wrong-kind", f"got a {payload.kind!r}, expected an {_ASK!r}")
    if wanted == "":
        blobs = [shelf[name][0].to_blob() for name in sorted(shelf)]
        arrays = {f"{i:06d}": np.frombuffer(blob, np.uint8) for i, blob in enumerate(blobs)}
        return Payload(_ADVERTS, 0, {}, arrays).to_blob()
    if wanted not in shelf:
        raise PromptError("unknown-prompt", f"no prompt {wanted[:12]} here any more")
    return shelf[wanted][1]
