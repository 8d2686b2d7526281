"""Who plays which device: by partition ids, whatever the nodes are called and when they come."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest
from flwr.app import Error, Message

from fl_app.client_app import app
from fl_app.errors import ConfigError, RunError
from fl_app.local_grid import FIRST_NODE_ID
from fl_app.schema import EdgeFederation, FederationConfig, SimulationFederation
from strategies.roster import Roster, call_roster
from tests.fakes import FaultyGrid


class LateGrid(FaultyGrid):
    """Nodes join one after the other, and answer the hello as told.

    Args:
        partitions: partition id of each node.
        joined: number of nodes seen at each look; the last number stands.
        answers: by place of the node: how often it answers (1), or "raises".
        facts: further node facts for all nodes.
    """

    def __init__(
        self,
        partitions: list[int],
        *,
        joined: Iterable[int] = (),
        answers: Mapping[int, int | str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            app,
            num_nodes=len(partitions),
            run_config={"overrides": ""},
            node_config={i: {"partition-id": p, **(facts or {})} for i, p in enumerate(partitions)},
        )
        self._joined: Iterator[int] = iter(joined)
        self._count = len(partitions)
        self._answers = dict(answers or {})
        self.looks = 0

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        self._count = next(self._joined, self._count)
        return list(super().get_node_ids())[: self._count]

    def deliver(self, message: Message) -> list[Message]:
        how = self._answers.get(message.metadata.dst_node_id - FIRST_NODE_ID, 1)
        if how == "raises":
            return [Message(Error(2, "OSError: disk full"), reply_to=message)]
        return super().deliver(message) * int(how)


Late = Callable[..., LateGrid]


@pytest.fixture
def late() -> Iterator[Late]:
    """Makes grids and closes them."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(LateGrid(*args, **kwargs))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.roster._POLL_S", 0.005)
    monkeypatch.setattr("strategies.roster._SETTLE_S", 0.05)


def _simulation(num_devices: int) -> FederationConfig:
    return SimulationFederation(num_devices=num_devices, join_timeout_s=5)


def _edge(num_devices: int, join_timeout_s: float = 5) -> FederationConfig:
    return EdgeFederation(num_devices=num_devices, join_timeout_s=join_timeout_s)


def _nodes(*places: int) -> list[int]:
    return [FIRST_NODE_ID + place for place in places]


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5, 7])
def test_simulated_devices_are_dealt_to_nodes_by_partition(late: Late, num_nodes: int) -> None:
    """Node ids mean nothing: here they run against the partition ids."""
    partitions = list(reversed(range(num_nodes)))
    roster = call_roster(late(partitions), _simulation(5))
    assert roster.devices == [0, 1, 2, 3, 4]
    wanted = [FIRST_NODE_ID + partitions.index(d % num_nodes) for d in range(5)]
    assert [roster.node_of[device] for device in roster.devices] == wanted


def test_a_real_node_is_one_device_named_by_its_partition(late: Late) -> None:
    roster = call_roster(late([9, 4, 7]), _edge(3))
    assert roster.node_of == dict(zip([4, 7, 9], _nodes(1, 2, 0), strict=True))
    assert roster.devices == [4, 7, 9]


def test_a_real_federation_takes_in_whoever_has_come(late: Late) -> None:
    assert call_roster(late([0, 1, 2, 3]), _edge(3)).devices == [0, 1, 2, 3]


@pytest.mark.parametrize("federation", [_simulation(4), _edge(4)])
def test_it_waits_until_enough_nodes_are_there(late: Late, federation: FederationConfig) -> None:
    grid = late([0, 1, 2, 3], joined=[0, 0, 1, 3, 4])
    assert call_roster(grid, federation).devices == [0, 1, 2, 3]
    assert grid.looks == 5


def test_simulated_nodes_that_have_settled_are_enough(late: Late) -> None:
    """Flower may start fewer nodes than there are devices, and says nowhere how many."""
    grid = late([0, 1, 2], joined=[0, 1, 1, 3])
    started = time.monotonic()
    roster = call_roster(grid, _simulation(6))
    assert set(roster.node_of.values()) == set(_nodes(0, 1, 2))
    assert 0.05 <= time.monotonic() - started < 5


def test_real_nodes_are_waited_for_to_the_end_and_then_the_run_goes_on(late: Late) -> None:
    started = time.monotonic()
    roster = call_roster(late([0, 1]), _edge(3, join_timeout_s=0.3))
    assert roster.devices == [0, 1]
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("kind", [SimulationFederation, EdgeFederation])
def test_without_a_node_there_is_no_run(late: Late, kind: type[FederationConfig]) -> None:
    grid = late([0], joined=[0] * 1000)
    with pytest.raises(RunError, match=r"no node joined within federation\.join_timeout_s=0\.05"):
        call_roster(grid, kind(num_devices=1, join_timeout_s=0.05))


def test_two_nodes_with_one_partition_are_refused(late: Late) -> None:
    with pytest.raises(RunError, match="partition-id=3; give every SuperNode its own"):
        call_roster(late([3, 5, 3]), _edge(3))


def test_one_node_that_answers_twice_is_one_node(late: Late) -> None:
    roster = call_roster(late([0, 1], answers={1: 2}), _edge(2))
    assert roster.devices == [0, 1]


def test_a_node_that_fails_its_hello_is_left_out_and_logged(
    late: Late,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="deft"):
        roster = call_roster(late([0, 1, 2], answers={1: "raises"}), _edge(3))
    assert roster.devices == [0, 2]
    assert "OSError: disk full" in caplog.text


def test_a_silent_node_is_left_out(late: Late) -> None:
    assert call_roster(late([0, 1, 2], answers={1: 0}), _edge(3)).devices == [0, 2]


def test_a_node_without_a_partition_is_told_apart(late: Late) -> None:
    grid = late([0, 1])
    del grid.contexts[1].node_config["partition-id"]
    assert call_roster(grid, _edge(2)).devices == [0]


def test_no_answer_at_all_ends_the_run_with_the_reasons(late: Late) -> None:
    grid = late([0, 1], answers={0: "raises", 1: "raises"})
    with pytest.raises(RunError, match=r"none of 2 nodes answered the hello.*disk full"):
        call_roster(grid, _edge(2))


def test_an_unknown_kind_of_federation_is_refused(late: Late) -> None:
    with pytest.raises(ConfigError, match="FederationConfig"):
        call_roster(late([0]), FederationConfig(num_devices=1))


def test_a_roster_knows_who_holds_what() -> None:
    roster = Roster(node_of={0: 1, 1: 1}, holders={0: {"a"}})
    assert roster.holds(0, "a")
    assert not roster.holds(0, "b")
    assert not roster.holds(1, "a")
