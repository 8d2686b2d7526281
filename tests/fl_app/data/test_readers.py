"""Every file format, its traps and its faults."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.data.readers import READERS, read_table, suffix_of
from fl_app.errors import DataError

# A closed pair of quotes, a lone quote, a comma, a line separator that is no line end, non-ASCII.
TEXTS = ['she said "no"', '5" nails, please', '"', "a\u2028b", "caf\u00e9 \u4f60", " padded "]
LABELS = ["neg", "pos", "neg", "10", "2", "pos"]


def _tsv() -> bytes:
    rows = zip(["text", *TEXTS], ["label", *LABELS], strict=True)
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def _csv() -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows(zip(["text", *TEXTS], ["label", *LABELS], strict=True))
    return file.getvalue().encode()


def _objects() -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


def _jsonl() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _objects()).encode()


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS, "label": LABELS}), sink)
    return bytes(sink.getvalue())


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, text=np.array(TEXTS), label=np.array(LABELS))
    return file.getvalue()


WRITERS: dict[str, Callable[[], bytes]] = {
    ".tsv": _tsv,
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".json": lambda: json.dumps(_objects()).encode(),
    ".parquet": _parquet,
    ".npz": _npz,
}


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_round_trip(suffix: str, tmp_path: Path) -> None:
    """What another program wrote comes back, character by character, in every format."""
    content = WRITERS[suffix.removesuffix(".gz")]()
    path = tmp_path / f"my.data{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)

    table = read_table(path)
    assert list(table.columns) == ["text", "label"]
    assert list(table.column("text")) == TEXTS
    assert list(table.column("label")) == LABELS


@settings(derandomize=True, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\t\n\r", codec="utf-8")),
            st.text("ab\"'\\,", min_size=1),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_tsv_has_no_quoting_at_all(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    """Any text without tab and line end survives, quotes and backslashes included."""
    path = tmp_path_factory.getbasetemp() / "quotes.tsv"
    lines = ["text\tlabel", *("\t".join(row) for row in rows)]
    path.write_bytes("\n".join(lines).encode())
    table = read_table(path)
    assert list(zip(table.column("text"), table.column("label"), strict=True)) == rows


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    """A file saved by a spreadsheet has the columns its author sees."""
    for suffix, separator in ((".tsv", "\t"), (".csv", ",")):
        path = tmp_path / f"train{suffix}"
        path.write_bytes(f"\ufefftext{separator}label\r\nhi{separator}1\r\n\r\n".encode())
        assert read_table(path).columns == {"text": ["hi"], "label": ["1"]}


def test_tsv_keeps_blanks_empty_fields_and_lone_carriage_returns(tmp_path: Path) -> None:
    """Only the line end is taken off a line, and only a line feed ends it."""
    path = tmp_path / "train.tsv"
    path.write_bytes(b"text\tnote\none\rline\t\nb\tends blank \n")
    assert read_table(path).columns == {"text": ["one\rline", "b"], "note": ["", "ends blank "]}


def test_csv_value_with_line_end(tmp_path: Path) -> None:
    """A quoted line end belongs to the value."""
    path = tmp_path / "train.csv"
    path.write_text('text,label\n"two\nlines",1\n', encoding="utf-8")
    assert read_table(path).columns == {"text": ["two\nlines"], "label": ["1"]}


def test_integer_labels_and_optional_keys_of_json(tmp_path: Path) -> None:
    """Numbers stay numbers; a key absent from a row is a gap, not an error."""
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a", "label": 1}\n\n{"label": 0, "note": "x"}\n', encoding="utf-8")
    table = read_table(path)
    assert table.columns == {"text": ["a", None], "label": [1, 0], "note": [None, "x"]}


def test_images_stay_uint8(tmp_path: Path) -> None:
    """Arrays keep dtype and shape."""
    images = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    np.savez_compressed(tmp_path / "train.npz", image=images, label=np.array([1, 0]))
    image = np.asarray(read_table(tmp_path / "train.npz").column("image"))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, images)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.tsv", ".tsv"),
        ("a.b.TSV.GZ", ".tsv.gz"),
        ("a.gz", ".gz"),
        ("a", ""),
        ("v1.2.csv", ".csv"),
    ],
)
def test_suffix(name: str, suffix: str) -> None:
    """Only a text suffix joins with .gz, and case does not matter."""
    assert suffix_of(Path(name)) == suffix


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.tsv", b"text\tlabel\nonly one\n", "line 2 has 1 fields, the header has 2"),
        ("a.tsv", b"text\ttext\na\tb\n", "names a column twice"),
        ("a.tsv", b"text\n\xff\xfe\n", "utf-8"),
        ("a.csv", b"text,label\na,b,c\n", "line 2 has 3 fields"),
        ("a.csv", b'text\n"open\n', "unexpected end of data"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "entry 1 is not an object"),
        ("a.json", b'{"text": ["a"]}', "must hold a list"),
        ("a.json", b"[", "Expecting value"),
        ("a.tsv.gz", b"text\na\n", "[Nn]ot a gzipped file"),
        ("a.tsv.gz", gzip.compress(b"text\nabc\n")[:-9], "ended before"),
        ("a.parquet", b"PAR1 no", "not a readable .parquet"),
        ("a.npz", b"no zip", "not a readable .npz"),
    ],
)
def test_broken_file(name: str, content: bytes, place: str, tmp_path: Path) -> None:
    """The error names the setting, the file and the place of the fault."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s)^data\.path: .*{name}.*{place}"):
        read_table(path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    """Loading a data file must not run code."""
    np.savez(tmp_path / "a.npz", text=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        read_table(tmp_path / "a.npz")


def test_bare_array_is_refused(tmp_path: Path) -> None:
    """A .npy file renamed to .npz has no column names."""
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="bare array"):
        read_table(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", b""),
        ("a.tsv", b"text\tlabel\n"),
        ("a.csv", b""),
        ("a.jsonl", b"\n"),
        ("a.json", b"[]"),
    ],
)
def test_empty_file(name: str, content: bytes, tmp_path: Path) -> None:
    """A header without rows is as empty as no bytes."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.* is empty"):
        read_table(tmp_path / name)


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    """Both texts say what to do; the setting is the one the caller names."""
    with pytest.raises(DataError, match=r"^device\.path: there is no file .*correct device\.path"):
        read_table(tmp_path / "no.tsv", key="device.path")
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"suffix '\.xlsx' is unknown.*\.tsv, \.csv.*\.npz"):
        read_table(tmp_path / "a.xlsx")


def test_columns_of_different_length_name_the_file(tmp_path: Path) -> None:
    """An npz can hold arrays that are no table."""
    np.savez(tmp_path / "a.npz", image=np.zeros(3), label=np.zeros(2))
    with pytest.raises(DataError, match=r"a\.npz.*equally long"):
        read_table(tmp_path / "a.npz")
