"""Words and numbers of the report: formats, the ladder's rungs, the summary, the final table.

Everything is oriented by the metric: "better" is up for accuracy and down for perplexity.
"""

import io
import math

from rich import box
from rich.console import Console
from rich.table import Table

from fl_app.report.wording import wording_of
from fl_app.result import Metric, RunResult

NOT_RUN = "not run"
_ALWAYS = ("downlink_bytes", "uplink_bytes")
"""Totals that are printed even where nothing was sent."""


def human_bytes(num_bytes: float) -> str:
    """Returns a byte count in decimal units, for example ``"22.7 MB"`` (1 MB = 10^6 bytes)."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        digits = 0 if unit == "B" else 1
        # Compare what will be printed: 999 960 bytes must not become "1000.0 kB".
        if round(abs(value), digits) < 1000:
            return f"{value:.{digits}f} {unit}"
        value /= 1000
    return f"{value:.1f} PB"


def human_seconds(seconds: float) -> str:
    """Returns a duration in the units a person would use, for example ``"3 min 12 s"``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def direction(metric: Metric) -> str:
    """Returns ``"higher is better"`` or ``"lower is better"``."""
    return "higher is better" if metric.higher_is_better else "lower is better"


def format_score(metric: Metric, value: float | None) -> str:
    """Returns a value of the metric as printed: accuracy in percent, others with two decimals."""
    if value is None:
        return NOT_RUN
    if not math.isfinite(value):
        return "not finite"
    return f"{100 * value:.1f} %" if metric.name == "accuracy" else f"{value:,.2f}"


def format_difference(metric: Metric, before: float | None, after: float | None) -> str:
    """Returns how much better ``after`` is than ``before``, for example ``"+4.2 points"``.

    Positive is better whatever the metric. Empty where one of the two is missing.
    """
    gain = _gain(metric, before, after)
    if gain is None:
        return ""
    sign = "-" if gain < 0 else "+"
    return f"{sign}{_amount(metric, gain)}"


def compare(metric: Metric, before: float | None, after: float | None) -> str | None:
    """Returns ``"4.2 points better than"`` and the like, or None where one of the two is missing.

    Values that print alike are called ``"level with"``.
    """
    gain = _gain(metric, before, after)
    if gain is None:
        return None
    if gain == 0:
        return "level with"
    return f"{_amount(metric, gain)} {'better' if gain > 0 else 'worse'} than"


def gap_words(metric: Metric, plug_in: float | None, full: float | None) -> str | None:
    """Returns the plug-in gap in words, or None where one of the two figures is missing.

    The gap is what full fine-tuning is better by; where it is worse there is no gap.
    """
    gain = _gain(metric, plug_in, full)
    if gain is None:
        return None
    if gain > 0:
        return _amount(metric, gain)
    return f"none ({_amount(metric, gain)} ahead)" if gain < 0 else "none"


def summary(result: RunResult) -> list[str]:
    """Returns the outcome in words: a headline, then one comparison per figure that was run.

    Empty where the plug-in figure itself is missing.
    """
    metric, final, words = result.metric, result.final, wording_of(result)
    if final["plug_in"] is None:
        return []
    headline = (
        f"{words.headline} {metric.name} "
        f"{format_score(metric, final['plug_in'])} ({direction(metric)})."
    )
    comparisons = (
        (compare(metric, final[key], final["plug_in"]), other)
        for key, other in words.compared_with.items()
    )
    return [headline, *(f"{how} {other}" for how, other in comparisons if how is not None)]


