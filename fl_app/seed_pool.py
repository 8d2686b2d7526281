"""Local steps along directions of a finite pool, as FedKSeed makes them (arXiv:2312.06353)."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import ModelError
from fl_app.seeding import generator
from fl_app.updates import Update
from fl_app.zeroth_order import Pair, direction, merged, shapes_of

_LARGEST = float(np.finfo(np.float32).max)


class SeedPool:
    """The finite set of directions everybody draws from, so that sums over them stay short.

    Whatever was done in whatever number of rounds is one coefficient for each direction.

    Args:
        num_seeds: directions, >= 1.
        seed: the run's seed.
    """

    def __init__(self, num_seeds: int, seed: int) -> None:
        drawn = generator(seed, "seed-pool").integers(2**63, size=num_seeds)
        self.seeds: tuple[int, ...] = tuple(drawn.tolist())

    def __len__(self) -> int:
        """Number of directions."""
        return len(self.seeds)

    def pairs(self, coefficients: NDArray[np.float32]) -> list[Pair]:
        """Returns a pair for every direction whose coefficient is not 0.

        Args:
            coefficients: float32 [num_seeds], as they are sent: 4 bytes a direction.
        """
        values = coefficients.tolist()
        return [Pair(s, c) for s, c in zip(self.seeds, values, strict=True) if c != 0.0]

    def coefficients(self, pairs: Iterable[Pair]) -> NDArray[np.float32]:
        """Returns float32 [num_seeds]: the pairs, those of one seed added up, 0 for the others.

        Raises:
            ModelError: a seed is not of the pool.
        """
        by_seed = dict(merged(pairs))
        found = [by_seed.pop(seed, 0.0) for seed in self.seeds]
        if by_seed:
            raise ModelError(f"seeds {sorted(by_seed)[:3]} are not of the pool of {len(self)}")
        with np.errstate(over="ignore"):  # judged by what is rebuilt from them
            return np.array(found).astype(np.float32)


class Walk:
    """One device's local steps theta <- theta - lr g z(s), along one seed after the other.

    Kept in float64 and rounded where it is used, so that steps far below a float32's last digit add
    up as they do in ``rebuild``.

    Args:
        theta: where the round begins; not changed.
        seeds: one for each step.
        lr: learning rate, > 0.
        eps: step of the two-point estimate, > 0.
    """

    def __init__(
        self,
        theta: Mapping[str, NDArray[np.float32]],
        seeds: Sequence[int],
        *,
        lr: float,
        eps: float,
    ) -> None:
        self._now = {name: array.astype(np.float64) for name, array in theta.items()}
        self._seeds, self._lr, self._eps = tuple(seeds), lr, eps
        self._shapes = shapes_of(theta)
        self._direction: Update = {}
        self.pairs: list[Pair] = []

    @property
    def is_done(self) -> bool:
        """Whether all steps are made."""
        return len(self.pairs) == len(self._seeds)

    def sides(self) -> tuple[Update, Update]:
        """Returns theta + eps z and theta - eps z of the next step, in float32."""
        self._direction = direction(self._seeds[len(self.pairs)], self._shapes)
        return self._moved(self._eps), self._moved(-self._eps)

    def step(self, slope: float) -> None:
        """Makes the step of the last ``sides``.

        Args:
            slope: g; rounded to float32, as it is sent.

        Raises:
            ModelError: the slope is NaN, infinite or more than float32 holds.
        """
        if not abs(slope) <= _LARGEST:
            raise ModelError(f"the slope of step {len(self.pairs)} is {slope}; lower lr={self._lr}")
        sent = float(np.float32(slope))
        for name, array in self._direction.items():
            self._now[name] -= self._lr * sent * array.astype(np.float64)
        self.pairs.append(Pair(self._seeds[len(self.pairs)], sent))

    def theta(self) -> Update:
        """Returns where the walk stands, in float32; infinite where that is too small."""
        with np.errstate(over="ignore"):
            return {name: array.astype(np.float32) for name, array in self._now.items()}

    def _moved(self, scale: float) -> Update:
        with np.errstate(over="ignore"):
            return {
                name: (array + scale * self._direction[name].astype(np.float64)).astype(np.float32)
                for name, array in self._now.items()
            }
