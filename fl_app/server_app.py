"""Flower's ServerApp: runs the main job on Flower's grid."""

import logging
import shutil
import sys

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from clients.cache import run_cache_root

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the configured federation; a run that fails raises, after its result is written."""
    from fl_app.main_job import run_main_job

    start_logging()
    try:
        run_main_job(grid, str(context.run_config.get("overrides", "")))
    finally:
        # Simulated devices keep their downloads for one run; real ones have a folder elsewhere.
        shutil.rmtree(run_cache_root(context.run_id), ignore_errors=True)


def start_logging() -> None:
    """Sends this project's log lines to stdout, plain, for people who watch the run."""
    logger = logging.getLogger("deft")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
