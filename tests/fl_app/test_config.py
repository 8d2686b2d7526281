"""Every file of ``conf/`` composes and builds, and every wrong word is refused with the choices.

Files are found on disk, so a new choice is tested the moment it exists.
"""

import dataclasses
import itertools
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from fl_app import schema
from fl_app.allocation import Allocation
from fl_app.config import CONF, GROUPS, choices, load_config, to_dict, to_yaml
from fl_app.errors import ConfigError
from fl_app.ledger import Ledger
from fl_app.material import needed_columns
from fl_app.schema.checks import MISSING
from fl_app.settings import adapter_spec, columns_of
from fl_app.variants import REFERENCES, as_reference
from strategies.build import build_strategy
from strategies.feature_server import FeatureServer
from strategies.roster import Roster
from strategies.scoring import Unscored

FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent != CONF)
CHOICES = [(path.parent.as_posix(), path.stem) for path in FILES if path.parts[0] != "experiment"]
EXPERIMENTS = [path.stem for path in FILES if path.parts[0] == "experiment"]
TOP = [field.name for field in dataclasses.fields(schema.Config)]


def _required(group: str, name: str) -> list[str]:
    """Overrides for the fields of a choice that have no default, found in its schema."""
    fields = dataclasses.fields(GROUPS[group][name])
    return [f"{group}.{f.name}=given" for f in fields if f.default == MISSING]


def _check_builds(config: schema.Config) -> None:
    """Everything that is made of a configuration without loading model or data."""
    strategy = build_strategy(
        config,
        roster=Roster({0: 1}),
        ledger=Ledger(),
        layouts=Allocation(server={}),
        scoring=Unscored(),
        blob=b"",
        server=Mock(spec=FeatureServer),
    )
    strategy.close()
    assert strategy.model_hash
    assert (adapter_spec(config.peft) is None) == isinstance(config.peft, schema.HeadConfig)
    assert columns_of(config.data).text == config.data.text_column
    assert needed_columns(config)
    for reference in REFERENCES:
        assert isinstance(as_reference(config, reference), schema.Config)


def _error(overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(overrides)
    return str(error.value)


# --- the folder --------------------------------------------------------------------------------


def test_there_is_something_to_test() -> None:
    assert {group for group, _ in CHOICES} == set(GROUPS)


def test_files_and_schemas_name_the_same_choices() -> None:
    for group, members in GROUPS.items():
        assert choices(group) == sorted(members)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes_to_its_own_type_and_builds(group: str, name: str) -> None:
    config = load_config(shlex.join([f"{group}={name}", *_required(group, name)]))
    assert type(getattr(config, group)) is GROUPS[group][name]
    for word in _required(group, name):
        key = word.split("=")[0].split(".")[1]
        assert getattr(getattr(config, group), key) == "given"
    _check_builds(config)


def test_choices_of_different_groups_go_together() -> None:
    """Model by data: the groups whose choices reach into each other."""
    for model, data in itertools.product(choices("model"), choices("data")):
        words = [f"model={model}", *_required("model", model)]
        words += [f"data={data}", *_required("data", data), "peft=head"]
        _check_builds(load_config(shlex.join(words)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_builds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(f"experiment={name} assets=/some/where")
    _check_builds(config)
    paths = [getattr(part, "path", None) for part in (config.model, config.data)]
    assert all(path is None or path.startswith("/some/where/") for path in paths)
    # overrides beat the experiment
    changed = load_config(f"experiment={name} assets=/x strategy.num_rounds=77 finetune.epochs=3")
    assert changed.strategy.num_rounds == 77


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.endswith("_gradient")])
def test_a_variant_takes_its_layout_along(name: str) -> None:
    lead = f"experiment={name} assets=/x"
    assert isinstance(load_config(lead).peft, schema.PromptTuningConfig)
    for variant in ("cut", "lora"):
        config = load_config(f"{lead} strategy.variant={variant} peft.rank=3")
        assert config.peft == schema.LoraConfig(rank=3)
        _check_builds(config)
    named = load_config(f"{lead} strategy.variant=lora strategy.variant=prompt")
    assert isinstance(named.peft, schema.PromptTuningConfig)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_what_it_needs(name: str) -> None:
    first = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert first.startswith("# @package _global_\n# ")
    assert "DEFT_ASSETS" in first


def test_the_default_is_the_main_job() -> None:
    config = load_config()
    assert isinstance(config.model, schema.MinilmModel)
    assert isinstance(config.data, schema.EmbeddedData)
    assert config.federation.num_devices >= 10
    assert config.seed == 0


# --- the same words, the same configuration ----------------------------------------------------


def test_it_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower starts the app wherever its daemon was started; a conf/ there must not count."""
    words = "peft.rank=5 strategy.num_rounds=3"
    here = load_config(words)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("seed: 99\n")
    (tmp_path / "config.yaml").write_text("seed: 99\n")
    monkeypatch.chdir(tmp_path)
    there = load_config(words + " ")  # another string: not the one that was kept
    assert there == here
    assert there.seed == 0


def test_equal_words_give_equal_configurations_in_any_order() -> None:
    assert load_config("seed=3 peft.rank=2") == load_config("peft.rank=2 seed=3")
    assert load_config("peft.rank=2 peft=lora") == load_config("peft=lora peft.rank=2")
    assert load_config("seed=3") != load_config("seed=4")


def test_the_same_words_are_composed_once() -> None:
    """Devices ask for it with every message."""
    assert load_config("seed=3") is load_config("seed=3")


def test_a_failed_load_leaves_nothing_behind() -> None:
    before = load_config("seed=8")
    _error("nonsense=1")
    assert load_config("seed=8 ") == before


def test_spaces_in_a_value_need_shell_quotes() -> None:
    config: Any = load_config("data=local data.path='/a folder/with spaces' seed=1")
    assert config.data.path == "/a folder/with spaces"
    assert config.seed == 1


def test_options_of_a_rule_are_free_and_typed() -> None:
    rule = load_config("strategy.server_rule.name=fedadam strategy.server_rule.options.eta=0.01")
    assert rule.strategy.server_rule.options == {"eta": 0.01}
    rule = load_config("strategy.server_rule.options='{eta: 0.5, tau: 1}'")
    assert rule.strategy.server_rule.options == {"eta": 0.5, "tau": 1}
    assert load_config("strategy.server_rule.options={}").strategy.server_rule.options == {}


def test_it_is_plain_data_that_yaml_and_json_give_back() -> None:
    config = load_config("data.limit_train=5 peft.targets=[query] strategy.emulator.bits=4")
    plain = to_dict(config)
    assert yaml.safe_load(to_yaml(config)) == plain
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == TOP
    assert plain["strategy"]["emulator"]["bits"] == 4


def test_assets_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFT_ASSETS", str(tmp_path))
    assert load_config("seed=11").assets == str(tmp_path)
    monkeypatch.delenv("DEFT_ASSETS")
    unset = load_config("seed=12").assets
    assert not os.path.isdir(str(unset))
    assert "DEFT_ASSETS" in str(unset)


def test_a_new_file_is_a_new_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own experiment needs no code."""
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/experiment/mine.yaml").write_text("# @package _global_\nseed: 41\n")
    monkeypatch.setattr("fl_app.config.CONF", tmp_path / "conf")
    assert load_config("experiment=mine").seed == 41
    assert "mine" in _error("experiment=theirs")


# --- wrong words -------------------------------------------------------------------------------

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
