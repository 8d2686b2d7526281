"""Pictures of the ensemble scripts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Row = Mapping[str, Any]
_MARKS = {
    "vote": "o",
    "mean": "s",
    "logit_mean": "^",
    "median": "v",
    "weighted": "D",
    "attention": "P",
    "fusion": "X",
}


def draw_triple(summary: Sequence[Row], latencies: Sequence[Row], target: Path) -> None:
    """Draws gain over the mean member against k per task and metric, and latency."""
    panels = list(dict.fromkeys((entry["task"], entry["metric"]) for entry in summary))
    columns = 3
    rows = -(-(len(panels) + 1) // columns)
    figure = Figure(figsize=(10.5, 3.2 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for place, (task, metric) in zip(axes, panels, strict=False):
        own = [e for e in summary if (e["task"], e["metric"]) == (task, metric)]
        for i, name in enumerate(_MARKS):
            line = sorted((e for e in own if e["combiner"] == name), key=lambda e: e["k"])
            if line:
                place.errorbar(
                    [e["k"] + 0.06 * (i - 3) for e in line],
                    [e["gain"] for e in line],
                    yerr=[e["gain_std"] or 0.0 for e in line],
                    marker=_MARKS[name],
                    ms=4,
                    lw=1.3,
                    capsize=2,
                    color=f"C{i}",
                    label=name.replace("_", " "),
                )
        scale = -1 if metric == "perplexity" else 1
        # fusion's windows are not all; those of the others are
        whole = [e for e in own if e["combiner"] != "fusion"]
        best = {e["k"]: scale * (e["member_best"] - e["member_mean"]) for e in whole}
        relative = own[0]["member_mean"] if metric == "perplexity" else 1.0
        place.plot(
            sorted(best),
            [100 * best[k] / relative for k in sorted(best)],
            color="0.4",
            ls="--",
            lw=1.2,
            label="best member",
        )
        place.axhline(0, color="0.8", lw=1)
        place.set_title(f"{task}: {metric}", loc="left", fontsize=10, fontweight="bold")
        unit = "% of perplexity less" if metric == "perplexity" else "points more"
        place.set_ylabel(f"{unit} than the mean member", fontsize=8)
        place.set_xticks(sorted(best))
        place.set_xlabel("members k", fontsize=8)
    time_axes = axes[len(panels)]
    for i, task in enumerate(dict.fromkeys(entry["task"] for entry in latencies)):
        line = sorted((e for e in latencies if e["task"] == task), key=lambda e: e["k"])
        time_axes.plot(
            [e["k"] for e in line],
            [1000 * e["seconds"] for e in line],
            marker="o",
            ms=4,
            lw=1.3,
            color=f"C{i}",
            label=task,
        )
        fused = [e for e in line if e["fusion_seconds"] is not None]
        time_axes.plot(
            [e["k"] for e in fused],
            [1000 * e["fusion_seconds"] for e in fused],
            marker="X",
            ms=4,
            lw=1.0,
            ls=":",
            color=f"C{i}",
            label=f"{task}, fusion" if fused else None,
        )
    time_axes.set_title("one query, one pass", loc="left", fontsize=10, fontweight="bold")
    time_axes.set_ylabel("ms, one thread", fontsize=8)
    time_axes.set_xlabel("members k", fontsize=8)
    time_axes.set_ylim(bottom=0)
    time_axes.set_xticks(sorted({e["k"] for e in latencies}))
    time_axes.legend(frameon=False, fontsize=8)
    for place in axes[len(panels) + 1 :]:
        place.set_visible(False)
    for place in axes:
        place.grid(color="0.93")
        place.set_axisbelow(True)
        place.tick_params(labelsize=8)
        place.spines[["top", "right"]].set_visible(False)
    handles: dict[str, Any] = {}
    for place in axes[: len(panels)]:
        drawn, names = place.get_legend_handles_labels()
        handles |= dict(zip(names, drawn, strict=True))
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=8, frameon=False, fontsize=8
    )
    figure.savefig(target, dpi=150)


def draw_online(curves: Row, target: Path) -> None:
    """Draws regret under its bound, and who is there."""
    figure = Figure(figsize=(8.4, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    queries = range(1, len(curves["regret"]) + 1)
    upper.plot(queries, curves["bound"], color="0.3", ls="--", lw=1.4, label="bound: ln N")
    upper.plot(queries, curves["regret"], color="C0", lw=1.8, label="largest regret, weighted")
    upper.plot(queries, curves["uniform"], color="C1", lw=1.2, label="largest regret, uniform")
    upper.axhline(0, color="0.85", lw=1)
    ceiling = max(curves["bound"])
    upper.set_yscale("symlog", linthresh=max(1.5 * ceiling, 1.0), linscale=2.0)
    upper.set_ylim(bottom=-0.5 * max(ceiling, 1.0))
    upper.set_xlim(0, len(curves["regret"]))
    upper.set_ylabel("nats, summed over queries", fontsize=9)
    upper.set_title(
        "Regret against every member over the queries it was present at",
        loc="left",
        fontsize=11,
        fontweight="bold",
    )
    upper.legend(frameon=False, fontsize=9)
    for j, stays in enumerate(curves["stays"]):
        for first, last in stays:
            colour = "C3" if j in curves["hostile"] else "C0"
            lower.plot([first + 1, last + 1], [j, j], color=colour, lw=4, solid_capstyle="butt")
    lower.set_yticks(range(len(curves["stays"])))
    lower.set_ylabel("member", fontsize=9)
    words = "when members are present" + (" (red: hostile)" if curves["hostile"] else "")
    lower.set_title(words, loc="left", fontsize=10)
    lower.set_xlabel("query", fontsize=9)
    for axes in (upper, lower):
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=150)
