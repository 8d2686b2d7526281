"""Configuration to layouts: the server's, and that of every device class.

All are made by one rule and priced on the model that devices hold. A class's layout keeps the
class's limits and is cut to the server's: what a device tunes is a prefix of what the server has.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.device_classes import classes_of
from fl_app.errors import ConfigError
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.emulator import Split
from fl_app.gains import Gains
from fl_app.layout.budgets import Budgets, PriceOf, fit
from fl_app.layout.choose import choose
from fl_app.layout.errors import LayoutError
from fl_app.layout.prefix import Layout
from fl_app.layout.rounding import Sizes, apportion
from fl_app.layout.rules import profile
from fl_app.layout.sensitivity import BudgetSchedule
from fl_app.pricing import LayoutPrices, device_of, require_steps
from fl_app.profiling import most_units
from fl_app.schema import (
    BudgetConfig,
    Config,
    DeviceClassConfig,
    LayoutConfig,
    SizedConfig,
)

Scores = list[NDArray[np.float64]] | None
"""Of every block the gains of its units; None for rules that need none."""

_LIMITS = [each.name for each in dataclasses.fields(BudgetConfig)]


@dataclass(frozen=True)
class Allocation:
    """Who tunes what: at the start, and throughout where there is no schedule.

    Attributes:
        server: size of every tuned block; empty for a head or a soft prompt.
        classes: name of a device class to its layout, each within the server's.
        class_of: device to the name of its class; empty where all devices are alike.
        schedule: units after every round, for rule sensitivity; None for layouts that stay.
        price_of: what a layout costs a device, for rule channel_aware; None for others.
        deadline_s: the deadline of a round, likewise; else ``inf``.
        is_waiting: whether devices must look at the gradient first, see ``allocate``.
    """

    server: Layout
    classes: Mapping[str, Layout] = field(default_factory=dict)
    class_of: Mapping[int, str] = field(default_factory=dict)
    schedule: BudgetSchedule | None = None
    price_of: PriceOf | None = None
    deadline_s: float = math.inf
    is_waiting: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether every device holds in every round what the server holds."""
        return not self.classes

    def at(self, server_round: int, device: int) -> Layout:
        """Returns a device's layout in a round.

        Raises:
            ConfigError: the device is in no class.
        """
        if self.is_shared:
            return self.server
        if device not in self.class_of:
            raise ConfigError(
                f"device {device} is in none of federation.classes; give SuperNodes partition ids "
                f"0 to {len(self.class_of) - 1}, or raise federation.num_devices"
            )
        return self.classes[self.class_of[device]]


def allocate(
    config: Config,
    model_config: Any,
    *,
    num_labels: int,
    split: Split,
    adapter: Adapter,
    gains: Gains | None = None,
) -> Allocation:
    """Makes the layouts of a run.

    Args:
        config: the run's configuration.
        model_config: the full model's ``transformers`` configuration.
        num_labels: classes of a classifier, 0 for a language model.
        split: what devices hold.
        adapter: of the full model, uniform as built; not changed.
        gains: of the units of all tuned blocks, for rule cost_aware; None while nobody has looked:
            ranks are uniform then, and the allocation waits for gains.

    Raises:
        LayoutError: a limit that not even the smallest layout keeps.
        ConfigError: ranks for another number of blocks, or a class but no sizes.
    """
    match config.peft:
        case SizedConfig() as peft:
            pass
        case _:
            return Allocation(server={})
    if peft.layout.is_plain and not config.federation.classes:
        return Allocation(server=adapter.layout)
    for limits in (peft.layout, *config.federation.classes):
        require_steps(config, limits.round_s)
    prices = LayoutPrices(
        config, peft, model_config, num_labels=num_labels, split=split, shapes=_shapes(adapter)
    )
    if peft.layout.rule == "sensitivity":
        return _falling(config, peft, prices)
    if peft.layout.rule == "channel_aware":
        deadline_s = peft.layout.round_s or math.inf
        price_of = prices.of(peft.layout.device)
        return Allocation(_uniform(peft, prices), price_of=price_of, deadline_s=deadline_s)
    if peft.layout.rule == "cost_aware" and gains is None:
        return Allocation(_uniform(peft, prices), is_waiting=True)
    scores = None if gains is None else list(gains.values())
    server = _server(peft, prices, scores, has_classes=bool(config.federation.classes))
    return Allocation(
        server=prices.layout(server),
        classes={
            one.name: prices.layout(_of_class(peft, prices, one, server, scores))
            for one in config.federation.classes
        },
        class_of=classes_of(config.federation, config.seed),
    )


def _shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in adapter.parameters.items()}


