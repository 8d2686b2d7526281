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
_PARALLEL = 4
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
        timeout_s: seconds for a whole connection, so that nobody can hold a thread for long.

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
        self._workers = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="prompts")
        self._answering: list[Future[None]] = []
        self._talking: set[ssl.SSLSocket] = set()
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
                with contextlib.suppress(OSError):  # gone by itself meanwhile
                    # of the plain socket, whose other side may keep silent within the handshake
                    socket.socket.shutdown(secure, socket.SHUT_RDWR)
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
            answering = self._workers.submit(self._answer, plain)
            self._answering.append(answering)
            answering.add_done_callback(self._note)

    def _answer(self, plain: socket.socket) -> None:
        try:
            plain.settimeout(self._timeout_s)
            with (
                self._context.wrap_socket(
                    plain, server_side=True, do_handshake_on_connect=False
                ) as secure,
                self._noted(secure),
            ):
                secure.do_handshake()
                # a known peer could have signed a certificate for somebody else
                if secure.getpeercert(binary_form=True) not in self._known:
                    self.refused.append("wrong-certificate: not one of the known peers")
                    return
                with stream.FrameSocket(secure, _MAX_ASK_BYTES) as frames:
                    self._converse(frames)
        except (OSError, WireError) as error:
            plain.close()
            self.refused.append(str(error))

    @contextlib.contextmanager
    def _noted(self, secure: ssl.SSLSocket) -> Iterator[None]:
        """Lets the server's end cut a connection off, while the context lasts."""
        with self._lock:
            self._talking.add(secure)
        try:
            yield
        finally:
            with self._lock:
                self._talking.discard(secure)

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
