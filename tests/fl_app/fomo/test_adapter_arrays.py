"""Arrays of an adapter: drawn, read, written, told apart, and the same file every time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.emulator import Split
from fl_app.updates import Update
from tests.adapter_fixtures import SPLIT, adapter_of, random_like, spec_of
from tests.fixtures_models import (
    DEPTH,
    TinyModels,
)


def test_a_saved_adapter_is_the_same_file_every_time(tiny: TinyModels, tmp_path: Path) -> None:
    """PEFT keeps targets in a set, whose order differs from process to process."""
    adapter = adapter_of(
        tiny.load("bert", "sequence_classification").model,
        "sequence_classification",
        spec=spec_of(targets=("all-linear",)),
    )
    adapter.save(tmp_path)
    named = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert named == sorted(named)
    assert len(named) == 12  # query, key, value, three dense maps; two tuned blocks


def test_starting_values_come_from_named_streams(tiny: TinyModels) -> None:
    """A is uniform on +-1/sqrt(d_in) and depends on the seed alone; B is zero."""

    def start(seed: int) -> Update:
        model = tiny.load("bert", "sequence_classification").model
        return adapter_of(model, "sequence_classification", spec=spec_of(rank=64), seed=seed).read()

    torch.manual_seed(1)
    one = start(7)
    torch.manual_seed(2)
    two = start(7)
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    draws = [array for name, array in one.items() if "lora_A" in name]
    others = [array for name, array in start(8).items() if "lora_A" in name]
    assert not any((a == b).any() for a, b in zip(draws, others, strict=True))
    assert all((array == 0).all() for name, array in one.items() if "lora_B" in name)
    bound = 1 / np.sqrt(16)
    for draw in draws:  # 1024 entries; the chance to miss the outer 2 % of both ends is below 1e-8
        assert draw.shape == (64, 16)
        assert -bound <= draw.min() < -0.96 * bound
        assert 0.96 * bound < draw.max() <= bound
        assert abs(draw.mean()) < 5 * bound / np.sqrt(3 * draw.size)


def test_write_refuses_what_does_not_fit(tiny: TinyModels) -> None:
    """A missing, additional or misshapen array; the adapter stays as it was."""
    model = tiny.load("gpt2", "causal_lm").model
    adapter = adapter_of(model, "causal_lm")
    good = adapter.read()
    name = next(iter(good))
    misfits: list[Update] = [
        {key: value for key, value in good.items() if key != name},
        {**good, "more": np.zeros(1, np.float32)},
        {**good, name: good[name].T.copy()},
        {},
    ]
    for misfit in misfits:
        with pytest.raises(ModelError, match="adapter does not fit the model"):
            adapter.write(misfit)
    assert all(adapter.read()[key].tobytes() == good[key].tobytes() for key in good)


def test_read_is_a_copy(tiny: TinyModels) -> None:
    """Later tuning must not change an update already read."""
    adapter = adapter_of(tiny.load("gpt2", "causal_lm").model, "causal_lm")
    before = adapter.read()
    adapter.write(random_like(before))
    assert all((array == 0).all() for name, array in before.items() if "lora_B" in name)


def test_layout_hash_tells_layouts_apart(tiny: TinyModels) -> None:
    """Rank, targets, blocks and whether A is tuned all change it; the seed and values do not."""

    def layout(split: Split = SPLIT, seed: int = 0, **changes: Any) -> str:
        model = tiny.load("gpt2", "causal_lm").model
        return adapter_of(
            model, "causal_lm", spec=spec_of(**changes), split=split, seed=seed
        ).layout_hash()

    hashes = [
        layout(),
        layout(rank=3),
        layout(train_a=False),
        layout(targets=("c_proj",)),
        layout(split=Split(2, 1, 1, DEPTH)),
    ]
    assert len(set(hashes)) == len(hashes)
    assert layout(seed=5, alpha=9.0) == hashes[0]
