"""What a block's size means: LoRA's rank, a bottleneck adapter's width, a deep prompt's length."""

from typing import NamedTuple


class Tuning(NamedTuple):
    """How size s enters a block; at most one of the three kinds is switched on.

    Attributes:
        targets: names of the maps that LoRA of rank s adapts (Hu et al. 2021, arXiv:2106.09685).
        train_a: whether LoRA's A is tuned too, not only B.
        bottleneck: activation of a bottleneck adapter of width s behind the block, h + U act(D h)
            without biases (Houlsby et al. 2019, arXiv:1902.00751; one a block as Pfeiffer et al.
            2021, arXiv:2005.00247, have it); empty without one.
        has_deep_prompt: s tuned keys and values in front of every self-attention (Li and Liang
            2021, arXiv:2101.00190), without the re-parametrising network of training time.
    """

    targets: frozenset[str] = frozenset()
    train_a: bool = True
    bottleneck: str = ""
    has_deep_prompt: bool = False


DEEP_PROMPT = Tuning(has_deep_prompt=True)


def bottleneck(activation: str = "gelu") -> Tuning:
    """Returns a bottleneck adapter behind every block; an activation of ``activations.KEPT``."""
    return Tuning(bottleneck=activation)


def lora(*targets: str, train_a: bool = True) -> Tuning:
    """Returns LoRA in the maps of these names."""
    return Tuning(targets=frozenset(targets), train_a=train_a)
