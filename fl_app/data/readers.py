"""Reads one file into columns: one table from file suffix to reader.

A reader only parses; it raises ``ValueError`` with the place of the fault, and ``read_columns``
turns every fault into a ``DataError`` that names the file and the remedy.
"""

import csv
import gzip
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fl_app.data.examples import Column, Columns, Examples
from fl_app.errors import DataError

Reader = Callable[[Path], dict[str, Column]]

_BROKEN = (OSError, EOFError, ValueError, csv.Error, zlib.error, zipfile.BadZipFile)


def _open_text(path: Path) -> IO[str]:
    # newline="\n" leaves every character of a value as it is: universal newlines would cut a row
    # at a lone carriage return. utf-8-sig drops the byte order mark that spreadsheets write.
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    text: IO[str] = opener(path, "rt", encoding="utf-8-sig", newline="\n")
    return text


def _from_rows(header: Sequence[str], rows: Iterable[tuple[int, list[str]]]) -> dict[str, Column]:
    if len(set(header)) != len(header):
        raise ValueError(f"the header names a column twice: {list(header)}")
    columns: list[list[str]] = [[] for _ in header]
    for line, fields in rows:
        if len(fields) != len(header):
            raise ValueError(
                f"line {line} has {len(fields)} fields, the header has {len(header)}: {fields[:3]}"
            )
        for column, field in zip(columns, fields, strict=True):
            column.append(field)
    return dict(zip(header, columns, strict=True))


def read_tsv(path: Path) -> dict[str, Column]:
    """Reads tab separated text with a header line; a quote character is data like any other."""
    with _open_text(path) as file:
        lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(file, start=1))
        filled = ((number, line.split("\t")) for number, line in lines if line)
        _, header = next(filled, (0, []))
        return _from_rows(header, filled)


def read_csv(path: Path) -> dict[str, Column]:
    """Reads comma separated text with a header line and the usual double quotes."""
    with _open_text(path) as file:
        reader = csv.reader(file, strict=True)
        filled = ((reader.line_num, fields) for fields in reader if fields)
        _, header = next(filled, (0, []))
        return _from_rows(header, filled)


def _from_objects(rows: Iterable[tuple[int, Any]]) -> dict[str, Column]:
    objects: list[dict[str, Any]] = []
    for place, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"entry {place} is not an object of column names and values")  # noqa: TRY004 - the caller reports every broken file alike
        objects.append(row)
    # A key may be absent from some rows (optional fields are common); None marks it, and
    # require_columns refuses None in a column that is really used.
    names = dict.fromkeys(name for row in objects for name in row)
    return {name: [row.get(name) for row in objects] for name in names}


def read_jsonl(path: Path) -> dict[str, Column]:
    """Reads one JSON object per line."""
    with _open_text(path) as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        return _from_objects((number, _parse(line, number)) for number, line in lines)


def _parse(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error


def read_json(path: Path) -> dict[str, Column]:
    """Reads a JSON list of objects."""
    with _open_text(path) as file:
        rows = json.load(file)
    if not isinstance(rows, list):
        raise ValueError("the file must hold a list of objects")  # noqa: TRY004 - as above
    return _from_objects(enumerate(rows))


def read_parquet(path: Path) -> dict[str, Column]:
    """Reads a Parquet file."""
    # Imported here: text users should not wait for it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns: dict[str, Column] = pq.ParquetFile(path).read().to_pydict()
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    return columns


def read_npz(path: Path) -> dict[str, Column]:
    """Reads numpy arrays by name; pickled objects are refused, for they can run code."""
    # numpy decides by the content: a renamed .npy file comes back as a bare array.
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("the file holds a bare array, not a zip of named arrays")  # noqa: TRY004 - as above
    with archive:
        return {name: archive[name] for name in archive.files}


_TEXT: dict[str, Reader] = {
    ".tsv": read_tsv,
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".json": read_json,
}
READERS: dict[str, Reader] = {
    **_TEXT,
    **{f"{suffix}.gz": reader for suffix, reader in _TEXT.items()},
    ".parquet": read_parquet,
    ".npz": read_npz,
}


def suffix_of(path: Path) -> str:
    """Returns the suffix that selects the reader, for example ``.tsv`` or ``.tsv.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def read_columns(path: Path, *, key: str = "data.path") -> Columns:
    """Reads one file by its suffix.

    Args:
        path: the file.
        key: the setting that named the file, for error messages.

    Returns:
        Column name to values; the columns may differ in length (an npz of several splits does).

    Raises:
        DataError: the file does not exist, has an unknown suffix, is broken or has no rows.
    """
    if not path.is_file():
        raise DataError(f"{key}: there is no file {str(path)!r}; correct {key}")
    suffix = suffix_of(path)
    if suffix not in READERS:
        raise DataError(
            f"{key}: cannot read {str(path)!r}, suffix {suffix!r} is unknown; "
            f"convert it to one of: {', '.join(READERS)}"
        )
    try:
        columns = READERS[suffix](path)
    except _BROKEN as error:
        raise DataError(
            f"{key}: {str(path)!r} is not a readable {suffix} file ({error}); write it again"
        ) from error
    if not columns or any(len(values) == 0 for values in columns.values()):
        raise DataError(f"{key}: {str(path)!r} is empty; it needs a header and at least one row")
    return columns


def read_table(path: Path, *, key: str = "data.path") -> Examples:
    """Reads one file as a table; arguments and errors as in ``read_columns``."""
    return as_table(read_columns(path, key=key), path, key=key)


def as_table(columns: Columns, path: Path, *, key: str = "data.path") -> Examples:
    """Returns the columns of one file as a table; the error names the file."""
    try:
        return Examples(columns)
    except DataError as error:
        raise DataError(f"{key}: {str(path)!r}: {error}") from error
