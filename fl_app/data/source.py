"""Finds the files of a data set and returns its splits, wherever the data set lives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fl_app.data.examples import Column, Columns, Examples, label_names
from fl_app.data.readers import READERS, as_table, read_columns, read_table, suffix_of
from fl_app.errors import ConfigError, DataError
from fl_app.seeding import generator

_ARCHIVE = ("x_train", "y_train", "x_test", "y_test")
_REMEDY = (
    "it must hold train.* and test.* (optionally dev.* or validation.*), or one npz with "
    f"{', '.join(_ARCHIVE)}; formats: {', '.join(READERS)}"
)


@dataclass(frozen=True, eq=False)
class Splits:
    """The parts of a data set: ``dev`` is optional, the others are not."""

    train: Examples
    test: Examples
    dev: Examples | None = None

    def parts(self) -> dict[str, Examples]:
        """Returns the splits that exist, by name."""
        named = {"train": self.train, "test": self.test, "dev": self.dev}
        return {name: part for name, part in named.items() if part is not None}


class HasParts(Protocol):
    """Anything made of named tables: ``Examples`` and ``Splits``."""

    def parts(self) -> dict[str, Examples]:
        """Returns the tables by the name error messages use for them."""
        ...


def load_local(
    path: str, *, seed: int, test_fraction: float = 0.2, stratify: str | None = None
) -> Splits:
    """Loads a data set from a folder or a single file.

    Args:
        path: a folder with ``train.*``, ``test.*`` and optionally ``dev.*`` or ``validation.*``;
            a folder with (or the path of) one npz with x_train, y_train, x_test, y_test, whose
            columns become ``image`` and ``label``; or one file, which is split by the seed.
        seed: the run's seed; used only where one file is split.
        test_fraction: share of rows of a single file that become the test split, in (0, 1).
        stratify: the label column by which a single file is split, or None.

    Returns:
        The splits.

    Raises:
        DataError: a file or folder is missing, ambiguous, unreadable or empty.
        ConfigError: ``test_fraction`` is out of range.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        return _load_folder(root)
    columns = _existing(root, "data.path")
    if columns.keys() >= set(_ARCHIVE):
        return _from_archive(columns, root)
    table = as_table(columns, root)
    return split(table, seed=seed, test_fraction=test_fraction, stratify=stratify)


def load_file(path: str, *, key: str = "data.path") -> Examples:
    """Loads a device's own examples.

    Args:
        path: a file, or a folder whose training split (``train.*`` or the npz) is used.
        key: the setting that named the path, for error messages.

    Raises:
        DataError: the file or folder is missing, ambiguous, unreadable or empty.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        train = _find(root, "train", key)
        if train is None:
            return _from_archive(*_archive_of(root, key)).train
        return read_table(train, key=key)
    columns = _existing(root, key)
    if columns.keys() >= set(_ARCHIVE):
        return _from_archive(columns, root).train
    return as_table(columns, root, key=key)


def load_hub(name: str, *, subset: str | None, train_split: str, test_split: str) -> Splits:
    """Loads a data set through ``datasets.load_dataset``.

    Args:
        name: the identifier on the hub, or a local folder of data files.
        subset: the configuration of the data set, or None.
        train_split: the training split; slices such as ``train[:1000]`` are allowed.
        test_split: the test split; some hub sets publish a test split without labels, then
            ``validation`` is the one to name.

    Returns:
        The splits; class labels become words, images uint8 arrays.

    Raises:
        DataError: the data set or a split cannot be loaded, or a row has no class label.
    """
    # Imported here: it costs seconds, and only this source needs it.
    import datasets

    try:
        train, test = datasets.load_dataset(name, subset, split=[train_split, test_split])
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.name={name!r} (subset {subset!r}, splits {train_split!r} and {test_split!r}) "
            f"cannot be loaded: {error}; check the name and the connection, or download the files "
            "and use data=local data.path=DIR"
        ) from error
    return Splits(_from_hub(train, train_split), _from_hub(test, test_split))


def split(
    examples: Examples, *, seed: int, test_fraction: float = 0.2, stratify: str | None = None
) -> Splits:
    """Splits one table into train and test by the seed.

    Args:
        examples: the table, at least 2 rows.
        seed: the run's seed.
        test_fraction: share of rows that become the test split, in (0, 1).
        stratify: a label column whose shares both splits keep (a label with a single row stays
            in train), or None.

    Returns:
        Both splits, each in the original row order.

    Raises:
        DataError: fewer than two rows, or nothing is left for one of the splits.
        ConfigError: ``test_fraction`` is out of range.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(f"data.test_fraction must be between 0 and 1, got {test_fraction}")
    groups: list[Any] = [np.arange(len(examples))]
    if stratify is not None:
        values = examples.column(stratify)
        rows: dict[str, list[int]] = {name: [] for name in label_names(values)}
        for row, value in enumerate(values):
            rows[str(value)].append(row)
        groups = [np.asarray(group) for group in rows.values()]
    chosen = np.zeros(len(examples), dtype=bool)
    for position, group in enumerate(groups):
        count = min(max(round(test_fraction * len(group)), 1), len(group) - 1)
        order = generator(seed, "split", position).permutation(len(group))
        chosen[group[order[:count]]] = True
    if not chosen.any():
        raise DataError(
            f"data.path: {len(examples)} rows are too few to split into train and test; "
            "give more rows, or a folder with train.* and test.*"
        )
    return Splits(examples.take(np.flatnonzero(~chosen)), examples.take(np.flatnonzero(chosen)))


