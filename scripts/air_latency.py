"""Seconds and joules of a round against the number of devices, in the air and over OFDMA.

``python -m scripts.air_latency --out outputs/latency``. Every device sends ``--params`` reals to
the server in a band of B complex channel uses a second:

* AirComp: two reals per channel use, all devices at once, zero forcing: ceil(q / 2) / B seconds,
  after the mean and deviation of each of ``--tensors`` tensors, which go over OFDMA and take time
  proportional to K, more than the symbols where K is large (dashes: the symbols alone).
* OFDMA: Q bits per real at the Shannon rate of the device's share B / K of the band; the round ends
  with the slowest device. Coding is ideal and nobody is dropped.

The drawn line is the identity T_OFDMA / T_Air = 2 K Q / log2(1 + gamma), gamma the receive SNR of
the slowest device; points also count side information, two numbers of every tensor in both ways.
Left every device has the same receive SNR, right devices stand in a cell (path loss and shadowing,
no fading) and points are means over placements, with bars from the smallest to the largest. There
OFDMA is shown twice: with the power density of a device that fills the band, P / B, which is the
identity's (and that of AirComp's side information), and with all of its power P in its own share,
so that its SNR is K times higher.

A channel use costs P / B joules wherever power has the density P / B, in the air as in OFDMA; a
device with all of P in its share costs P times the seconds that it sends. Circuits are not counted.
Time is not all: AirComp's seconds do not depend on the SNR, its error does. ``aircomp_nmse`` is the
one of independent updates of equal size and weight, 1 / (K gamma), gamma of the weakest device.
``air_latency.json`` and ``air_latency.png`` are written.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fl_app.report import canvas
from fl_app.report.canvas import FAINT, INK
from fl_app.wireless.cell import Cell
from fl_app.wireless.codes import SIDE_BITS
from fl_app.wireless.units import dbm_to_watt
from scripts.latency_costs import CELL, FIXED, KINDS, Payload, measure

_IDENTITY = "identity: 2KQ / log2(1 + \N{GREEK SMALL LETTER GAMMA}) times AirComp's symbols"


@dataclass(frozen=True)
class Way:
    """One way to send a round: its words in the legend, colour and marker."""

    label: str
    colour: str
    marker: str


WAYS: Mapping[str, Way] = {
    "aircomp": Way("AirComp", "#0068a8", "o"),
    "ofdma": Way("OFDMA, power density P / B", "#c25100", "s"),
    "ofdma_all_power": Way("OFDMA, power P in own share (cell only)", "#00795a", "^"),
}


def draw_plot(rows: Mapping[str, Sequence[Mapping[str, Any]]], titles: Sequence[str]) -> bytes:
    """Returns seconds above joules, fixed SNR left and cell right, as a PNG file."""
    figure, panels = canvas.blank(7.0, 2, 2)
    for column, (setting, title) in enumerate(zip((FIXED, CELL), titles, strict=True)):
        canvas.title(panels[column], title)
        counts = [row["num_devices"] for row in rows[setting]]
        for axes, kind in ((panels[column], "seconds"), (panels[2 + column], "joules")):
            for name, way in WAYS.items():
                if setting == FIXED and name == "ofdma_all_power":
                    continue  # its SNR would not be the fixed one
                spreads = [row[kind][name] for row in rows[setting]]
                means = np.array([spread["mean"] for spread in spreads])
                low = means - [spread["smallest"] for spread in spreads]
                high = np.array([spread["largest"] for spread in spreads]) - means
                axes.errorbar(  # ways that cost the same at K = 1 stand side by side
                    np.array(counts) * (1.08 if name == "ofdma_all_power" else 1.0),
                    means,
                    yerr=None if setting == FIXED else np.maximum([low, high], 0.0),  # rounding
                    color=way.colour,
                    marker=way.marker,
                    markersize=5.0,
                    linestyle="none" if (kind, name) == ("seconds", "ofdma") else ":",
                    linewidth=1.0,
                    elinewidth=1.0,
                    capsize=2.5,
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.minorticks_off()
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        line = [row["identity_s"]["mean"] for row in rows[setting]]
        panels[column].plot(counts, line, color=INK, linewidth=1.3, zorder=1.5)
        alone = [row["symbols_s"]["mean"] for row in rows[setting]]
        panels[column].plot(counts, alone, color=WAYS["aircomp"].colour, linestyle="--", lw=1.0)
        panels[2 + column].set_xlabel("devices K", color=INK, fontsize=9)
    panels[0].set_ylabel("airtime of a round (s)", color=INK, fontsize=9)
    panels[2].set_ylabel("transmit energy, all devices (J)", color=INK, fontsize=9)
    marks = [
        Line2D([], [], color=way.colour, marker=way.marker, linestyle=":", linewidth=1.0)
        for way in WAYS.values()
    ]
    figure.legend(
        handles=[
            *marks,
            Line2D([], [], color=INK, linewidth=1.3),
            Line2D([], [], color=WAYS["aircomp"].colour, linestyle="--", linewidth=1.0),
        ],
        labels=[
            *(way.label for way in WAYS.values()),
            _IDENTITY,
            "AirComp without side information",
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(
        "points: means; bars: from the smallest to the largest of all placements",
        x=0.01,
        ha="left",
        fontsize=9,
        color=FAINT,
    )
    return canvas.png(figure)


def show(rows: Mapping[str, Sequence[Mapping[str, Any]]], console: Console) -> None:
    """Prints means by setting and number of devices."""
    table = Table(title="airtime and transmit energy of a round; means over placements")
    for words in ("setting", "K", "AirComp s", "OFDMA s", "identity s", "own share s"):
        table.add_column(words, justify="left" if words == "setting" else "right")
    for words in ("AirComp J", "OFDMA J", "own share J", "AirComp NMSE dB"):
        table.add_column(words, justify="right")
    for setting, members in rows.items():
        for row in members:
            seconds, joules = ([row[kind][way]["mean"] for way in WAYS] for kind in KINDS)
            figures = [*seconds[:2], row["identity_s"]["mean"], seconds[2], *joules]
            nmse_db = 10.0 * np.log10(row["aircomp_nmse"]["mean"])
            cells = [f"{figure:.4g}" for figure in figures]
            if setting == FIXED:
                cells[3] = cells[6] = "-"
            table.add_row(setting, str(row["num_devices"]), *cells, f"{nmse_db:.1f}")
    console.print(table)


def main(words: list[str] | None = None) -> int:
    """Parses the command line, writes both files and prints a table; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--params", type=int, default=200_000, help="reals of one update")
    parser.add_argument("--tensors", type=int, default=12, help="tensors of one update")
    parser.add_argument("--bits", type=int, default=16, help="bits per real over OFDMA")
    parser.add_argument("--bandwidth-hz", type=float, default=1e6)
    parser.add_argument("--snr-db", type=float, default=10.0, help="receive SNR, fixed for all")
    parser.add_argument("--power-dbm", type=float, default=23.0, help="transmit power of a device")
    parser.add_argument("--placements", type=int, default=20, help="placements in the cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/air_latency"), metavar="DIR")
    chosen = parser.parse_args(words)
    if min(chosen.params, chosen.tensors, chosen.placements) < 1 or not 1 <= chosen.bits <= 24:
        parser.error("--params, --tensors and --placements must be >= 1, --bits 1..24")
    if not 0.0 < chosen.bandwidth_hz < np.inf or not np.isfinite(chosen.snr_db + chosen.power_dbm):
        parser.error("--bandwidth-hz must be finite and > 0, --snr-db and --power-dbm finite")
    load = Payload(
        num_params=chosen.params,
        num_tensors=chosen.tensors,
        bits=chosen.bits,
        bandwidth_hz=chosen.bandwidth_hz,
    )
    with Progress(console=Console(stderr=True)) as progress:
        rows = measure(
            load,
            snr_db=chosen.snr_db,
            power_w=dbm_to_watt(chosen.power_dbm),
            num_placements=chosen.placements,
            seed=chosen.seed,
            progress=progress,
        )
    options = {name: value for name, value in vars(chosen).items() if name != "out"}
    figures = {"options": options, "side_bits": SIDE_BITS, "settings": rows}
    chosen.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2, allow_nan=False)
    (chosen.out / "air_latency.json").write_text(text + "\n", encoding="utf-8")
    fixed = f"every device at {chosen.snr_db:g} dB receive SNR"
    cell = f"cell of {Cell().radius_m:g} m, {chosen.power_dbm:g} dBm"
    (chosen.out / "air_latency.png").write_bytes(draw_plot(rows, (fixed, cell)))
    console = Console(width=max(120, shutil.get_terminal_size().columns))
    show(rows, console)
    console.print(f"figures and picture in {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
