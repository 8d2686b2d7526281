"""Error of every power control against tx-SNR: ``python -m scripts.air_nmse --out outputs/nmse``.

K devices send independent Gaussian updates of different sizes and weights through Rayleigh fading.
All curves of a panel meet the same channels and updates. The mean error of zero forcing diverges
over Rayleigh fading: its points hang on the deepest fade drawn and move with the seed, and may even
lie above those with imperfect CSI. So its median round is drawn as well (dotted).

Per point the script keeps, over all draws of channel and updates,

* realised NMSE: mean squared error over mean energy of the exact weighted mean (points);
* expected NMSE: its mean over the receiver's noise for these channels and updates, whose standard
  error follows from the noise alone (bars: five of them);
* predicted NMSE: the closed form, which looks at no symbol (lines).

A point is refused if it lies more than five standard errors from its expectation. With 30 draws or
more the same holds for realised minus predicted, round by round, whose standard error is measured.
One-bit voting (OBDA) returns signs and no mean: it has an error rate and no NMSE, so it is left
out. ``air_nmse.json`` and ``air_nmse.png`` are written; the exit code is 1 if a point is refused.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fl_app.report import canvas
from fl_app.report.canvas import FAINT, INK
from fl_app.wireless.units import linear_to_db
from scripts.nmse_curves import (
    CSI_ERRORS,
    FADING,
    LIMIT,
    ROUNDING,
    SCHEMES,
    TX_SNRS_DB,
    Curve,
    measure,
)

_INF_AT, _INF_REACH = 35.5, 2.0
"""Where tx-SNR ``inf`` stands on the axis of dB, and how far a flat marker reaches to each side."""


def draw_plot(curves: Sequence[Curve]) -> bytes:
    """Returns the panels, number of devices down and CSI error across, as a PNG file."""
    settings = list(dict.fromkeys((curve.num_devices, curve.csi_error) for curve in curves))
    num_rows = len(settings) // len(CSI_ERRORS)
    figure, panels = canvas.blank(1.6 + 3.0 * num_rows, num_rows, len(CSI_ERRORS))
    finite = [tx_snr_db for tx_snr_db in TX_SNRS_DB if tx_snr_db < math.inf]
    for axes, setting in zip(panels, settings, strict=True):
        csi = f"CSI error {setting[1]:g}" if setting[1] else "perfect CSI"
        canvas.title(axes, f"{setting[0]} devices, {csi}")
        for curve in curves:
            if (curve.num_devices, curve.csi_error) == setting:
                _draw_curve(axes, curve)
        axes.axvline(
            (finite[-1] + _INF_AT - _INF_REACH) / 2, color=FAINT, linewidth=0.8, linestyle=":"
        )
        axes.set_xlim(-1.5, _INF_AT + _INF_REACH + 0.5)
        axes.set_xticks([*finite, _INF_AT], [*(f"{snr:g}" for snr in finite), "∞"])
    for axes in panels[:: len(CSI_ERRORS)]:
        axes.set_ylabel("NMSE of the mean (dB)", color=INK, fontsize=9)
    for axes in panels[-len(CSI_ERRORS) :]:
        axes.set_xlabel("tx-SNR P / σ² (dB)", color=INK, fontsize=9)
    marks = [
        Line2D([], [], color=scheme.colour, marker=scheme.marker, markersize=6, linewidth=1.5)
        for scheme in SCHEMES.values()
    ]
    figure.legend(
        handles=marks,
        labels=[scheme.label for scheme in SCHEMES.values()],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(
        f"points: realised, mean of {curves[0].num_draws} channel draws, bars of 5 standard "
        "errors; lines: closed form\n"
        "dotted: median round of zero forcing, whose mean hangs on the deepest fade drawn; "
        "∞: without noise, if not exact",
        x=0.01,
        ha="left",
        fontsize=9,
        color=FAINT,
    )
    return canvas.png(figure)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    """Draws the closed form as a line, realised values as points, ``inf`` on a flat marker."""
    scheme = SCHEMES[curve.scheme]
    # Without noise curves coincide; their markers stand side by side.
    place = 2.0 * list(SCHEMES).index(curve.scheme) / (len(SCHEMES) - 1) - 1.0
    places, heights, below, above = [], [], [], []
    for point in curve.points:
        if point.realised_nmse <= ROUNDING:
            continue  # minus infinity in dB
        is_finite = point.tx_snr_db < math.inf
        places.append(point.tx_snr_db if is_finite else _INF_AT + 0.9 * _INF_REACH * place)
        heights.append(linear_to_db(point.realised_nmse))
        reach = LIMIT * point.standard_error / point.realised_nmse
        below.append(-linear_to_db(max(1.0 - reach, 1e-3)))
        above.append(linear_to_db(1.0 + reach))
        if not is_finite:
            level = linear_to_db(point.predicted_nmse)
            ends = [_INF_AT - _INF_REACH, _INF_AT + _INF_REACH]
            axes.plot(ends, [level, level], color=scheme.colour, linewidth=1.5)
    line = [point for point in curve.points if point.tx_snr_db < math.inf]
    axes.plot(
        [point.tx_snr_db for point in line],
        [linear_to_db(point.predicted_nmse) for point in line],
        color=scheme.colour,
        linewidth=1.5,
    )
    if scheme.mean_diverges:
        medians = [linear_to_db(point.median_nmse) for point in line]
        axes.plot(
            [point.tx_snr_db for point in line],
            medians,
            color=scheme.colour,
            linewidth=1.2,
            linestyle=":",
        )
    axes.errorbar(
        places,
        heights,
        yerr=[below, above],
        color=scheme.colour,
        marker=scheme.marker,
        markersize=5.0,
        linestyle="none",
        capsize=2.5,
        elinewidth=1.0,
    )


def show(curves: Sequence[Curve], console: Console) -> None:
    """Prints one line per curve: realised NMSE in dB, and how far it is from where it should be."""
    table = Table(title="realised NMSE in dB by tx-SNR; largest distances in standard errors")
    table.add_column("K", justify="right")
    table.add_column("CSI error", justify="right")
    table.add_column("scheme")
    shown = (0.0, 10.0, 20.0, 30.0, math.inf)
    for tx_snr_db in shown:
        table.add_column(f"{tx_snr_db:g} dB" if tx_snr_db < math.inf else "inf", justify="right")
    for words in ("of expected", "of closed form"):
        table.add_column(words, justify="right")
    table.add_column("verdict")
    for curve in curves:
        figures = [
            f"{linear_to_db(point.realised_nmse):.1f}" if point.realised_nmse > ROUNDING else "-"
            for point in curve.points
            if point.tx_snr_db in shown
        ]
        closed = curve.predicted_errors_off
        table.add_row(
            str(curve.num_devices),
            f"{curve.csi_error:g}",
            curve.scheme,
            *figures,
            f"{curve.errors_off:.2f}",
            "-" if closed is None else f"{closed:.2f}",
            "ok" if curve.is_ok else "failed",
        )
    console.print(table)


def as_json(curves: Sequence[Curve], *, num_params: int, seed: int) -> dict[str, Any]:
    """Returns every figure; what is infinite becomes the word "inf", of which JSON has no number.

    NMSEs are linear, distances are in standard errors.
    """
    rows = []
    for curve in curves:
        knows_spread = curve.predicted_errors_off is not None
        points = [
            {
                **asdict(point),
                "errors_off": point.errors_off,
                "predicted_errors_off": point.predicted_errors_off if knows_spread else None,
            }
            for point in curve.points
        ]
        rows.append(
            {
                "scheme": curve.scheme,
                "num_devices": curve.num_devices,
                "csi_error": curve.csi_error,
                "num_antennas": SCHEMES[curve.scheme].num_antennas,
                "control": repr(SCHEMES[curve.scheme].control),
                "points": [
                    {key: "inf" if value == math.inf else value for key, value in point.items()}
                    for point in points
                ],
                "largest_errors_off": _word(curve.errors_off),
                "largest_predicted_errors_off": _word(curve.predicted_errors_off),
                "verdict": "ok" if curve.is_ok else "failed",
            }
        )
    return {
        "verdict": "ok" if all(curve.is_ok for curve in curves) else "failed",
        "limit_in_standard_errors": LIMIT,
        "seed": seed,
        "num_draws": curves[0].num_draws,
        "num_params": num_params,
        "fading": asdict(FADING),
        "left_out": {"obda": "one-bit voting returns signs: it has an error rate and no NMSE"},
        "curves": rows,
    }


def _word(value: float | None) -> float | str | None:
    return "inf" if value == math.inf else value


def main(words: list[str] | None = None) -> int:
    """Parses the command line, runs all panels, writes both files; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 100], metavar="K")
    parser.add_argument("--draws", type=int, default=60, help="rounds averaged, each its channel")
    parser.add_argument("--params", type=int, default=2000, help="reals of one update")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/air_nmse"), metavar="DIR")
    chosen = parser.parse_args(words)
    for name, least in (("devices", 1), ("draws", 1), ("params", 2)):
        if np.min(getattr(chosen, name)) < least:
            parser.error(f"--{name} must be >= {least}")
    curves: list[Curve] = []
    with Progress(console=Console(stderr=True)) as progress:
        for num_devices in dict.fromkeys(chosen.devices):
            for csi_error in CSI_ERRORS:
                curves += measure(
                    num_devices,
                    csi_error,
                    num_draws=chosen.draws,
                    num_params=chosen.params,
                    seed=chosen.seed,
                    progress=progress,
                )
    figures = as_json(curves, num_params=chosen.params, seed=chosen.seed)
    chosen.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
    (chosen.out / "air_nmse.json").write_text(text, encoding="utf-8")
    (chosen.out / "air_nmse.png").write_bytes(draw_plot(curves))
    console = Console(width=max(110, shutil.get_terminal_size().columns))
    show(curves, console)
    console.print("one-bit voting (obda) has an error rate and no NMSE: left out")
    console.print(f"verdict {figures['verdict']}; figures and picture in {chosen.out}")
    return 0 if figures["verdict"] == "ok" else 1


if __name__ == "__main__":
    sys.exit(main())
