"""The first message of a run comes back as it was, and a strange one is refused."""

from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fl_app import hello_wire, wire
from fl_app.errors import WireError

NODE = 2**63 + 11


@pytest.mark.parametrize("held", [[], ["a" * 64], ["a" * 64, "b" * 64]])
def test_hello_tells_partition_and_held_emulators(held: list[str]) -> None:
    message = hello_wire.hello_reply(hello_wire.hello_message(NODE), 4, held)
    hello = hello_wire.read_hello(message)
    assert (hello.node, hello.partition, hello.held) == (
        message.metadata.src_node_id,
        4,
        frozenset(held),
    )
    assert message.content.config_records[wire.CONFIG].count_bytes() > 0  # "" and [] break it


@pytest.mark.parametrize("spoilt", [{}, {"partition": "4", "held": "-"}, {"partition": 4}])
def test_a_hello_without_its_fields_is_refused(spoilt: dict[str, Any]) -> None:
    content = RecordDict({wire.CONFIG: ConfigRecord(spoilt)})
    with pytest.raises(WireError) as error:
        hello_wire.read_hello(Message(content, reply_to=hello_wire.hello_message(NODE)))
    assert error.value.reason == "missing"
