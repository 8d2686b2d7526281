"""Flower's ClientApp: names the actions and hands each message to its handler.

Torch and friends are imported inside the actions: a real SuperNode starts a process per message,
and the hello must not pay for what it does not use.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.cache import cache_of
from fl_app import wire

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Says which partition this node is and which emulators it holds."""
    partition = int(str(context.node_config["partition-id"]))
    return wire.hello_reply(message, partition, cache_of(context).names(partition))


@app.train("emulator")
def train_on_emulator(message: Message, context: Context) -> Message:
    """Tunes the adapter on the emulator."""
    from clients.build import worker_of

    return worker_of(context).train(message)
