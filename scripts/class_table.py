"""A federation of three device classes with unequal ranks: ``python -m scripts.class_table``.

Phones, Jetsons and laptops, a third of the devices each, have LoRA of the ranks ``--ranks`` in
every block but one; a split needs one in the middle. Nothing is compressed, so nothing but ranks
and the way they are combined differs. Runs:

* ``pad``, ``zero``: A is frozen, B is averaged over the holders, or over all;
* ``pad_factors``: A and B are averaged apart, over the holders;
* ``flex``: the mean of products, re-factored by SVD;
* ``stack``: all factors, merged into the frozen weights of every device after each round;
* ``high``, ``low``: all devices are as strong as a laptop, or as weak as a phone, A frozen;
* ``high_exact``, ``low_exact``: the same by products, as ``flex`` has them.

Every run with every seed goes into a folder of its own below ``--out``; a run that is there already
is not made again, so the command may be stopped and given again. Writes ``class_table.json`` and
``class_table.png``. The downlink is counted without the model that devices download once; the
discarded share is what the server's ranks cannot hold of the mean of products, mean over rounds.
Data and model must lie below DEFT_ASSETS (or ``--assets DIR``).
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from fl_app.bench import model_source
from fl_app.config import load_config
from fl_app.errors import ConfigError
from fl_app.material import load_material
from fl_app.pricing import LayoutPrices
from fl_app.result import RunResult
from fl_app.schema import EmulatorDownloadStrategy, LoraConfig
from fl_app.settings import split_of
from scripts.class_picture import draw
from scripts.runs import finished, made

Row = dict[str, Any]

CLASSES = ("phone", "jetson", "laptop")
"""Names of the classes and of their rows in ``fl_app.resources.devices``, weakest first."""
EXACT = ("peft.aggregation=exact",)
UNEQUAL: dict[str, tuple[str, ...]] = {
    "pad": ("peft.combine=pad",),
    "zero": ("peft.combine=zero",),
    "pad_factors": ("peft.combine=pad", "peft.aggregation=factors"),
    "flex": ("peft.combine=flex", *EXACT),
    "stack": ("peft.combine=stack", *EXACT),
}
"""Runs with classes: name to overrides."""
EQUAL: dict[str, tuple[int, tuple[str, ...]]] = {
    "high": (-1, ()),
    "low": (0, ()),
    "high_exact": (-1, EXACT),
    "low_exact": (0, EXACT),
}
"""Runs in which all devices are alike: name to the class they are like, and overrides."""
RUNS = (*UNEQUAL, *EQUAL)

SST2 = (
    "experiment=sst2_emulator",
    "strategy.emulator.left=2",
    "strategy.emulator.middle=-1",
    "strategy.emulator.right=3",
)
_OWN_KEYS = {
    "federation.classes",
    "finetune.max_steps",
    "peft.aggregation",
    "peft.combine",
    "peft.layout.params",
    "peft.rank",
    "seed",
    "strategy.num_rounds",
}
"""What the command's options and the runs choose."""
COUNTS = ("uplink_bytes", "downlink_bytes", "control_bytes", "seconds")


def params_at(words: Sequence[str], ranks: Sequence[int]) -> list[int]:
    """Returns how many parameters, the head's included, a device tunes at each rank.

    Args:
        words: overrides; ranks, limits and classes among them do not matter.
        ranks: of all tuned blocks alike.

    Raises:
        ConfigError: no LoRA by emulator download.
    """
    config = load_config(shlex.join(words))
    match config.strategy, config.peft:
        case EmulatorDownloadStrategy(emulator=emulator), LoraConfig() as peft:
            pass
        case _:
            raise ConfigError("device classes need strategy=emulator_download and peft=lora")
    model = AutoConfig.from_pretrained(model_source(config.model))
    prices = LayoutPrices(
        config,
        peft,
        model,
        num_labels=len(load_material(config).labels),
        split=split_of(emulator, model),
        shapes={},
    )
    price_of = prices.of(peft.layout.device)
    return [price_of([rank] * prices.num_blocks).params for rank in ranks]


def words_of(run: str, seed: int, options: argparse.Namespace, task: Sequence[str]) -> list[str]:
    """Returns the overrides of one run; ``--overrides`` come before what makes the run."""
    strongest = max(options.ranks)
    steps = () if options.steps is None else (f"finetune.max_steps={options.steps}",)
    common = [
        *task,
        *([f"assets={options.assets}"] if options.assets else []),
        f"peft.rank={strongest}",
        f"strategy.num_rounds={options.rounds}",
        *steps,
        "strategy.round_test_rows=1",
        "strategy.references=[]",
        f"seed={seed}",
        *options.overrides,
    ]
    if run in EQUAL:
        place, own = EQUAL[run]
        common += own
        rank = options.ranks[place]
        # the scale of LoRA is that of the strongest rank for everybody
        return [*common, f"peft.layout.params={params_at(common, [rank])[0]}"]
    common += UNEQUAL[run]
    sizes = params_at(common, options.ranks)
    classes = [
        f"{{name:{name},device:{name},share:1,params:{size}}}"
        for name, size in zip(CLASSES, sizes, strict=True)
    ]
    return [*common, f"federation.classes=[{','.join(classes)}]"]


