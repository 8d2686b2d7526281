"""Sources that are not made here: a hub, and real sets where they are at hand."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from fl_app.data.source import load_hub, load_local, require_columns
from fl_app.errors import DataError


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
