"""Time of a mean of products: small cores or whole products: ``python -m scripts.bench_combine``.

With peft.aggregation=exact the server averages products B A and takes the mean apart again by SVD.
Both ways are the program's own: cores in the span of all factors (``CoreSpace``), and d_out x d_in
products as rules need them that look at entries. They alternate in one process on the same random
adapters, a server's and small changes of it; times are medians. Both must give the same product,
within a bound that roundings and the gap between singular values set. CPU seconds, of all threads
(``OPENBLAS_NUM_THREADS``), are printed too: on a busy machine they say more than the clock. Maps of
4096x4096 take minutes and 2 GB.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import RunError
from fl_app.updates import Update
from scripts.bench_output import emit
from strategies.lora_space import LoraSpace, ProductSpace

_A, _B = "map.lora_A.weight", "map.lora_B.weight"
_CHANGE = 0.1
"""Size of a device's change beside the server's entries: the mean has a gap behind its rank."""
_LATER_ROUNDINGS = 8
"""Of float32: cores, factors, and what turns them back, with room."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One map, rank and number of devices.

    Attributes:
        d_out: rows of the map, >= 1.
        d_in: its columns, >= 1.
        rank: LoRA rank r, 1 to the smaller of both.
        num_devices: adapters that are combined, >= 1.
    """

    d_out: int
    d_in: int
    rank: int
    num_devices: int

    @property
    def name(self) -> str:
        """What its figures begin with."""
        return f"{self.d_out}x{self.d_in}_rank{self.rank}_devices{self.num_devices}"

    def adapters(self) -> list[Update]:
        """Draws what devices send: the server's factors and a small change of each."""
        rng = np.random.default_rng(0)

        def drawn(shape: tuple[int, int]) -> Floats:
            return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[1]))

        shapes = {_A: (self.rank, self.d_in), _B: (self.d_out, self.rank)}
        server = {name: drawn(shape) for name, shape in shapes.items()}
        return [
            {n: (server[n] + _CHANGE * drawn(shapes[n])).astype(np.float32) for n in shapes}
            for _ in range(self.num_devices)
        ]


def combined(space: LoraSpace, adapters: list[Update], shares: Floats) -> Update:
    """Returns the mean of the products at the adapters' rank, by a space.

    Args:
        space: where they are averaged.
        adapters: one of each device.
        shares: [num_devices] weights that sum to 1.
    """
    space = space.around(adapters)
    rows = [space.enter(adapter) for adapter in adapters]
    weighted = [np.float32(share) for share in shares]
    return space.leave(
        {
            name: np.sum([w * row[name] for w, row in zip(weighted, rows, strict=True)], axis=0)
            for name in rows[0]
        }
    )


def tolerance(adapters: list[Update], shares: Floats) -> float:
    """Returns how far apart, in Frobenius norm, two exact ways may be by their roundings.

    With u = eps / 2 of float32, a product of rank r has an error of at most r u ||B|| ||A||, a
    mean of n of them adds n u, and casts afterwards a few u, each of sum_k w_k ||B_k|| ||A_k||.
    Means M_1, M_2 that are e apart have best approximations of rank r at most e (1 + 2 s_1 / gap)
    apart, s_i the singular values and gap = s_r - s_{r+1} - e (Wedin; projections P_i onto the
    first r directions, P_1 (M_1 - M_2) + (P_1 - P_2) M_2).

    Args:
        adapters: of every device.
        shares: [num_devices] weights that sum to 1.

    Raises:
        RunError: the gap is below e.
    """
    rank = len(adapters[0][_A])
    unit = float(np.finfo(np.float32).eps) / 2
    factors = [{name: array.astype(np.float64) for name, array in a.items()} for a in adapters]
    size = sum(
        share * float(np.linalg.norm(each[_A]) * np.linalg.norm(each[_B]))
        for share, each in zip(shares, factors, strict=True)
    )
    apart = 2 * (rank + len(adapters) + _LATER_ROUNDINGS) * unit * size
    beside = np.hstack([share * each[_B] for share, each in zip(shares, factors, strict=True)])
    below = np.vstack([each[_A] for each in factors])
    core = np.linalg.qr(beside)[1] @ np.linalg.qr(below.T)[1].T
    values = np.append(np.linalg.svd(core, compute_uv=False), 0.0)
    gap = float(values[rank - 1] - values[rank]) - apart
    if gap <= 0.0:
        raise RunError(f"rank={rank}: the mean has no gap behind it, so nothing can be compared")
    return float(apart * (1 + 2 * float(values[0]) / gap))


