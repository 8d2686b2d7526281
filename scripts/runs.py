"""Runs in this process into folders of their own, each made once."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from fl_app.errors import DeftError
from fl_app.local_grid import LocalGrid
from fl_app.result import RunResult, read_result
from scripts.simulate import simulate


def finished(folder: Path, words: Sequence[str]) -> RunResult | None:
    """Returns the result of a run of these overrides that ended well; others are made again."""
    try:
        result = read_result(folder)
        first = (folder / "config.yaml").read_text(encoding="utf-8").splitlines()[0]
    except (DeftError, OSError):
        return None
    same = first == f"# overrides: {overrides_of(words, folder)}"
    return result if same and result.verdict == "ok" else None


def overrides_of(words: Sequence[str], folder: Path) -> str:
    """Returns the override string of a run into this folder."""
    return shlex.join([*words, f"output.dir={folder}"])


def made(
    words: Sequence[str], folder: Path, grid_of: Callable[..., LocalGrid] = LocalGrid
) -> RunResult | None:
    """Makes one run; returns its result, None where it failed.

    Args:
        words: overrides.
        folder: of the run.
        grid_of: makes the grid, see ``simulate``.
    """
    simulate(overrides_of(words, folder), grid_of)
    return finished(folder, words)
