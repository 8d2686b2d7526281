"""A randomised Hadamard rotation against outlier features.

R x = H D x / sqrt(p) with x padded by zeros to the next power of two p, D random signs and H the
Hadamard matrix of order p: an isometry, R^T R = I, that spreads a few large entries over all. A map
W becomes W R^T. Precoders made from singular vectors send V^T x either way, so rotation only shows
where singular values are equal (feature transport) or where a link is learned.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.seeding import generator
from fl_app.wireless.errors import ChannelError


class Rotation:
    """One rotation that both ends of a link draw from the same seed.

    Args:
        width: features per vector, >= 1.
        seed: the run's seed; another seed at the other end makes noise of every vector.
    """

    def __init__(self, width: int, seed: int) -> None:
        if width < 1:
            raise ChannelError(f"rotation width={width} must be >= 1")
        self.width = width
        self.padded_width = 1 << (width - 1).bit_length()
        self._signs = generator(seed, "rotation").choice([-1.0, 1.0], self.padded_width)

    def apply(self, vectors: NDArray[Any]) -> NDArray[Any]:
        """Rotates [..., width] into [..., padded_width]; applied to the rows of W it gives W R^T.

        Raises:
            ChannelError: the vectors have another width.
        """
        self._check(vectors, self.width)
        padded = np.zeros((*vectors.shape[:-1], self.padded_width), np.result_type(vectors, 1.0))
        padded[..., : self.width] = vectors
        padded *= self._signs
        return _hadamard(padded)

    def undo(self, rotated: NDArray[Any]) -> NDArray[Any]:
        """Applies R^T: [..., padded_width] back into [..., width].

        Raises:
            ChannelError: the vectors have another width.
        """
        self._check(rotated, self.padded_width)
        back: NDArray[Any] = (_hadamard(rotated) * self._signs)[..., : self.width]
        return back

    @staticmethod
    def _check(vectors: NDArray[Any], width: int) -> None:
        if vectors.ndim == 0 or vectors.shape[-1] != width:
            raise ChannelError(f"vectors {vectors.shape} must be [..., {width}] to be rotated")


def _hadamard(vectors: NDArray[Any]) -> NDArray[Any]:
    """Multiplies the last axis, a power of two, by the normalised Hadamard matrix."""
    size = vectors.shape[-1]
    out: NDArray[Any] = vectors / np.sqrt(size)
    half = 1
    while half < size:
        pairs = out.reshape(*vectors.shape[:-1], size // (2 * half), 2, half)
        left, right = pairs[..., 0, :], pairs[..., 1, :]
        out = np.stack([left + right, left - right], axis=-2).reshape(vectors.shape)
        half *= 2
    return out
