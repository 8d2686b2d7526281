"""A frozen model rebuilt from its checkpoint and what that lacks."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fl_app.errors import ModelError
from fl_app.fomo.backbone import head_modules
from fl_app.fomo.frozen import Frozen, frozen_of, load_frozen, save_frozen
from fl_app.fomo.pooler import pooler_of
from tests.fixtures_models import LABELS, TinyModels, state_bytes
from tests.prompt_fixtures import CLASSES

_ROUNDED = ("bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight")


def _changed(tiny: TinyModels) -> tuple[object, Frozen]:
    """Some weights rounded, the pooler replaced, the head tuned."""
    model = tiny.load("bert", CLASSES).model
    pooler, heads = pooler_of(model), head_modules(model, CLASSES)
    assert pooler is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in _ROUNDED:
                parameter.copy_(parameter.half().float())
            elif name.startswith(pooler) or name.split(".")[0] in heads:
                parameter.add_(torch.pi)
    return model, frozen_of(model, heads=heads, carried=(pooler,), labels=LABELS, max_length=9)


def test_the_model_is_rebuilt_to_the_last_bit_but_for_its_head(
    tiny: TinyModels, tmp_path: Path
) -> None:
    model, frozen = _changed(tiny)
    save_frozen(frozen, tmp_path / "model.frozen")
    loaded = load_frozen(tmp_path / "model.frozen")
    assert (loaded.labels, loaded.max_length) == (LABELS, 9)
    assert set(loaded.tensors) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert _ROUNDED[0] in loaded.rounded
    assert (tmp_path / "model.frozen").stat().st_size < 10_000  # no embeddings in it
    again = tiny.load("bert", CLASSES).model
    before = state_bytes(again)
    loaded.put_into(again)
    after, wanted = state_bytes(again), state_bytes(model)
    assert before != after
    for name, content in after.items():
        assert content == (before if name.startswith("classifier") else wanted)[name], name


def test_nothing_changed_is_nothing_saved(tiny: TinyModels, tmp_path: Path) -> None:
    model = tiny.load("bert", CLASSES).model
    before = state_bytes(model)
    save_frozen(frozen_of(model, heads=(), carried=(), labels=LABELS, max_length=9), tmp_path / "f")
    loaded = load_frozen(tmp_path / "f")
    assert loaded.tensors == {}
    loaded.put_into(model)
    assert state_bytes(model) == before


def test_a_file_from_before_lengths_were_kept_is_read(tmp_path: Path) -> None:
    about = {"about": "deft-frozen/1", "rounded": [], "labels": ["a", "b"]}
    path = tmp_path / "f"
    path.write_bytes(save({}, {"deft-frozen/1": json.dumps(about)}))
    loaded = load_frozen(path)
    assert (loaded.labels, loaded.max_length) == (("a", "b"), None)
    for wrong in (1, "long", "12", math.inf, math.nan, 12.7, 12.0, True):
        path.write_bytes(save({}, {"deft-frozen/1": json.dumps({**about, "max_length": wrong})}))
        with pytest.raises(ModelError, match="copy it from the run again"):
            load_frozen(path)


def test_what_does_not_fit_changes_nothing(tiny: TinyModels) -> None:
    model = tiny.load("bert", CLASSES).model
    before = state_bytes(model)
    good = {"bert.pooler.dense.bias": torch.ones(model.config.hidden_size)}
    for bad, rounded in (
        ({"bert.pooler.dense.weight": torch.ones(2, 2)}, ()),
        ({"nothing.weight": torch.ones(2)}, ()),
        ({}, ("nothing.weight",)),
    ):
        with pytest.raises(ModelError, match="give the model of the run"):
            Frozen({**good, **bad}, rounded, LABELS).put_into(model)
    assert state_bytes(model) == before


def test_a_damaged_file_is_refused(tiny: TinyModels, tmp_path: Path) -> None:
    path = tmp_path / "f"
    save_frozen(_changed(tiny)[1], path)
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[:-1], b"{}" * 20):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="copy it from the run again"):
            load_frozen(path)
    save_frozen(Frozen({"a": torch.tensor([torch.nan])}, (), LABELS), path)
    with pytest.raises(ModelError, match="finite"):
        load_frozen(path)
    with pytest.raises(ModelError, match="copy it"):
        load_frozen(tmp_path / "none")
