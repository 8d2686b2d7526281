"""The schedule in words: a table of the last round, printed at the end of a run."""

import io

from rich import box
from rich.console import Console
from rich.table import Table

from fl_app.result import RunResult


def schedule_table(result: RunResult) -> str:
    """Returns who tuned what how long in the last round; empty without a schedule."""
    schedule = result.schedule
    if schedule is None or not schedule["rounds"]:
        return ""
    rounds = schedule["rounds"]
    last = rounds[-1]
    mean = sum(one["seconds"] for one in rounds) / len(rounds)
    table = Table(
        title=f"round {last['round']} by schedule {schedule['way']}, as predicted",
        caption=f"this round {last['seconds']:.4g} s, a round on average {mean:.4g} s",
        box=box.SIMPLE,
        title_justify="left",
        caption_justify="left",
    )
    for words in ("device", "blocks", "band kHz", "computing s", "uplink s", "finish s"):
        table.add_column(words, justify="right")
    for turn in last["turns"]:
        figures = (
            turn["bandwidth_hz"] / 1e3,
            turn["compute_s"],
            turn["uplink_s"],
            turn["compute_s"] + turn["uplink_s"],
        )
        blocks = ", ".join(map(str, turn["blocks"]))
        table.add_row(str(turn["device"]), blocks, *(f"{value:.4g}" for value in figures))
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    return text.getvalue()
