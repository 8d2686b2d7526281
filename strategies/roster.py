"""Who takes part: which node plays which device, by stable partition ids.

Flower's node ids are random 64-bit numbers, new in every run. Devices are therefore named by the
partition id their node reports, and everything that must repeat from run to run uses that.
"""

import logging
import time
from dataclasses import dataclass, field

from flwr.serverapp import Grid

from fl_app import hello_wire
from fl_app.errors import ConfigError, RunError, WireError
from fl_app.schema import EdgeFederation, FederationConfig, SimulationFederation

log = logging.getLogger("deft")

_POLL_S = 0.2
_SETTLE_S = 1.0
"""Simulated nodes join within moments of each other; a count that stands this long is final."""


@dataclass
class Roster:
    """The devices of a run.

    Attributes:
        node_of: device to the id of the node that plays it.
        holders: device to the hashes of emulators it is known to hold.
    """

    node_of: dict[int, int]
    holders: dict[int, set[str]] = field(default_factory=dict)

    @property
    def devices(self) -> list[int]:
        """All devices, ascending."""
        return sorted(self.node_of)

    def holds(self, device: int, name: str) -> bool:
        """Tells whether a device is known to hold an emulator."""
        return name in self.holders.get(device, set())


def call_roster(grid: Grid, federation: FederationConfig) -> Roster:
    """Waits for nodes, asks each for its partition, and deals devices to nodes.

    Raises:
        RunError: no node joined or answered in time, or two nodes claim one partition.
    """
    match federation:
        case SimulationFederation():
            nodes = _wait(grid, federation, enough=federation.num_devices, settle=True)
        case EdgeFederation():
            nodes = _wait(grid, federation, enough=federation.num_devices, settle=False)
        case _:
            raise ConfigError(f"federation of type {type(federation).__name__} is unknown")
    hellos = _ask(grid, nodes, federation)
    by_partition: dict[int, hello_wire.Hello] = {}
    for hello in hellos:
        known = by_partition.get(hello.partition)
        if known is not None and known.node != hello.node:
            raise RunError(
                f"two nodes say partition-id={hello.partition}; give every SuperNode its own "
                '(--node-config "partition-id=... num-partitions=...")'
            )
        by_partition[hello.partition] = hello
    ordered = [by_partition[p].node for p in sorted(by_partition)]
    if isinstance(federation, SimulationFederation):
        node_of = {d: ordered[d % len(ordered)] for d in range(federation.num_devices)}
    else:
        node_of = {p: hello.node for p, hello in sorted(by_partition.items())}
    holders = {h.partition: set(h.held) for h in hellos if node_of.get(h.partition) == h.node}
    return Roster(node_of=node_of, holders=holders)


def _wait(grid: Grid, federation: FederationConfig, *, enough: int, settle: bool) -> list[int]:
    """Waits for ``enough`` nodes, or (``settle``) until their number stands still."""
    deadline = time.monotonic() + federation.join_timeout_s
    count, since = 0, time.monotonic()
    while time.monotonic() < deadline:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= enough:
            return nodes
        if len(nodes) != count:
            count, since = len(nodes), time.monotonic()
        if settle and count and time.monotonic() - since >= _SETTLE_S:
            return nodes
        time.sleep(_POLL_S)
    if count:
        return sorted(grid.get_node_ids())
    raise RunError(
        f"no node joined within federation.join_timeout_s={federation.join_timeout_s}; start "
        "SuperNodes that point to this SuperLink"
    )


def _ask(grid: Grid, nodes: list[int], federation: FederationConfig) -> list[hello_wire.Hello]:
    messages = [hello_wire.hello_message(node) for node in nodes]
    hellos = []
    problems = []
    for reply in grid.send_and_receive(messages, timeout=federation.timeout_s):
        if reply.has_error():
            problems.append(str(reply.error.reason)[:300])
            continue
        try:
            hellos.append(hello_wire.read_hello(reply))
        except WireError as error:
            problems.append(str(error))
    for problem in problems:
        log.warning("a node is left out: it failed the hello with %s", problem)
    if not hellos:
        raise RunError(f"none of {len(nodes)} nodes answered the hello: {problems[:3]}")
    return hellos
