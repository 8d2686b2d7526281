"""A ClientApp that is nothing but the device side of both transports, for any handler."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.discreet import discreet
from clients.steps import Handle, answer_step
from clients.stream import serve_stream


def exchange_app(handle: Handle) -> ClientApp:
    """Returns an app with the actions ``train.step`` and ``train.stream``.

    Args:
        handle: what every device does in an exchange.
    """
    app = ClientApp()

    @app.train("step")
    @discreet
    def step(message: Message, context: Context) -> Message:
        return answer_step(message, context, handle)

    @app.train("stream")
    @discreet
    def stream(message: Message, context: Context) -> Message:
        return serve_stream(message, handle)

    return app