def _server(peft: SizedConfig, prices: LayoutPrices, scores: Scores, *, has_classes: bool) -> Sizes:
    """Returns the layout that the server holds; that of all devices where there are no classes."""
    layout, price_of = peft.layout, prices.of(peft.layout.device)
    limits = {"params": layout.params} if has_classes else _limits(layout)
    if layout.rule == "list":
        return _listed(layout, price_of, prices.num_blocks, Budgets(**limits))
    if all(limit is None for limit in limits.values()):
        limits["params"] = _params(peft, price_of, prices.num_blocks)
    return _chosen(peft, price_of, prices.num_blocks, Budgets(**limits), scores=scores)


def _uniform(peft: SizedConfig, prices: LayoutPrices) -> Layout:
    """Returns the server's uniform layout under the limit on parameters alone."""
    price_of, count = prices.of(peft.layout.device), prices.num_blocks
    budgets = Budgets(params=_params(peft, price_of, count))
    sizes = _chosen(peft, price_of, count, budgets, rule="uniform")
    return prices.layout(sizes)


def _params(peft: SizedConfig, price_of: PriceOf, num_blocks: int) -> int:
    """Returns the limit on parameters: by default those of the uniform layout of peft.rank."""
    return peft.layout.params or price_of([peft.size] * num_blocks).params


def _falling(config: Config, peft: SizedConfig, prices: LayoutPrices) -> Allocation:
    """Returns AdaLoRA's start: uniform, and above the budget that it falls to."""
    layout, scores, count = peft.layout, peft.layout.scores, prices.num_blocks
    price_of = prices.of(layout.device)
    budgets = Budgets(params=_params(peft, price_of, count))
    end = int(_chosen(peft, price_of, count, budgets, rule="uniform").sum())
    start = max(end, math.floor(scores.start * end))
    schedule = BudgetSchedule(
        start=start,
        end=end,
        warmup=scores.warmup,
        final=scores.final,
        steps=config.strategy.num_rounds,
    )
    sizes = apportion(np.ones(count), start, largest=layout.max_rank or start)
    return Allocation(server=prices.layout(sizes), schedule=schedule)


def _of_class(
    peft: SizedConfig,
    prices: LayoutPrices,
    one: DeviceClassConfig,
    server: Sizes,
    scores: Scores,
) -> Sizes:
    """Returns a class's layout within the server's: the rule's under the class's limits.

    Rule cost_aware chooses among the server's units; the others' layouts are cut to the server's.
    Raises LayoutError where no unit is left.
    """
    limits = {**_limits(peft.layout), "params": None}
    limits |= {name: limit for name, limit in _limits(one).items() if limit is not None}
    if limits["memory_bytes"] is None:
        limits["memory_bytes"] = device_of(one).memory_bytes
    price_of, budgets = prices.of(one), Budgets(**limits)
    if peft.layout.rule == "list":  # the ranks given say in what proportion
        sizes = fit(profile(server, largest=int(server.max())), price_of, budgets)
    else:
        rows = scores and [row[:size] for row, size in zip(scores, server, strict=True)]
        try:
            sizes = _chosen(peft, price_of, prices.num_blocks, budgets, scores=rows)
        except LayoutError as error:
            raise LayoutError(f"federation.classes.{one.name}: {error}") from error
    held = np.minimum(sizes, server)
    if not held.any():
        limited = ", ".join(f"{name}={limit:.6g}" for name, limit in budgets.limits.items())
        raise LayoutError(
            f"federation.classes.{one.name}: rule {peft.layout.rule} gives it ranks "
            f"{sizes.tolist()} under {limited}, and the server's are {server.tolist()}: no unit in "
            "common; loosen the class's limits, or choose another peft.layout.rule"
        )
    return held


def _limits(limits: BudgetConfig) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in _LIMITS}


def _chosen(
    peft: SizedConfig,
    price_of: PriceOf,
    num_blocks: int,
    budgets: Budgets,
    rule: str | None = None,
    scores: Scores = None,
) -> Sizes:
    layout = peft.layout
    return choose(
        rule or layout.rule,
        price_of=price_of,
        budgets=budgets,
        num_blocks=num_blocks,
        largest=most_units(peft, num_blocks),
        num_tuned=layout.num_tuned,
        scores=scores,
    )


def _listed(layout: LayoutConfig, price_of: PriceOf, num_blocks: int, budgets: Budgets) -> Sizes:
    """Returns the ranks given, if they are as many as blocks and keep the limits."""
    if len(layout.ranks) != num_blocks:
        raise ConfigError(
            f"peft.layout.ranks={layout.ranks} must have {num_blocks} ranks, one for each block "
            "outside the middle (strategy.emulator.left and right)"
        )
    if exceeded := budgets.exceeded(price_of(layout.ranks)):
        raise ConfigError(
            f"peft.layout.ranks={layout.ranks} exceed peft.layout's {', '.join(exceeded)}; lower "
            "ranks or raise the limit"
        )
    return np.asarray(layout.ranks, dtype=np.int64)
