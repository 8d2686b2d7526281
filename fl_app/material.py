"""What server and simulated devices read: splits, labels, the public share, the partition."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.data.docstrings import load_docstrings
from fl_app.data.embedded import load_embedded
from fl_app.data.examples import Examples, label_names
from fl_app.data.partition import partition
from fl_app.data.source import Splits, load_hub, load_local, require_columns
from fl_app.errors import ConfigError, DataError
from fl_app.schema import Config, DocstringsData, EmbeddedData, HubData, LocalData
from fl_app.seeding import generator


def needed_columns(config: Config) -> dict[str, str]:
    """Returns the configuration keys of the columns this task needs, and their values."""
    data = config.data
    match config.model.task:
        case "sequence_classification":
            return {"data.text_column": data.text_column, "data.label_column": data.label_column}
        case "image_classification":
            return {"data.image_column": data.image_column, "data.label_column": data.label_column}
        case _:
            prompt = (
                {} if data.prompt_column is None else {"data.prompt_column": data.prompt_column}
            )
            return {**prompt, "data.completion_column": data.completion_column}


def dealing_columns(config: Config) -> dict[str, str]:
    """Returns the columns by which training rows are dealt to simulated devices."""
    how = config.data.partition
    match how.kind:
        case "dirichlet":
            return {"data.label_column": config.data.label_column}
        case "column":
            return {"data.partition.column": str(how.column)}
        case _:
            return {}


@dataclass(frozen=True)
class Material:
    """The data of one run.

    Attributes:
        train: rows that devices share among themselves.
        test: rows the server measures on.
        public: rows the server keeps for distillation; no device has them.
        labels: class names in the order of the logits; empty for language models.
        config: the run's configuration.
    """

    train: Examples
    test: Examples
    public: Examples
    labels: tuple[str, ...]
    config: Config

    @cached_property
    def partition(self) -> list[NDArray[np.int64]]:
        """Row indices of ``train`` per device."""
        how, data = self.config.data.partition, self.config.data
        return partition(
            self.train,
            kind=how.kind,
            num_partitions=self.config.federation.num_devices,
            label_column=data.label_column,
            seed=self.config.seed,
            alpha=how.alpha,
            column=how.column,
            law=how.law,
        )

    @cached_property
    def digest(self) -> str:
        """Hash of the training rows in their order: equal digests deal equal shares."""
        sha = hashlib.sha256()
        for name, values in sorted(self.train.columns.items()):
            sha.update(f"{name} {len(values)}\n".encode())
            # images are arrays, texts and labels plain values
            sha.update(
                values.tobytes() if isinstance(values, np.ndarray) else repr(values).encode()
            )
        return sha.hexdigest()

    def of_device(self, device: int) -> Examples:
        """Returns the training rows of one simulated device.

        Raises:
            DataError: the training rows were not dealt to so many devices.
        """
        total = self.config.federation.num_devices
        if not 0 <= device < total:
            raise DataError(
                f"partition-id={device} has no share: the training rows are dealt to "
                f"federation.num_devices={total} devices; raise it, or give the node its own file "
                'with --node-config "data-path=..."'
            )
        return self.train.take(self.partition[device])


def load_material(config: Config) -> Material:
    """Loads the data of a run; the same on every process that plays a part in it.

    Raises:
        DataError: files, columns or labels are missing.
    """
    splits = _load(config)
    require_columns(splits, needed_columns(config))
    labels: tuple[str, ...] = ()
    if config.model.task != "causal_lm":
        name = config.data.label_column
        labels = label_names(*(part.column(name) for part in splits.parts().values()))
    order = generator(config.seed, "rows").permutation(len(splits.train))
    order = order[: config.data.limit_train]
    num_public = int(config.data.public_fraction * len(order))
    tests = generator(config.seed, "test-rows").permutation(len(splits.test))
    kept = np.sort(tests[: config.data.limit_test])
    return Material(
        train=splits.train.take(np.sort(order[num_public:])),
        test=splits.test.take(kept),
        public=splits.train.take(np.sort(order[:num_public])),
        labels=labels,
        config=config,
    )


def _load(config: Config) -> Splits:
    data: Any = config.data
    match data:
        case DocstringsData():
            return load_docstrings()
        case EmbeddedData():
            return load_embedded()
        case LocalData():
            is_lm = config.model.task == "causal_lm"
            stratify = None if is_lm else data.label_column
            return load_local(data.path, seed=config.seed, stratify=stratify)
        case HubData():
            return load_hub(
                data.name,
                subset=data.subset,
                train_split=data.train_split,
                test_split=data.test_split,
            )
        case _:
            raise ConfigError(f"data of type {type(data).__name__} has no loader")
