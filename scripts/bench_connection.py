"""Time of a neural connection beside ``nn.Linear``: ``python -m scripts.bench_connection``.

Forward and backward of feature transport, with and without its options, and of a down-projection,
each against a linear layer of the same shape on the same vectors; medians of alternating repeats in
one process and one thread.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fl_app.fomo.connection import Connection
from fl_app.fomo.connection_link import LinkSpec
from scripts.bench_output import emit

_OPTIONS: dict[str, dict[str, Any]] = {
    "transport": {},
    "one_scale": {"power_per_use": False},
    "rotation": {"rotation": True},
    "csi_error": {"csi_error": 0.1},
    "peak_limit": {"peak_db": 6.0},
}


def bench_connection(width: int, tokens: int, rank: int, repeats: int) -> dict[str, float]:
    """Returns seconds of both linear layers and the ratio of every connection to its own.

    Args:
        width: features of a vector, >= 1.
        tokens: vectors of a pass, >= 1.
        rank: outputs of the down-projection, 1 to width.
        repeats: timed passes of each, >= 1.
    """
    torch.set_num_threads(1)
    stream = torch.Generator().manual_seed(0)
    vectors = torch.randn(tokens, width, generator=stream).requires_grad_()
    square = nn.Linear(width, width, bias=False)
    down = nn.Linear(width, rank, bias=False)
    ways: dict[str, nn.Module] = {"linear": square, "linear_down": down}
    for name, options in _OPTIONS.items():
        spec = LinkSpec(tx_snr_db=20.0, gradient_tx_snr_db=20.0, **options)
        ways[name] = Connection(width=width, spec=spec, seed=0)
    spec = LinkSpec(tx_snr_db=20.0, gradient_tx_snr_db=20.0)
    ways["down"] = Connection(width=width, spec=spec, seed=0, weight=down.weight)
    for module in ways.values():
        if isinstance(module, Connection):
            module.redraw(0)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):  # the first pass of each warms up
        for name, module in ways.items():
            start = time.perf_counter()
            out = module(vectors)
            out.backward(torch.ones_like(out))
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    figures = {"linear_s": medians["linear"], "linear_down_s": medians["linear_down"]}
    figures |= {f"{name}_ratio": medians[name] / medians["linear"] for name in _OPTIONS}
    figures["down_ratio"] = medians["down"] / medians["linear_down"]
    return figures


def main(words: list[str] | None = None) -> None:
    """Parses the command line, prints a line per figure and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args(words)
    figures = bench_connection(chosen.width, chosen.tokens, chosen.rank, chosen.repeats)
    emit(figures, chosen.json)


if __name__ == "__main__":
    main()
