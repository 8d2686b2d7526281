"""What a run reads: the same rows on every process, each row in exactly one place."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fl_app.config import load_config
from fl_app.errors import ConfigError, DataError
from fl_app.material import Material, load_material, needed_columns
from fl_app.schema import DataConfig
from tests.federation_fixtures import (
    CLASSES,
    NUM_TEST,
    NUM_TRAIN,
    TinyFederation,
    tiny_federation,
)

__all__ = ["tiny_federation"]


def _load(tiny: TinyFederation, *more: str) -> Material:
    return load_material(load_config(tiny.overrides(*more)))


def _texts(part: object) -> list[str]:
    return [str(text) for text in part.column("text")]  # type: ignore[attr-defined]


def _numbered(folder: Path, num_train: int = 60, num_test: int = 20) -> Path:
    """A data set whose rows can be told apart."""
    folder.mkdir()
    for part, size in (("train", num_train), ("test", num_test)):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "label", "place"])
            for row in range(size):
                table.writerow([f"{part}-{row}", CLASSES[row % 4], f"p{row % 3}"])
    return folder


def test_every_training_row_is_with_one_device_or_public(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    data = _numbered(tmp_path / "numbered")
    for fraction in (0.0, 0.25):
        material = _load(
            tiny_federation,
            f"data.path={data}",
            f"data.public_fraction={fraction}",
            "data.partition.kind=dirichlet",
            "data.partition.alpha=0.5",
        )
        devices = [_texts(material.of_device(d)) for d in range(4)]
        assert all(devices)
        everywhere = sum(devices, _texts(material.public))
        assert sorted(everywhere) == sorted(f"train-{row}" for row in range(60))
        assert len(material.public) == int(fraction * 60)
        assert sorted(_texts(material.test)) == sorted(f"test-{row}" for row in range(20))


def test_rows_are_drawn_by_the_seed_alone(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    data = _numbered(tmp_path / "numbered")
    words = (f"data.path={data}", "data.public_fraction=0.2", "data.limit_test=5")

    def drawn(*more: str) -> list[list[str]]:
        material = _load(tiny_federation, *words, *more)
        parts = [material.train, material.test, material.public]
        return [_texts(p) for p in parts] + [_texts(material.of_device(d)) for d in range(4)]

    plain = drawn()
    assert drawn("peft.rank=4") == plain  # other options leave the draw alone
    other = drawn("seed=1")
    assert all(mine != theirs for mine, theirs in zip(other, plain, strict=True))


def test_limits_take_a_random_part_in_the_order_of_the_file(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    data = _numbered(tmp_path / "numbered")
    words = (f"data.path={data}", "data.limit_train=20", "data.limit_test=7")
    material = _load(tiny_federation, *words, "data.public_fraction=0.5")
    assert (len(material.train), len(material.public), len(material.test)) == (10, 10, 7)
    for part in (material.train, material.public, material.test):
        rows = [int(text.split("-")[1]) for text in _texts(part)]
        assert rows == sorted(rows)
        assert rows != list(range(len(rows)))
    large = _load(tiny_federation, f"data.path={data}", "data.limit_train=999")
    assert len(large.train) == 60


def test_the_tiny_set_is_what_it_says(tiny_federation: TinyFederation) -> None:
    material = _load(tiny_federation)
    assert material.labels == CLASSES
    assert (len(material.train), len(material.test)) == (NUM_TRAIN, NUM_TEST)
    assert len(material.public) == 0
    assert [len(rows) for rows in material.partition] == [NUM_TRAIN // 4] * 4


def test_labels_of_all_splits_are_known(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    """A class that no training row has still has a logit, or its test rows could not be read."""
    data = _numbered(tmp_path / "numbered")
    with (data / "test.csv").open("a") as file:
        file.write("test-x,zebra,p0\n")
    (data / "dev.csv").write_text("text,label\ndev-0,aardvark\n")
    assert _load(tiny_federation, f"data.path={data}").labels == ("aardvark", *CLASSES, "zebra")


def test_devices_by_a_column_hold_one_value_each(
    tiny_federation: TinyFederation, tmp_path: Path
) -> None:
    data = _numbered(tmp_path / "numbered")
    material = _load(
        tiny_federation,
        f"data.path={data}",
        "data.partition.kind=column",
        "data.partition.column=place",
        "federation.num_devices=3",
    )
    assert [set(material.of_device(d).column("place")) for d in range(3)] == [
        {"p0"},
        {"p1"},
        {"p2"},
    ]


def test_one_file_is_split(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    data = _numbered(tmp_path / "numbered")
    material = _load(tiny_federation, f"data.path={data / 'train.csv'}")
    assert (len(material.train), len(material.test)) == (48, 12)
    assert not set(_texts(material.train)) & set(_texts(material.test))


def test_a_language_model_needs_no_labels(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    data = tmp_path / "lm"
    data.mkdir()
    for part in ("train", "test"):
        rows = [{"prompt": f"w{i}", "completion": f"w{i + 1}"} for i in range(8)]
        lines = [f'{{"prompt": "{r["prompt"]}", "completion": "{r["completion"]}"}}' for r in rows]
        (data / f"{part}.jsonl").write_text("\n".join(lines))
    material = _load(tiny_federation, "model.task=causal_lm", f"data.path={data}")
    assert material.labels == ()
    assert np.concatenate(material.partition).size == 8


@pytest.mark.parametrize(
    ("words", "columns"),
    [
        ("data.text_column=a data.label_column=b", {"text_column": "a", "label_column": "b"}),
        (
            "model.task=image_classification",
            {"image_column": "image", "label_column": "label"},
        ),
        (
            "model.task=causal_lm",
            {"prompt_column": "prompt", "completion_column": "completion"},
        ),
        ("model.task=causal_lm data.prompt_column=null", {"completion_column": "completion"}),
    ],
)
def test_each_task_needs_its_own_columns(words: str, columns: dict[str, str]) -> None:
    assert needed_columns(load_config(words)) == {f"data.{k}": v for k, v in columns.items()}


# --- errors ------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tiny_federation: TinyFederation, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path.*nowhere"):
        _load(tiny_federation, f"data.path={tmp_path / 'nowhere'}")


def test_a_missing_column_is_named_with_those_that_exist(tiny_federation: TinyFederation) -> None:
    with pytest.raises(DataError) as error:
        _load(tiny_federation, "data.text_column=sentence")
    for part in ("data.text_column='sentence'", "text, label"):
        assert part in str(error.value)


def test_more_devices_than_rows_are_refused(tiny_federation: TinyFederation) -> None:
    material = _load(tiny_federation, "data.limit_train=3")
    with pytest.raises(DataError, match=r"federation\.num_devices=4"):
        material.of_device(0)


@pytest.mark.parametrize("device", [-1, 4, 99])
def test_a_device_outside_the_partition_is_told_so(
    tiny_federation: TinyFederation, device: int
) -> None:
    """A real node may say partition-id=7 where federation.num_devices=4."""
    with pytest.raises(DataError, match=rf"partition-id={device}.*num_devices=4.*data-path"):
        _load(tiny_federation).of_device(device)


def test_an_unknown_kind_of_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="DataConfig"):
        load_material(dataclasses.replace(load_config(), data=DataConfig()))
