"""Folders, single files and image archives."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.data.examples import Examples
from fl_app.data.source import Splits, load_file, load_local, require_columns, split
from fl_app.errors import ConfigError, DataError


def _write(folder: Path, name: str, rows: list[tuple[str, str]]) -> None:
    lines = ["text\tlabel", *("\t".join(row) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _archive(path: Path, **replace: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (6, 4, 4), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.integers(0, 256, (3, 4, 4), dtype=np.uint8),
        "y_test": np.array([2, 1, 0]),
    } | replace
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return arrays


def test_folder_of_different_formats(tmp_path: Path) -> None:
    """Each split is found by its stem, whatever its format."""
    _write(tmp_path, "train.tsv", [("a", "x"), ("b", "y")])
    (tmp_path / "test.jsonl").write_text('{"text": "c", "label": "x"}\n', encoding="utf-8")
    (tmp_path / "validation.csv").write_text("text,label\nd,y\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("notes", encoding="utf-8")

    splits = load_local(str(tmp_path), seed=0, stratify="label")
    assert splits.train.columns == {"text": ["a", "b"], "label": ["x", "y"]}
    assert splits.test.columns == {"text": ["c"], "label": ["x"]}
    assert splits.dev is not None
    assert splits.dev.columns == {"text": ["d"], "label": ["y"]}
    assert list(splits.parts()) == ["train", "test", "dev"]


def test_folder_without_dev(tmp_path: Path) -> None:
    """The dev split is optional."""
    _write(tmp_path, "train.tsv", [("a", "x")])
    _write(tmp_path, "test.tsv", [("b", "x")])
    splits = load_local(str(tmp_path), seed=0)
    assert splits.dev is None
    assert list(splits.parts()) == ["train", "test"]


@pytest.mark.parametrize("as_file", [False, True])
def test_image_archive_with_label_words(as_file: bool, tmp_path: Path) -> None:
    """The npz is found in its folder or by its path, and labels.txt names the classes."""
    arrays = _archive(tmp_path / "set.npz")
    (tmp_path / "labels.txt").write_text("cat\ndog\nship\n", encoding="utf-8")
    splits = load_local(str(tmp_path / "set.npz" if as_file else tmp_path), seed=0)

    np.testing.assert_array_equal(splits.train.column("image"), arrays["x_train"])
    np.testing.assert_array_equal(splits.test.column("image"), arrays["x_test"])
    assert splits.train.column("label") == ["cat", "dog", "ship", "cat", "dog", "ship"]
    assert splits.test.column("label") == ["ship", "dog", "cat"]


def test_image_archive_without_label_words(tmp_path: Path) -> None:
    """Without labels.txt the numbers are the labels."""
    arrays = _archive(tmp_path / "set.npz")
    np.testing.assert_array_equal(
        load_local(str(tmp_path), seed=0).test.column("label"), arrays["y_test"]
    )


@pytest.mark.parametrize(
    ("replace", "text"),
    [
        ({"x_train": np.zeros((6, 4, 4), np.float32)}, "x_train .* must be uint8"),
        ({"y_test": np.array([2, 1, 3])}, "names 3 labels.* reach 3"),
        ({"y_test": np.array([2, 1])}, "equally long"),
    ],
)
def test_image_archive_that_does_not_fit(
    replace: dict[str, np.ndarray], text: str, tmp_path: Path
) -> None:
    """Wrong pixel type, a label without a word, and a missing label are refused."""
    _archive(tmp_path / "set.npz", **replace)
    (tmp_path / "labels.txt").write_text("cat\ndog\nship\n", encoding="utf-8")
    with pytest.raises(DataError, match=text):
        load_local(str(tmp_path), seed=0)


def test_npz_without_the_four_arrays(tmp_path: Path) -> None:
    """A folder with any other npz is no data set."""
    np.savez(tmp_path / "set.npz", x_train=np.zeros(2))
    with pytest.raises(DataError, match="lacks the arrays y_train, x_test, y_test"):
        load_local(str(tmp_path), seed=0)


def test_faults_of_a_folder(tmp_path: Path) -> None:
    """Every text names data.path and what is missing."""
    missing = tmp_path / "no"
    with pytest.raises(
        DataError, match=r"^data\.path: there is no file or folder .*set data\.path"
    ):
        load_local(str(missing), seed=0)
    missing.mkdir()
    with pytest.raises(DataError, match=r"^data\.path: .*holds nothing.*train\.\* and test\.\*"):
        load_local(str(missing), seed=0)
    _write(missing, "train.tsv", [("a", "x")])
    with pytest.raises(DataError, match=r"train\.tsv but no test\.\*"):
        load_local(str(missing), seed=0)
    (missing / "test.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"suffix '\.txt' is unknown.*\.tsv"):
        load_local(str(missing), seed=0)
    _write(missing, "test.tsv", [("a", "x")])
    (missing / "test.csv").write_text("text,label\na,x\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"several test files \(test\.csv, test\.tsv\)"):
        load_local(str(missing), seed=0)


def test_single_file_is_split(tmp_path: Path) -> None:
    """One file becomes two splits with the class shares of the whole."""
    rows = [(f"text {i}", "ab"[i % 5 == 0]) for i in range(50)]
    _write(tmp_path, "all.tsv", rows)
    splits = load_local(str(tmp_path / "all.tsv"), seed=3, test_fraction=0.2, stratify="label")
    assert Counter(splits.test.column("label")) == {"a": 8, "b": 2}
    assert Counter(splits.train.column("label")) == {"a": 32, "b": 8}


@settings(derandomize=True, max_examples=40)
@given(
    labels=st.lists(st.sampled_from("abc"), min_size=2, max_size=40),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
    stratified=st.booleans(),
)
def test_split_covers_every_row_once(
    labels: list[str], fraction: float, seed: int, stratified: bool
) -> None:
    """Both splits together are the table, repeatably, and each label's share is as asked."""
    table = Examples({"row": np.arange(len(labels)), "label": labels})
    counts = Counter(labels)
    if stratified and max(counts.values()) == 1:
        with pytest.raises(DataError, match="too few"):
            split(table, seed=seed, test_fraction=fraction, stratify="label")
        return
    stratify = "label" if stratified else None
    one = split(table, seed=seed, test_fraction=fraction, stratify=stratify)
    two = split(table, seed=seed, test_fraction=fraction, stratify=stratify)

    train, test = np.asarray(one.train.column("row")), np.asarray(one.test.column("row"))
    assert sorted([*train, *test]) == list(range(len(labels)))
    np.testing.assert_array_equal(test, two.test.column("row"))
    groups = counts if stratified else {"all": len(labels)}
    tested = Counter(one.test.column("label")) if stratified else {"all": len(test)}
    for name, size in groups.items():
        # At most half a row of rounding, except where a split must get or keep one row.
        assert abs(tested.get(name, 0) - fraction * size) <= 1
        assert size - tested.get(name, 0) >= 1


