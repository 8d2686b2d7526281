"""Options of server rules: named where they do not fit, and each of them can be set."""

import inspect
from typing import Any

import numpy as np
import pytest

from fl_app.errors import ConfigError, DeftError, RunError
from strategies.rules import RULES, ServerRule
from tests.rule_fixtures import drawn_adapters, flower_process

__all__ = ["flower_process"]


def test_an_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        ServerRule("fedbest", {})
    assert "strategy.server_rule.name='fedbest'" in str(error.value)
    assert all(name in str(error.value) for name in RULES)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("fedadam", {"etta": 0.1}, ["etta", "eta", "beta_1", "beta_2", "tau"]),
        ("fedavg", {"eta": 0.1}, ["eta", "fedavg takes no options"]),
        ("fedavg", {"fraction_train": 1.0}, ["fraction_train", "no options"]),
        ("bulyan", {"selection_rule": "x"}, ["selection_rule", "num_malicious_nodes"]),
        ("fedtrimmedavg", {"beta": 0.7}, ["beta", "0.7", "[0, 0.5)"]),
        ("fedadam", {"eta": "fast"}, ["eta", "fast", "float"]),
        ("fedadam", {"eta": None}, ["eta", "None", "float"]),
        ("fedadam", {"eta": True}, ["eta", "True", "float"]),
        ("krum", {"num_malicious_nodes": 1.5}, ["num_malicious_nodes", "1.5", "int"]),
    ],
)
def test_an_unusable_option_is_named(name: str, options: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        ServerRule(name, options)
    assert all(word in str(error.value) for word in says), str(error.value)


def test_whole_numbers_do_for_real_ones() -> None:
    assert ServerRule("fedprox", {"proximal_mu": 1}).announce(1, drawn_adapters(1)[0]) == 1.0


@pytest.mark.parametrize("name", RULES)
def test_every_rule_survives_a_single_reply_or_says_why_not(name: str) -> None:
    start, rows, weights = drawn_adapters(1)
    rule = ServerRule(name, {})
    rule.announce(1, start)
    if name == "bulyan":  # it needs 4 f + 3
        with pytest.raises(RunError, match="bulyan"):
            rule.apply(1, rows, weights)
        return
    assert rule.apply(1, rows, weights).keys() == start.keys()


def test_errors_of_the_rule_are_errors_of_the_run() -> None:
    start, rows, weights = drawn_adapters(2)
    rule = ServerRule("fedadam", {"beta_1": 1.0})  # divides by 1 - beta_1^2
    rule.announce(1, start)
    with pytest.raises(DeftError), np.errstate(all="raise"):
        rule.apply(1, rows, weights)


@pytest.mark.parametrize("name", RULES)
def test_every_option_of_every_rule_can_be_set(name: str) -> None:
    """Flower's own defaults, given back as options, are all accepted."""
    with pytest.raises(ConfigError) as error:
        ServerRule(name, {"no-such-option": 0})
    listed = str(error.value).split(" takes ")[1]
    known = [] if listed == "no options" else listed.split(", ")
    signature = inspect.signature(RULES[name].__init__).parameters
    ServerRule(name, {key: signature[key].default for key in known})
    paper = {"fedprox": {"proximal_mu"}, "fedavgm": {"server_learning_rate", "server_momentum"}}
    assert paper.get(name, set()) <= set(known)
