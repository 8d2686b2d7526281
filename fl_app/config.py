"""Turns override strings into a checked ``Config``; the only core module that knows Hydra.

Server and devices compose the same configuration from the same string, which Flower hands to both
as the run-config value ``overrides``. ``conf/`` is found from this file, never from the working
directory, because Flower runs the code from its own copy.
"""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fl_app import schema
from fl_app.errors import ConfigError

CONF = Path(__file__).resolve().parent.parent / "conf"
_OPEN = "strategy.server_rule.options"
"""The one table without fixed keys: what it may hold depends on the rule."""

LAYOUT_FILES = (
    "linear_up",
    "linear_down",
    "u_shape",
    "top_n",
    "sensitivity",
    "cost_aware",
    "channel_aware",
)
"""Layout rules with a file of their own in ``conf/peft``."""
GROUPS: dict[str, dict[str, type]] = {
    "model": {
        "minilm": schema.MinilmModel,
        "local": schema.LocalModel,
        "hub": schema.HubModel,
    },
    "peft": {
        "lora": schema.LoraConfig,
        **{f"lora_{rule}": schema.LoraConfig for rule in LAYOUT_FILES},
        "bottleneck": schema.BottleneckConfig,
        "deep_prompt": schema.DeepPromptConfig,
        "head": schema.HeadConfig,
        "prompt": schema.PromptTuningConfig,
    },
    "data": {
        "docstrings": schema.DocstringsData,
        "embedded": schema.EmbeddedData,
        "local": schema.LocalData,
        "hub": schema.HubData,
    },
    "strategy": {
        "emulator_download": schema.EmulatorDownloadStrategy,
        "gradient_download": schema.GradientDownloadStrategy,
    },
    "channel": {
        "ideal": schema.IdealChannel,
        "aircomp": schema.AircompChannel,
        "digital": schema.DigitalChannel,
    },
    "prompt": {
        "none": schema.NoPrompt,
        "ensemble_vote": schema.EnsembleVote,
        "ensemble_mean": schema.EnsembleMean,
        "ensemble_logit_mean": schema.EnsembleLogitMean,
        "ensemble_median": schema.EnsembleMedian,
        "ensemble_weighted": schema.EnsembleWeighted,
        "ensemble_attention": schema.EnsembleAttention,
        "ensemble_fusion": schema.EnsembleFusion,
        "transfer": schema.TransferPrompt,
    },
    "federation": {
        "simulation": schema.SimulationFederation,
        "edge": schema.EdgeFederation,
    },
}


@cache
def register_schemas() -> None:
    """Makes the dataclasses known to Hydra, once; each YAML starts from its own."""
    store = ConfigStore.instance()
    store.store(name="config_schema", node=schema.Config)
    for group, members in GROUPS.items():
        for name, node in members.items():
            store.store(group=group, name=f"{name}_schema", node=node)


def load_config(overrides: str = "") -> schema.Config:
    """Composes and checks one configuration.

    Args:
        overrides: Hydra overrides separated by spaces, shell quoting allowed, for example
            ``"strategy.num_rounds=4 peft.rank=2"``.

    Returns:
        Plain dataclasses; treat them as read-only, the object is shared by all callers.

    Raises:
        ConfigError: an unknown key or choice, a wrong type, a value out of range, or an override
            that adds or deletes a key.
    """
    return _load(overrides)


@lru_cache(maxsize=16)
def _load(overrides: str) -> schema.Config:
    try:
        words = shlex.split(overrides)
    except ValueError as error:
        raise ConfigError(f"overrides={overrides!r}: {error}; check the quotes") from error
    for word in words:
        if word.startswith(("+", "~")):
            raise ConfigError(
                f"override '{word}' adds or deletes a key; every option exists already, "
                f"so write it as '{word.lstrip('+~')}' with one of the keys: {', '.join(_keys())}"
            )
        if re.match(r"hydra\b", word):
            raise ConfigError(
                f"override '{word}' sets up Hydra's own launcher, which does not run here; "
                f"use one of the keys: {', '.join(_keys())}"
            )
    register_schemas()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = compose("config", overrides=[*implied(words), *map(opened, words)])
        config: Any = OmegaConf.to_object(composed)
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_explain(error, overrides)) from error
    finally:
        GlobalHydra.instance().clear()
    checked: schema.Config = config
    return checked


def implied(words: Sequence[str]) -> list[str]:
    """Returns the group choices that follow from others; a choice among ``words`` overrules them.

    Gradient download tunes a soft prompt unless another variant is asked for, and then LoRA; an
    experiment that chose the strategy itself also chose what goes with it. An ensemble is one of
    soft prompts.
    """
    if any(word.startswith("prompt=ensemble_") for word in words):
        return ["peft=prompt"]
    named = [w.partition("=")[2] for w in words if w.startswith("strategy.variant=")]
    if not named:
        return ["peft=prompt"] if "strategy=gradient_download" in words else []
    return ["peft=prompt" if named[-1] == "prompt" else "peft=lora"]


def opened(word: str) -> str:
    """Lets an override name any option of a rule; ``strategies.rules`` knows which there are."""
    return f"++{word}" if word.startswith(_OPEN) else word


def closed(word: str) -> str:
    """Undoes ``opened``."""
    return word.removeprefix("++") if word.startswith(f"++{_OPEN}") else word


def to_dict(config: schema.Config) -> dict[str, Any]:
    """Returns the configuration as plain containers, ready for JSON or YAML."""
    return dataclasses.asdict(config)


def to_yaml(config: schema.Config) -> str:
    """Returns the configuration as YAML."""
    return str(OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))


def choices(group: str) -> list[str]:
    """Returns the choices of a group, as ``conf/`` offers them."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _keys() -> list[str]:
    return [field.name for field in dataclasses.fields(schema.Config)]


def _explain(error: Exception, overrides: str) -> str:
    """Keeps Hydra's own text, which lists options, and adds the keys that exist there.

    Hydra advises to append unknown keys with ``+``, which is refused here; that line is dropped.
    """
    text = str(error).strip()
    cause = error.__cause__
    if cause is not None and str(cause).strip() not in text:
        text = f"{text}: {str(cause).strip()}"
    text = re.sub(r"\s*To append to your config use [^\n]*: (?=Key )", " ", text)
    text = re.sub(r"\s*To append to your [^\n]* use \+[^\n]*", "", text)
    found = re.search(r"Key '[^']+' not in '(\w+)'|object_type=(\w+)", text)
    node = getattr(schema, found[1] or found[2], schema.Config) if found else schema.Config
    keys = ", ".join(field.name for field in dataclasses.fields(node))
    groups = "; ".join(f"{group}={'|'.join(choices(group))}" for group in [*GROUPS, "experiment"])
    return (
        f"cannot compose the configuration from overrides={overrides!r}: {text}\n"
        f"Keys of {node.__name__}: {keys}. Choices: {groups}. "
        "Options with their ranges are listed in fl_app/schema."
    )
