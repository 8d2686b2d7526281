"""Which of a device's answers counts: exactly one, to what it was asked, undamaged."""

from collections.abc import Sequence

from flwr.app import Message

from fl_app import wire
from fl_app.errors import RunError, WireError
from fl_app.updates import Update


def judge(
    messages: Sequence[Message], *, order: wire.Order, layout_hash: str, like: Update
) -> wire.Reply:
    """Returns a device's one valid answer.

    Args:
        messages: all that came back from it.
        order: what it was sent.
        layout_hash: of the server's adapter.
        like: the parameters that travel in this round; names, shapes and dtypes must agree.

    Raises:
        WireError: nothing counts; its reason is ``silent``, ``duplicate`` or one of
            ``wire.read_update``.
        RunError: a simulation worker died, which poisons every later round.
    """
    if not messages:
        raise WireError("silent", "no answer came back in time")
    if len(messages) > 1:
        raise WireError("duplicate", f"{len(messages)} answers came back to one message")
    try:
        return wire.read_update(messages[0], order=order, layout_hash=layout_hash, like=like)
    except WireError as error:
        if "ActorDiedError" in str(error):
            raise RunError(
                "a simulation worker process died (most often: out of memory); lower the number "
                "of parallel workers or choose a smaller model"
            ) from error
        raise
