"""Reports test sentences that (nearly) occur in the training split; exits 1 if there are any."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fl_app.data.embedded import FOLDER
from fl_app.data.leaks import find_leaks
from fl_app.data.readers import read_table
from fl_app.errors import DeftError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check.

    Args:
        arguments: command line arguments, by default those of the process.

    Returns:
        0 without leaks, 1 with leaks, 2 where the check could not run.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, default=FOLDER / "train.jsonl", metavar="FILE")
    parser.add_argument("--test", type=Path, default=FOLDER / "test.jsonl", metavar="FILE")
    parser.add_argument("--text-column", default="text", metavar="NAME")
    parser.add_argument(
        "--threshold", type=float, default=0.6, help="least word overlap (Jaccard) of a leak"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the findings here")
    options = parser.parse_args(arguments)
    try:
        train = read_table(options.train, key="--train").column(options.text_column)
        test = read_table(options.test, key="--test").column(options.text_column)
        leaks = find_leaks(list(train), list(test), threshold=options.threshold)
    except DeftError as error:
        print(f"check_leaks: {error}", file=sys.stderr)
        return 2
    for leak in leaks:
        print(f"{leak.overlap:.2f}  test {leak.test_row}: {leak.test}")
        print(f"      train {leak.train_row}: {leak.train}")
    print(f"{len(leaks)} leaks; {len(test)} test against {len(train)} training sentences")
    if options.json:
        report = {
            "threshold": options.threshold,
            "train": len(train),
            "test": len(test),
            "leaks": [asdict(leak) for leak in leaks],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
