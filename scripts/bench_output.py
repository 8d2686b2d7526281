"""How benchmarks hand over their figures, and the memory a process has held."""

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path


def emit(figures: Mapping[str, float], json_file: Path | None) -> None:
    """Prints a line per figure and writes them as JSON if asked."""
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:>{width}} {value:.6g}")
    if json_file is not None:
        json_file.write_text(json.dumps(dict(figures), indent=2) + "\n", encoding="utf-8")


def peak_memory_bytes() -> int:
    """Returns the most memory this process has held so far.

    Linux says it in /proc. There ``getrusage`` would count what the parent held when it started
    this process as well.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
