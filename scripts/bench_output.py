"""How benchmarks hand over their figures."""

import json
from collections.abc import Mapping
from pathlib import Path


def emit(figures: Mapping[str, float], json_file: Path | None) -> None:
    """Prints a line per figure and writes them as JSON if asked."""
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:>{width}} {value:.6g}")
    if json_file is not None:
        json_file.write_text(json.dumps(dict(figures), indent=2) + "\n", encoding="utf-8")
