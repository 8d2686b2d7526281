"""Metric against bytes sent, gradient download beside emulator download.

``python -m scripts.gradient_bytes --task sst2 --seeds 0 1 2`` runs ``experiment=sst2_gradient`` in
the chosen variants and ``experiment=sst2_emulator``, with equal rounds and local steps, in this
process, each run into a folder of its own below ``--out``. A run that is there already is not made
again, so an interrupted call goes on where it stopped. From every ``result.json`` the metric and
the bytes up and down are read per round; ``gradient_bytes.json``, a table and
``gradient_bytes.png`` are written. Models and data must lie below DEFT_ASSETS; without them nothing
is done, and the reason printed.
"""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fl_app.config import load_config
from fl_app.errors import ConfigError
from scripts.bytes_curves import Row, draw, row_of, save, show, summarise
from scripts.runs import finished, made
from strategies.fit import require_fit

EXPERIMENTS = {
    "sst2": ("sst2_gradient", "sst2_emulator", "sst2"),
    "t0": ("t0_gradient", "t0_emulator", "t0_tasks"),
}
"""Experiments by gradient and by emulator download, and the data folder, of each task."""
CONFIGURATIONS = {
    "prompt": ("strategy.variant=prompt",),
    "cut": ("strategy.variant=cut",),
    "lora": ("strategy.variant=lora",),
    "scalar": ("strategy.variant=scalar",),
    "prompt-int8": ("strategy.variant=prompt", "strategy.features=int8"),
    "cut-int8": ("strategy.variant=cut", "strategy.features=int8"),
    "emulator": (),
}
"""Name to overrides of the gradient experiment; ``emulator`` is the other experiment."""
_DEFAULT = ("prompt", "cut", "lora", "scalar", "emulator")


def words_of(task: str, name: str, seed: int, common: Sequence[str]) -> list[str]:
    """Returns the overrides of one run, without its output folder."""
    gradient, emulator, _ = EXPERIMENTS[task]
    experiment = emulator if name == "emulator" else gradient
    return [
        f"experiment={experiment}",
        *CONFIGURATIONS[name],
        "strategy.references=[]",
        f"seed={seed}",
        *common,
    ]


def refusal(words: Sequence[str]) -> str | None:
    """Returns why the configuration refuses these overrides, None where it takes them."""
    try:
        require_fit(load_config(shlex.join(words)))
    except ConfigError as error:
        return str(error).splitlines()[0]
    return None


def main(arguments: list[str] | None = None) -> int:
    """Runs what is missing and reports on everything; returns 1 where a run failed, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--task", choices=list(EXPERIMENTS), default="sst2")
    parser.add_argument("--assets", default=os.environ.get("DEFT_ASSETS", ""), metavar="DIR")
    parser.add_argument("--runs", nargs="+", choices=list(CONFIGURATIONS), default=list(_DEFAULT))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=48, help="local steps a round")
    parser.add_argument("--out", type=Path, default=Path("outputs/gradient_bytes"))
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of every run")
    parser.add_argument("--own", nargs="*", default=[], metavar="RUN:OVERRIDE", help="of one run")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    data = Path(options.assets) / EXPERIMENTS[options.task][2]
    if not data.is_dir() and not options.overrides:
        console.print(f"skipped: {data} is not there; set DEFT_ASSETS or --assets")
        return 0
    common = [
        f"assets={options.assets}",
        f"strategy.num_rounds={options.rounds}",
        f"finetune.max_steps={options.steps}",
        *options.overrides,
    ]
    own = [word.partition(":") for word in options.own]
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    columns = (TextColumn("federations"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    options.out.mkdir(parents=True, exist_ok=True)
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(options.runs) * len(options.seeds))
        for seed in options.seeds:
            for name in options.runs:
                words = words_of(options.task, name, seed, common)
                words += [word for run, _, word in own if run == name]
                folder = options.out / options.task / f"{name}-seed{seed}"
                if reason := refusal(words):
                    left_out[name] = reason
                    console.print(f"skipped {name}: {reason}")
                elif (result := finished(folder, words) or made(words, folder)) is not None:
                    rows.append(row_of(name, result))
                    save(rows, left_out, options.out / "gradient_bytes.json")
                else:
                    left_out[f"{name}-seed{seed}"] = "failed, see the log"
                progress.advance(bar)
    save(rows, left_out, options.out / "gradient_bytes.json")
    if rows:
        summary = summarise(rows)
        draw(summary, rows[0]["metric"], options.out / "gradient_bytes.png")
        show(summary, rows[0]["metric"])
    return int(any(reason.startswith("failed") for reason in left_out.values()))


if __name__ == "__main__":
    raise SystemExit(main())
