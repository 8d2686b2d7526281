"""Partitions: what every kind must hold, and what each kind promises."""

import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.data.examples import Examples
from fl_app.data.partition import Indices, partition
from fl_app.errors import ConfigError, DataError


def _table(rows: int, classes: int = 4) -> Examples:
    labels = [f"class {row % classes}" for row in range(rows)]
    return Examples({"text": [f"text {row}" for row in range(rows)], "label": labels})


def _same(one: list[Indices], two: list[Indices]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@settings(derandomize=True, max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["iid", "dirichlet", "column", "quantity"]),
    law=st.sampled_from(["linear", "square"]),
    devices=st.integers(1, 4),
    rows=st.integers(40, 90),
    alpha=st.floats(0.3, 50),
    seed=st.integers(0, 1000),
)
def test_every_partition_is_disjoint_complete_and_repeatable(
    kind: str, law: str, devices: int, rows: int, alpha: float, seed: int
) -> None:
    """Each row goes to exactly one device, no device is empty, the seed decides."""
    table = _table(rows, classes=devices if kind == "column" else 4)

    def deal() -> list[Indices]:
        return partition(
            table,
            kind=kind,
            num_partitions=devices,
            label_column="label",
            seed=seed,
            alpha=alpha,
            column="label",
            law=law,
        )

    parts = deal()
    assert len(parts) == devices
    assert all(part.dtype == np.int64 and len(part) >= 1 for part in parts)
    assert all(np.array_equal(part, np.unique(part)) for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(rows))
    np.random.seed(seed + 1)  # noqa: NPY002 - the global generator must not matter
    state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    assert _same(parts, deal())
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity"])
def test_another_seed_deals_otherwise(kind: str) -> None:
    """The draw is a draw."""
    one, two = (
        partition(_table(80), kind=kind, num_partitions=4, label_column="label", seed=seed)
        for seed in (0, 1)
    )
    assert not _same(one, two)


def test_iid_sizes_differ_by_at_most_one() -> None:
    """83 rows over 4 devices: 21, 21, 21, 20; and rows are mixed, not cut in order."""
    parts = partition(_table(83), kind="iid", num_partitions=4, label_column="label", seed=0)
    assert sorted(len(part) for part in parts) == [20, 21, 21, 21]
    assert not np.array_equal(parts[0], np.arange(len(parts[0])))


def _label_shares(parts: list[Indices], classes: int, per_class: int) -> np.ndarray:
    counts = np.stack([np.bincount(part % classes, minlength=classes) for part in parts])
    return counts / per_class


def test_large_alpha_is_even_within_the_tolerance_of_the_law() -> None:
    """A device's share of a class is 1/N, up to six deviations of Dir(alpha) and the rounding."""
    devices, classes, per_class, alpha = 5, 4, 500, 1e4
    parts = partition(
        _table(classes * per_class, classes),
        kind="dirichlet",
        num_partitions=devices,
        label_column="label",
        seed=0,
        alpha=alpha,
    )
    deviation = np.sqrt((1 / devices) * (1 - 1 / devices) / (devices * alpha + 1))
    shares = _label_shares(parts, classes, per_class)
    # A size is the difference of two cuts, each rounded down by less than one row.
    np.testing.assert_allclose(shares, 1 / devices, atol=6 * deviation + 1 / per_class)


def test_share_variance_follows_dirichlet() -> None:
    """Second moment: the mean squared deviation of shares is that of Dir(alpha), 300 classes."""
    devices, classes, per_class, alpha = 5, 300, 100, 2.0
    parts = partition(
        _table(classes * per_class, classes),
        kind="dirichlet",
        num_partitions=devices,
        label_column="label",
        seed=0,
        alpha=alpha,
    )
    variance = (1 / devices) * (1 - 1 / devices) / (devices * alpha + 1)
    # Classes are drawn independently, so each gives one independent mean over the devices.
    draws = ((_label_shares(parts, classes, per_class) - 1 / devices) ** 2).mean(axis=0)
    tolerance = 5 * draws.std(ddof=1) / np.sqrt(classes) + 1 / per_class**2
    assert tolerance < variance / 2  # sharp enough to tell alpha from 2 alpha
    assert abs(draws.mean() - variance) < tolerance


def test_small_alpha_is_skewed() -> None:
    """The mean largest class share of a device grows as alpha falls."""
    largest = []
    for alpha in (100.0, 1.0, 0.1):
        parts = partition(
            _table(2000),
            kind="dirichlet",
            num_partitions=10,
            label_column="label",
            seed=0,
            alpha=alpha,
        )
        counts = np.stack([np.bincount(part % 4, minlength=4) for part in parts])
        largest.append((counts.max(axis=1) / counts.sum(axis=1)).mean())
    assert largest[0] < largest[1] < largest[2]


def test_dirichlet_does_not_deal_rows_in_file_order() -> None:
    """Rows of one class are mixed first: a file sorted by source must not split by source."""
    table = Examples({"label": ["only"] * 400})
    first = partition(
        table, kind="dirichlet", num_partitions=2, label_column="label", seed=0, alpha=1e4
    )[0]
    # In file order the mean row would be 100; mixed it is 199.5, the mean of 200 of 400 rows,
    # with deviation sqrt((400 + 1) * 200 / 12 / 200) = 5.8.
    assert abs(first.mean() - 199.5) < 6 * 5.8


