"""How long every device takes to tune one group of blocks alone: what a schedule assigns by.

Groups are of ``strategy.blocks_per_device`` neighbouring blocks, counted from the loss. A device
tunes its group at the server's ranks and nothing else but the head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.device_classes import classes_of
from fl_app.errors import ConfigError
from fl_app.fomo.emulator import Split
from fl_app.layout.budgets import Budgets
from fl_app.layout.prefix import Layout
from fl_app.pricing import LayoutPrices, device_of
from fl_app.resources.links import snr_hz
from fl_app.schema import (
    Config,
    DeviceClassConfig,
    DeviceConfig,
    EmulatorDownloadStrategy,
    LayoutConfig,
    SizedConfig,
    StrategyConfig,
)
from fl_app.wireless.cell import path_loss_db
from fl_app.wireless.units import db_to_linear

Floats = NDArray[np.float64]

_EVERYBODY = ""
"""The class of all devices where federation.classes is empty."""
_LIMITS = ("params", "uplink_bytes", "memory_bytes", "step_s")


@dataclass(frozen=True)
class ClassTimes:
    """What one class of devices takes.

    Attributes:
        compute_s: [num_groups] seconds of a round's local steps; ``inf`` where a limit forbids it.
        bandwidth_hz: band of every device, where the channel has no band of its own.
        snr_hz: p g / N0 of its uplink in Hz, likewise.
    """

    compute_s: Floats
    bandwidth_hz: float
    snr_hz: float


@dataclass(frozen=True)
class BlockTimes:
    """Groups of blocks, and what they take every device.

    Attributes:
        layouts: of every group: the server's rank in its blocks, 0 in all others; the group nearest
            to the loss first.
        classes: by name.
        class_of: device to the name of its class; empty where all devices are alike.
    """

    layouts: Sequence[Layout]
    classes: Mapping[str, ClassTimes]
    class_of: Mapping[int, str]

    def of(self, device: int) -> ClassTimes:
        """Returns what a device takes.

        Raises:
            ConfigError: the device is in no class.
        """
        name = self.class_of.get(device) if self.class_of else _EVERYBODY
        if name is None:
            raise ConfigError(
                f"device {device} is in none of federation.classes; give SuperNodes partition ids "
                f"0 to {len(self.class_of) - 1}, or raise federation.num_devices"
            )
        return self.classes[name]

    def compute_s(self, devices: Sequence[int]) -> Floats:
        """Returns [num_devices, num_groups] seconds of computing."""
        return np.stack([self.of(device).compute_s for device in devices])


def is_scheduled(strategy: StrategyConfig) -> bool:
    """Tells whether devices tune different blocks, by schedule."""
    match strategy:
        case EmulatorDownloadStrategy(schedule=way):
            return way != "none"
        case _:
            return False


def groups_of(blocks: Sequence[int], blocks_per_device: int) -> list[tuple[int, ...]]:
    """Returns blocks in groups of neighbours, the nearest to the loss first; the last may be small.

    Args:
        blocks: tuned blocks by index in the full model.
        blocks_per_device: n >= 1.
    """
    from_loss = sorted(blocks, reverse=True)
    starts = range(0, len(from_loss), blocks_per_device)
    return [tuple(from_loss[start : start + blocks_per_device]) for start in starts]


def block_times(
    config: Config,
    model_config: Any,
    *,
    num_labels: int,
    split: Split,
    shapes: Mapping[str, tuple[int, ...]],
    server: Layout,
) -> BlockTimes | None:
    """Prices every group on every class of devices; None without a schedule.

    Args:
        config: the run's configuration.
        model_config: the full model's ``transformers`` configuration.
        num_labels: classes of a classifier, 0 for a language model.
        split: what devices hold.
        shapes: of the tuned parameters by canonical name.
        server: the server's layout.

    Raises:
        ConfigError: a round has fewer devices than groups.
    """
    match config.strategy, config.peft:
        case EmulatorDownloadStrategy() as strategy, SizedConfig() as peft:
            if not is_scheduled(strategy):
                return None
        case _:
            return None
    prices = LayoutPrices(
        config, peft, model_config, num_labels=num_labels, split=split, shapes=shapes
    )
    tuned = [block for block, rank in server.items() if rank]
    layouts = [
        {block: rank if block in group else 0 for block, rank in server.items()}
        for group in groups_of(tuned, strategy.blocks_per_device)
    ]
    asked = config.federation.devices_per_round or config.federation.num_devices
    if asked < len(layouts):
        raise ConfigError(
            f"strategy.schedule={strategy.schedule}: {len(layouts)} groups of blocks for {asked} "
            "devices a round; raise strategy.blocks_per_device or federation.devices_per_round, or "
            "tune fewer blocks"
        )
    common = peft.layout

    def times(device: DeviceConfig, limits: Mapping[str, Any]) -> ClassTimes:
        price_of, budgets = prices.of(device), Budgets(**limits)
        priced = [price_of(list(layout.values())) for layout in layouts]
        compute_s = [inf if budgets.exceeded(price) else price.compute_s for price in priced]
        gain = db_to_linear(-float(path_loss_db(np.array([device.distance_m]))[0]))
        snr = float(snr_hz(device_of(device).tx_power_w, gain))
        return ClassTimes(np.array(compute_s), device.bandwidth_hz, snr)

    classes = {one.name: times(one, _limits(common, one)) for one in config.federation.classes}
    return BlockTimes(
        layouts=layouts,
        classes=classes or {_EVERYBODY: times(common.device, _limits(common, None))},
        class_of=classes_of(config.federation, config.seed),
    )


def _limits(common: LayoutConfig, one: DeviceClassConfig | None) -> dict[str, Any]:
    """Returns the limits that a device's share of the work keeps."""
    limits = {name: getattr(common, name) for name in _LIMITS}
    if one is not None:
        limits["params"] = None
        own = {name: getattr(one, name) for name in _LIMITS}
        limits |= {name: limit for name, limit in own.items() if limit is not None}
    device: DeviceConfig = common.device if one is None else one
    if limits["memory_bytes"] is None:
        limits["memory_bytes"] = device_of(device).memory_bytes
    return limits