def final_table(result: RunResult) -> str:
    """Returns the table printed at the end of a run, 88 columns wide, without colour."""
    metric, final, ledger = result.metric, result.final, result.ledger
    wording = wording_of(result)
    figures = Table(box=box.SIMPLE_HEAD, width=88, pad_edge=False, show_edge=False)
    figures.add_column(f"{metric.name} ({direction(metric)})", ratio=1)
    figures.add_column("value", justify="right")
    figures.add_column("better than (a) by", justify="right")
    for rung in wording.ladder:
        gain = (
            ""
            if rung.key == "frozen"
            else format_difference(metric, final["frozen"], final[rung.key])
        )
        figures.add_row(rung.label, format_score(metric, final[rung.key]), gain)

    if (ensemble := result.ensemble) is not None:
        mean = ensemble["member_mean"]
        for words, key in (
            ("    mean member of the ensemble", "member_mean"),
            ("    best member of the ensemble", "member_best"),
            (f"    ensemble of {len(ensemble['weights'])}, against the mean member", "ensemble"),
        ):
            gain = "" if key == "member_mean" else format_difference(metric, mean, ensemble[key])
            figures.add_row(words, format_score(metric, ensemble[key]), gain)

    costs = Table(box=None, width=88, pad_edge=False, show_header=False)
    costs.add_column(ratio=1)
    costs.add_column(justify="right")
    for words, key in (
        ("bytes down, all devices", "downlink_bytes"),
        (f"  of these {wording.piece} (once per device)", "emulator_bytes"),
        ("  of these adapters (every round)", "adapter_downlink_bytes"),
        ("  of these last states and gradients (every step)", "gradient_bytes"),
        ("bytes up, all devices", "uplink_bytes"),
        ("  of these features and gradients (every step)", "feature_bytes"),
    ):
        if key in _ALWAYS or ledger.get(key):
            costs.add_row(words, f"{human_bytes(ledger[key])} ({ledger[key]:,} B)")
    if uses := ledger.get("connection_uses"):
        costs.add_row("channel uses of neural connections", f"{uses:,}")
        crossed_s, joules = ledger["connection_seconds"], ledger["connection_joules"]
        back = ledger["connection_server_joules"]
        spent = f"{crossed_s:.3f} s, {joules:.3f} J + {back:.3f} J"
        costs.add_row("  time on air, energy of devices + server", spent)
    if uses := ledger.get("channel_uses"):
        costs.add_row("channel uses up, all devices", f"{uses:,}")
        spent = f"{ledger['radio_seconds']:.3f} s, {ledger['radio_joules']:.3f} J"
        costs.add_row("  time on air, energy transmitted", spent)
    if found := result.transfer:
        costs.add_row(
            "prompts adopted from other devices", f"{found['adopted']} of {found['searches']}"
        )
        size, behind = found["bytes"], found["source_tuning_bytes"]
        costs.add_row("  bytes from device to device", f"{human_bytes(size)} ({size:,} B)")
        costs.add_row(
            "  time on air, energy transmitted",
            f"{found['seconds']:.3f} s, {found['joules']:.3f} J",
        )
        costs.add_row("  bytes of trials at the gate", human_bytes(found["trial_bytes"]))
        costs.add_row("  bytes of tuning behind what was adopted", human_bytes(behind))
    costs.add_row("time", f"{result.seconds:,.1f} s")
    costs.add_row("aggregated rounds", str(sum(bool(record.devices) for record in result.rounds)))

    text = io.StringIO()
    # Plain whatever the terminal: the table also goes through log streams and into files. Markup
    # is off, because a reason may hold brackets.
    console = Console(
        file=text, width=88, color_system=None, markup=False, highlight=False, emoji=False
    )
    console.print(figures)
    console.print()
    console.print(costs)
    console.print()
    console.print(verdict_line(result))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def verdict_line(result: RunResult) -> str:
    """Returns the verdict and, where the run failed, why."""
    return "verdict: ok" if result.reason is None else f"verdict: failed ({result.reason})"


def _decimals(metric: Metric) -> int:
    return 1 if metric.name == "accuracy" else 2


def _amount(metric: Metric, gain: float) -> str:
    """Size of a gain with its unit, without its sign."""
    unit = " points" if metric.name == "accuracy" else ""
    return f"{abs(gain):,.{_decimals(metric)}f}{unit}"


def _gain(metric: Metric, before: float | None, after: float | None) -> float | None:
    """How much better ``after`` prints than ``before``; None where one is missing.

    The printed (rounded) values are subtracted, so that a reader who checks the sums agrees.
    """
    if before is None or after is None or not math.isfinite(before + after):
        return None
    scale = 100 if metric.name == "accuracy" else 1
    sign = 1 if metric.higher_is_better else -1
    decimals = _decimals(metric)
    gain = round(scale * after, decimals) - round(scale * before, decimals)
    return sign * round(gain, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
