"""What a device says of its failures: their kind. Their text may quote its data, and stays here."""

import logging
from collections.abc import Callable
from functools import wraps

from flwr.app import Context, Message

from fl_app.errors import DeviceError, WireError

log = logging.getLogger("deft")

Action = Callable[[Message, Context], Message]


def discreet(action: Action) -> Action:
    """Wraps what a device does, for Flower sends the text of whatever it raises to the server.

    Args:
        action: of a ClientApp; where it raises, the full text goes to the device's own log.

    Returns:
        An action that raises nothing but ``DeviceError``.
    """

    @wraps(action)
    def act(message: Message, context: Context) -> Message:
        try:
            return action(message, context)
        except Exception as error:
            log.exception("%s failed", message.metadata.message_type)
            raise DeviceError(kind_of(error)) from None

    return act


def kind_of(error: Exception) -> str:
    """Returns the class of an error, and of a ``WireError`` its reason, which is one of ours."""
    match error:
        case WireError(reason=reason):
            return f"WireError: {reason}"
        case _:
            return type(error).__name__
