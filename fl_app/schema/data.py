"""Options of the data and of how simulated devices share them."""

from dataclasses import dataclass, field
from math import inf

from fl_app.schema.checks import MISSING, one_of, require


@dataclass
class PartitionConfig:
    """How simulated devices share the training data (a real device reads its own file)."""

    kind: str = "dirichlet"
    """iid, dirichlet (label skew), column (natural: one device per value), quantity."""
    alpha: float = 0.5
    """Dirichlet concentration; smaller is more skewed."""
    column: str | None = None
    """Column of kind=column, for example domain."""
    law: str = "linear"
    """Growth of device sizes for kind=quantity: linear, square or exponential."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        one_of("data.partition.kind", self.kind, ("iid", "dirichlet", "column", "quantity"))
        finite = 0 < self.alpha < inf
        require("data.partition.alpha", self.alpha, finite, "must be > 0 and finite")
        one_of("data.partition.law", self.law, ("linear", "square", "exponential"))
        require(
            "data.partition.column",
            self.column,
            self.kind != "column" or self.column is not None,
            "data.partition.kind=column needs the name of a column",
        )


@dataclass
class DataConfig:
    """What devices and server read."""

    text_column: str = "text"
    label_column: str = "label"
    prompt_column: str | None = "prompt"
    """null: plain text, the loss is on every token of the completion column."""
    completion_column: str = "completion"
    image_column: str = "image"
    public_fraction: float = 0.1
    """Share of the training rows kept at the server as public data (for distillation), [0, 1)."""
    limit_train: int | None = None
    """Use only this many training rows, drawn by the seed."""
    limit_test: int | None = None
    """Use only this many test rows, drawn by the seed."""
    partition: PartitionConfig = field(default_factory=PartitionConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        fraction = self.public_fraction
        require("data.public_fraction", fraction, 0 <= fraction < 1, "must be in [0, 1)")
        for key, value in (("limit_train", self.limit_train), ("limit_test", self.limit_test)):
            require(f"data.{key}", value, value is None or value >= 1, "must be >= 1 or null")


@dataclass
class DocstringsData(DataConfig):
    """Docstrings of Python's standard library, by chapter of its reference."""

    public_fraction: float = 0.2
    limit_train: int | None = 2400


@dataclass
class EmbeddedData(DataConfig):
    """The utterances that ship with the project."""

    public_fraction: float = 0.2
    partition: PartitionConfig = field(default_factory=lambda: PartitionConfig(alpha=1.0))


@dataclass
class LocalData(DataConfig):
    """A folder with train.*, test.* and optionally dev.*, or one file that is split."""

    path: str = MISSING


@dataclass
class HubData(DataConfig):
    """A data set on a hub, by name."""

    name: str = MISSING
    subset: str | None = None
    train_split: str = "train"
    test_split: str = "test"
