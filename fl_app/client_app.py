"""Flower's ClientApp: names the actions and hands each message to its handler.

Torch and friends are imported inside the actions: a real SuperNode starts a process per message,
and the hello must not pay for what it does not use.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.cache import cache_of
from clients.discreet import discreet
from fl_app import hello_wire

app = ClientApp()


@app.query("hello")
@discreet
def hello(message: Message, context: Context) -> Message:
    """Says which partition this node is and which emulators it holds."""
    partition = int(str(context.node_config["partition-id"]))
    return hello_wire.hello_reply(message, partition, cache_of(context).names(partition))


@app.query("gains")
def look_at_gradient(message: Message, context: Context) -> Message:
    """Says what LoRA units could gain, before layouts are made."""
    from clients.build import worker_of

    return worker_of(context).gains(message)


@app.train("emulator")
@discreet
def train_on_emulator(message: Message, context: Context) -> Message:
    """Tunes the adapter on the emulator."""
    from clients.build import worker_of

    return worker_of(context).train(message)


@app.train("front")
@discreet
def store_front(message: Message, context: Context) -> Message:
    """Keeps this device's part of the model."""
    from clients.build import gradient_worker_of

    return gradient_worker_of(context).store(message)


@app.train("step")
@discreet
def train_step(message: Message, context: Context) -> Message:
    """Makes one exchange of a local step."""
    from clients.build import gradient_worker_of
    from clients.steps import answer_step

    return answer_step(message, context, gradient_worker_of(context).handle)


@app.train("stream")
@discreet
def train_stream(message: Message, context: Context) -> Message:
    """Makes all exchanges of a round over one stream."""
    from clients.build import gradient_worker_of
    from clients.stream import serve_stream

    return serve_stream(message, gradient_worker_of(context).handle)
