"""Picture and table of ``scripts.connection_accuracy``."""

import shutil
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
_COLOURS = {False: "#b3541e", True: "#1f6f8b"}
_MARKERS = {False: "o", True: "s"}
_LINES = ("-", ":", "--", "-.")
"""One for each peak limit, in the order given."""


def draw(summary: list[Row], target: Path, title: str) -> None:
    """Draws accuracy against tx-SNR; the run without a channel is a horizontal line."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    finite = sorted(
        {e["tx_snr_db"] for e in summary if isinstance(e["tx_snr_db"], int | float)}, key=float
    )
    step = finite[1] - finite[0] if len(finite) > 1 else 5.0
    places: dict[float | str, float] = {value: float(value) for value in finite}
    if any(entry["tx_snr_db"] == "inf" for entry in summary):
        places["inf"] = (finite[-1] if finite else 0.0) + step
    for entry in summary:
        if entry["tx_snr_db"] is None:
            level, spread = 100.0 * entry["accuracy"], 100.0 * (entry["std"] or 0.0)
            axes.axhspan(level - spread, level + spread, color="0.88", lw=0)
            axes.axhline(level, color="0.35", ls="--", lw=1.2, label="no channel")
    series = list(dict.fromkeys((e["peak_db"], e["rotation"]) for e in summary if _has_channel(e)))
    limits = list(dict.fromkeys(peak_db for peak_db, _ in series))
    for number, (peak_db, rotation) in enumerate(series):
        points = sorted(
            (places[e["tx_snr_db"]], 100.0 * e["accuracy"], 100.0 * (e["std"] or 0.0))
            for e in summary
            if _has_channel(e) and (e["peak_db"], e["rotation"]) == (peak_db, rotation)
        )
        width = 0.012 * (max(places.values()) - min(places.values()))
        shift = width * (2 * number + 1 - len(series))
        x, y, error = zip(*points, strict=True)
        axes.errorbar(
            [value + shift for value in x],
            y,
            yerror := list(error) if any(error) else None,
            color=_COLOURS[rotation],
            marker=_MARKERS[rotation],
            ls=_LINES[limits.index(peak_db) % len(_LINES)],
            ms=5,
            lw=1.5,
            capsize=3 if yerror else 0,
            label=f"rotation {'on' if rotation else 'off'}, {_limit(peak_db)}",
        )
    axes.set_xticks(list(places.values()), [_tick(value) for value in places])
    axes.set_xlabel("tx-SNR of the device [dB]")
    axes.set_ylabel("accuracy [%]")
    axes.set_title(title, fontsize=10)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(target, dpi=150)
    plt.close(figure)


def _has_channel(entry: Row) -> bool:
    return entry["tx_snr_db"] is not None


def _limit(peak_db: float | None) -> str:
    return "no peak limit" if peak_db is None else f"peaks {peak_db:g} dB"


def _tick(value: float | str) -> str:
    return "\u221e" if value == "inf" else f"{value:g}"


def show(summary: list[Row]) -> None:
    """Prints the table."""
    table = Table(title="accuracy, mean +- standard deviation over seeds")
    for column in ("tx-SNR [dB]", "peaks [dB]", "rotation", "accuracy [%]", "seeds"):
        table.add_column(column, justify="right")
    for entry in summary:
        spread = "" if entry["std"] is None else f" +- {100 * entry['std']:.1f}"
        name = "no channel" if entry["tx_snr_db"] is None else _tick(entry["tx_snr_db"])
        rotation = "-" if entry["tx_snr_db"] is None else ("on" if entry["rotation"] else "off")
        accuracy = f"{100 * entry['accuracy']:.1f}{spread}"
        peak = "-" if entry["peak_db"] is None else f"{entry['peak_db']:g}"
        table.add_row(name, peak, rotation, accuracy, str(entry["seeds"]))
    Console(width=max(72, shutil.get_terminal_size().columns)).print(table)
