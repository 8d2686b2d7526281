"""What every device of a round is to do, decided before it starts: layouts, and shares of the band.

Without a schedule each device has its own layout, and the channel shares its band by itself. With
one (LoLa-DEFT, arXiv:2407.09873) each tunes one group of blocks, and the server assembles the whole
adapter. The head is tuned by all: it lies at the loss, so it costs next to nothing to compute.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_app.block_times import BlockTimes
from fl_app.errors import ConfigError
from fl_app.layout.prefix import Layout, cut
from fl_app.scheduling.joint import Cell, Schedule, jbba, matched_equal_share
from fl_app.scheduling.matching import random_assignment
from fl_app.scheduling.uplinks import Shannon, Uplinks
from fl_app.schema import EmulatorDownloadStrategy, StrategyConfig
from fl_app.seeding import generator
from fl_app.updates import Update, blob_bytes
from strategies.layouts import Layouts

Floats = NDArray[np.float64]

SHARE_BYTES = 4
"""What a device's share of the band is booked as, where a schedule tells it: a float32."""


@dataclass(frozen=True)
class Turn:
    """One device's part in one round.

    Attributes:
        device: partition id.
        blocks: tuned blocks by index in the full model, ascending.
        bandwidth_hz: its share of the band.
        compute_s: predicted seconds of its local steps.
        uplink_s: predicted seconds of its uplink, which follows.
    """

    device: int
    blocks: tuple[int, ...]
    bandwidth_hz: float
    compute_s: float
    uplink_s: float

    @property
    def finish_s(self) -> float:
        """Predicted seconds until the server has its update."""
        return self.compute_s + self.uplink_s


@dataclass(frozen=True)
class RoundPlan:
    """One round's plan.

    Attributes:
        layouts: of every device of the round.
        turns: who tunes what when, by device; empty without a schedule.
    """

    layouts: Mapping[int, Layout]
    turns: Sequence[Turn] = field(default=())

    @property
    def round_s(self) -> float:
        """Predicted seconds of the round; 0 without a schedule."""
        return max((turn.finish_s for turn in self.turns), default=0.0)

    def bandwidths_hz(self, devices: Sequence[int]) -> Floats | None:
        """Returns [num_devices] shares of the band; None where the channel shares it itself."""
        if not self.turns:
            return None
        own = {turn.device: turn.bandwidth_hz for turn in self.turns}
        return np.array([own[device] for device in devices])


class Scheduler(Protocol):
    """Plans rounds."""

    @property
    def is_shared(self) -> bool:
        """Whether every device holds in every round what the server holds."""
        ...

    def plan(self, server_round: int, devices: Sequence[int], tuned: Update) -> RoundPlan:
        """Returns a round's plan.

        Args:
            server_round: the round.
            devices: of the round, ascending.
            tuned: the server's parameters that travel in it.
        """
        ...


class Unscheduled:
    """Every device has its own layout.

    Args:
        layouts: which device tunes which units.
    """

    def __init__(self, layouts: Layouts) -> None:
        self._layouts = layouts

    @property
    def is_shared(self) -> bool:
        """See ``Scheduler``."""
        return self._layouts.is_shared

    def plan(self, server_round: int, devices: Sequence[int], tuned: Update) -> RoundPlan:
        """See ``Scheduler``."""
        return RoundPlan({device: self._layouts.at(server_round, device) for device in devices})


class Radiolinks(Protocol):
    """The channel of one round, for those who plan it."""

    def __call__(self, server_round: int, devices: Sequence[int]) -> tuple[Uplinks, float]:
        """Returns [num_devices] uplinks, and the whole band in Hz."""
        ...


