"""Runs the main job in this process: no Ray, no SuperLink, nothing to start.

``python -m scripts.simulate strategy.num_rounds=4 seed=1 --json result.json``
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fl_app.client_app import app
from fl_app.config import load_config
from fl_app.errors import DeftError
from fl_app.local_grid import LocalGrid
from fl_app.main_job import run_main_job
from fl_app.server_app import start_logging


def simulate(overrides: str, grid_of: Callable[..., LocalGrid] = LocalGrid) -> int:
    """Runs one job on the in-process grid; returns the number of failed runs, 0 or 1.

    Args:
        overrides: Hydra overrides in one string.
        grid_of: makes the grid from what ``LocalGrid`` takes.
    """
    start_logging()
    try:
        num_nodes = load_config(overrides).federation.num_devices
    except DeftError:
        num_nodes = 1  # the job itself reports what is wrong with the configuration
    with grid_of(app, num_nodes=num_nodes, run_config={"overrides": overrides}) as grid:
        try:
            run_main_job(grid, overrides)
        except DeftError:
            return 1  # already logged and written to result.json
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides")
    parser.add_argument("--json", type=Path, help="copy result.json to this file")
    options = parser.parse_args(argv)
    words = list(options.overrides)
    if options.json and not any(word.startswith("output.dir=") for word in words):
        words.append(f"output.dir={options.json.resolve().parent / options.json.stem}")
    failed = simulate(shlex.join(words))
    if options.json:
        folder = next(w.removeprefix("output.dir=") for w in words if w.startswith("output.dir="))
        shutil.copy(Path(folder) / "result.json", options.json)
    return failed


if __name__ == "__main__":
    sys.exit(main())
