"""Frames survive any splitting; only the known certificate is believed."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app import stream
from fl_app.certificate import make_certificate
from fl_app.errors import WireError
from fl_app.stream import BLOB, FAILED, MAX_CONTROL_BYTES, Channel, Frame, FrameReader, head

MAX = 50
_frames = st.lists(
    st.builds(
        Frame,
        st.sampled_from([stream.TOKEN, BLOB, FAILED, stream.END]),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=MAX),
    ),
    max_size=6,
)


def _bytes_of(frames: list[Frame]) -> bytes:
    return b"".join(head(f.kind, f.step, len(f.body)) + f.body for f in frames)


@given(_frames, st.lists(st.integers(0, 400), max_size=12))
@settings(max_examples=300, deadline=None)
def test_frames_survive_any_splitting(frames: list[Frame], cuts: list[int]) -> None:
    data, reader, read = _bytes_of(frames), FrameReader(MAX), list[Frame]()
    ends = [*sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in zip([0, *ends], ends, strict=False):
        read += reader.feed(data[start:end])
        # Nothing is held back: whatever is complete has been returned.
        complete = sum(len(_bytes_of(frames[: k + 1])) <= end for k in range(len(frames)))
        assert read == frames[:complete]
        assert reader.is_between_frames == (end == len(_bytes_of(frames[:complete])))
    assert read == frames


def test_the_header_is_thirteen_big_endian_bytes() -> None:
    assert head(BLOB, 258, 3) == b"\0\0\0\0\0\0\0\3" + b"\0\0\1\2" + b"\2"


@pytest.mark.parametrize(
    ("kind", "length", "is_allowed"),
    [
        (BLOB, MAX, True),
        (BLOB, MAX + 1, False),
        (BLOB, 2**64 - 1, False),
        (FAILED, MAX_CONTROL_BYTES, True),
        (FAILED, MAX_CONTROL_BYTES + 1, False),
        (0, 0, False),
        (5, 0, False),
    ],
)
def test_a_header_alone_decides(kind: int, length: int, is_allowed: bool) -> None:
    reader = FrameReader(MAX)
    if is_allowed:
        assert reader.feed(head(kind, 0, length)) == []
        return
    with pytest.raises(WireError) as caught:
        reader.feed(head(kind, 0, length))
    assert caught.value.reason == "damaged"


@contextmanager
def _one_answer(certificate: bytes, key: bytes, answer: bytes) -> Iterator[int]:
    """A server for one connection: sends ``answer`` and closes; yields its port."""
    context = stream.server_context(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            try:
                with context.wrap_socket(plain, server_side=True) as secure:
                    secure.sendall(answer)
            except OSError:  # the client refused the certificate
                plain.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def _channel(port: int, certificate: bytes) -> Channel:
    return Channel(
        "127.0.0.1", port, certificate=certificate.decode(), max_bytes=MAX, timeout_s=10.0
    )


def test_a_channel_reads_frames_until_the_connection_is_cut() -> None:
    certificate, key = make_certificate()
    frames = [Frame(BLOB, 0, b"abc"), Frame(BLOB, 1, b"")]
    data = _bytes_of(frames) + head(BLOB, 2, 9) + b"half"
    with _one_answer(certificate, key, data) as port, _channel(port, certificate) as channel:
        assert [channel.receive(timeout_s=10.0) for _ in frames] == frames
        with pytest.raises(WireError) as caught:
            channel.receive(timeout_s=10.0)
        assert caught.value.reason == "cut"


def test_another_certificate_of_the_same_name_is_refused() -> None:
    (one, key), (other, _) = make_certificate(), make_certificate()
    with _one_answer(one, key, b"") as port:
        with pytest.raises(WireError) as caught:
            _channel(port, other)
        assert caught.value.reason == "wrong-certificate"


def test_what_is_no_certificate_and_where_nobody_listens() -> None:
    certificate, _ = make_certificate()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    cases = [
        (certificate, "unreachable"),
        (b"no PEM", "damaged"),
        (ssl.DER_cert_to_PEM_cert(b"no DER").encode(), "damaged"),
    ]
    for pem, reason in cases:
        with pytest.raises(WireError) as caught:
            _channel(port, pem)
        assert caught.value.reason == reason


def test_a_silent_server_is_given_up_in_time() -> None:
    certificate, key = make_certificate()
    context = stream.server_context(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[ssl.SSLSocket] = []

        def serve() -> None:
            accepted.append(context.wrap_socket(listener.accept()[0], server_side=True))

        thread = threading.Thread(target=serve)
        thread.start()
        with _channel(listener.getsockname()[1], certificate) as channel:
            thread.join()
            with pytest.raises(WireError, match="timed out") as caught:
                channel.receive(timeout_s=0.05)
            assert caught.value.reason == "cut"
        accepted[0].close()
