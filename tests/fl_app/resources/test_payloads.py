"""The payload table of the specification, and what a configuration file may leave out."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from fl_app.resources.architecture import emulator
from fl_app.resources.errors import ResourceError
from fl_app.resources.families import FAMILIES, architecture_of, read_config
from fl_app.resources.payloads import (
    activation_reals,
    block_params,
    lora_reals,
    prompt_reals,
)

MODELS = Path(__file__).parents[3] / "docs" / "models"
_TABLE = [  # millions: prompt of 100 tokens and activations in bytes, LoRA and block in reals
    ("roberta-base", 0.154, 0.295, 1.57, {7.1}),
    ("opt-1.3b", 0.410, 1.57, 4.19, {50.4}),
    ("gpt2-xl", 0.320, 2.46, 3.28, {30.7}),
    ("llama-7b", 0.819, 4.19, 8.39, {202.4}),
    ("t5-xxl", 0.819, 9.44, 8.39, {192.9, 260.1}),
]


def published(name: str) -> Any:
    labels = 2 if name == "roberta-base" else 0
    return architecture_of(read_config(MODELS / f"{name}.json"), num_labels=labels)


@pytest.mark.parametrize(("name", "prompt", "rank8", "activations", "sizes"), _TABLE)
def test_payload_table(
    name: str, prompt: float, rank8: float, activations: float, sizes: set[float]
) -> None:
    shapes = published(name)
    assert round(2 * prompt_reals(100, shapes.width) / 1e6, 3) == prompt
    reals = lora_reals(shapes, 8, frozenset(shapes.default_targets))
    assert reals / 1e6 == pytest.approx(rank8, abs=0.006)
    assert round(2 * activation_reals(8, 128, shapes.width) / 1e6, 2) == activations
    assert {round(count / 1e6, 1) for count in block_params(shapes)} == sizes


@pytest.mark.parametrize(
    ("name", "billions"),
    [("opt-1.3b", 1.3158), ("llama-7b", 6.7384), ("gpt2-xl", 1.5576), ("t5-xxl", 11.1353)],
)
def test_sizes_of_published_models(name: str, billions: float) -> None:
    assert round(published(name).num_params / 1e9, 4) == billions


@pytest.mark.parametrize("name", [row[0] for row in _TABLE])
def test_file_and_transformers_configuration_give_equal_shapes(name: str) -> None:
    fields = json.loads((MODELS / f"{name}.json").read_text())
    labels = 2 if name == "roberta-base" else 0
    full = transformers.AutoConfig.for_model(**fields)
    # transformers 5 ties T5's embeddings whatever the file says; the published weights are not.
    full.tie_word_embeddings = fields.get("tie_word_embeddings", full.tie_word_embeddings)
    assert architecture_of(full, num_labels=labels) == published(name)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fields_that_a_file_may_leave_out_have_the_familys_defaults(
    family: str, tmp_path: Path
) -> None:
    full = transformers.AutoConfig.for_model(family)
    fields = {k: v for k, v in full.to_dict().items() if k not in FAMILIES[family].defaults}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"model_type": family}))
    assert architecture_of(read_config(tmp_path), num_labels=3) == architecture_of(
        full, num_labels=3
    )


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_an_emulator_has_the_shapes_of_a_shallower_model(family: str) -> None:
    full = architecture_of(transformers.AutoConfig.for_model(family))  # 12, or 6 and 6 blocks
    field = "num_layers" if family == "t5" else "n_layer"
    small = architecture_of(transformers.AutoConfig.for_model(family, **{field: 4}))
    assert emulator(full, 1, 2, 1) == small
    for split in ((3, 7, 3), (0, 0, 0), (-1, 2, 1)):
        with pytest.raises(ResourceError, match="give three numbers >= 0 that add up to 1 to"):
            emulator(full, *split)


def test_unreadable_and_unknown_models_are_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(ResourceError, match="cannot be read"):
        read_config(file)
    file.write_text(json.dumps({"hidden_size": 4}))
    with pytest.raises(ResourceError, match=r"give a config\.json with a model_type"):
        read_config(file)
    file.write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ResourceError, match="model type 'mamba' is not priced; choose one of"):
        architecture_of(read_config(file))
    file.write_text(json.dumps({"model_type": "llama", "hidden_size": 4}))
    with pytest.raises(ResourceError, match=r"has no field 'vocab_size'|has no field 'num_"):
        architecture_of(read_config(file))
    with pytest.raises(ResourceError, match="num_labels=0: a bert model is tuned as a classifier"):
        architecture_of(transformers.BertConfig())
    with pytest.raises(ResourceError, match="activation 'swish' is not priced"):
        architecture_of(transformers.BertConfig(hidden_act="swish"), num_labels=2)
    small = transformers.OPTConfig(word_embed_proj_dim=512, hidden_size=1024)
    with pytest.raises(ResourceError, match="word_embed_proj_dim=512"):
        architecture_of(small)
