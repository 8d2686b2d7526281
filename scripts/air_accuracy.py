"""Plug-in accuracy against tx-SNR for ways to aggregate: ``python -m scripts.air_accuracy``.

Runs the SST-2 federation (``experiment=sst2_emulator``, shortened) once per seed with an error-free
uplink, and for every tx-SNR with zero forcing, truncated inversion, the optimal threshold policy,
one-bit votes, and OFDMA that may spend as many channel uses as the air does, with all of a device's
power in its share (so with as much energy) and the number of bits of least predicted error, chosen
every round. Emulator and data are prepared once per seed. Writes ``air_accuracy.json`` (after every
run) and ``air_accuracy.png``. SST-2 and MiniLM must lie below DEFT_ASSETS; without them nothing is
done, and the reason printed.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fl_app.bench import Bench, prepare
from fl_app.client_app import app
from fl_app.config import load_config
from fl_app.job import federate
from fl_app.local_grid import LocalGrid
from fl_app.measures import measure_plug_in
from fl_app.updates import Update

Row = dict[str, Any]

SCHEMES = {
    "ideal": (),
    "zf": ("channel=aircomp", "channel.scheme=zf"),
    "truncated": ("channel=aircomp", "channel.scheme=truncated"),
    "optimal": ("channel=aircomp", "channel.scheme=optimal"),
    "obda": ("channel=aircomp", "channel.scheme=obda"),
    "digital": (
        "channel=digital",
        "channel.bits=null",
        "channel.max_uses_per_real=0.5",
        "channel.power=whole",
    ),
}
"""Name to overrides; ``digital`` spends at most what the air does, half a channel use per real, and
the side information on top that the air has too: two numbers per tensor and device."""

_MARKS = {"zf": "o", "truncated": "s", "optimal": "^", "obda": "D", "digital": "P"}


def cells_of(schemes: list[str], levels: list[float]) -> Iterator[tuple[str, float | None]]:
    """Yields (scheme, tx-SNR in dB), the error-free uplink first and once."""
    yield "ideal", None
    for scheme in schemes:
        for tx_snr_db in levels:
            yield scheme, tx_snr_db


def run_cell(
    bench: Bench, start: Update, words: list[str], scheme: str, tx_snr_db: float | None
) -> Row:
    """Runs one federation from the starting adapter.

    Args:
        bench: the prepared server; its adapters are changed.
        start: the starting adapter.
        words: overrides of the federation without its channel.
        scheme: a key of ``SCHEMES``.
        tx_snr_db: tx-SNR in dB; None for the error-free uplink.

    Returns:
        Plug-in accuracy on all test rows, mean NMSE of the received mean over rounds, channel uses
        (those of side information also apart), joules, rounds in which somebody was heard, seconds.
    """
    began = time.monotonic()
    channel = list(SCHEMES[scheme])
    channel += [] if tx_snr_db is None else [f"channel.tx_snr_db={tx_snr_db}"]
    config = load_config(shlex.join([*words, *channel]))
    bench.full.write(start)
    # The channel is the server's business: devices keep their process, data and emulator.
    run_config = {"overrides": shlex.join(words), "reference": ""}
    with LocalGrid(app, num_nodes=config.federation.num_devices, run_config=run_config) as grid:
        outcome = federate(grid, replace(bench, config=config), measure_rounds=False)
    figures = [record.metrics for record in outcome.rounds[1:]]
    errors = [value for metrics in figures if (value := metrics.get("nmse")) is not None]
    account = outcome.ledger.as_dict()
    return {
        "scheme": scheme,
        "tx_snr_db": tx_snr_db,
        "seed": config.seed,
        "plug_in": measure_plug_in(bench, outcome.adapter, bench.test),
        "nmse": statistics.fmean(errors) if errors else None,
        "channel_uses": account["channel_uses"],
        "control_uses": sum(metrics.get("control_uses") or 0.0 for metrics in figures),
        "joules": account["radio_joules"],
        "aggregated_rounds": outcome.aggregated,
        "seconds": time.monotonic() - began,
    }


def summarise(rows: list[Row]) -> list[Row]:
    """Returns mean and sample standard deviation over seeds per scheme and tx-SNR."""
    groups: dict[tuple[str, float | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["scheme"], row["tx_snr_db"]), []).append(row)
    summary = []
    for (scheme, tx_snr_db), members in groups.items():
        values = [row["plug_in"] for row in members]
        errors = [row["nmse"] for row in members if row["nmse"] is not None]
        summary.append(
            {
                "scheme": scheme,
                "tx_snr_db": tx_snr_db,
                "plug_in": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "seeds": len(values),
                "nmse": statistics.fmean(errors) if errors else None,
                "channel_uses": statistics.fmean(row["channel_uses"] for row in members),
            }
        )
    return summary


def save(rows: list[Row], target: Path) -> None:
    """Writes all runs and their summary; an infinite tx-SNR becomes the text "inf"."""

    def plain(entries: list[Row]) -> list[Row]:
        return [e | {"tx_snr_db": "inf"} if e["tx_snr_db"] == math.inf else e for e in entries]

    content = {"summary": plain(summarise(rows)), "runs": plain(rows)}
    target.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def draw(summary: list[Row], target: Path) -> None:
    """Draws accuracy against tx-SNR, one line per scheme, the error-free uplink as a level."""
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    levels = {e["tx_snr_db"] for e in summary} - {None, math.inf}
    finite = sorted(levels)
    beyond = (finite[-1] if finite else 0.0) + 5.0  # where an infinite tx-SNR is drawn
    places = {level: level for level in finite}
    if any(e["tx_snr_db"] == math.inf for e in summary):
        places[math.inf] = beyond
    schemes = [name for name in SCHEMES if any(e["scheme"] == name for e in summary)]
    for place, scheme in enumerate(schemes):
        entries = [e for e in summary if e["scheme"] == scheme]
        if scheme == "ideal":
            level, spread = 100 * entries[0]["plug_in"], 100 * (entries[0]["std"] or 0.0)
            axes.axhspan(level - spread, level + spread, color="0.9", lw=0)
            axes.axhline(level, color="0.35", ls="--", lw=1.2, label="error-free uplink")
            continue
        shift = 0.25 * (place - len(schemes) / 2)  # bars of neighbours stay apart
        axes.errorbar(
            [places[e["tx_snr_db"]] + shift for e in entries],
            [100 * e["plug_in"] for e in entries],
            yerr=[100 * (e["std"] or 0.0) for e in entries],
            marker=_MARKS[scheme],
            ms=5,
            lw=1.4,
            capsize=3,
            color=f"C{place - 1}",
            label="OFDMA, equal channel uses" if scheme == "digital" else scheme,
        )
    names = ["\u221e" if level == math.inf else f"{level:g}" for level in places]
    axes.set_xticks(list(places.values()), names)
    axes.set_xlabel("tx-SNR P / \u03c3\u00b2 (dB)")
    axes.set_ylabel("plug-in accuracy (%)")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(target, dpi=150)


def show(summary: list[Row]) -> None:
    """Prints the table."""
    table = Table(title="plug-in accuracy, mean +- standard deviation over seeds")
    for column in ("uplink", "tx-SNR (dB)", "accuracy (%)", "NMSE", "seeds", "channel uses"):
        table.add_column(column, justify="right")
    for entry in summary:
        spread = "" if entry["std"] is None else f" +- {100 * entry['std']:.1f}"
        level = "-" if entry["tx_snr_db"] is None else f"{entry['tx_snr_db']:g}"
        accuracy = f"{100 * entry['plug_in']:.1f}{spread}"
        uses = f"{entry['channel_uses']:,.0f}"
        nmse = "-" if entry["nmse"] is None else f"{entry['nmse']:.3g}"
        table.add_row(entry["scheme"], level, accuracy, nmse, str(entry["seeds"]), uses)
    Console(width=max(80, shutil.get_terminal_size().columns)).print(table)


def main(arguments: list[str] | None = None) -> int:
    """Runs the grid; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--assets", default=os.environ.get("DEFT_ASSETS", ""), metavar="DIR")
    parser.add_argument("--schemes", nargs="+", choices=list(_MARKS), default=list(_MARKS))
    parser.add_argument("--tx-snr-db", nargs="+", type=float, default=[0.0, 10.0, 20.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16, help="local steps a round")
    parser.add_argument("--out", type=Path, default=Path("outputs/air_accuracy"))
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of the job")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    if not (Path(options.assets) / "sst2").is_dir() and not options.overrides:
        console.print(
            "skipped: there is no SST-2 here; set DEFT_ASSETS or --assets to a folder with sst2/"
        )
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    cells = list(cells_of(options.schemes, options.tx_snr_db))
    columns = (TextColumn("federations"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(cells) * len(options.seeds))
        for seed in options.seeds:
            words = [
                "experiment=sst2_emulator",
                f"assets={options.assets}",
                f"strategy.num_rounds={options.rounds}",
                f"finetune.max_steps={options.steps}",
                "strategy.references=[]",
                f"seed={seed}",
                *options.overrides,
            ]
            bench = prepare(load_config(shlex.join(words)))
            start = bench.full.read()
            for scheme, tx_snr_db in cells:
                rows.append(run_cell(bench, start, words, scheme, tx_snr_db))
                save(rows, options.out / "air_accuracy.json")
                progress.advance(bar)
    summary = summarise(rows)
    draw(summary, options.out / "air_accuracy.png")
    show(summary)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
