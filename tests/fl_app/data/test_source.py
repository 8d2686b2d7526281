"""Folders, single files, image archives and the hub loader."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.data.examples import Examples
from fl_app.data.source import Splits, load_file, load_hub, load_local, require_columns, split
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


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder that ``datasets`` accepts in place of a hub name, with a private cache."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    folder = tmp_path / "set"
    folder.mkdir()
    for name, rows in {"train": [("a", 1), ("b", 0)], "test": [("c", 1)]}.items():
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_load_hub_from_a_folder(hub_folder: Path) -> None:
    """The rows arrive as they are, and the split names are those asked for."""
    splits = load_hub(str(hub_folder), subset=None, train_split="train[:1]", test_split="test")
    assert splits.train.columns == {"text": ["a"], "label": [1]}
    assert splits.test.columns == {"text": ["c"], "label": [1]}


def test_load_hub_faults(hub_folder: Path) -> None:
    """An unknown split and an unknown name are told apart from a fault of the program."""
    with pytest.raises(DataError, match=r"data\.name=.*'validation'.*data=local"):
        load_hub(str(hub_folder), subset=None, train_split="train", test_split="validation")
    with pytest.raises(DataError, match=r"data\.name='\S+no'.*cannot be loaded"):
        load_hub(str(hub_folder / "no"), subset=None, train_split="train", test_split="test")


def test_hub_class_labels_become_words_and_images_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed columns of a hub set lose their library types; a hidden label is refused."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("PIL")
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )

    def load(name: str, subset: str | None, split: list[str]) -> list[object]:
        rows = {"train": [1, 0], "hidden": [-1, -1]}
        return [
            datasets.Dataset.from_dict({"image": list(pixels), "label": rows[part]}, features)
            for part in split
        ]

    monkeypatch.setattr(datasets, "load_dataset", load)
    splits = load_hub("zoo", subset=None, train_split="train", test_split="train")
    assert splits.train.column("label") == ["dog", "cat"]
    np.testing.assert_array_equal(splits.train.column("image"), pixels)
    with pytest.raises(DataError, match=r"'label' of 'hidden': a row has no class label"):
        load_hub("zoo", subset=None, train_split="train", test_split="hidden")


ASSETS = os.environ.get("DEFT_ASSETS")


def _asset(name: str) -> Path:
    folder = Path(ASSETS or "") / name
    if not ASSETS or not folder.is_dir():
        pytest.skip(f"the environment variable DEFT_ASSETS names no folder with {name}")
    return folder


@pytest.mark.parametrize(
    ("name", "sizes", "columns"),
    [
        ("sst2", {"train": 6920, "test": 1821, "dev": 872}, {"label", "text"}),
        ("trec", {"train": 5452, "test": 500}, {"label", "coarse", "fine", "text"}),
        ("cifar5_down", {"train": 3000, "test": 1000}, {"label", "image"}),
    ],
)
def test_real_sets_have_their_published_sizes(
    name: str, sizes: dict[str, int], columns: set[str]
) -> None:
    """No row is lost or doubled by quoting; sizes are those the sets' authors state."""
    splits = load_local(str(_asset(name)), seed=0)
    assert {part: len(examples) for part, examples in splits.parts().items()} == sizes
    assert set(splits.train.columns) == columns


@pytest.mark.parametrize(
    ("name", "suffix", "header", "column"),
    [("reviews8", "tsv", 1, "domain"), ("t0_tasks", "jsonl", 0, "completion")],
)
def test_real_compressed_sets_have_a_row_per_line(
    name: str, suffix: str, header: int, column: str
) -> None:
    """Oracle: the number of lines of the file."""
    folder = _asset(name)
    splits = load_local(str(folder), seed=0)
    require_columns(splits, {"data.text_column": column})
    for part, examples in splits.parts().items():
        lines = gzip.decompress((folder / f"{part}.{suffix}.gz").read_bytes()).count(b"\n")
        assert len(examples) == lines - header