def _product(adapter: Update) -> Floats:
    return adapter[_B].astype(np.float64) @ adapter[_A].astype(np.float64)


def bench_cell(cell: Cell, repeats: int, most_s: float) -> dict[str, float]:
    """Returns seconds of both ways by clock and CPU, their ratios, and how far they are apart.

    Args:
        cell: what is combined.
        repeats: timed passes of each way, >= 1; they alternate.
        most_s: no further pass begins after so many seconds, >= 0.

    Raises:
        RunError: the two ways differ by more than their roundings.
    """
    adapters = cell.adapters()
    shares = np.arange(1.0, cell.num_devices + 1.0)
    shares /= shares.sum()
    ways = {
        "cores": ProductSpace(cell.rank, has_cores=True),
        "products": ProductSpace(cell.rank),
    }
    clock: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    made: dict[str, Update] = {}
    begun = time.perf_counter()
    for number in range(repeats):
        if number and time.perf_counter() - begun > most_s:
            break
        for name, space in ways.items():
            start, worked = time.perf_counter(), time.process_time()
            made[name] = combined(space, adapters, shares)
            clock[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - worked)
    bound = tolerance(adapters, shares)
    found = float(np.linalg.norm(_product(made["cores"]) - _product(made["products"])))
    if not found <= bound:
        raise RunError(f"{cell.name}: cores and products are {found:.3g} apart, above {bound:.3g}")
    figures = {f"{cell.name}_difference_over_bound": found / bound}
    for suffix, times in (("", clock), ("_cpu", cpu)):
        medians = {name: statistics.median(values) for name, values in times.items()}
        figures |= {f"{cell.name}_{name}{suffix}_s": value for name, value in medians.items()}
        figures[f"{cell.name}_ratio{suffix}"] = medians["products"] / medians["cores"]
    return figures


def _shape(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    return int(rows), int(columns)


def main(words: list[str] | None = None) -> None:
    """Parses the command line, prints a line per figure and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    shapes = [(384, 384), (384, 1536), (4096, 4096)]
    parser.add_argument("--shapes", type=_shape, nargs="+", default=shapes, metavar="ROWSxCOLUMNS")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--devices", type=int, nargs="+", default=[4, 10])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--most-seconds", type=float, default=10.0, help="of a map's passes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args(words)
    least = min(min(shape) for shape in chosen.shapes)
    for name, values, most in (
        ("shapes", [least], None),
        ("ranks", chosen.ranks, least),
        ("devices", chosen.devices, None),
        ("repeats", [chosen.repeats], None),
    ):
        if min(values) < 1 or (most is not None and max(values) > most):
            parser.error(f"--{name}: must be >= 1, and a rank no more than a map's rows or columns")
    bench_cell(Cell(32, 32, 2, 2), repeats=2, most_s=0.0)  # BLAS and LAPACK warm up
    figures: dict[str, float] = {}
    for d_out, d_in in chosen.shapes:
        for rank in chosen.ranks:
            for num_devices in chosen.devices:
                cell = Cell(d_out, d_in, rank, num_devices)
                figures |= bench_cell(cell, chosen.repeats, chosen.most_seconds)
    emit(figures, chosen.json)


if __name__ == "__main__":
    main()
