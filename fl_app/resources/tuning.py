"""What a block's size means: a LoRA rank, the width of bottleneck adapters, or a prefix length."""

from typing import NamedTuple


class Tuning(NamedTuple):
    """How size s enters a block; at most one of the three kinds is switched on.

    Attributes:
        targets: names of the maps that LoRA of rank s adapts (Hu et al. 2021, arXiv:2106.09685).
        train_a: whether LoRA's A is tuned too, not only B.
        has_bottleneck: ReLU adapters of width s behind attention and feed-forward part (Houlsby et
            al. 2019, arXiv:1902.00751): h + U relu(D h), with biases.
        has_prefix: s tuned keys and values in front of every self-attention (Li and Liang 2021,
            arXiv:2101.00190), without the re-parametrising network of training time.
    """

    targets: frozenset[str] = frozenset()
    train_a: bool = True
    has_bottleneck: bool = False
    has_prefix: bool = False


BOTTLENECK = Tuning(has_bottleneck=True)
PREFIX = Tuning(has_prefix=True)


def lora(*targets: str, train_a: bool = True) -> Tuning:
    """Returns LoRA in the maps of these names."""
    return Tuning(targets=frozenset(targets), train_a=train_a)
