"""Deals the rows of a training split to simulated devices, through flwr-datasets."""

import contextlib
import io
import warnings
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_app.data.examples import Examples, encode_labels, label_names
from fl_app.errors import ConfigError, DataError
from fl_app.seeding import generator

Indices = npt.NDArray[np.int64]

KINDS = ("iid", "dirichlet", "column", "quantity")
LAWS = {
    "linear": "LinearPartitioner",
    "square": "SquarePartitioner",
    "exponential": "ExponentialPartitioner",
}
# DirichletPartitioner gives up after 11 draws; a fresh start costs milliseconds, and a small alpha
# with few classes often needs more draws until no device is empty.
_RESTARTS = 20


def partition(
    examples: Examples,
    *,
    kind: str,
    num_partitions: int,
    label_column: str,
    seed: int,
    alpha: float = 0.5,
    column: str | None = None,
    law: str = "linear",
    min_examples: int = 1,
) -> list[Indices]:
    """Returns the rows of every device.

    Args:
        examples: the training split, n rows.
        kind: ``iid`` (equal sizes), ``dirichlet`` (label skew), ``column`` (one device per value
            of a column) or ``quantity`` (size skew).
        num_partitions: number of devices, 1 <= num_partitions <= n.
        label_column: the labels ``dirichlet`` skews.
        seed: the run's seed; the result depends on it and on the arguments only.
        alpha: concentration of ``dirichlet``, > 0; small is skewed, large is even.
        column: the column of kind ``column``; where it has more values than devices, the most
            frequent values are kept (ties by name) and the other rows are left out.
        law: how the size grows with the device number for ``quantity``: ``linear``, ``square`` or
            ``exponential``.
        min_examples: the least rows a device may hold, >= 1.

    Returns:
        One sorted, disjoint int64 index array per device; together all rows (of the kept values).
        The order of kind ``column`` is that of the value's name.

    Raises:
        ConfigError: an unknown kind or law, a number out of range, or no ``column``.
        DataError: the rows do not suffice for so many devices, or a column is missing.
    """
    if num_partitions < 1 or min_examples < 1:
        raise ConfigError(
            "federation.num_devices and data.partition.min_examples must be at least 1, "
            f"got {num_partitions} and {min_examples}"
        )
    if num_partitions * min_examples > len(examples):
        raise DataError(
            f"federation.num_devices={num_partitions} devices of at least {min_examples} examples "
            f"cannot be had from {len(examples)} rows; lower federation.num_devices"
        )
    order = generator(seed, "partition", "order").permutation(len(examples))
    match kind:
        case "iid":
            parts = _iid(order, num_partitions)
        case "dirichlet":
            names = label_names(examples.column(label_column))
            codes = encode_labels(examples, label_column, names)
            parts = _dirichlet(order, codes, num_partitions, alpha, seed, min_examples)
        case "column":
            parts = _natural(examples, column, num_partitions)
        case "quantity":
            parts = _quantity(order, num_partitions, law)
        case _:
            raise ConfigError(
                f"data.partition.kind={kind!r} is unknown; choose one of: {', '.join(KINDS)}"
            )
    smallest = min(len(part) for part in parts)
    if smallest < min_examples:
        raise DataError(
            f"data.partition.kind={kind!r} leaves a device with {smallest} examples, less than "
            f"data.partition.min_examples={min_examples}; lower federation.num_devices"
        )
    return [np.sort(part) for part in parts]


def _iid(order: Indices, num_partitions: int) -> list[Indices]:
    from flwr_datasets.partitioner import IidPartitioner

    return _deal(IidPartitioner(num_partitions=num_partitions), order)


def _dirichlet(
    order: Indices,
    codes: Indices,
    num_partitions: int,
    alpha: float,
    seed: int,
    min_examples: int,
) -> list[Indices]:
    from flwr_datasets.partitioner import DirichletPartitioner

    if not 0 < alpha < np.inf:
        raise ConfigError(f"data.partition.alpha must be positive and finite, got {alpha}")
    fault: ValueError | None = None
    for attempt in range(_RESTARTS):
        partitioner = DirichletPartitioner(
            num_partitions=num_partitions,
            partition_by="key",
            alpha=float(alpha),
            min_partition_size=min_examples,
            self_balancing=False,
            shuffle=False,
            seed=int(generator(seed, "partition", "dirichlet", attempt).integers(2**63)),
        )
        try:
            return _deal(partitioner, order, codes[order])
        except ValueError as error:
            fault = error
    raise DataError(
        f"data.partition.alpha={alpha} with federation.num_devices={num_partitions} leaves devices "
        f"with fewer than {min_examples} of the {len(order)} rows in every draw; raise "
        "data.partition.alpha or lower federation.num_devices"
    ) from fault


def _natural(examples: Examples, column: str | None, num_partitions: int) -> list[Indices]:
    from flwr_datasets.partitioner import NaturalIdPartitioner

    if column is None:
        raise ConfigError("data.partition.kind='column' needs data.partition.column")
    names = label_names(examples.column(column))
    if num_partitions > len(names):
        raise DataError(
            f"federation.num_devices={num_partitions}, but data.partition.column={column!r} has "
            f"only {len(names)} values; set federation.num_devices to at most {len(names)}"
        )
    codes = encode_labels(examples, column, names)
    # Codes follow the order of the names, so the second key breaks ties by name.
    sizes = Counter(codes.tolist())
    kept = sorted(sizes, key=lambda code: (-sizes[code], code))[:num_partitions]
    rows = np.flatnonzero(np.isin(codes, kept)).astype(np.int64)
    return _deal(NaturalIdPartitioner(partition_by="key"), rows, codes[rows])


def _quantity(order: Indices, num_partitions: int, law: str) -> list[Indices]:
    from flwr_datasets import partitioner as partitioners

    if law not in LAWS:
        raise ConfigError(
            f"data.partition.law={law!r} is unknown; choose one of: {', '.join(LAWS)}"
        )
    try:
        return _deal(getattr(partitioners, LAWS[law])(num_partitions=num_partitions), order)
    except ValueError as error:
        raise DataError(
            f"data.partition.law={law!r} leaves a device of federation.num_devices="
            f"{num_partitions} without any of the {len(order)} rows; lower "
            "federation.num_devices or choose a flatter law"
        ) from error


def _deal(partitioner: Any, rows: Indices, keys: Indices | None = None) -> list[Indices]:
    """Runs a partitioner on a table that holds row numbers and keys only, not the examples."""
    import datasets

    columns = {"index": rows} if keys is None else {"index": rows, "key": keys}
    partitioner.dataset = datasets.Dataset.from_dict(columns)
    # flwr-datasets prints a progress bar and warns at each repeated draw, and has no switch for
    # either.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            np.asarray(partitioner.load_partition(device)["index"], dtype=np.int64)
            for device in range(partitioner.num_partitions)
        ]
