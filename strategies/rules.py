"""Flower's own strategies as the server's rule: from received adapters to the next adapter.

FedAvg, FedAdam, FedMedian, Krum and so on are Flower's code. Only their ``aggregate_train`` is
used: who is asked, and which answers count, is decided by ``FederatedDeft`` before.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from fl_app.errors import ConfigError, RunError
from fl_app.updates import Update

RULES: dict[str, type[flower.FedAvg]] = {
    "fedavg": flower.FedAvg,
    "fedavgm": flower.FedAvgM,
    "fedadagrad": flower.FedAdagrad,
    "fedadam": flower.FedAdam,
    "fedyogi": flower.FedYogi,
    "fedprox": flower.FedProx,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
}
COMPARING = {"fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"}
"""Rules that compare devices with each other and therefore need every device's update."""
REMEMBERING = {"fedavgm", "fedadagrad", "fedadam", "fedyogi"}
"""Rules that remember figures of every entry from round to round."""
MEANS = {"fedavg", "fedprox"}
"""Rules that are the weighted mean and nothing else."""
ISOMETRIC = {"fedavg", "fedprox", "krum", "multikrum"}
"""Rules of means and distances without memory: rows in another orthonormal basis give the same."""
_NOT_OPTIONS = {"self", "fraction_train", "fraction_evaluate", "min_train_nodes"} | {
    "min_evaluate_nodes",
    "min_available_nodes",
    "weighted_by_key",
    "arrayrecord_key",
    "configrecord_key",
    "train_metrics_aggr_fn",
    "evaluate_metrics_aggr_fn",
    "selection_rule",
}
_NUMBERS = {float: (int, float), int: (int,)}
"""What does for a number; ``bool`` is an int for ``isinstance`` and does for neither."""
_ARRAYS, _CONFIG, _METRICS, _WEIGHT = "arrays", "config", "metrics", "num-examples"


class ServerRule:
    """One Flower strategy, asked for nothing but its aggregation.

    Args:
        name: a key of ``RULES``.
        options: arguments of that Flower strategy.

    Raises:
        ConfigError: unknown name, option or value.
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        if name not in RULES:
            raise ConfigError(
                f"strategy.server_rule.name={name!r} is not allowed; "
                f"choose one of {', '.join(RULES)}"
            )
        signature = inspect.signature(RULES[name].__init__).parameters
        known = {key: type(signature[key].default) for key in set(signature) - _NOT_OPTIONS}
        if unknown := set(options) - set(known):
            raise ConfigError(
                f"strategy.server_rule.options has {sorted(unknown)}; {name} takes "
                f"{', '.join(sorted(known)) or 'no options'}"
            )
        for key, value in options.items():
            if type(value) not in _NUMBERS[known[key]]:
                raise ConfigError(
                    f"strategy.server_rule.options.{key}={value!r} must be a number of type "
                    f"{known[key].__name__}"
                )
        try:
            self._strategy = RULES[name](**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"strategy.server_rule.options={dict(options)}: {error}") from error
        self._strategy.fraction_train = 0.0  # it must never sample nodes itself
        self._name = name

    def announce(self, server_round: int, adapter: Update) -> float:
        """Tells the rule the adapter the round starts from.

        Returns:
            FedProx's mu, which devices need; 0.0 for every other rule.
        """
        config = ConfigRecord()
        # With fraction_train = 0 the grid is not touched; the rule only notes the adapter.
        list(
            self._strategy.configure_train(server_round, _record(adapter), config, cast(Grid, None))
        )
        return float(cast(float, config.get("proximal-mu", 0.0)))

    def apply(
        self, server_round: int, rows: Sequence[Update], weights: NDArray[np.float64]
    ) -> Update:
        """Combines received adapters into the next one.

        Args:
            server_round: the round.
            rows: adapters as tuned by the devices (or their mean), same names and shapes.
            weights: [num_rows] numbers of examples, > 0.

        Raises:
            RunError: the rule cannot work with what arrived (too few devices for Krum, say).
        """
        replies = [
            Message(
                RecordDict(
                    {
                        _ARRAYS: _record(row),
                        _METRICS: MetricRecord({_WEIGHT: float(weight)}),
                    }
                ),
                1,
                MessageType.TRAIN,
            )
            for row, weight in zip(rows, weights, strict=True)
        ]
        try:
            arrays, _ = self._strategy.aggregate_train(server_round, replies)
        except (ValueError, ArithmeticError, IndexError) as error:
            raise RunError(
                f"strategy.server_rule.name={self._name} failed on {len(rows)} updates: {error}"
            ) from error
        if arrays is None:
            raise RunError(f"strategy.server_rule.name={self._name} returned nothing")
        return {name: array.numpy().astype(np.float32) for name, array in arrays.items()}


def _record(update: Update) -> ArrayRecord:
    ordered = {name: np.asarray(update[name], order="C") for name in sorted(update)}
    return ArrayRecord({name: Array(array) for name, array in ordered.items()})
