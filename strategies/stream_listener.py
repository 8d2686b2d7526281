"""The server's socket for streams and the connections it accepts; nothing here ever waits."""

import selectors
import socket
import ssl
import time
from collections import deque
from contextlib import suppress

from fl_app import stream
from fl_app.certificate import make_certificate
from fl_app.errors import WireError
from fl_app.stream import Frame, FrameReader

_CHUNK = 2**16
_READS = 64
"""Reads of at most one TLS record (16 KiB) each before another connection has its turn."""


class StreamListener:
    """One listening TLS socket with a certificate of its own; used as a context manager.

    Args:
        host: address to bind to; ``0.0.0.0`` or ``::`` for all.
        port: port to bind to, 0 for any.
        advertised_host: the address devices are told; None for ``host``. Needed behind a wildcard
            address or address translation.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, *, advertised_host: str | None = None
    ) -> None:
        certificate, key = make_certificate()
        self.certificate = certificate.decode()
        self._context = stream.server_context(certificate, key)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=128)
        self._socket.setblocking(False)
        self.host = advertised_host or host
        self.port = int(self._socket.getsockname()[1])

    def fileno(self) -> int:
        """Returns the socket's descriptor, for selectors."""
        return self._socket.fileno()

    def accept(self, most: int) -> "list[Connection]":
        """Returns connections that wait to be accepted, at most ``most``."""
        accepted = []
        with suppress(BlockingIOError):
            for _ in range(most):
                plain, _ = self._socket.accept()
                try:
                    plain.setblocking(False)
                    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    secure = self._context.wrap_socket(
                        plain, server_side=True, do_handshake_on_connect=False
                    )
                except OSError:  # gone before it was welcome
                    plain.close()
                    continue
                accepted.append(Connection(secure))
        return accepted

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def __enter__(self) -> "StreamListener":
        """Returns itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Closes."""
        self.close()


class Connection:
    """One accepted connection; a stranger until its token is proved.

    Attributes:
        device: which device it is; None for a stranger.
        broken: why it can be used no more; None while it can.
        born: when it was accepted, monotonic clock.
    """

    def __init__(self, secure: ssl.SSLSocket) -> None:
        self._socket = secure
        self._reader = FrameReader(0)
        self._is_ready = self._wants_write = False
        self._out: deque[memoryview] = deque()
        self.device: int | None = None
        self.broken: WireError | None = None
        self.born = time.monotonic()

    def fileno(self) -> int:
        """Returns the socket's descriptor, for selectors."""
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """What to wait for."""
        is_writing = self._wants_write or (self._is_ready and bool(self._out))
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if is_writing else 0)

    @property
    def is_flushed(self) -> bool:
        """Tells whether all that was sent has left."""
        return not self._out

    def admit(self, device: int, max_bytes: int) -> None:
        """Notes which device this is, and lets it send blobs of ``max_bytes``."""
        self.device, self._reader.max_bytes = device, max_bytes

    def send(self, kind: int, step: int, body: bytes) -> None:
        """Queues a frame; ``advance`` sends it."""
        self._out += [memoryview(stream.head(kind, step, len(body))), memoryview(body)]

    def advance(self) -> list[Frame]:
        """Does what can be done without waiting and returns the frames that are complete.

        Never raises; look at ``broken`` after the frames were handled.
        """
        frames: list[Frame] = []
        self._wants_write = False
        try:
            if not self._is_ready:
                self._socket.do_handshake()
                self._is_ready = True
            self._flush()
            for _ in range(_READS):
                frames += self._reader.feed(self._receive())
        except ssl.SSLWantReadError:
            return frames
        except ssl.SSLWantWriteError:
            self._wants_write = True
        except OSError as error:
            self.broken = WireError("cut", f"the connection broke: {error}")
        except WireError as error:
            self.broken = error
        return frames

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()

    def _flush(self) -> None:
        try:
            while self._out:
                sent = self._socket.send(self._out[0][:_CHUNK]) if self._out[0] else 0
                self._out[0] = self._out[0][sent:]
                if not self._out[0]:
                    self._out.popleft()
        except ssl.SSLWantWriteError:
            self._wants_write = True  # reading goes on meanwhile: the other side may do the same

    def _receive(self) -> bytes:
        data = self._socket.recv(_CHUNK)
        if not data:
            where = "between" if self._reader.is_between_frames else "in the middle of"
            raise WireError("cut", f"the device closed its connection {where} frames")
        return data
