"""The emulator: a compressed stand-in of the FoMo that devices may hold.

A FoMo of L blocks is split into A1 (the first l), the middle, and A2 (the last r). The emulator
keeps A1 and A2 and n of the middle blocks ("l-n-r"; Xiao, Lin, Han 2023, arXiv:2302.04870). It is
an ordinary ``transformers`` model with fewer blocks, so nothing downstream knows it is special.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from fl_app.errors import ModelError
from fl_app.fomo.backbone import auto_class
from fl_app.fomo.blocks import block_of, family_of, num_blocks, renumber, stack_paths


def middle_indices(num_middle: int, num_kept: int) -> tuple[int, ...]:
    """Returns which middle blocks layer-drop keeps.

    idx_i = round(i (L_mid - 1) / (n - 1)), i = 0..n-1, rounding halves to even as the reference
    implementation does; n = 1 takes the middle block (the formula would divide by zero).

    Raises:
        ModelError: n is not in 1..L_mid.
    """
    if not 1 <= num_kept <= num_middle:
        raise ModelError(
            f"strategy.emulator.middle={num_kept} must be between 1 and the {num_middle} blocks "
            "between strategy.emulator.left and strategy.emulator.right"
        )
    if num_kept == 1:
        return (num_middle // 2,)
    return tuple(round(i * (num_middle - 1) / (num_kept - 1)) for i in range(num_kept))


@dataclass(frozen=True)
class Split:
    """A split l-n-r of a model with ``total`` blocks.

    Attributes:
        left: l >= 0 blocks of A1.
        middle: n, the middle blocks kept, 1 <= n <= total - l - r.
        right: r >= 0 blocks of A2; l + r >= 1.
        total: L, blocks of the full model.
    """

    left: int
    middle: int
    right: int
    total: int

    def __post_init__(self) -> None:
        """Checks that the parts fit."""
        if self.left < 0 or self.right < 0 or self.left + self.right < 1:
            raise ModelError(
                f"strategy.emulator.left={self.left} and right={self.right} must be >= 0 and not "
                "both 0: only the blocks outside the middle are tuned"
            )
        if self.num_middle < 1:
            raise ModelError(
                f"strategy.emulator.left={self.left} plus right={self.right} leaves no middle "
                f"block of the model's {self.total}; lower one of them"
            )
        middle_indices(self.num_middle, self.middle)

    @property
    def num_middle(self) -> int:
        """L_mid = L - l - r."""
        return self.total - self.left - self.right

    @property
    def blocks(self) -> tuple[int, ...]:
        """Indices, in the full model, of the emulator's blocks in order."""
        kept = (self.left + i for i in middle_indices(self.num_middle, self.middle))
        return (*range(self.left), *kept, *range(self.total - self.right, self.total))

    @property
    def outer(self) -> tuple[int, ...]:
        """Indices, in the full model, of A1 and A2: the blocks whose adapters are tuned."""
        return (*range(self.left), *range(self.total - self.right, self.total))

    @property
    def is_identity(self) -> bool:
        """Whether no block is dropped."""
        return self.middle == self.num_middle

    @override
    def __str__(self) -> str:
        """Returns "l-n-r"."""
        return f"{self.left}-{self.middle}-{self.right}"


def emulator_config(config: Any, blocks: tuple[int, ...]) -> Any:
    """Returns a copy of a ``transformers`` configuration with only these blocks."""
    small = copy.deepcopy(config)
    for field in family_of(config).depth_fields:
        setattr(small, field, len(blocks))
    if getattr(config, "layer_types", None):  # attention kind per block: sliding or full
        small.layer_types = [config.layer_types[i] for i in blocks]
    return small


def build_emulator(model: Any, task: str, split: Split) -> Any:
    """Returns a new frozen model with the split's blocks, weights copied from ``model``.

    The full model is not changed. What a family keeps only in its first block (T5's shared
    position bias) goes to the emulator's first block whichever block that was.

    Raises:
        ModelError: a weight of the emulator has no source in the full model.
    """
    small = emulator_config(model.config, split.blocks)
    emulator = empty_model(small, task)
    stacks = stack_paths(emulator)
    source = model.state_dict()
    to_full = dict(enumerate(split.blocks))
    state: dict[str, torch.Tensor] = {}
    for name in emulator.state_dict():
        full_name = renumber(name, stacks, to_full)
        origin = full_name if full_name in source else name
        if origin not in source:
            raise ModelError(f"the full model has no weight for the emulator's '{name}'")
        state[name] = source[origin].clone()
    emulator.load_state_dict(state, assign=False)
    return emulator.eval().requires_grad_(False)


def empty_model(config: Any, task: str) -> Any:
    """Builds a model of this configuration; its weights are meant to be overwritten.

    The global random state is left as it was: building draws weights that nobody uses.
    """
    with torch.random.fork_rng(devices=[]):
        return auto_class(task, config).from_config(config, dtype=torch.float32)


def middle_parameters(model: Any, split: Split) -> dict[str, torch.nn.Parameter]:
    """Returns the parameters of an emulator's middle blocks by name in the emulator."""
    inside = range(split.left, split.left + split.middle)
    stacks = stack_paths(model)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if (place := block_of(name, stacks)) is not None and place[1] in inside
    }


def full_split(config: Any, left: int, right: int) -> Split:
    """Returns the split that drops nothing: every device holds the whole model."""
    total = num_blocks(config)
    return Split(left=left, middle=total - left - right, right=right, total=total)