def test_dirichlet_that_cannot_fill_every_device() -> None:
    """Two classes of tiny alpha never reach twenty devices."""
    with pytest.raises(
        DataError, match=r"data\.partition\.alpha=0\.001 .*federation\.num_devices=20"
    ):
        partition(
            _table(60, 2),
            kind="dirichlet",
            num_partitions=20,
            label_column="label",
            seed=0,
            alpha=0.001,
        )


def test_dirichlet_keeps_the_least_size() -> None:
    """min_examples holds for every device."""
    parts = partition(
        _table(200),
        kind="dirichlet",
        num_partitions=5,
        label_column="label",
        seed=0,
        alpha=0.5,
        min_examples=12,
    )
    assert min(len(part) for part in parts) >= 12


@pytest.mark.parametrize("values", [["b", "a", "c"], [10, 2, 1]])
def test_natural_partition_is_a_group_by(values: list[str | int]) -> None:
    """One device per value, in the order of the names (numbers by value)."""
    rng = np.random.default_rng(0)
    domains = [values[code] for code in rng.integers(0, 3, 50)]
    groups: dict[str | int, list[int]] = defaultdict(list)
    for row, domain in enumerate(domains):
        groups[domain].append(row)

    parts = partition(
        Examples({"domain": domains}),
        kind="column",
        num_partitions=3,
        label_column="label",
        seed=0,
        column="domain",
    )
    expected = [groups[value] for value in sorted(values)]
    assert [part.tolist() for part in parts] == expected


def test_fewer_devices_than_values_keep_the_largest_ties_by_name() -> None:
    """Sizes: a 1, b 2, c 3, d 2; two devices are b and c."""
    table = Examples({"domain": list("dcbacbdc")})
    parts = partition(
        table, kind="column", num_partitions=2, label_column="label", seed=0, column="domain"
    )
    assert [part.tolist() for part in parts] == [[2, 5], [1, 4, 7]]


def test_more_devices_than_values() -> None:
    """The text says how many there can be."""
    with pytest.raises(DataError, match=r"federation\.num_devices=5.*at most 4"):
        partition(
            _table(20),
            kind="column",
            num_partitions=5,
            label_column="label",
            seed=0,
            column="label",
        )


@pytest.mark.parametrize(
    ("law", "weight"),
    [("linear", lambda i: i), ("square", lambda i: i**2), ("exponential", np.exp)],
)
def test_quantity_sizes_follow_the_law(law: str, weight: np.ufunc) -> None:
    """Sizes are proportional to the law of 1..N, rounded down, the rest going to the last."""
    rows, devices = 300, 5
    parts = partition(
        _table(rows), kind="quantity", num_partitions=devices, label_column="label", seed=0, law=law
    )
    sizes = [len(part) for part in parts]
    weights = weight(np.arange(1, devices + 1))
    ideal = rows * weights / weights.sum()
    assert sizes == sorted(sizes)
    assert all(0 <= target - size < 1 for size, target in zip(sizes[:-1], ideal, strict=False))
    assert sizes[-1] == rows - sum(sizes[:-1])


def test_quantity_law_too_steep() -> None:
    """Exponential sizes over twelve devices leave the first without a row."""
    with pytest.raises(DataError, match=r"data\.partition\.law='exponential'.*num_devices=12"):
        partition(
            _table(100),
            kind="quantity",
            num_partitions=12,
            label_column="label",
            seed=0,
            law="exponential",
        )


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"kind": "random"}, ConfigError, r"kind='random'.*iid, dirichlet, column, quantity"),
        ({"kind": "quantity", "law": "cubic"}, ConfigError, r"law='cubic'.*linear, square"),
        ({"kind": "dirichlet", "alpha": 0.0}, ConfigError, r"data\.partition\.alpha must be"),
        ({"kind": "dirichlet", "alpha": float("nan")}, ConfigError, r"alpha must be positive"),
        ({"kind": "dirichlet", "label_column": "y"}, DataError, r"no column 'y'.*text, label"),
        ({"kind": "column"}, ConfigError, r"needs data\.partition\.column"),
        ({"num_partitions": 0}, ConfigError, r"federation\.num_devices"),
        ({"num_partitions": 21}, DataError, r"num_devices=21 .* from 20 rows"),
        (
            {"kind": "quantity", "num_partitions": 4, "min_examples": 5},
            DataError,
            r"a device with 2 examples, less than data\.partition\.min_examples=5",
        ),
    ],
)
def test_refused(changes: dict[str, object], error: type[Exception], text: str) -> None:
    """Each fault names the setting and its value."""
    arguments = {"kind": "iid", "num_partitions": 2, "label_column": "label", "seed": 0} | changes
    with pytest.raises(error, match=text):
        partition(_table(20), **arguments)  # type: ignore[arg-type]


def test_nothing_is_printed_warned_or_cached(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No progress bar, no warning of a repeated draw, no file."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("iid", "dirichlet", "column", "quantity"):
            partition(
                _table(60),
                kind=kind,
                num_partitions=4,
                label_column="label",
                seed=0,
                alpha=0.2,
                column="label",
            )
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert list(tmp_path.iterdir()) == []
