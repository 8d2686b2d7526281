"""Comparison runs, each in a process of its own with the in-process grid.

``python -m fl_app.references --reference centralised --overrides "..." --json FILE`` makes one;
``run_references`` makes several side by side. They never go over the run's own links: what a
comparison with the full model on every device would send is no part of the federation's traffic.
"""

import argparse
import json
import logging
import os
import subprocess  # starts this very module with this very interpreter
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fl_app.errors import RunError

ROOT = Path(__file__).resolve().parent.parent
log = logging.getLogger("deft")


def run_references(names: Sequence[str], overrides: str) -> dict[str, float]:
    """Makes comparison runs side by side, one per core.

    Args:
        names: which, see ``fl_app.variants.REFERENCES``.
        overrides: the run's own overrides.

    Returns:
        The measure of each on all test rows.

    Raises:
        RunError: a comparison run failed.
    """
    if not names:
        return {}
    workers = min(len(names), os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        jobs = {
            name: pool.submit(_spawn, name, overrides, Path(folder) / f"{name}.json")
            for name in names
        }
        return {name: job.result() for name, job in jobs.items()}


def _spawn(name: str, overrides: str, output: Path) -> float:
    log.info("comparison run '%s' starts", name)
    command = [sys.executable, "-m", "fl_app.references"]
    command += ["--reference", name, "--overrides", overrides, "--json", str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(  # noqa: S603  # our own module, no shell
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RunError(f"comparison run '{name}' failed:\n{done.stderr[-2000:]}")
    value = float(json.loads(output.read_text())["measure"])
    log.info("comparison run '%s': %.4g", name, value)
    return value


def run_reference(name: str, overrides: str) -> float:
    """Makes one comparison run in this process and returns its measure on all test rows."""
    from fl_app.bench import prepare
    from fl_app.client_app import app
    from fl_app.config import load_config
    from fl_app.job import federate, require_progress
    from fl_app.local_grid import LocalGrid
    from fl_app.measures import measure_plug_in
    from fl_app.variants import as_reference

    run = load_config(overrides)
    config = as_reference(run, name)
    bench = prepare(config, like=run)
    if name == "frozen" and config.model.task == "causal_lm":
        return measure_plug_in(bench, bench.full.read(), bench.test)
    run_config = {"overrides": overrides, "reference": name}
    with LocalGrid(app, num_nodes=config.federation.num_devices, run_config=run_config) as grid:
        outcome = federate(grid, bench, measure_rounds=False)
    require_progress(outcome)
    return measure_plug_in(bench, outcome.adapter, bench.test)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Makes one comparison run.")
    parser.add_argument("--reference", required=True)
    parser.add_argument("--overrides", default="")
    parser.add_argument("--json", required=True, type=Path)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    value = run_reference(options.reference, options.overrides)
    options.json.write_text(json.dumps({"reference": options.reference, "measure": value}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
