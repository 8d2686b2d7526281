"""A node remembers each device's state within a round, and nothing else."""

import itertools
import pickle

import pytest
from flwr.app import Context, Message

from clients.steps import answer_step
from fl_app import step_wire
from fl_app.errors import WireError
from fl_app.step_wire import StepOrder
from tests.exchange_fixtures import counting, local, number, roster_of, toy_app


@pytest.fixture
def context() -> Context:
    with local(toy_app(), 1) as grid:  # also sets what Flower's messages need
        return next(iter(grid._contexts.values()))


def _message(round: int, step: int, device: int = 0, blob: bytes = b"") -> Message:
    order = StepOrder(round, device, step, blob or number(1))
    return step_wire.step_message(
        order, roster_of(9).node_of[device], action=step_wire.ACTION_STEP, ttl_s=60.0
    )


def _answer(context: Context, round: int, step: int, device: int = 0) -> bytes:
    message = _message(round, step, device)
    reply = answer_step(message, context, counting)
    return step_wire.read_answer(reply, step_wire.read_step(message))


def test_devices_of_one_node_do_not_share_memory(context: Context) -> None:
    for step, device in itertools.product(range(4), (0, 1, 5)):
        assert _answer(context, 1, step, device) == number(step + 1)


def test_memory_survives_another_process(context: Context) -> None:
    """A simulation pickles the context to whichever worker is next."""
    for step in range(3):
        context = pickle.loads(pickle.dumps(context))  # noqa: S301 -- our own bytes
        assert _answer(context, 1, step) == number(step + 1)


def test_a_new_round_starts_anew_and_frees_the_old_ones(context: Context) -> None:
    _answer(context, 1, 0, 0)
    _answer(context, 1, 0, 3)
    context.state["mine"] = context.state[next(iter(context.state))]
    assert _answer(context, 2, 0, 0) == number(1)
    assert sorted(context.state) == ["mine", "steps.2.0.place", "steps.2.0.state"]


@pytest.mark.parametrize(
    ("round", "step", "reason"),
    [
        (2, 0, "wrong-step"),  # the same message again
        (2, 2, "wrong-step"),  # one was lost
        (1, 0, "wrong-round"),  # it comes a round too late
    ],
)
def test_what_does_not_follow_is_refused_and_changes_nothing(
    context: Context, round: int, step: int, reason: str
) -> None:
    _answer(context, 2, 0)
    before = pickle.dumps(context.state)
    with pytest.raises(WireError) as caught:
        _answer(context, round, step)
    assert caught.value.reason == reason
    assert pickle.dumps(context.state) == before
    assert _answer(context, 2, 1) == number(2)


def test_a_node_that_lost_its_memory_says_so(context: Context) -> None:
    """Otherwise a restarted device would go on as if it were new, with a wrong result."""
    _answer(context, 1, 0)
    context.state.clear()
    with pytest.raises(WireError, match="at exchange 0 of round 1, asked was 1"):
        _answer(context, 1, 1)


def test_a_handler_that_raises_leaves_the_memory_as_it_was(context: Context) -> None:
    _answer(context, 1, 0)

    def fail(_state: bytes | None, _blob: bytes) -> tuple[bytes | None, bytes]:
        raise ArithmeticError

    before = pickle.dumps(context.state)
    with pytest.raises(ArithmeticError):
        answer_step(_message(1, 1), context, fail)
    assert pickle.dumps(context.state) == before


def test_a_damaged_blob_is_refused(context: Context) -> None:
    message = _message(1, 0, blob=b"12345678")
    message.content[step_wire.STEP_BLOB] = _message(1, 0).content[step_wire.STEP_BLOB]
    with pytest.raises(WireError) as caught:
        answer_step(message, context, counting)
    assert caught.value.reason == "damaged"
    assert not context.state


def test_no_state_is_kept_for_a_handler_without_one(context: Context) -> None:
    answer_step(_message(1, 0), context, lambda _state, blob: (None, blob))
    assert list(context.state) == ["steps.1.0.place"]
    assert step_wire.device_of(_message(1, 0, device=7)) == 7
