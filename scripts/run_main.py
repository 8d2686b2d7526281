"""Runs the main job: a real ``flwr run . --stream`` on simulated devices.

``python -m scripts.run_main [OVERRIDE ...]`` exits 0 only if the run's own verdict is "ok".
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from fl_app.config import load_config
from fl_app.errors import DeftError
from fl_app.result import make_folder
from scripts.flower import ROOT, LocalFlower, Outcome, absolute_paths, say
from scripts.sandbox import interruptible

OUTPUTS = ROOT / "outputs"
INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


def choose_output_dir(overrides: Sequence[str], outputs: Path = OUTPUTS) -> Path:
    """Makes the folder of a new run and points ``latest`` in ``outputs`` to it.

    Args:
        overrides: An ``output.dir=`` among them is the folder; the last one counts.
        outputs: Where the folder goes otherwise, named after the present time.

    Returns:
        The absolute path of the folder.
    """
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S.%f")
    given = [o.removeprefix("output.dir=") for o in overrides if o.startswith("output.dir=")]
    chosen = [name for name in given[-1:] if name != "null"]
    output_dir = make_folder(chosen[-1].strip("'\"") if chosen else str(outputs / stamp))
    outputs.mkdir(parents=True, exist_ok=True)
    # A link cannot be changed in place; replacing it by another is one indivisible step.
    link = outputs / f".latest-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(output_dir if chosen else stamp, target_is_directory=True)
    link.replace(outputs / "latest")
    return output_dir


def report(outcome: Outcome, json_file: Path | None) -> int:
    """Prints the outcome, writes it where asked and returns the exit code, 0 or 1."""
    if json_file is not None:
        outcome.write_json(json_file)
    say(f"verdict {outcome.verdict} after {outcome.seconds:.1f} s, see {outcome.output_dir}")
    if outcome.is_ok:
        return 0
    print(f"reason: {outcome.reason}", file=sys.stderr, flush=True)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the main job and returns its exit code."""
    parser = argparse.ArgumentParser(description="Run the main job on simulated devices.")
    parser.add_argument("overrides", nargs="*", help="for example peft.rank=4 seed=1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome there as well")
    parser.add_argument("--num-supernodes", type=int, help="default: federation.num_devices")
    options = parser.parse_intermixed_args(arguments)
    try:
        # Composed here as well: a mistyped override ends at once, not after Flower has started.
        config = load_config(shlex.join(absolute_paths(options.overrides)))
        num_supernodes = options.num_supernodes or config.federation.num_devices
        output_dir = choose_output_dir(options.overrides)
        with interruptible(), LocalFlower(num_supernodes=num_supernodes) as flower:
            outcome = flower.run(options.overrides, output_dir=output_dir)
    except KeyboardInterrupt:
        print("interrupted; every process was ended", file=sys.stderr)
        return INTERRUPTED
    except DeftError as error:
        print(f"the run failed: {error}", file=sys.stderr)
        return 1
    return report(outcome, options.json)


if __name__ == "__main__":
    sys.exit(main())
