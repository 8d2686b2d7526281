"""What fits: layout, memory, FLOPs, bytes, seconds, joules of a round, from a config.json alone.

``python -m scripts.plan --model llama-7b --deadline 2 --weight-bits 4 --split auto``. ``--model``
is a file, a folder with ``config.json``, or a name in ``docs/models``. No weights are read and
torch is not imported. The largest layout of the rule that keeps every budget is shown; what cannot
fit is refused with the budget's name (exit code 2). With ``--split l-n-r`` the device holds that
emulator and tunes its first l and last r blocks; ``auto`` takes l = r = 2 and the largest middle
that fits, or l = r = 1 where nothing does. Devices, links and their origins are in
``fl_app/resources``. ``plan.json`` and ``plan.png`` are written.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fl_app.errors import DeftError
from fl_app.layout.budgets import Budgets
from fl_app.layout.choose import RULES, choose
from fl_app.layout.errors import LayoutError
from fl_app.resources.architecture import Architecture, emulator
from fl_app.resources.devices import DEVICE_CLASSES, DeviceClass, device_class
from fl_app.resources.families import architecture_of, read_config
from fl_app.resources.links import Link
from fl_app.resources.price import Pricer
from fl_app.resources.step import StepModel
from fl_app.resources.tuning import DEEP_PROMPT, Tuning, bottleneck, lora
from fl_app.wireless.cell import path_loss_db
from fl_app.wireless.units import dbm_to_watt
from scripts import plan_picture
from scripts.plan_report import Plan, as_json, show

MODELS = Path(__file__).parent.parent / "docs" / "models"
SERVER_DBM = 43.0
"""Transmit power of the server, the usual one of a macro cell."""


def make_plan(
    full: Architecture, device: DeviceClass, chosen: argparse.Namespace, budgets: Budgets
) -> Plan:
    """Returns the plan that the command line asks for.

    Raises:
        DeftError: a value out of range, or budgets that no layout keeps.
    """
    if chosen.split != "auto":
        split = None if chosen.split == "none" else _split(chosen.split)
        return _plan_split(full, device, chosen, budgets, split)
    stacks = [full.num_encoder_blocks, full.num_blocks - full.num_encoder_blocks]
    depth = min(count for count in stacks if count)
    refusal: DeftError = LayoutError("--split auto needs stacks of 2 blocks or more")
    for side in (2, 1):
        for middle in range(depth - 2 * side, -1, -1):
            try:
                return _plan_split(full, device, chosen, budgets, (side, middle, side))
            except LayoutError as error:
                refusal = error
    raise refusal


def _plan_split(
    full: Architecture,
    device: DeviceClass,
    chosen: argparse.Namespace,
    budgets: Budgets,
    split: tuple[int, int, int] | None,
) -> Plan:
    shapes = full if split is None else emulator(full, *split)
    tunable = tunable_blocks(shapes, split)
    step = StepModel(
        shapes,
        tuning_of(chosen, shapes),
        batch=chosen.batch,
        sequence=chosen.sequence,
        weight_bytes=chosen.weight_bits / 8,
        activation_bytes=chosen.activation_bits / 8,
    )
    pricer = Pricer(
        step,
        device,
        uplink=_link(chosen, device.tx_power_w),
        downlink=_link(chosen, dbm_to_watt(SERVER_DBM)),
        num_steps=chosen.steps,
        value_bytes=chosen.value_bits / 8,
    )

    def spread(sizes: Sequence[int]) -> list[int]:
        whole = np.zeros(shapes.num_blocks, dtype=np.int64)
        whole[tunable] = sizes
        return [int(size) for size in whole]

    few = choose(
        chosen.rule,
        price_of=lambda sizes: pricer(spread(sizes)),
        budgets=budgets,
        num_blocks=len(tunable),
        smallest=chosen.min_size,
        largest=chosen.max_size,
        num_tuned=chosen.top_n,
        scores=_scores(chosen, len(tunable)),
    )
    sizes = spread(few.tolist())
    return Plan(shapes, split, tuple(sizes), pricer, pricer(sizes), budgets)


def tunable_blocks(shapes: Architecture, split: tuple[int, int, int] | None) -> list[int]:
    """Returns the blocks that may be tuned: all, or the first l and last r of every stack."""
    if split is None:
        return list(range(shapes.num_blocks))
    left, middle, right = split
    kept = left + middle + right
    return [block for block in range(shapes.num_blocks) if not left <= block % kept < left + middle]


def tuning_of(chosen: argparse.Namespace, shapes: Architecture) -> Tuning:
    """Returns what a size means."""
    match chosen.kind:
        case "bottleneck":
            return bottleneck()
        case "deep_prompt":
            return DEEP_PROMPT
        case _:
            return lora(*(chosen.targets or shapes.default_targets))


def _scores(chosen: argparse.Namespace, num_blocks: int) -> list[Any]:
    """Returns scores from the file, or equal blocks whose i-th unit scores 1 / i."""
    if chosen.scores is None:
        return [1.0 / np.arange(1.0, chosen.max_size + 1.0)] * num_blocks
    try:
        rows = json.loads(chosen.scores.read_text(encoding="utf-8"))
        return [np.asarray(row, dtype=np.float64) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise LayoutError(
            f"--scores {chosen.scores}: {error}; give a JSON list of lists, one for each block"
        ) from error


def _link(chosen: argparse.Namespace, tx_power_w: float) -> Link:
    loss_db = float(path_loss_db(np.array([chosen.distance_m]))[0])
    return Link(bandwidth_hz=chosen.bandwidth_mhz * 1e6, tx_power_w=tx_power_w, loss_db=loss_db)


def _split(word: str) -> tuple[int, int, int]:
    parts = word.split("-")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise LayoutError(f"--split {word!r}: give l-n-r, for example 2-4-2, or auto or none")
    left, middle, right = (int(part) for part in parts)
    return left, middle, right


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    add = words.add_argument
    add("--model", required=True, help="config.json, its folder, or a name in docs/models")
    add("--labels", type=int, default=0, help="classes of a classifier; 0: a language model")
    add("--device", default="phone", choices=sorted(DEVICE_CLASSES))
    add("--rule", default="cost_aware", choices=RULES)
    add("--kind", default="lora", choices=("lora", "bottleneck", "deep_prompt"))
    add("--targets", nargs="*", help="maps that LoRA adapts; the family's default if left out")
    add("--scores", type=Path, help="JSON: for each tunable block its units' scores")
    add("--top-n", type=int, help="blocks of rule top_n")
    add("--min-size", type=int, default=0)
    add("--max-size", type=int, default=16)
    add("--split", default="none", help="emulator l-n-r, auto, or none for the full model")
    add("--batch", type=int, default=8)
    add("--sequence", type=int, default=128)
    add("--steps", type=int, default=1, help="local steps of a round")
    add("--weight-bits", type=float, default=16)
    add("--activation-bits", type=float, default=16)
    add("--value-bits", type=float, default=16, help="bits of a tuned parameter on the wire")
    add("--bandwidth-mhz", type=float, default=10.0, help="the device's share of the band")
    add("--distance-m", type=float, default=200.0, help="to the server, 3GPP macro-cell loss")
    add("--deadline", type=float, help="budget: seconds of a round")
    add("--budget-params", type=int)
    add("--budget-bytes", type=int, help="budget: bytes of one update")
    add("--budget-memory-gb", type=float, help="budget; the device's memory if left out")
    add("--budget-step-s", type=float)
    add("--out", type=Path, default=Path("outputs/plan"), metavar="DIR")
    return words


def main(words: list[str] | None = None) -> int:
    """Parses the command line, writes both files and prints; returns the exit code."""
    started = time.perf_counter()
    chosen = parser().parse_args(words)
    console = Console(width=max(100, shutil.get_terminal_size().columns))
    try:
        device = device_class(chosen.device)
        given = chosen.budget_memory_gb
        budgets = Budgets(
            params=chosen.budget_params,
            uplink_bytes=chosen.budget_bytes,
            memory_bytes=device.memory_bytes if given is None else given * 1e9,
            step_s=chosen.budget_step_s,
            round_s=chosen.deadline,
        )
        named = MODELS / f"{chosen.model}.json"
        config = read_config(named if named.is_file() else Path(chosen.model))
        full = architecture_of(config, num_labels=chosen.labels)
        plan = make_plan(full, device, chosen, budgets)
    except DeftError as error:
        Console(stderr=True).print(f"no plan: {error}", style="red", markup=False)
        return 2
    options = {name: str(v) if isinstance(v, Path) else v for name, v in vars(chosen).items()}
    figures = as_json(plan, options, time.perf_counter() - started)
    chosen.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2, allow_nan=False)
    (chosen.out / "plan.json").write_text(text + "\n", encoding="utf-8")
    tallies = plan.pricer.step.by_block(plan.sizes)
    title = f"{chosen.model} on a {chosen.device}, rule {chosen.rule}"
    (chosen.out / "plan.png").write_bytes(
        plan_picture.draw(
            title,
            plan.sizes,
            tallies,
            num_encoder_blocks=plan.shapes.num_encoder_blocks,
            flops_per_s=device.flops_per_s,
            activation_bytes=chosen.activation_bits / 8,
        )
    )
    show(plan, console)
    console.print(f"figures and picture in {chosen.out}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
