"""The in-process grid behaves like a wire: copies, replies by id, failures that stay on a node."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_app.local_grid import LocalGrid, ThreadedGrid

app = ClientApp()


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Counts, in the node's state, how often it was asked; then spoils what it was sent."""
    seen: ConfigRecord = context.state.config_records.get("seen") or ConfigRecord({"count": 0})
    count = int(str(seen["count"])) + 1
    context.state["seen"] = ConfigRecord({"count": count})
    text = message.content.config_records["in"]["text"]
    message.content.config_records["in"]["text"] = "spoilt"
    record = {
        "text": text,
        "count": count,
        "partition": int(str(context.node_config["partition-id"])),
        "key": str(context.run_config["key"]),
        "cache": str(context.node_config["cache-dir"]),
    }
    return Message(RecordDict({"out": ConfigRecord(record)}), reply_to=message)


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    raise RuntimeError("out of battery")


@pytest.fixture
def grid() -> Iterator[LocalGrid]:
    with LocalGrid(app, num_nodes=3, run_config={"key": "value"}) as grid:
        yield grid


def _message(node: int, text: str = "hello", action: str = "query.echo") -> Message:
    return Message(RecordDict({"in": ConfigRecord({"text": text})}), node, action)


def test_it_is_a_grid_with_node_ids_no_float_can_hold(grid: LocalGrid) -> None:
    assert isinstance(grid, Grid)
    nodes = list(grid.get_node_ids())
    assert len(set(nodes)) == 3
    assert all(2**63 < node < 2**64 and int(float(node)) != node for node in nodes)


def test_every_message_gets_its_own_reply_from_its_own_node(grid: LocalGrid) -> None:
    messages = [_message(node, f"to {node}") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages))
    by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
    assert len(by_message) == 3
    for place, message in enumerate(messages):
        reply = by_message[message.metadata.message_id]
        out = reply.content.config_records["out"]
        assert (out["text"], out["partition"]) == (f"to {message.metadata.dst_node_id}", place)
        assert reply.metadata.src_node_id == message.metadata.dst_node_id
        assert out["key"] == "value"


def test_what_a_device_does_to_a_message_stays_there(grid: LocalGrid) -> None:
    message = _message(next(iter(grid.get_node_ids())))
    list(grid.send_and_receive([message]))
    assert message.content.config_records["in"]["text"] == "hello"


def test_state_lives_on_the_node_between_messages(grid: LocalGrid) -> None:
    first, second, _ = grid.get_node_ids()
    counts = [
        next(iter(grid.send_and_receive([_message(node)]))).content.config_records["out"]["count"]
        for node in (first, first, second, first)
    ]
    assert counts == [1, 2, 1, 3]


def test_a_device_that_raises_answers_with_the_error(grid: LocalGrid) -> None:
    nodes = list(grid.get_node_ids())
    messages = [_message(nodes[0], action="query.fail"), _message(nodes[1])]
    failed, fine = grid.send_and_receive(messages)
    assert failed.has_error()
    assert "RuntimeError: out of battery" in str(failed.error.reason)
    assert not fine.has_error()


def test_an_unknown_action_is_an_error_reply(grid: LocalGrid) -> None:
    (reply,) = grid.send_and_receive([_message(next(iter(grid.get_node_ids())), action="query.no")])
    assert reply.has_error()


def test_replies_are_kept_until_they_are_pulled_and_then_forgotten(grid: LocalGrid) -> None:
    nodes = list(grid.get_node_ids())
    first, second = grid.push_messages([_message(nodes[0]), _message(nodes[1])])
    assert first != second
    assert list(grid.pull_messages(["nobody"])) == []
    (reply,) = grid.pull_messages([second])
    assert reply.metadata.reply_to_message_id == second
    assert len(list(grid.pull_messages([first, second]))) == 1
    assert list(grid.pull_messages([first, second])) == []


def test_the_nodes_share_a_cache_folder_that_goes_with_the_grid() -> None:
    with LocalGrid(app, num_nodes=2, run_config={"key": ""}) as grid:
        replies = grid.send_and_receive([_message(node) for node in grid.get_node_ids()])
        (folder,) = {str(r.content.config_records["out"]["cache"]) for r in replies}
        assert Path(folder).is_dir()
    assert not Path(folder).exists()


def test_flowers_own_entry_points_are_there(grid: LocalGrid) -> None:
    grid.set_run(Run.create_empty(7))
    assert grid.run.run_id == 7
    node = next(iter(grid.get_node_ids()))
    message = grid.create_message(RecordDict(), "query.echo", node, "group")
    assert message.metadata.dst_node_id == node


def test_threaded_nodes_work_side_by_side_and_answer_when_they_are_done() -> None:
    together = threading.Barrier(3, timeout=30.0)  # opens only if all three are at work at once
    meeting = ClientApp()

    @meeting.query("echo")
    def meet(message: Message, context: Context) -> Message:
        together.wait()
        return echo(message, context)

    threads = set(threading.enumerate())
    with ThreadedGrid(meeting, num_nodes=3, run_config={"key": "value"}) as grid:
        messages = [_message(node, f"to {node}") for node in grid.get_node_ids()]
        ids = list(grid.push_messages([*messages[:2]]))
        assert not list(grid.pull_messages(ids))
        ids += grid.push_messages(messages[2:])
        replies: list[Message] = []
        while len(replies) < 3:
            replies += grid.pull_messages(ids)
            time.sleep(0.01)
        texts = {r.metadata.reply_to_message_id: _text(r) for r in replies}
        sent = [m.content.config_records["in"]["text"] for m in messages]
        assert [texts[i] for i in ids] == sent
        assert not list(grid.pull_messages(ids))
    assert set(threading.enumerate()) <= threads


def test_threaded_nodes_are_waited_for_until_the_deadline() -> None:
    late = threading.Event()
    slow = ClientApp()

    @slow.query("echo")
    def wait(message: Message, context: Context) -> Message:
        if message.content.config_records["in"]["text"] == "late":
            late.wait(30.0)
        time.sleep(0.05)  # longer than handing the messages over takes
        return echo(message, context)

    with ThreadedGrid(slow, num_nodes=3, run_config={"key": "value"}) as grid:
        nodes = list(grid.get_node_ids())
        asked = [_message(node, "soon") for node in nodes]
        assert len(list(grid.send_and_receive(asked))) == 3
        asked = [_message(nodes[0], "late"), _message(nodes[1], "soon")]
        assert len(list(grid.send_and_receive(asked, timeout=1.0))) == 1
        late.set()


def _text(reply: Message) -> str:
    return str(reply.content.config_records["out"]["text"])