class BlockScheduler:
    """Every device tunes one group of blocks, by exact assignment.

    Every group goes to as many devices as any other, or to one more: those nearest to the loss
    have it, which makes the shortest rounds where depth orders what groups take.

    Args:
        way: random, matching (equal shares of the band), equal_finish (the same matching, the band
            shared so that all finish together) or joint (matching and shares together).
        times: what computing takes.
        links: what the uplink carries.
        payload_bits: bits of an update that holds these parameters.
        seed: the run's seed.
    """

    is_shared = False

    def __init__(
        self,
        *,
        way: str,
        times: BlockTimes,
        links: Radiolinks,
        payload_bits: Callable[[Update], int],
        seed: int,
    ) -> None:
        self._way, self._times, self._links = way, times, links
        self._payload_bits, self._seed = payload_bits, seed

    def plan(self, server_round: int, devices: Sequence[int], tuned: Update) -> RoundPlan:
        """See ``Scheduler``.

        Raises:
            ScheduleError: fewer devices than groups, or a group that no device can hold.
        """
        groups = self._times.layouts
        bits = np.array([float(self._payload_bits(cut(tuned, one))) for one in groups])
        places = spread(len(groups), len(devices))
        links, bandwidth = self._links(server_round, devices)
        cell = Cell(self._times.compute_s(devices)[:, places], bits[places], links, bandwidth)
        made = self._made(cell, server_round)
        shares = made.split.bandwidths_hz
        rates = links.of(made.assignment).coded_bps(shares)
        turns = [
            Turn(
                device=devices[index],
                blocks=tuple(sorted(block for block, rank in groups[group].items() if rank)),
                bandwidth_hz=float(share),
                compute_s=float(cell.compute_s[index, place]),
                uplink_s=float(bits[group] / rate),
            )
            for place, (index, group, share, rate) in enumerate(
                zip(made.assignment.tolist(), places.tolist(), shares, rates, strict=True)
            )
        ]
        given = {devices[i]: groups[g] for i, g in zip(made.assignment, places, strict=True)}
        return RoundPlan(
            layouts={device: given[device] for device in devices},
            turns=sorted(turns, key=lambda turn: turn.device),
        )

    def _made(self, cell: Cell, server_round: int) -> Schedule:
        match self._way:
            case "random":
                rng = generator(self._seed, "schedule", server_round)
                return cell.share(random_assignment(cell.compute_s, rng), equal=True)
            case "matching":
                return cell.share(matched_equal_share(cell), equal=True)
            case "equal_finish":
                return cell.share(matched_equal_share(cell))
            case "joint":
                return jbba(cell)
            case _:
                raise ConfigError(f"strategy.schedule={self._way!r} is unknown")


def facts_of(
    strategy: StrategyConfig, turns: Mapping[int, Sequence[Turn]]
) -> dict[str, Any] | None:
    """Returns what ``result.json`` says of a schedule; None without one.

    Args:
        strategy: the run's.
        turns: of every round.
    """
    match strategy:
        case EmulatorDownloadStrategy(schedule=way) if way != "none":
            pass
        case _:
            return None
    rounds = [
        {
            "round": number,
            "seconds": RoundPlan({}, own).round_s,
            "turns": [{**vars(turn), "blocks": list(turn.blocks)} for turn in own],
        }
        for number, own in turns.items()
    ]
    return {"way": way, "rounds": rounds}


def spread(num_groups: int, num_devices: int) -> NDArray[np.int64]:
    """Returns [num_devices] the group of every place, ascending: all groups as often, or once more.

    Fewer devices than groups leave every group one place: ``Cell`` then says what is wrong.
    """
    counts = [max(1, (num_devices + num_groups - 1 - g) // num_groups) for g in range(num_groups)]
    return np.repeat(np.arange(num_groups), counts)


def blob_bits(tuned: Update) -> int:
    """Returns the bits of an update that holds these parameters, serialised for the wire."""
    return 8 * blob_bytes({name: array.shape for name, array in tuned.items()})


def class_links(times: BlockTimes) -> Radiolinks:
    """Returns the links of device classes; the whole band is what all have together."""

    def links(server_round: int, devices: Sequence[int]) -> tuple[Uplinks, float]:
        classes = [times.of(device) for device in devices]
        band = sum(one.bandwidth_hz for one in classes)
        return Shannon(np.array([one.snr_hz for one in classes])), band

    return links
