"""The report of a run: plots, one self-contained web page and the table printed at the end."""

from pathlib import Path

from fl_app.report.page import render_page
from fl_app.report.schedule_text import schedule_table
from fl_app.report.text import final_table, human_bytes
from fl_app.result import RunResult

__all__ = ["final_table", "human_bytes", "schedule_table", "write_report"]


def write_report(folder: Path, result: RunResult) -> None:
    """Writes ``report.html`` and the plots it shows as PNG files.

    The page needs nothing beside it: the plots are embedded. Plots without data (a run that failed
    early has none) are left out.

    Args:
        folder: the run's output folder; created if it does not exist.
        result: an ok or a failed result.
    """
    # Imported here, because matplotlib takes a second that only the end of a run should pay.
    from fl_app.report.plots import draw_plots

    folder.mkdir(parents=True, exist_ok=True)
    plots = draw_plots(result)
    for name, content in plots.items():
        (folder / name).write_bytes(content)
    (folder / "report.html").write_text(render_page(result, plots), encoding="utf-8")
