"""Every file of ``conf/`` composes and builds; equal words give equal configurations.

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
    assert list(plain) == [field.name for field in dataclasses.fields(schema.Config)]
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
    with pytest.raises(ConfigError, match="mine"):
        load_config("experiment=theirs")
