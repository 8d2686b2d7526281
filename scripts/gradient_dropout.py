"""Devices killed between features and gradients: ``python -m scripts.gradient_dropout --kill 2``.

Runs ``experiment=sst2_gradient`` (or another, ``--experiment``) per seed twice in this process:
undisturbed, and with as many devices, drawn anew every round, that send their features of a local
step drawn anew too and are never heard of again in that round. Prints the accuracy of both and whom
the report books as dropped. Runs that are there already are not made again.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typing_extensions import override

from fl_app.config import load_config
from fl_app.features_wire import GRADIENT, MAX_BYTES, STATES
from fl_app.local_grid import LocalGrid
from fl_app.payload import read_payload
from fl_app.seeding import generator
from fl_app.step_wire import ACTION_STEP, read_step
from scripts.runs import finished, made

_TIMEOUT_S = 1.0
"""In one process answers are there when the messages are sent: only the dead are waited for."""


def doomed(
    seed: int, server_round: int, *, num_devices: int, kill: int, num_steps: int
) -> dict[int, int]:
    """Returns who vanishes in a round: device to the local step it happens in."""
    rng = generator(seed, "dropout", server_round)
    devices = sorted(rng.permutation(num_devices)[:kill].tolist())
    return dict(zip(devices, rng.integers(num_steps, size=kill).tolist(), strict=True))


class DroppingGrid(LocalGrid):
    """An in-process grid on which devices vanish after they sent features.

    Args:
        *arguments: see ``LocalGrid``.
        kill: devices that vanish in every round.
        num_devices: devices of the federation, >= kill.
        num_steps: local steps of a round; the last step a device lives to see is drawn from them.
        seed: of the draws.
        **options: see ``LocalGrid``.
    """

    def __init__(
        self,
        *arguments: Any,
        kill: int,
        num_devices: int,
        num_steps: int,
        seed: int,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._doomed = partial(
            doomed, seed, num_devices=num_devices, kill=kill, num_steps=num_steps
        )

    @override
    def deliver(self, message: Any) -> list[Any]:
        """Loses what answers a doomed device's features, and the device with it."""
        if message.metadata.message_type == ACTION_STEP:
            order = read_step(message)
            last = self._doomed(order.round).get(order.device)
            payload = read_payload(order.blob, max_bytes=MAX_BYTES)
            if last is not None and payload.kind in (STATES, GRADIENT) and payload.step >= last:
                return []
        return super().deliver(message)


def compare(words: list[str], kill: int, out: Path) -> dict[str, Any] | None:
    """Makes both runs of one seed.

    Args:
        words: overrides of both.
        kill: devices that vanish in every round of the second.
        out: folder of their folders.

    Returns:
        The metric of both on all test rows, and the devices booked as dropped: reason to devices
        for every round. None where a run failed.
    """
    config = load_config(shlex.join(words))
    dropping = partial(
        DroppingGrid,
        kill=kill,
        num_devices=config.federation.num_devices,
        num_steps=config.finetune.max_steps or 1,
        seed=config.seed,
    )
    cut_short = [*words, f"strategy.exchange_timeout_s={_TIMEOUT_S}"]
    places = [out / f"kill{number}-seed{config.seed}" for number in (0, kill)]
    whole = finished(places[0], words) or made(words, places[0])
    broken = finished(places[1], cut_short) or made(cut_short, places[1], dropping)
    if whole is None or broken is None:
        return None
    return {
        "seed": config.seed,
        "metric": whole.metric.name,
        "undisturbed": whole.final["plug_in"],
        "killed": broken.final["plug_in"],
        "dropped": {str(record.round): dict(record.dropped) for record in broken.rounds[1:]},
        "undisturbed_dropped": {str(r.round): dict(r.dropped) for r in whole.rounds[1:]},
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    metric = rows[0]["metric"]
    table = Table(title=f"{metric} on all test rows")
    for column in ("seed", "undisturbed", "devices killed", "difference", "dropped, by round"):
        table.add_column(column, overflow="fold")
    for row in rows:
        booked = "; ".join(
            f"{number}: " + ", ".join(f"{reason} {devices}" for reason, devices in by.items())
            for number, by in row["dropped"].items()
        )
        both = row["undisturbed"], row["killed"]
        figures = [*(f"{value:.4f}" for value in both), f"{both[1] - both[0]:+.4f}"]
        table.add_row(str(row["seed"]), *figures, booked)
    console = Console(width=max(100, shutil.get_terminal_size().columns))
    console.print(table)
    mean = statistics.fmean(row["killed"] - row["undisturbed"] for row in rows)
    console.print(f"mean difference {mean:+.4f} over {len(rows)} seeds")


def main(arguments: list[str] | None = None) -> int:
    """Makes what is missing and reports; returns 1 where a run failed, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--experiment", default="sst2_gradient")
    parser.add_argument("--assets", default=os.environ.get("DEFT_ASSETS", ""), metavar="DIR")
    parser.add_argument("--kill", type=int, default=2, help="devices a round")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/gradient_dropout"))
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of every run")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    if not Path(options.assets).is_dir() and not options.overrides:
        console.print("skipped: set DEFT_ASSETS or --assets to a folder with models and data")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    columns = (TextColumn("seeds"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(options.seeds))
        for seed in options.seeds:
            words = [
                f"experiment={options.experiment}",
                f"assets={options.assets}",
                "strategy.references=[]",
                f"seed={seed}",
                *options.overrides,
            ]
            if (row := compare(words, options.kill, options.out)) is not None:
                rows.append(row)
                text = json.dumps(rows, indent=2, allow_nan=False)
                (options.out / "gradient_dropout.json").write_text(text + "\n", encoding="utf-8")
            progress.advance(bar)
    if rows:
        show(rows)
    return int(len(rows) < len(options.seeds))


if __name__ == "__main__":
    raise SystemExit(main())