def require_columns(data: HasParts, names: Mapping[str, str]) -> None:
    """Checks that every needed column exists and has a value in every row.

    Args:
        data: a table or the splits of a data set.
        names: configuration key to column name, for example ``{"data.text_column": "text"}``.

    Raises:
        DataError: a column is missing (the text lists those that exist) or has a gap.
    """
    for part, examples in data.parts().items():
        for key, name in names.items():
            if name not in examples.columns:
                raise DataError(
                    f"{key}={name!r}: {part} has no such column; the columns are: "
                    f"{', '.join(examples.columns)}; set {key} to one of them"
                )
            gap = next((i for i, value in enumerate(examples.column(name)) if value is None), None)
            if gap is not None:
                raise DataError(
                    f"{key}={name!r}: row {gap} of {part} has no value in this column; "
                    "fill it or remove the row"
                )


def _existing(path: Path, key: str) -> Columns:
    if not path.exists():
        raise DataError(
            f"{key}: there is no file or folder {str(path)!r}; set {key} to an existing one"
        )
    return read_columns(path, key=key)


def _load_folder(folder: Path) -> Splits:
    key = "data.path"
    train = _find(folder, "train", key)
    if train is None:
        return _from_archive(*_archive_of(folder, key))
    test = _find(folder, "test", key)
    if test is None:
        raise DataError(f"{key}: {str(folder)!r} has {train.name} but no test.*; {_REMEDY}")
    dev = _find(folder, "dev", key) or _find(folder, "validation", key)
    return Splits(read_table(train), read_table(test), None if dev is None else read_table(dev))


def _find(folder: Path, stem: str, key: str) -> Path | None:
    files = sorted(path for path in folder.glob(f"{stem}.*") if path.is_file())
    known = [path for path in files if suffix_of(path) in READERS] or files
    if len(known) > 1:
        raise DataError(
            f"{key}: {str(folder)!r} holds several {stem} files "
            f"({', '.join(path.name for path in known)}); keep one of them"
        )
    return known[0] if known else None


def _archive_of(folder: Path, key: str) -> tuple[Columns, Path]:
    archives = sorted(folder.glob("*.npz"))
    if len(archives) != 1:
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise DataError(f"{key}: {str(folder)!r} is no data set (it holds {present}); {_REMEDY}")
    return read_columns(archives[0], key=key), archives[0]


def _from_archive(columns: Columns, path: Path) -> Splits:
    missing = [name for name in _ARCHIVE if name not in columns]
    if missing:
        raise DataError(
            f"data.path: {str(path)!r} lacks the arrays {', '.join(missing)}; {_REMEDY}"
        )
    words_file = path.parent / "labels.txt"
    words = words_file.read_text(encoding="utf-8").split("\n") if words_file.is_file() else []

    def part(name: str) -> Examples:
        images, labels = columns[f"x_{name}"], np.asarray(columns[f"y_{name}"])
        if np.asarray(images).dtype != np.uint8:
            raise DataError(f"data.path: x_{name} of {str(path)!r} must be uint8 (0 to 255)")
        return Examples({"image": images, "label": _to_words(labels, words, words_file)})

    return Splits(part("train"), part("test"))


def _to_words(labels: Any, words: list[str], source: Path) -> Column:
    names = [word.strip() for word in words if word.strip()]
    if not names:
        return np.asarray(labels)
    if labels.ndim != 1 or labels.min() < 0 or labels.max() >= len(names):
        raise DataError(
            f"data.path: {str(source)!r} names {len(names)} labels, but the labels of the npz are "
            f"{labels.ndim}-dimensional and reach {labels.max()}; add the missing lines"
        )
    return [names[label] for label in labels]


def _label_words(feature: Any, values: Any) -> Column:
    if any(value is None or value < 0 for value in values):
        raise DataError("a row has no class label; set data.test_split to a labelled split")
    words: list[Any] = feature.int2str(list(values))
    return words


def _pixels(feature: Any, values: Any) -> Column:
    del feature
    images = [np.asarray(value, dtype=np.uint8) for value in values]
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise DataError(f"images must have one size, got {sorted(shapes)[:4]}; resize them first")
    return np.stack(images)


# By class name, so that the table does not need the lazily imported library.
_HUB_COLUMNS: dict[str, Callable[[Any, Any], Column]] = {
    "ClassLabel": _label_words,
    "Image": _pixels,
}


def _from_hub(dataset: Any, split_name: str) -> Examples:
    if len(dataset) == 0:
        raise DataError(f"data.name: the split {split_name!r} is empty; name another split")
    columns: dict[str, Column] = {}
    for name, feature in dataset.features.items():
        convert = _HUB_COLUMNS.get(type(feature).__name__, lambda _, values: list(values))
        try:
            columns[name] = convert(feature, dataset[name])
        except DataError as error:
            raise DataError(f"data.name: column {name!r} of {split_name!r}: {error}") from error
    return Examples(columns)
