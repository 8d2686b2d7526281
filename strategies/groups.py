"""Groups of devices, each with an adapter and a server rule of its own.

An ordinary federation is one group. In a prompt ensemble members must stay different, so devices
are dealt into as many groups as there are members, and averages are taken inside a group alone. Or
all devices are one group, another one in every cycle of rounds; what cycles end with are members.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from typing_extensions import override

from fl_app import updates
from fl_app.seeding import generator
from fl_app.updates import Update
from strategies.rules import ServerRule


def deal(devices: Sequence[int], num_groups: int, seed: int) -> dict[int, int]:
    """Deals devices to groups at random, so that sizes differ by one at most.

    Args:
        devices: partition ids, ascending.
        num_groups: k >= 1; with more groups than devices the last ones stay empty.
        seed: the run's seed.

    Returns:
        Group of every device. Groups are numbered by their smallest device, so that with one device
        in each the order is that of the devices.
    """
    drawn = generator(seed, "groups").permutation(len(devices))
    dealt = {devices[i]: place % num_groups for place, i in enumerate(drawn)}
    order = list(dict.fromkeys(dealt[device] for device in devices))
    return {device: order.index(dealt[device]) for device in devices}


class Groups:
    """Who tunes which adapter.

    Args:
        of: group of every device.
        rules: one server rule per group, none shared: rules remember.
    """

    def __init__(self, of: dict[int, int], rules: Sequence[ServerRule]) -> None:
        self.of, self.rules = of, list(rules)
        self.moved: set[int] = set()
        """Groups whose adapter some round has moved; noted by the strategy."""

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.rules)

    @property
    def sizes(self) -> list[int]:
        """Number of devices in every group."""
        return [len(self.devices(group)) for group in range(len(self))]

    def devices(self, group: int) -> list[int]:
        """Returns the devices of a group, ascending."""
        return sorted(device for device, own in self.of.items() if own == group)

    def of_members(self, num_members: int) -> list[list[int]]:
        """Returns the devices of every member; one group tunes as many as there are."""
        if len(self) == 1:
            return [self.devices(0)] * num_members
        return [self.devices(group) for group in range(num_members)]

    def named(self, group: int, figures: Mapping[str, float]) -> dict[str, float]:
        """Returns a group's figures of a round, named by the group where there are several."""
        lead = f"group.{group}." if len(self) > 1 else ""
        return {lead + name: value for name, value in figures.items()}

    def split(self, joined: Update) -> list[Update]:
        """Returns each group's adapter."""
        return updates.split(joined, len(self))

    def open(self, server_round: int, adapters: Sequence[Update]) -> list[Update]:
        """Returns the adapters a round begins with."""
        return list(adapters)

    def rule_round(self, server_round: int) -> int:
        """Returns the number, from 1, that a rule is told: moments are corrected by it."""
        return server_round

    def announce(self, server_round: int, adapters: Sequence[Update]) -> float:
        """Tells every rule its adapter; returns their mu, see ``ServerRule.announce``."""
        pairs, number = zip(self.rules, adapters, strict=True), self.rule_round(server_round)
        return max(rule.announce(number, adapter) for rule, adapter in pairs)

    def rows(self, devices: Sequence[int], num_rows: int) -> dict[int, list[int]]:
        """Sorts received rows by group.

        Args:
            devices: whose updates arrived, in the order of the rows where there is one each.
            num_rows: rows received; a radio hands over one mean of one group.

        Returns:
            Group to the indices of its rows; groups nobody was heard of are left out.
        """
        if len(self) == 1:
            return {0: list(range(num_rows))}
        own = np.array([self.of[device] for device in devices])
        return {int(group): np.flatnonzero(own == group).tolist() for group in np.unique(own)}


class Cycles(Groups):
    """All devices are one group, another one in every cycle of rounds: *snapshots*.

    A cycle starts from what the one before it ended with (Huang et al. 2017, arXiv:1704.00109), and
    its rule starts afresh.

    Args:
        devices: all of them, ascending.
        rules: one server rule for each cycle.
        cycle_of: cycle of a round, from 0; never falls.
    """

    def __init__(
        self, devices: Sequence[int], rules: Sequence[ServerRule], cycle_of: Callable[[int], int]
    ) -> None:
        super().__init__(dict.fromkeys(devices, 0), rules)
        self._cycle_of = cycle_of

    @override
    def devices(self, group: int) -> list[int]:
        """Returns all devices."""
        return sorted(self.of)

    @override
    def open(self, server_round: int, adapters: Sequence[Update]) -> list[Update]:
        """Returns the adapters a round begins with: a new cycle's is the last one that moved."""
        now, opened = self._cycle_of(server_round), list(adapters)
        self.of = dict.fromkeys(self.of, now)
        if self.moved and now not in self.moved:
            opened[now] = adapters[max(self.moved)]
        return opened

    @override
    def rule_round(self, server_round: int) -> int:
        """Returns the round's number within its cycle: its rule has no memory of those before."""
        now = self._cycle_of(server_round)
        return sum(self._cycle_of(number) == now for number in range(1, server_round + 1))

    @override
    def rows(self, devices: Sequence[int], num_rows: int) -> dict[int, list[int]]:
        """Gives all rows to the cycle's group."""
        return {next(iter(self.of.values())): list(range(num_rows))}
