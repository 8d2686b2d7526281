"""A federation inside one process: Flower's ``Grid`` around the same ClientApp, without Ray.

Messages are copied as a wire would copy them, node ids are 64-bit like Flower's, and a device that
raises becomes an error reply. There is nothing to start, so a round costs milliseconds.
"""

import copy
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from typing_extensions import override

FIRST_NODE_ID = 2**63 + 11
"""Node ids start above 2^63, where a careless float or signed conversion would corrupt them."""
_CLIENT_ERROR = 2


class LocalGrid(Grid):
    """Runs every device in this process, one after the other.

    Use as a context manager: the devices' caches live in a temporary folder.

    Args:
        app: the ClientApp that Flower would run on the devices.
        num_nodes: number of nodes, each with its own partition id.
        run_config: what Flower calls the run config; reaches the devices unchanged.
    """

    def __init__(self, app: ClientApp, *, num_nodes: int, run_config: Mapping[str, Any]) -> None:
        if vars(TaskIdentity)["_run_id"] is None:  # Flower sets it in its own processes
            TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self._app = app
        self._run = Run.create_empty(TaskIdentity.run_id)
        self._replies: dict[str, Message] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="deft-local-")
        self._contexts = {
            FIRST_NODE_ID + i: Context(
                run_id=TaskIdentity.run_id,
                node_id=FIRST_NODE_ID + i,
                node_config={
                    "partition-id": i,
                    "num-partitions": num_nodes,
                    "cache-dir": str(Path(self._folder.name)),
                },
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i in range(num_nodes)
        }

    def __enter__(self) -> "LocalGrid":
        """Returns the grid."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Deletes the devices' caches."""
        self._folder.cleanup()

    @property
    @override
    def run(self) -> Run:
        """The run."""
        return self._run

    @override
    def set_run(self, run: Run) -> None:
        """Sets the run."""
        self._run = run

    @override
    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Builds a message (deprecated in Flower, part of its interface)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    @override
    def get_node_ids(self) -> Iterable[int]:
        """Returns the node ids."""
        return list(self._contexts)

    @override
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Delivers messages at once and keeps the replies until they are pulled."""
        ids = []
        for message in messages:
            message_id = str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            for reply in self.deliver(copy.deepcopy(message)):
                self._replies[str(uuid.uuid4())] = reply
            ids.append(message_id)
        return ids

    def deliver(self, message: Message) -> list[Message]:
        """Lets one node handle one message; tests override this to lose or spoil replies."""
        try:
            reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            # Whatever a device raises is its own failure, as on a real node, not the server's.
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(_CLIENT_ERROR, reason), reply_to=message)
        return [reply]

    @override
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns and forgets the replies to these messages."""
        wanted = set(message_ids)
        found = [k for k, r in self._replies.items() if r.metadata.reply_to_message_id in wanted]
        return [self._replies.pop(key) for key in found]

    @override
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Delivers and collects; nothing is ever late, so ``timeout`` has no effect."""
        return self.pull_messages(self.push_messages(messages))


class ThreadedGrid(LocalGrid):
    """An in-process federation whose nodes work side by side, each message in a thread of its own.

    For what ``LocalGrid`` cannot do because it delivers while messages are pushed: long messages
    that talk to the server meanwhile, and answers that come late. Leaving the context waits for all
    threads. A node must not be sent a second message before it answered the first.
    """

    def __init__(self, app: ClientApp, *, num_nodes: int, run_config: Mapping[str, Any]) -> None:
        super().__init__(app, num_nodes=num_nodes, run_config=run_config)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    @override
    def __exit__(self, *exc: object) -> None:
        """Waits for every thread, then deletes the devices' caches."""
        for thread in self._threads:
            thread.join()
        super().__exit__(*exc)

    @override
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Starts a thread for each message."""
        ids = []
        for message in messages:
            message_id = str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            work = threading.Thread(target=self._work, args=(copy.deepcopy(message),))
            self._threads = [thread for thread in self._threads if thread.is_alive()] + [work]
            work.start()
            ids.append(message_id)
        return ids

    @override
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns and forgets the replies that are there."""
        with self._lock:
            return super().pull_messages(message_ids)

    @override
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends, and waits for the nodes to end, at most ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        before = set(self._threads)
        ids = self.push_messages(messages)
        for thread in set(self._threads) - before:
            thread.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        return self.pull_messages(ids)

    def _work(self, message: Message) -> None:
        replies = self.deliver(message)
        with self._lock:
            self._replies.update({str(uuid.uuid4()): reply for reply in replies})
