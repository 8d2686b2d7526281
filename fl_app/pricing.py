"""What a layout costs a device of this run: the resource model on what devices hold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fl_app.errors import ConfigError
from fl_app.fomo.emulator import Split
from fl_app.layout.budgets import PriceOf
from fl_app.layout.prefix import block_number, unit_axis
from fl_app.layout.rounding import Sizes
from fl_app.resources.architecture import Architecture, emulator
from fl_app.resources.devices import DeviceClass, device_class
from fl_app.resources.families import architecture_of
from fl_app.resources.links import Link
from fl_app.resources.price import Price, Pricer
from fl_app.resources.step import StepModel
from fl_app.resources.tuning import DEEP_PROMPT, Tuning, bottleneck, lora
from fl_app.schema import (
    BottleneckConfig,
    Config,
    DeepPromptConfig,
    DeviceConfig,
    DigitalChannel,
    IdealChannel,
    LoraConfig,
    SizedConfig,
)
from fl_app.settings import aggregation_of
from fl_app.updates import blob_bytes, travels
from fl_app.wireless.cell import path_loss_db
from fl_app.wireless.units import dbm_to_watt

SERVER_DBM = 43.0
"""Transmit power of the server, a macro base station's."""


Shapes = Mapping[str, Sequence[int]]
"""Parameter by canonical name to its shape."""


class LayoutPrices:
    """Prices layouts of the blocks outside the middle; a size is one block's rank, width or length.

    An encoder-decoder's two stacks are tuned alike and count as one.

    Args:
        config: the run's configuration.
        peft: what is tuned.
        model_config: the full model's ``transformers`` configuration.
        num_labels: classes of a classifier, 0 for a language model.
        split: which blocks devices hold, and which are tuned.
        shapes: of the tuned parameters by canonical name, at any rank above 0.
    """

    def __init__(
        self,
        config: Config,
        peft: SizedConfig,
        model_config: Any,
        *,
        num_labels: int,
        split: Split,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._config, self._blocks, self._shapes = config, split.outer, dict(shapes)
        self._aggregation = aggregation_of(peft)
        full = architecture_of(model_config, num_labels=num_labels)
        held = emulator(full, split.left, split.middle, split.right)
        kept, behind = len(split.blocks), split.left + split.middle
        self._places = [
            [place for place in range(index, held.num_blocks, kept)]
            for index in range(kept)
            if not split.left <= index < behind
        ]
        self._step = StepModel(
            held,
            _tuning_of(peft, held),
            batch=config.finetune.batch_size,
            sequence=config.model.max_length,
        )

    @property
    def num_blocks(self) -> int:
        """Blocks that a layout gives a size."""
        return len(self._blocks)

    def layout(self, sizes: Sizes) -> dict[int, int]:
        """Returns sizes by block of the full model."""
        return {block: int(size) for block, size in zip(self._blocks, sizes, strict=True)}

    def of(self, device: DeviceConfig) -> PriceOf:
        """Returns what prices layouts on a device; bytes are those of a serialised update.

        Seconds and joules are those of the bytes.
        Where LoRA's A and B travel in turn an update is the larger of the two; both are broadcast,
        and memory and seconds are those of tuning both.

        A limit on seconds of a round needs ``finetune.max_steps``; without it a round is priced
        with one step.
        """
        who = device_of(device)
        loss_db = float(path_loss_db(np.array([device.distance_m]))[0])
        up, down = (
            Link(bandwidth_hz=device.bandwidth_hz, tx_power_w=power, loss_db=loss_db)
            for power in (who.tx_power_w, dbm_to_watt(SERVER_DBM))
        )
        pricer = Pricer(
            self._step,
            who,
            uplink=up,
            downlink=down,
            num_steps=self._config.finetune.max_steps or 1,
            value_bytes=_value_bytes(self._config),
            down_value_bytes=4.0,  # a serialised adapter in float32, whatever the uplink's channel
        )

        def price_of(sizes: Sequence[int]) -> Price:
            whole = [0] * self._step.num_blocks
            for size, places in zip(sizes, self._places, strict=True):
                for place in places:
                    whole[place] = int(size)
            price, shapes = pricer(whole), self._shapes_at(sizes)
            return pricer.sending(
                price,
                uplink_bytes=price.uplink_bytes + self._uplink_more(price, shapes),
                downlink_bytes=price.downlink_bytes + _frame(shapes),
            )

        return price_of

    def _uplink_more(self, price: Price, shapes: Shapes) -> int:
        """Returns what an update's bytes are more than those of all tuned values."""
        if self._aggregation != "alternate":
            return _frame(shapes) if self._is_serialised else 0
        halves: list[Shapes] = [
            {name: shape for name, shape in shapes.items() if travels(name, "alternate", turn)}
            for turn in (1, 2)
        ]
        if self._is_serialised:
            return max(map(blob_bytes, halves)) - price.uplink_bytes
        value_bytes = _value_bytes(self._config)
        return round(value_bytes * max(map(_num_reals, halves))) - price.uplink_bytes

    @property
    def _is_serialised(self) -> bool:
        """Whether updates are serialised; a radio's have no frame."""
        match self._config.channel:
            case IdealChannel():
                return True
            case _:
                return False

    def _shapes_at(self, sizes: Sequence[int]) -> Shapes:
        """Returns the shapes of the tuned parameters by name; blocks of rank 0 have none."""
        ranks = dict(zip(self._blocks, sizes, strict=True))
        shapes: dict[str, Sequence[int]] = {}
        for name, shape in self._shapes.items():
            axis = unit_axis(name)
            if axis is None:
                shapes[name] = shape
            elif rank := ranks[block_number(name)]:
                shapes[name] = (rank, shape[1]) if axis == 0 else (shape[0], rank)
        return shapes


def device_of(device: DeviceConfig) -> DeviceClass:
    """Returns a row of the table of devices with the figures that the configuration replaces."""
    row = device_class(device.device)
    power = device.tx_power_dbm
    return replace(
        row,
        flops_per_s=device.flops_per_s or row.flops_per_s,
        tx_power_w=row.tx_power_w if power is None else dbm_to_watt(power),
    )


def _tuning_of(peft: SizedConfig, held: Architecture) -> Tuning:
    """Returns what a block's size means to the resource model."""
    match peft:
        case LoraConfig():
            targets = peft.targets or list(held.default_targets)
            names = held.map_names if targets == ["all-linear"] else targets
            return lora(*names, train_a=peft.aggregation != "freeze-a")
        case BottleneckConfig():
            return bottleneck(peft.activation)
        case DeepPromptConfig():
            return DEEP_PROMPT
        case _:
            raise ConfigError(f"peft of type {type(peft).__name__} has no price")


def require_steps(config: Config, round_s: float | None) -> None:
    """Checks that a limit on the seconds of a round knows the round's steps.

    Raises:
        ConfigError: finetune.max_steps=null.
    """
    if round_s is not None and config.finetune.max_steps is None:
        raise ConfigError(
            f"a layout's round_s={round_s} needs to know the local steps of a round; set "
            "finetune.max_steps"
        )


def _value_bytes(config: Config) -> float:
    match config.channel:
        case DigitalChannel(bits=int() as bits):
            return bits / 8
        case _:
            return 4.0


def _num_reals(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _frame(shapes: Shapes) -> int:
    """Returns the bytes around the values of serialised parameters."""
    return blob_bytes(shapes) - 4 * _num_reals(shapes)
