"""How much shorter a round gets by matching blocks to devices and sharing the band with care.

``python -m scripts.schedule_latency --out outputs/schedule``. In every random cell each of L tuned
blocks goes to one of K >= L devices, which runs the forward pass, the backward pass down to its
block, and sends the block's update; the round ends with the slowest. Compared over the same cells:

* ``random, equal``: random assignment (of pairs that memory allows), every device an equal share;
* ``matched, equal``: CRUNCH at equal shares;
* ``random, equal finish``: random assignment, band shared for equal finish;
* ``matched, equal finish``: CRUNCH at equal shares, then the band shared for equal finish;
* ``joint``: matching and sharing by alternation (JBBA), the shortest round that there is.

Parameters are ours: a third of the devices is drawn from each class in ``fl_app/resources``, the
speed of each spreads by a factor up to ``--spread`` both ways, places and shadowing are drawn in a
cell, powers are the classes'. Fading is averaged out; the downlink, the same for all, and the task
head's update, no block's, are left out. The follow-up of DEFT (arXiv:2407.09873) reports a cut of
up to about 40 % under parameters that are not public; ours need not agree. ``schedule.json`` and
``schedule.png`` are written.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fl_app.errors import DeftError
from fl_app.resources.devices import DEVICE_CLASSES, DeviceClass
from fl_app.resources.families import architecture_of, read_config
from fl_app.resources.links import snr_hz
from fl_app.resources.step import StepCost, StepModel
from fl_app.resources.tuning import lora
from fl_app.scheduling.joint import Cell, Schedule, jbba, matched_equal_share
from fl_app.scheduling.matching import random_assignment
from fl_app.scheduling.uplinks import Shannon
from fl_app.seeding import generator
from fl_app.wireless.cell import Cell as Places
from scripts import schedule_picture
from scripts.plan import MODELS

Floats = NDArray[np.float64]

WAYS = ("random, equal", "matched, equal", "random, equal finish", "matched, equal finish", "joint")
_PERCENTILES = (5, 25, 50, 75, 95)


def costs_by_depth(model: StepModel, num_tuned: int, rank: int) -> list[StepCost]:
    """Returns the cost of tuning one block alone, for the blocks nearest to the loss first."""
    costs = []
    for depth in range(num_tuned):
        sizes = [0] * model.num_blocks
        sizes[model.num_blocks - 1 - depth] = rank
        costs.append(model.cost(sizes))
    return costs


def draw_cell(
    seed: int,
    number: int,
    costs: Sequence[StepCost],
    bits: Floats,
    chosen: argparse.Namespace,
) -> tuple[Cell, list[str]]:
    """Returns one random cell and the class of every device.

    Args:
        seed: the run's seed.
        number: the cell's number, >= 0.
        costs: cost of every block, nearest to the loss first.
        bits: payload of every block's update in bit.
        chosen: the command line.
    """
    rng = generator(seed, "schedule", number)
    classes: list[DeviceClass] = list(DEVICE_CLASSES.values())
    devices = [classes[place] for place in rng.integers(len(classes), size=chosen.devices)]
    spread = np.log(chosen.spread)
    factors = np.exp(rng.uniform(-spread, spread, chosen.devices))
    speeds = np.array([device.flops_per_s for device in devices]) * factors
    memory = np.array([device.memory_bytes for device in devices])
    flops = np.array([cost.flops for cost in costs], dtype=np.float64)
    needed = np.array([cost.memory_bytes for cost in costs], dtype=np.float64)
    compute_s = chosen.steps * flops[None, :] / speeds[:, None]
    compute_s[needed[None, :] > memory[:, None]] = np.inf
    places = Places(radius_m=chosen.radius_m)
    gains = places.mean_gains(int(rng.integers(2**31)), range(chosen.devices))
    powers = np.array([device.tx_power_w for device in devices])
    cell = Cell(
        compute_s=compute_s,
        bits=bits,
        links=Shannon(snr_hz(powers, gains, places.noise_figure_db)),
        bandwidth=chosen.bandwidth_mhz * 1e6,
    )
    return cell, [device.name for device in devices]


def schedules(cell: Cell, rng: np.random.Generator) -> dict[str, Schedule]:
    """Returns one schedule of a cell by way."""
    drawn, matched = random_assignment(cell.compute_s, rng), matched_equal_share(cell)
    return {
        "random, equal": cell.share(drawn, equal=True),
        "matched, equal": cell.share(matched, equal=True),
        "random, equal finish": cell.share(drawn),
        "matched, equal finish": cell.share(matched),
        "joint": jbba(cell),
    }


def summarise(rounds: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    """Returns mean, percentiles and cut against ``random, equal``, by way.

    ``cut_of_means`` is 1 - mean / mean; ``mean_cut`` averages the cuts of single cells, with its
    standard error; ``longer`` is the share of cells whose round got longer.
    """
    base = rounds[WAYS[0]]
    summary = {}
    for way, seconds in rounds.items():
        cuts = 1.0 - seconds / base
        summary[way] = {
            "mean_s": float(seconds.mean()),
            **{f"p{q}_s": float(np.percentile(seconds, q)) for q in _PERCENTILES},
            "cut_of_means": float(1.0 - seconds.mean() / base.mean()),
            "mean_cut": float(cuts.mean()),
            "mean_cut_stderr": float(cuts.std(ddof=1) / np.sqrt(len(cuts))) if len(cuts) > 1 else 0,
            "longer": float((seconds > base * (1.0 + 1e-9)).mean()),
        }
    return summary


def show(summary: Mapping[str, Mapping[str, float]], console: Console, title: str) -> None:
    """Prints a row for each way."""
    table = Table(title=title)
    table.add_column("assignment, band")
    for words in ("mean s", "median s", "5 % s", "95 % s", "cut of means", "mean cut"):
        table.add_column(words, justify="right")
    for way, row in summary.items():
        seconds = [row[name] for name in ("mean_s", "p50_s", "p5_s", "p95_s")]
        cut = f"{100 * row['mean_cut']:.1f} ± {100 * row['mean_cut_stderr']:.1f} %"
        cells = [f"{value:.3f}" for value in seconds]
        table.add_row(way, *cells, f"{100 * row['cut_of_means']:.1f} %", cut)
    console.print(table)


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    add = words.add_argument
    add("--model", default="roberta-base", help="config.json, its folder, or a name in docs/models")
    add("--labels", type=int, default=2, help="classes of a classifier; 0: a language model")
    add("--devices", type=int, default=12)
    add("--blocks", type=int, default=12, help="tuned blocks, the nearest to the loss")
    add("--rank", type=int, default=8)
    add("--batch", type=int, default=16)
    add("--sequence", type=int, default=128)
    add("--steps", type=int, default=1, help="local steps of a round")
    add("--value-bits", type=float, default=16, help="bits of a tuned parameter on the wire")
    add("--bandwidth-mhz", type=float, default=10.0)
    add("--radius-m", type=float, default=500.0)
    add("--spread", type=float, default=2.0, help="speeds vary by up to this factor, both ways")
    add("--cells", type=int, default=200)
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("outputs/schedule"), metavar="DIR")
    return words


def measure(chosen: argparse.Namespace) -> tuple[dict[str, Floats], list[Any]]:
    """Returns [num_cells] seconds of a round by way, and the first cell's schedules.

    Raises:
        DeftError: a value out of range, or a cell without any allowed assignment.
    """
    named = MODELS / f"{chosen.model}.json"
    config = read_config(named if named.is_file() else Path(chosen.model))
    shapes = architecture_of(config, num_labels=chosen.labels)
    model = StepModel(
        shapes,
        lora(*shapes.default_targets),
        batch=chosen.batch,
        sequence=chosen.sequence,
        weight_bytes=2.0,
        activation_bytes=2.0,
    )
    costs = costs_by_depth(model, chosen.blocks, chosen.rank)
    sent = np.array([cost.tuned_params - shapes.head.num_tuned for cost in costs])
    rounds: dict[str, list[float]] = {way: [] for way in WAYS}
    first: list[Any] = []
    console = Console(stderr=True)
    for number in track(range(chosen.cells), description="cells", console=console):
        cell, classes = draw_cell(
            chosen.seed, number, costs, sent * float(chosen.value_bits), chosen
        )
        found = schedules(cell, generator(chosen.seed, "schedule-start", number))
        for way, schedule in found.items():
            rounds[way].append(schedule.round_s)
        first = first or [cell, classes, found]
    return {way: np.array(seconds) for way, seconds in rounds.items()}, first


def main(words: list[str] | None = None) -> int:
    """Parses the command line, writes both files and prints a table; returns the exit code."""
    line = parser()
    chosen = line.parse_args(words)
    for name in ("devices", "blocks", "rank", "cells", "steps"):
        if getattr(chosen, name) < 1:
            line.error(f"--{name} must be >= 1")
    if chosen.spread < 1.0 or chosen.value_bits <= 0.0 or chosen.radius_m <= 35.0:
        line.error("--spread must be >= 1, --value-bits > 0 and --radius-m > 35")
    try:
        rounds, first = measure(chosen)
    except DeftError as error:
        Console(stderr=True).print(f"no schedule: {error}", style="red", markup=False)
        return 2
    summary = summarise(rounds)
    options = {name: str(v) if isinstance(v, Path) else v for name, v in vars(chosen).items()}
    figures = {
        "options": options,
        "summary": summary,
        "round_s": {way: seconds.tolist() for way, seconds in rounds.items()},
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2, allow_nan=False)
    (chosen.out / "schedule.json").write_text(text + "\n", encoding="utf-8")
    (chosen.out / "schedule.png").write_bytes(schedule_picture.draw(rounds, *first))
    title = f"seconds of a round in {chosen.cells} random cells"
    console = Console(width=max(110, shutil.get_terminal_size().columns))
    show(summary, console, title)
    console.print(f"figures and picture in {chosen.out}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
