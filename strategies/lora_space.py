"""In which space LoRA adapters are combined.

Averaging A and B apart is biased: sum_k w_k B_k A_k - B_mean A_mean = sum_k w_k (B_k - B_mean)
(A_k - A_mean). Freezing A removes the bias; combining the products B A removes it too, at the
price of a re-factoring by SVD.

A round's products have their columns in the span of all B, their rows in that of all A: a few dozen
directions of hundreds. In an orthonormal basis of both a product is a small core, with the same
singular values, distances and means, and no d x d matrix is averaged or decomposed.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fl_app.errors import ConfigError, RunError
from fl_app.layout.prefix import Layout, block_number
from fl_app.updates import Update

_A, _B, _PRODUCT = ".lora_A.weight", ".lora_B.weight", ".lora_product"
_NOISE = 4 * float(np.finfo(np.float32).eps)
"""Singular values below this share of the largest are roundings of float32 products."""
_DRAWN = 1 / np.sqrt(3)
"""Norm of a row of A as drawn: d_in entries uniform in +-1 / sqrt(d_in)."""


class LoraSpace(Protocol):
    """Where adapters are combined, and the way there and back."""

    def enter(self, adapter: Update) -> Update:
        """Maps an adapter to coordinates in which combining is linear."""
        ...

    def leave(self, combined: Update) -> Update:
        """Maps combined coordinates back to an adapter."""
        ...

    def around(self, adapters: Sequence[Update]) -> "LoraSpace":
        """Returns a space for these adapters and their parts, in which combining may be cheaper."""
        ...


class FactorSpace:
    """The factors themselves: exact where one of them is the same everywhere, biased otherwise."""

    def around(self, adapters: Sequence[Update]) -> LoraSpace:
        """Returns this space."""
        return self

    def enter(self, adapter: Update) -> Update:
        """Returns the adapter."""
        return adapter

    def leave(self, combined: Update) -> Update:
        """Returns the adapter."""
        return combined


class ProductSpace:
    """The products B A, re-factored to the given rank by SVD (the nearest such matrix).

    The factors come back balanced: B = U sqrt(S), A = sqrt(S) V^T. A unit that the product does not
    use (its singular value is rounding noise) comes back as new: B's column is 0, A's row V^T times
    1 / sqrt(3), the norm of a row of A as drawn. Were both 0 their gradients would stay 0.

    Args:
        rank: LoRA rank r of every adapted map.
        layout: rank of every block, where they differ.
        has_cores: whether what combines asks for means and distances alone, which cores have, too.
    """

    def __init__(self, rank: int, layout: Layout | None = None, *, has_cores: bool = False) -> None:
        self._rank, self._layout, self._has_cores = rank, layout or {}, has_cores

    def around(self, adapters: Sequence[Update]) -> LoraSpace:
        """Returns the space of cores, or this one; at least one adapter."""
        return CoreSpace(self, adapters) if self._has_cores else self

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
        """Re-factors each product.

        Raises:
            RunError: a product is NaN or infinite, from which LAPACK may never return.
        """
        adapter: Update = {}
        for name, array in combined.items():
            if not name.endswith(_PRODUCT):
                adapter[name] = array
                continue
            stem = name.removesuffix(_PRODUCT)
            if not np.isfinite(array).all():
                raise RunError(
                    f"{stem}: the combined product is not finite; nothing of this round is used"
                )
            rank = self.rank_of(stem)
            left, values, right = np.linalg.svd(array.astype(np.float64), full_matrices=False)
            root = np.sqrt(values[:rank])
            is_used = values[:rank] > _NOISE * values.max(initial=0.0)
            # a map with fewer rows or columns than the rank has fewer singular values, too
            spare = (0, rank - len(root))
            tall = left[:, :rank] * np.where(is_used, root, 0.0)
            wide = np.where(is_used, root, _DRAWN)[:, None] * right[:rank]
            adapter[stem + _B] = np.pad(tall, ((0, 0), spare)).astype(np.float32)
            adapter[stem + _A] = np.pad(wide, (spare, (0, 0))).astype(np.float32)
        return dict(sorted(adapter.items()))

    def rank_of(self, stem: str) -> int:
        """Returns the rank of a map by its name."""
        return self._layout[block_number(stem)] if self._layout else self._rank


class CoreSpace:
    """Products as cores U^T B A V, with orthonormal U and V that span all B and all A^T of a round.

    Nothing is lost: U and V come from QR of the factors, one after the other. A rule that uses sums
    and Euclidean lengths alone gives what it gives on products.

    Args:
        products: the space of products.
        adapters: at least one; what enters must lie in the spans of their factors, as parts of
            them and sums do.
    """

    def __init__(self, products: ProductSpace, adapters: Sequence[Update]) -> None:
        self._products = products
        self._tall, self._wide = {}, {}
        for name in adapters[0]:
            if name.endswith(_B):
                stem = name.removesuffix(_B)
                beside = np.hstack([each[name].astype(np.float64) for each in adapters])
                below = np.vstack([each[stem + _A].astype(np.float64) for each in adapters])
                self._tall[stem] = np.linalg.qr(beside)[0]
                self._wide[stem] = np.linalg.qr(below.T)[0]

    def around(self, adapters: Sequence[Update]) -> LoraSpace:
        """Returns the space of other adapters."""
        return self._products.around(adapters)

    def enter(self, adapter: Update) -> Update:
        """Replaces each pair A, B by its core."""
        rotated: Update = {}
        for name, array in adapter.items():
            if name.endswith(_B):
                rotated[name] = self._tall[name.removesuffix(_B)].T @ array
            elif name.endswith(_A):
                rotated[name] = array @ self._wide[name.removesuffix(_A)]
            else:
                rotated[name] = array
        entered = self._products.enter(rotated)
        with np.errstate(over="ignore"):  # ``leave`` says so
            return {name: array.astype(np.float32) for name, array in entered.items()}

    def leave(self, combined: Update) -> Update:
        """Re-factors each core, and turns its factors back."""
        adapter = self._products.leave(combined)
        for stem, tall in self._tall.items():
            adapter[stem + _B] = (tall @ adapter[stem + _B]).astype(np.float32)
            adapter[stem + _A] = (adapter[stem + _A] @ self._wide[stem].T).astype(np.float32)
        return adapter


def largest_norm(adapter: Update) -> float:
    """Returns a bound on the Euclidean norm of every array and of every product B A, in float64.

    A product counts as the sum over its units of ||b_i|| ||a_i||: units that cancel do not hide,
    for their order in a sum is not the same everywhere. NaN where an entry is; 0 without arrays.
    """
    norms = [0.0]
    for name, array in adapter.items():
        norms.append(float(np.linalg.norm(array.astype(np.float64))))
        other = adapter.get(name.removesuffix(_B) + _A) if name.endswith(_B) else None
        if other is not None:
            tall = np.linalg.norm(array.astype(np.float64), axis=0)
            norms.append(float(tall @ np.linalg.norm(other.astype(np.float64), axis=1)))
    return float(np.max(norms))


def discarded(combined: Update, kept: Update) -> float:
    """Returns ||M - M_kept|| / ||M|| over the products M of all maps; 0 where there are none."""
    names = [name for name in combined if name.endswith(_PRODUCT)]
    whole = sum(float(np.square(combined[n], dtype=np.float64).sum()) for n in names)
    lost = sum(float(np.square(combined[n].astype(np.float64) - kept[n]).sum()) for n in names)
    return float(np.sqrt(lost / whole)) if whole else 0.0


def untouched(before: Update, after: Update) -> list[str]:
    """Returns the factors of products that were and are 0: nobody has tuned them yet."""
    names = [
        n for n in after if n.endswith(_PRODUCT) and not before[n].any() and not after[n].any()
    ]
    return [name.removesuffix(_PRODUCT) + which for name in names for which in (_A, _B)]


def build_space(
    aggregation: str, rank: int, layout: Layout | None = None, *, has_cores: bool = False
) -> LoraSpace:
    """Turns ``peft.aggregation`` into a space; see ``ProductSpace`` for the rest.

    Raises:
        ConfigError: unknown name.
    """
    match aggregation:
        case "freeze-a" | "factors" | "alternate":
            return FactorSpace()
        case "exact":
            return ProductSpace(rank, layout, has_cores=has_cores)
        case _:
            raise ConfigError(f"peft.aggregation={aggregation!r} is unknown")
