"""What a device raises may quote its data; none of that reaches the server."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from fl_app.client_app import app
from fl_app.data.examples import Examples, encode_labels
from fl_app.errors import WireError
from fl_app.local_grid import FIRST_NODE_ID
from fl_app.step_wire import ACTION_STEP
from strategies.exchange import Exchange, Lost, MessageExchange
from strategies.stream_exchange import StreamExchange
from strategies.stream_listener import StreamListener
from tests.exchange_fixtures import local, roster_of, threaded, toy_app

PRIVATE = "hiv-positive"


def _names_a_label(_state: bytes | None, _blob: bytes) -> tuple[bytes | None, bytes]:
    """A device whose own file has a label the server does not know."""
    encode_labels(Examples({"text": ["x"], "label": [PRIVATE]}), "label", ("no", "yes"))
    raise AssertionError


def _refuses(_state: bytes | None, _blob: bytes) -> tuple[bytes | None, bytes]:
    raise WireError("wrong-shape", PRIVATE)


@contextmanager
def _messages(handle: object) -> Iterator[Exchange]:
    with (
        local(toy_app(handle), 1) as grid,  # type: ignore[arg-type]
        MessageExchange(grid, roster_of(1), ACTION_STEP, 1) as exchange,
    ):
        yield exchange


@contextmanager
def _streams(handle: object) -> Iterator[Exchange]:
    with ExitStack() as stack:
        listener = stack.enter_context(StreamListener())
        grid = stack.enter_context(threaded(toy_app(handle), 1))  # type: ignore[arg-type]
        yield stack.enter_context(StreamExchange(listener, grid, roster_of(1), 1))


@pytest.mark.parametrize("way", [_messages, _streams])
@pytest.mark.parametrize(
    ("handle", "kind"), [(_names_a_label, "DataError"), (_refuses, "WireError: wrong-shape")]
)
def test_the_server_hears_the_kind_and_the_device_logs_the_text(
    way: object, handle: object, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with way(handle) as exchange:  # type: ignore[operator]
        lost = exchange.exchange({0: b"x"}, 20.0)[0]
    match lost:
        case Lost(reason, detail):
            assert reason == "error"
            assert kind in detail
            assert PRIVATE not in detail
        case _:
            raise AssertionError
    assert PRIVATE in caplog.text


ACTIONS = ("train.emulator", "train.front", "train.step", "train.stream", "query.hello")


@pytest.mark.parametrize("action", ACTIONS)
def test_no_action_of_the_app_lets_a_text_through(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_given: object) -> None:
        raise OSError(PRIVATE)

    monkeypatch.setattr("clients.build._facts", fails)
    monkeypatch.setattr("fl_app.client_app.cache_of", fails)
    with local(app, 1) as grid:
        message = Message(RecordDict(), FIRST_NODE_ID, action)
        (reply,) = grid.send_and_receive([message])
    assert str(reply.error.reason) == "DeviceError: OSError"
