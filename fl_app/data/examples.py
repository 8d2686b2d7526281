"""A column table: the one shape in which examples travel through the project."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_app.errors import DataError

Column = list[Any] | npt.NDArray[Any]
Columns = Mapping[str, Column]

_INTEGER = re.compile(r"-?\d+")


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows as equally long columns.

    Attributes:
        columns: column name to values; text and labels are lists, images are uint8 arrays whose
            first axis is the row.

    Raises:
        DataError: there is no column, or the columns differ in length.
    """

    columns: Columns

    def __post_init__(self) -> None:
        """Checks that the columns form a table."""
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"columns of a table must exist and be equally long, got {lengths}")

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(next(iter(self.columns.values())))

    def parts(self) -> dict[str, "Examples"]:
        """Returns the table under the name error messages use for it."""
        return {"the data": self}

    def column(self, name: str) -> Column:
        """Returns the values of one column.

        Raises:
            DataError: no such column; the text lists those that exist.
        """
        if name not in self.columns:
            raise DataError(f"no column {name!r}; the columns are: {', '.join(self.columns)}")
        return self.columns[name]

    def take(self, indices: Iterable[int]) -> "Examples":
        """Returns the rows at ``indices`` (0 <= index < len), in that order."""
        rows = np.fromiter(indices, dtype=np.int64)
        return Examples({name: _rows(values, rows) for name, values in self.columns.items()})


def label_names(*columns: Iterable[Any]) -> tuple[str, ...]:
    """Returns the distinct labels of one or more label columns, as words.

    Args:
        *columns: label values, words or integers, for example of the train and the test split.

    Returns:
        Sorted names; by value when all of them are integers ("2" before "10"), else by letter.

    Raises:
        DataError: a row has no label.
    """
    names = {_label(value, row) for column in columns for row, value in enumerate(column)}
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def encode_labels(
    examples: Examples, label_column: str, labels: tuple[str, ...]
) -> npt.NDArray[np.int64]:
    """Returns the class index of every row.

    Args:
        examples: the table, n rows.
        label_column: the column that holds the labels, words or integers.
        labels: the known labels; the position of a label is its class index.

    Returns:
        Class indices, shape (n,), int64, in [0, len(labels)).

    Raises:
        DataError: no such column, a row without a label, or a label that is not known.
    """
    index = {name: position for position, name in enumerate(labels)}
    names = [_label(value, row) for row, value in enumerate(examples.column(label_column))]
    unknown = sorted(set(names) - index.keys())
    if unknown:
        raise DataError(
            f"column {label_column!r}, row {names.index(unknown[0])}: the label {unknown[0]!r} is "
            f"not among the known ones ({', '.join(labels)}); correct the row, or put an example "
            "with this label into the training data"
        )
    return np.fromiter((index[name] for name in names), dtype=np.int64, count=len(names))


def _label(value: Any, row: int) -> str:
    if value is None or value == "":
        raise DataError(f"row {row} has no label; give it one or remove the row")
    return str(value)


def _rows(values: Column, rows: npt.NDArray[np.int64]) -> Column:
    if isinstance(values, np.ndarray):
        return values[rows]
    return [values[row] for row in rows]
