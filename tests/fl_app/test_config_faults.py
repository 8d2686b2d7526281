"""Words and values that are refused, with their names and what is allowed."""

import dataclasses
from typing import Any

import pytest
import yaml

from fl_app import schema
from fl_app.config import CONF, GROUPS, load_config
from fl_app.errors import ConfigError

TOP = [field.name for field in dataclasses.fields(schema.Config)]
EXPERIMENTS = [path.stem for path in (CONF / "experiment").glob("*.yaml")]


def _error(overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(overrides)
    return str(error.value)


WRONG: dict[str, list[str]] = {
    # unknown keys: the key and the keys of that place
    "sed=1": ["sed", *TOP],
    "peft.rnk=2": ["rnk", "rank", "alpha", "targets", "aggregation"],
    "strategy.emulator.midle=1": ["midle", "left", "middle", "right", "sparsity", "bits"],
    "data.partition.beta=1": ["beta", "kind", "alpha", "column", "law"],
    "channel.snr_db=3": ["snr_db", "channel=aircomp|digital|ideal"],
    "model.path=/x": ["path", "MinilmModel", "model=hub|local|minilm"],  # belongs to model=local
    "peft=head peft.rank=2": ["rank", "HeadConfig", "peft=bottleneck|deep_prompt|head|lora"],
    "foo.bar.baz=1": ["foo", *TOP],
    # unknown choices: the choices
    "model=huge": ["model/huge", "hub", "local", "minilm"],
    "peft=adapter": ["peft/adapter", "head", "lora"],
    "channel=noisy": ["channel/noisy", "ideal"],
    "experiment=nobel": ["experiment/nobel", *EXPERIMENTS],
    "model=null": ["model=hub|local|minilm"],
    "peft.aggregation=mean": ["peft.aggregation='mean'", "freeze-a", "exact", "factors"],
    "strategy.references=[frozen,best]": ["strategy.references='best'", "federated_full"],
    # wrong types
    "peft.rank=many": ["peft.rank", "'many'", "Integer"],
    "seed=1.5": ["seed", "1.5", "Integer"],
    "federation.num_devices=true": ["federation.num_devices", "Integer"],
    "peft.targets=query": ["peft.targets"],
    "data.partition=iid": ["data.partition"],
    "strategy.emulator=null": ["strategy.emulator"],
    "peft.rank=2,4": ["peft.rank=2,4"],
    # out of range
    "peft.rank=0": ["peft.rank=0", ">= 1"],
    "finetune.lr=inf": ["finetune.lr=inf"],
    "federation.num_devices=3 federation.devices_per_round=4": ["devices_per_round=4", "1 to"],
    "strategy.emulator.left=0 strategy.emulator.right=0": ["must not both be 0"],
    "data.partition.kind=column": ["data.partition.column=None", "needs the name of a column"],
    # missing
    "model=local": ["model.path"],
    "data=local": ["data.path"],
    # not ours to change
    "+foo=1": ["'+foo=1' adds or deletes", "'foo=1'", *TOP],
    "++seed=1": ["'++seed=1' adds or deletes", "'seed=1'", *TOP],
    "~peft": ["'~peft' adds or deletes", *TOP],
    "hydra.job.name=x": ["hydra.job.name", *TOP],
    "peft@model=lora": ["peft@model"],
    # no words at all
    "'seed=1": ["No closing quotation", "check the quotes"],
    "seed": ["'seed'", "EQUAL"],
    "peft.targets=[query": ["peft.targets=[query"],
    "seed=${nothing}": ["nothing"],
}


OUT_OF_RANGE: dict[str, list[str]] = {
    "data.partition.kind=random": ["data.partition.kind='random'", "iid", "dirichlet", "column"],
    "model.task=vision": ["model.task='vision'", "sequence_classification", "causal_lm"],
    "strategy.emulator.wire_dtype=bf16": ["wire_dtype='bf16'", "auto", "float16", "float32"],
    "data.partition.law=cubic": ["data.partition.law='cubic'", "linear", "square", "exponential"],
    "peft.alpha=-1": ["peft.alpha=-1", "> 0"],
    "peft.alpha=nan": ["peft.alpha=nan"],
    "peft.alpha=inf": ["peft.alpha=inf"],
    "finetune.head_lr=0": ["finetune.head_lr=0", "> 0"],
    "finetune.lr_final=1.5": ["finetune.lr_final=1.5", "(0, 1]"],
    "finetune.batch_size=0": ["finetune.batch_size=0", ">= 1"],
    "finetune.epochs=0": ["finetune.epochs=0", ">= 1"],
    "finetune.max_steps=0": ["finetune.max_steps=0", ">= 1"],
    "finetune.weight_decay=-1": ["finetune.weight_decay=-1", ">= 0"],
    "finetune.weight_decay=inf": ["finetune.weight_decay=inf"],
    "finetune.clip_norm=0": ["finetune.clip_norm=0", "> 0"],
    "seed=-1": ["seed=-1", "0 to"],
    "seed=2147483648": ["seed=2147483648", "2147483647"],
    "strategy.num_rounds=0": ["strategy.num_rounds=0", ">= 1"],
    "strategy.round_test_rows=0": ["strategy.round_test_rows=0", ">= 1"],
    "strategy.emulator.left=-1": ["strategy.emulator.left=-1", ">= 0"],
    "strategy.emulator.middle=0": ["strategy.emulator.middle=0", ">= 1, or -1"],
    "strategy.emulator.middle=-2": ["strategy.emulator.middle=-2", ">= 1, or -1"],
    "strategy.emulator.sparsity=1": ["strategy.emulator.sparsity=1", "[0, 1)"],
    "strategy.emulator.bits=17": ["strategy.emulator.bits=17", "1 to 16"],
    "strategy.emulator.bits=0": ["strategy.emulator.bits=0", "1 to 16"],
    "strategy.emulator.distil.steps=-1": ["strategy.emulator.distil.steps=-1", ">= 0"],
    "strategy.emulator.distil.lr=0": ["strategy.emulator.distil.lr=0", "> 0"],
    "strategy.emulator.distil.kd_weight=-1": ["strategy.emulator.distil.kd_weight=-1", ">= 0"],
    "strategy.emulator.distil.lm_weight=nan": ["strategy.emulator.distil.lm_weight=nan", ">= 0"],
    "data.public_fraction=1": ["data.public_fraction=1", "[0, 1)"],
    "data.limit_train=0": ["data.limit_train=0", ">= 1"],
    "data.partition.alpha=0": ["data.partition.alpha=0", "> 0"],
    "data.partition.alpha=inf": ["data.partition.alpha=inf"],
    "model.max_length=1": ["model.max_length=1", ">= 2"],
    "federation.num_devices=0": ["federation.num_devices=0", ">= 1"],
    "federation.timeout_s=0": ["federation.timeout_s=0", "> 0"],
}
"""Key, value, what is allowed. Composing takes longest, so these are set after it."""


def _replaced(part: Any, keys: list[str], value: Any) -> Any:
    """Sets one field deep inside; every dataclass on the way checks itself again."""
    key, *rest = keys
    return dataclasses.replace(
        part, **{key: _replaced(getattr(part, key), rest, value) if rest else value}
    )


@pytest.mark.parametrize("word", OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(word: str) -> None:
    key, value = word.split("=")
    number = float(value) if value in ("nan", "inf") else yaml.safe_load(value)
    with pytest.raises(ConfigError) as error:
        _replaced(load_config(), key.split("."), number)
    assert [part for part in OUT_OF_RANGE[word] if part not in str(error.value)] == []


@pytest.mark.parametrize("overrides", WRONG)
def test_a_wrong_word_is_refused_with_its_name_and_the_choices(overrides: str) -> None:
    text = _error(overrides)
    missing = [part for part in WRONG[overrides] if part not in text]
    assert not missing, text
    # Hydra's advice to use what is refused here would send people in a circle
    assert "use +" not in text
    assert "To append" not in text
    assert len(text) < 2500


def test_a_composition_error_lists_every_group() -> None:
    text = _error("sed=1")
    for group, members in GROUPS.items():
        assert f"{group}={'|'.join(sorted(members))}" in text


def test_a_failed_load_leaves_nothing_behind() -> None:
    before = load_config("seed=8")
    _error("nonsense=1")
    assert load_config("seed=8 ") == before