def row_of(run: str, seed: int, result: RunResult) -> Row:
    """Returns the figures of one run."""
    layout, account = result.layout or {}, result.ledger
    lost = [r.metrics["discarded"] for r in result.rounds if "discarded" in r.metrics]
    known = [share for share in lost if share is not None]
    return {
        "run": run,
        "seed": seed,
        "accuracy": result.final["plug_in"],
        "uplink_bytes": account["uplink_bytes"],
        "downlink_bytes": account["downlink_bytes"] - account["emulator_bytes"],
        "control_bytes": account["control_bytes"],
        "emulator_bytes": account["emulator_bytes"],
        "seconds": result.timings["federation"],
        "discarded": statistics.fmean(known) if known else None,
        "ranks": {
            "server": layout["server"],
            **{name: one["ranks"] for name, one in layout["classes"].items()},
        },
    }


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Returns one row per run: means over seeds, and the sample deviation of the accuracy."""
    summary = []
    for run in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == run]
        values = [float(row["accuracy"]) for row in own]
        lost = [row["discarded"] for row in own if row["discarded"] is not None]
        summary.append(
            {
                "run": run,
                "accuracy": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "seeds": len(own),
                **{name: statistics.fmean(row[name] for row in own) for name in COUNTS},
                "discarded": statistics.fmean(lost) if lost else None,
            }
        )
    return summary


def show(summary: Sequence[Row], console: Console) -> None:
    """Prints the table."""
    table = Table(title="three device classes, mean +- standard deviation over seeds")
    heads = ("uplink (kB)", "downlink (kB)", "control (B)", "seconds", "discarded")
    for column in ("run", "accuracy", *heads):
        table.add_column(column, justify="left" if column == "run" else "right")
    for entry in summary:
        spread = "" if entry["std"] is None else f" +- {100 * entry['std']:.2f}"
        table.add_row(
            entry["run"],
            f"{100 * entry['accuracy']:.2f}{spread} %",
            f"{entry['uplink_bytes'] / 1e3:.1f}",
            f"{entry['downlink_bytes'] / 1e3:.1f}",
            f"{entry['control_bytes']:.0f}",
            f"{entry['seconds']:.1f}",
            "-" if entry["discarded"] is None else f"{100 * entry['discarded']:.2f} %",
        )
    console.print(table)


def main(arguments: list[str] | None = None, task: Sequence[str] = SST2) -> int:
    """Makes the runs; returns the number of failed ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--assets", default=os.environ.get("DEFT_ASSETS", ""), metavar="DIR")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--ranks", nargs=3, type=int, default=[2, 4, 8], help="weakest first")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="local steps a round; default: the task's own")
    parser.add_argument("--out", type=Path, default=Path("outputs/class_table"))
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of the job")
    options = parser.parse_args(arguments)
    if taken := {word.split("=")[0] for word in options.overrides} & _OWN_KEYS:
        parser.error(f"--overrides {', '.join(sorted(taken))}: the table has options of its own")
    if sorted(options.ranks) != options.ranks or options.ranks[0] < 1:
        parser.error(f"--ranks {options.ranks}: give ranks >= 1 from weakest to strongest")
    console = Console(width=max(120, shutil.get_terminal_size().columns))
    if task is SST2 and not (Path(options.assets) / "sst2").is_dir():
        console.print(f"skipped: no sst2 in '{options.assets}'; set DEFT_ASSETS or --assets")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    failed = 0
    # Seed by seed, so that a table that is stopped has whole columns of the first seeds.
    cells = [(run, seed) for seed in options.seeds for run in options.runs]
    for number, (run, seed) in enumerate(cells, start=1):
        words = words_of(run, seed, options, task)
        folder = (options.out / f"{run}-{seed}").resolve()
        began = time.monotonic()
        result = finished(folder, words) or made(words, folder)
        console.print(f"{number}/{len(cells)} {run} seed {seed}: {time.monotonic() - began:.0f} s")
        if result is None:
            failed += 1
            continue
        rows.append(row_of(run, seed, result))
        content = {"summary": summarise(rows), "runs": rows}
        target = options.out / "class_table.json"
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if rows:
        summary = summarise(rows)
        draw(summary, options.out / "class_table.png")
        show(summary, console)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
