"""Which of a device's answers counts: exactly one, to what it was asked, undamaged."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import Message

from fl_app import wire
from fl_app.errors import RunError, WireError
from fl_app.updates import Update
from strategies.lora_space import largest_norm

log = logging.getLogger("deft")

Require = Callable[[Update], None]
"""Checks what a device tuned in one way more; raises ``WireError``."""

MAX_NORM = 1e15
"""The largest norm of what a device tuned: float32 holds its square, as attention takes it, and
what rounds, the scale alpha / rank and the width of a model make of it."""


def by_device(replies: Iterable[Message], asked: Mapping[str, int]) -> dict[int, list[Message]]:
    """Sorts replies by the device that was asked, whatever they claim to be.

    Args:
        replies: what came back.
        asked: id of every message of this round to the device it was sent to.
    """
    found: dict[int, list[Message]] = {}
    for reply in replies:
        device = asked.get(reply.metadata.reply_to_message_id)
        if device is None:
            log.warning("ignored a reply to a message that was not sent in this round")
            continue
        found.setdefault(device, []).append(reply)
    return found


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


def require_bounded(tuned: Update) -> None:
    """Refuses what a device tuned where sums, products or the model itself might overflow.

    Raises:
        WireError: an array or a product B A has a norm above ``MAX_NORM``, or is not finite.
    """
    norm = largest_norm(tuned)
    if not norm <= MAX_NORM:
        raise WireError("not-finite", f"the tuned adapter has norm {norm:g}, above {MAX_NORM:g}")


def require_nothing(_tuned: Update) -> None:
    """Takes whatever is finite and bounded."""
