"""A plan, its table and its JSON."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from fl_app.layout.budgets import Budgets
from fl_app.resources.architecture import Architecture
from fl_app.resources.price import Price, Pricer


@dataclass(frozen=True)
class Plan:
    """One layout with everything that follows from it.

    Attributes:
        shapes: the model as the device holds it.
        split: (l, n, r) of an emulator; None for the full model.
        sizes: size of every block held.
        pricer: what priced it.
        price: its price.
        budgets: what it keeps.
    """

    shapes: Architecture
    split: tuple[int, int, int] | None
    sizes: tuple[int, ...]
    pricer: Pricer
    price: Price
    budgets: Budgets


def as_json(plan: Plan, options: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Returns the plan as plain values."""
    cost = plan.pricer.step.cost(plan.sizes)
    return {
        "options": options,
        "model": {
            "model_type": plan.shapes.model_type,
            "num_blocks": plan.shapes.num_blocks,
            "num_encoder_blocks": plan.shapes.num_encoder_blocks,
            "params": plan.shapes.num_params,
            "split": plan.split,
        },
        "layout": list(plan.sizes),
        "price": plan.price.as_dict(),
        "memory": {
            name: getattr(cost, f"{name}_bytes")
            for name in ("weight", "tuned", "activation", "workspace")
        },
        "forward_flops": cost.forward_flops,
        "backward_flops": cost.backward_flops,
        "uplink_bps": plan.pricer.uplink.rate_bps,
        "downlink_bps": plan.pricer.downlink.rate_bps,
        "budgets": plan.budgets.limits,
        "planned_in_s": seconds,
    }


def show(plan: Plan, console: Console) -> None:
    """Prints the layout, then every figure beside its budget."""
    held = f"{plan.shapes.num_params / 1e9:.2f} G parameters in {plan.shapes.num_blocks} blocks"
    split = "" if plan.split is None else f", emulator {'-'.join(map(str, plan.split))} of a stack"
    runs = [
        f"{first}: {size}" if first == last else f"{first}-{last}: {size}"
        for first, last, size in _runs(plan.sizes)
    ]
    console.print(f"{plan.shapes.model_type}, {held}{split}; {plan.pricer.device.name}")
    console.print(f"size of blocks in forward order: {', '.join(runs)}")
    price, cost = plan.price, plan.pricer.step.cost(plan.sizes)
    rows = [
        ("tuned parameters", f"{price.params:,}", "params", 1.0),
        ("uplink of a round (MB)", f"{price.uplink_bytes / 1e6:.3f}", "uplink_bytes", 1e6),
        ("memory (GB)", f"{price.memory_bytes / 1e9:.3f}", "memory_bytes", 1e9),
        ("  frozen weights", f"{cost.weight_bytes / 1e9:.3f}", "", 1.0),
        ("  kept activations", f"{cost.activation_bytes / 1e9:.3f}", "", 1.0),
        ("  tuned, gradient, AdamW", f"{cost.tuned_bytes / 1e9:.3f}", "", 1.0),
        ("  workspace", f"{cost.workspace_bytes / 1e9:.3f}", "", 1.0),
        ("forward (GFLOP)", f"{cost.forward_flops / 1e9:.1f}", "", 1.0),
        ("backward (GFLOP)", f"{cost.backward_flops / 1e9:.1f}", "", 1.0),
        ("a local step (s)", f"{price.step_s:.3f}", "step_s", 1.0),
        ("computing of a round (s)", f"{price.compute_s:.3f}", "", 1.0),
        ("downlink (s)", f"{price.downlink_s:.3f}", "", 1.0),
        ("uplink (s)", f"{price.uplink_s:.3f}", "", 1.0),
        ("round (s)", f"{price.round_s:.3f}", "round_s", 1.0),
        ("energy of a round (J)", f"{price.joules:.2f}", "", 1.0),
    ]
    table = Table()
    table.add_column("one round")
    table.add_column("planned", justify="right")
    table.add_column("budget", justify="right")
    for words, figure, budget, unit in rows:
        limit = plan.budgets.limits.get(budget)
        table.add_row(words, figure, "" if limit is None else f"{limit / unit:,.6g}")
    console.print(table)


def _runs(sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Returns (first block, last block, size) of neighbours with equal sizes."""
    runs, start = [], 0
    for size, group in itertools.groupby(sizes):
        count = len(list(group))
        runs.append((start, start + count - 1, size))
        start += count
    return runs
