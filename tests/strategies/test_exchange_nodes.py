"""Nodes that play several devices, as Flower's simulation runs them.

Its workers take a copy of a node's state, run one message, and store what came of it; of two
messages to one node at once, one leaves no trace.
"""

import copy
import time

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.steps import answer_step
from fl_app import step_wire
from fl_app.local_grid import FIRST_NODE_ID, ThreadedGrid
from strategies.exchange import Lost, MessageExchange
from strategies.roster import Roster
from tests.exchange_fixtures import counting, number

NUM_DEVICES = 5


class CopyingGrid(ThreadedGrid):
    """Workers side by side that copy a node's state and write it back."""

    def deliver(self, message: Message) -> list[Message]:
        """Runs one message on a copy of its node's context."""
        node = message.metadata.dst_node_id
        lent = copy.copy(self._contexts[node])
        lent.state = copy.deepcopy(lent.state)
        reply = self._app(message, lent)
        self._contexts[node] = lent
        return [reply]


def _app(silent: int | None) -> ClientApp:
    app = ClientApp()

    @app.train("step")
    def step(message: Message, context: Context) -> Message:
        time.sleep(0.05)  # long enough for two messages at once to overlap
        reply = answer_step(message, context, counting)
        if step_wire.device_of(message) == silent:
            time.sleep(1.5)
        return reply

    return app


@pytest.mark.parametrize("num_nodes", [1, 2, 5])
def test_a_node_remembers_each_of_its_devices(num_nodes: int) -> None:
    roster = Roster({d: FIRST_NODE_ID + d % num_nodes for d in range(NUM_DEVICES)})
    with CopyingGrid(_app(None), num_nodes=num_nodes, run_config={}) as grid:
        with MessageExchange(grid, roster, step_wire.ACTION_STEP, 1, poll_s=0.01) as exchange:
            for step in range(3):
                answers = exchange.exchange({d: number(d) for d in range(NUM_DEVICES)}, 30.0)
                assert answers == {d: number(d * (step + 1)) for d in range(NUM_DEVICES)}


def test_a_silent_device_costs_the_others_of_its_node_a_wait() -> None:
    """Each has its share of the time, so those behind a silent one are asked all the same."""
    roster = Roster({d: FIRST_NODE_ID + d % 2 for d in range(4)})
    with CopyingGrid(_app(0), num_nodes=2, run_config={}) as grid:
        with MessageExchange(grid, roster, step_wire.ACTION_STEP, 1, poll_s=0.01) as exchange:
            answers = exchange.exchange({d: number(d) for d in range(4)}, 2.0)
    assert {d: answers[d] for d in (1, 2, 3)} == {d: number(d) for d in (1, 2, 3)}
    match answers[0]:
        case Lost(reason, _):
            assert reason == "silent"
        case _:
            pytest.fail("device 0 answered too late")
