"""In which space LoRA adapters are combined.

Averaging A and B apart is biased: sum_k w_k B_k A_k - B_mean A_mean = sum_k w_k (B_k - B_mean)
(A_k - A_mean). Freezing A removes the bias; combining the products B A removes it too, at the
price of a re-factoring by SVD.
"""

from typing import Protocol

import numpy as np

from fl_app.errors import ConfigError
from fl_app.layout.prefix import Layout, block_number
from fl_app.updates import Update

_A, _B, _PRODUCT = ".lora_A.weight", ".lora_B.weight", ".lora_product"


class LoraSpace(Protocol):
    """Where adapters are combined, and the way there and back."""

    def enter(self, adapter: Update) -> Update:
        """Maps an adapter to coordinates in which combining is linear."""
        ...

    def leave(self, combined: Update) -> Update:
        """Maps combined coordinates back to an adapter."""
        ...


class FactorSpace:
    """The factors themselves: exact where one of them is the same everywhere, biased otherwise."""

    def enter(self, adapter: Update) -> Update:
        """Returns the adapter."""
        return adapter

    def leave(self, combined: Update) -> Update:
        """Returns the adapter."""
        return combined


class ProductSpace:
    """The products B A, re-factored to the given rank by SVD (the nearest such matrix).

    The factors come back balanced: B = U sqrt(S), A = sqrt(S) V^T.

    Args:
        rank: LoRA rank r of every adapted map.
        layout: rank of every block, where they differ.
    """

    def __init__(self, rank: int, layout: Layout | None = None) -> None:
        self._rank, self._layout = rank, layout or {}

    def enter(self, adapter: Update) -> Update:
        """Replaces each pair A [r, d_in], B [d_out, r] by B A [d_out, d_in]."""
        mapped: Update = {}
        for name, array in adapter.items():
            if name.endswith(_B):
                stem = name.removesuffix(_B)
                mapped[stem + _PRODUCT] = array @ adapter[stem + _A]
            elif not name.endswith(_A):
                mapped[name] = array
        return mapped

    def leave(self, combined: Update) -> Update:
        """Re-factors each product."""
        adapter: Update = {}
        for name, array in combined.items():
            if not name.endswith(_PRODUCT):
                adapter[name] = array
                continue
            stem = name.removesuffix(_PRODUCT)
            rank = self._rank_of(stem)
            left, values, right = np.linalg.svd(array.astype(np.float64), full_matrices=False)
            root = np.sqrt(values[:rank])
            # a map with fewer rows or columns than the rank has fewer singular values, too
            spare = (0, rank - len(root))
            tall, wide = left[:, :rank] * root, root[:, None] * right[:rank]
            adapter[stem + _B] = np.pad(tall, ((0, 0), spare)).astype(np.float32)
            adapter[stem + _A] = np.pad(wide, (spare, (0, 0))).astype(np.float32)
        return dict(sorted(adapter.items()))

    def _rank_of(self, stem: str) -> int:
        return self._layout[block_number(stem)] if self._layout else self._rank


def discarded(combined: Update, kept: Update) -> float:
    """Returns ||M - M_kept|| / ||M|| over the products M of all maps; 0 where there are none."""
    names = [name for name in combined if name.endswith(_PRODUCT)]
    whole = sum(float(np.square(combined[n], dtype=np.float64).sum()) for n in names)
    lost = sum(float(np.square(combined[n].astype(np.float64) - kept[n]).sum()) for n in names)
    return float(np.sqrt(lost / whole)) if whole else 0.0


def build_space(aggregation: str, rank: int, layout: Layout | None = None) -> LoraSpace:
    """Turns ``peft.aggregation`` into a space; see ``ProductSpace`` for ranks.

    Raises:
        ConfigError: unknown name.
    """
    match aggregation:
        case "freeze-a" | "factors" | "alternate":
            return FactorSpace()
        case "exact":
            return ProductSpace(rank, layout)
        case _:
            raise ConfigError(f"peft.aggregation={aggregation!r} is unknown")