def test_split_depends_on_the_seed_and_not_on_the_global_generator() -> None:
    """Two seeds differ; reseeding numpy's global generator changes nothing."""
    table = Examples({"row": np.arange(40)})
    first = np.asarray(split(table, seed=0).test.column("row"))
    np.random.seed(7)  # noqa: NPY002 - the global generator is what is tested
    np.testing.assert_array_equal(first, split(table, seed=0).test.column("row"))
    assert list(first) != list(np.asarray(split(table, seed=1).test.column("row")))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_fraction_out_of_range(fraction: float) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigError, match=r"data\.test_fraction must be between 0 and 1"):
        split(Examples({"row": [1, 2]}), seed=0, test_fraction=fraction)


def test_one_row_cannot_be_split() -> None:
    """Neither split may be empty."""
    with pytest.raises(DataError, match="1 rows are too few"):
        split(Examples({"row": [1]}), seed=0)


def test_load_file_for_a_device(tmp_path: Path) -> None:
    """A device names a file, a folder with train.*, or an image archive."""
    _write(tmp_path, "train.tsv", [("a", "x")])
    _write(tmp_path, "test.tsv", [("b", "x")])
    assert load_file(str(tmp_path)).column("text") == ["a"]
    assert load_file(str(tmp_path / "test.tsv")).column("text") == ["b"]

    folder = tmp_path / "images"
    folder.mkdir()
    arrays = _archive(folder / "set.npz")
    for path in (folder, folder / "set.npz"):
        np.testing.assert_array_equal(load_file(str(path)).column("image"), arrays["x_train"])
    with pytest.raises(DataError, match=r"^data-path: there is no file or folder"):
        load_file(str(tmp_path / "no"), key="data-path")


def test_require_columns_names_the_setting_and_the_choices() -> None:
    """The text tells which key to change and to what."""
    good = Examples({"text": ["a"], "label": ["x"]})
    splits = Splits(train=good, test=Examples({"sentence": ["a"], "label": ["x"]}))
    wanted = {"data.text_column": "text", "data.label_column": "label"}
    require_columns(good, wanted)
    with pytest.raises(
        DataError,
        match=r"data\.text_column='text': test has no such column; the columns are: "
        r"sentence, label; set data\.text_column",
    ):
        require_columns(splits, wanted)


def test_require_columns_finds_a_gap() -> None:
    """A row without a value is found before training, not in it."""
    with pytest.raises(
        DataError, match=r"data\.text_column='text': row 1 of the data has no value"
    ):
        require_columns(Examples({"text": ["a", None]}), {"data.text_column": "text"})
