"""The receiver of an aggregation in the air: superposes chunks, scales back, keeps the accounts."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.link import BlockLink, Scaling, inverse
from fl_app.wireless.report import AirReport, safe_ratio

Floats = NDArray[np.float64]

_TILE_USES = 1 << 10
"""Coefficients are repeated to rows of this length, so that inner loops are long."""

_PRODUCT_ENTRIES = 400_000
"""Entries of one product of weights and updates. Beyond some 460000 OpenBLAS sets all threads on
it, whose barrier takes longer than so little work: five times as long on two cores."""


@dataclass(frozen=True)
class ChunkSums:
    """Sums over devices for one chunk; arrays broadcast to [rows, num_subcarriers, 2] reals.

    Attributes:
        shape: (rows, num_subcarriers, 2).
        analog: noise-free received sum, in units of the weighted sum of centred updates.
        clipped: what clipping took from it.
        exact: the exact weighted mean of all scheduled devices.
        scaling: what turns the sum into a mean.
    """

    shape: tuple[int, int, int]
    analog: NDArray[Any]
    clipped: NDArray[Any] | float
    exact: NDArray[Any]
    scaling: Scaling


class Superposition:
    """Adds up one block's updates chunk by chunk, in the precision of the updates.

    An aligned device enters the sum just as it enters the exact mean, which the report needs
    anyway. So only what devices lack of that, or have too much, is summed apart.

    Args:
        link: the block's way through the air.
        dtype: float32 or float64.
        max_rows: rows (one channel use on every subcarrier) of the longest chunk.
        is_masked: chunks come with presence masks.
    """

    def __init__(
        self, link: BlockLink, dtype: np.dtype[Any], max_rows: int, *, is_masked: bool
    ) -> None:
        self._link = link
        self._dtype = dtype
        side, num_sub = link.side, link.coefficients.shape[1]
        self._adds_exact = not (is_masked or link.clips)
        self._per_spread = inverse(side.spreads)
        apart = link.coefficients * self._per_spread[:, None]
        if self._adds_exact:
            apart[side.spreads > 0.0] -= link.shares[side.spreads > 0.0, None]
        is_apart = np.abs(apart) > 4.0 * np.finfo(np.float64).eps * link.shares[:, None]
        self._apart = np.flatnonzero(np.any(is_apart, axis=1))
        # A chunk is a whole number of tiles, or one row of tiles is a whole chunk.
        self._repeats = min(max_rows, max(1, _TILE_USES // num_sub))
        as_complex = np.complex64 if dtype == np.float32 else np.complex128
        self._tiles = np.tile(apart.astype(as_complex), self._repeats)
        self._clip_tiles = np.tile(link.clip_at, self._repeats) if link.clips else None
        self._scaling = link.scaling()
        # Sums of updates minus a known constant save a pass over the memory; where a mean is much
        # larger than the spread they would cost digits.
        self._may_sum_raw = bool((np.abs(side.means) <= 4.0 * side.spreads)[self._apart].all())
        means = ((1.0 + 1.0j) * side.means[self._apart]) @ apart[self._apart]
        self._mean_tile = np.tile(means, self._repeats).astype(as_complex)

    def chunk(self, updates: NDArray[Any], presence: NDArray[np.bool_] | None) -> ChunkSums:
        """Superposes one chunk of updates [num_devices, chunk_size] without noise."""
        link, side = self._link, self._link.side
        size, num_sub = updates.shape[1], link.coefficients.shape[1]
        tile = self._repeats * num_sub
        num_tiles = -(-size // (2 * tile))
        is_whole = size == num_tiles * 2 * tile
        clipped: NDArray[Any] | float = 0.0
        if is_whole and self._adds_exact and self._may_sum_raw:
            analog = self._sum_raw(updates, num_tiles)
        else:
            analog, clipped = self._sum_centred(updates, presence, num_tiles)
        rows = -(-size // (2 * num_sub))
        shape = (rows, num_sub, 2)
        length = rows * num_sub * 2
        analog = analog[:length]
        exact = np.zeros(length, dtype=self._dtype)
        exact[:size] = self._weighted(updates, presence)
        scaling = self._scaling
        if presence is None:
            mean = self._dtype.type(link.shares @ side.means)
            exact[size:] = mean
            if self._adds_exact:
                analog += exact
                analog -= mean
        else:
            scaling, per_all = link.masked_scaling(presence, shape)
            exact *= per_all.ravel()
        return ChunkSums(
            shape=shape,
            analog=analog.reshape(shape),
            clipped=clipped if isinstance(clipped, float) else clipped[:length].reshape(shape),
            exact=exact.reshape(shape),
            scaling=scaling,
        )

    def _weighted(self, updates: NDArray[Any], presence: NDArray[np.bool_] | None) -> NDArray[Any]:
        """Returns [chunk_size] the sum of w_k u_k over the devices that hold an entry."""
        shares = self._link.shares.astype(self._dtype)
        if presence is None:
            dense = np.empty(updates.shape[1], dtype=self._dtype)
            step = max(1, _PRODUCT_ENTRIES // len(updates))
            for lo in range(0, len(dense), step):
                np.matmul(shares, updates[:, lo : lo + step], out=dense[lo : lo + step])
            return dense
        total = np.zeros(updates.shape[1], dtype=self._dtype)
        for share, row, held in zip(shares, updates, presence, strict=True):
            total += share * np.where(held, row, 0)  # what is absent may be anything
        return total

    def _sum_raw(self, updates: NDArray[Any], num_tiles: int) -> NDArray[Any]:
        """Returns what is summed apart of a whole number of tiles, in two passes per device."""
        shape = (num_tiles, self._tiles.shape[1])
        total = np.zeros(shape, dtype=self._tiles.dtype)
        scratch = np.empty_like(total)
        for k in self._apart:
            symbols = updates[k].view(total.dtype).reshape(shape)
            np.multiply(symbols, self._tiles[k], out=scratch)
            np.add(total, scratch, out=total)
        total -= self._mean_tile
        analog: NDArray[Any] = total.view(self._dtype).reshape(-1)
        return analog

    def _sum_centred(
        self, updates: NDArray[Any], presence: NDArray[np.bool_] | None, num_tiles: int
    ) -> tuple[NDArray[Any], NDArray[Any] | float]:
        """Returns what is summed apart and what clipping took from it; any length, any means."""
        size = updates.shape[1]
        # Entries beyond the chunk stay 0, which is also what a padded real carries.
        symbol = np.zeros(num_tiles * 2 * self._tiles.shape[1], dtype=self._dtype)
        sent = symbol.view(self._tiles.dtype).reshape(num_tiles, -1)
        scratch, analog, clipped = (
            np.empty_like(symbol),
            np.zeros_like(symbol),
            np.zeros_like(symbol),
        )
        received = scratch.view(sent.dtype).reshape(sent.shape)
        for k in self._apart:
            mean = self._dtype.type(self._link.side.means[k])
            np.subtract(updates[k], mean, out=symbol[:size])
            if presence is not None:
                symbol[:size][~presence[k]] = 0.0
            np.multiply(sent, self._tiles[k], out=received)
            np.add(analog, scratch, out=analog)
            if self._clip_tiles is not None:
                magnitude = np.abs(sent) * (self._per_spread[k] / np.sqrt(2.0))
                received *= np.minimum(1.0, self._clip_tiles[k] / np.maximum(magnitude, 1e-30)) - 1
                clipped += scratch
        if self._clip_tiles is None:
            return analog, 0.0
        return analog + clipped, clipped


@dataclass
class Tally:
    """Running sums over chunks and blocks; see ``AirReport`` for what becomes of them."""

    sums: dict[str, float]
    variance: float
    uses: int
    unheard: int
    silent_uses: Floats
    all_uses: int
    tx_energy: Floats

    @classmethod
    def empty(cls, num_devices: int) -> Self:
        """Returns a tally with nothing booked."""
        names = ("predicted", "realised", "noise", "noise_free", "clipping", "predicted_clipping")
        sums = dict.fromkeys((*names, "energy", "signal"), 0.0)
        return cls(sums, 0.0, 0, 0, np.zeros(num_devices), 0, np.zeros(num_devices))

    def book_block(self, link: BlockLink, size: int) -> None:
        """Books channel uses, silence and power of one block of ``size`` reals."""
        num_uses = -(-size // 2)
        num_sub = link.coefficients.shape[1]
        per_sub = (num_uses - np.arange(num_sub) + num_sub - 1) // num_sub
        self.all_uses += num_uses
        self.silent_uses += link.is_silent @ per_sub
        if link.speaks:
            self.uses += num_uses
            self.tx_energy += link.tx_power @ per_sub

    def book_chunk(
        self, link: BlockLink, sums: ChunkSums, noise: NDArray[Any], size: int
    ) -> NDArray[Any]:
        """Scales one chunk back, books its errors and returns its [size] estimate.

        Args:
            link: the block's way through the air.
            sums: the chunk's noise-free sums.
            noise: [rows, num_subcarriers, 2] standard normal reals.
            size: reals of the chunk; what lies beyond is padding.
        """
        scaling, dtype = sums.scaling, sums.analog.dtype
        factor = scaling.factor.astype(dtype)
        variance = link.noise_variance[:, None] * scaling.factor**2
        noise_free = sums.analog * factor + scaling.offset.astype(dtype)
        received = noise_free + np.sqrt(variance).astype(dtype) * noise
        bias = noise_free - sums.exact

        whole = size == received.size

        def total(values: NDArray[Any] | float) -> float:
            if whole and np.ndim(values) == 2:  # one value per subcarrier
                return float(np.sum(values)) * sums.shape[0] * 2
            flat = np.broadcast_to(values, sums.shape).reshape(-1)[:size]
            return float(flat.sum(dtype=np.float64))

        def energy(values: NDArray[Any]) -> float:
            flat = values.reshape(-1)[:size]
            return float(flat @ flat)

        self.sums["predicted"] += total(scaling.predicted + variance + scaling.clipping)
        self.sums["realised"] += energy(received - sums.exact)
        self.sums["noise"] += total(variance)
        self.sums["noise_free"] += energy(bias)
        self.sums["clipping"] += total((sums.clipped * factor) ** 2)
        self.sums["predicted_clipping"] += total(scaling.clipping)
        self.sums["energy"] += energy(sums.exact)
        self.sums["signal"] += energy(sums.analog * factor)
        self.variance += 4.0 * energy(bias * np.sqrt(variance).astype(dtype))
        self.variance += total(2.0 * variance**2)
        self.unheard += round(total((scaling.factor == 0.0) * 1.0))
        estimate: NDArray[Any] = received.reshape(-1)[:size]
        return estimate

    def report(self, num_params: int, *, control_bytes: int, announced_bytes: int) -> AirReport:
        """Returns the figures of the whole update; both byte counts are passed on."""
        per_real = {name: value / num_params for name, value in self.sums.items()}
        return AirReport(
            predicted_mse=per_real["predicted"],
            expected_mse=per_real["noise"] + per_real["noise_free"],
            expected_mse_deviation=float(np.sqrt(self.variance)) / num_params,
            realised_mse=per_real["realised"],
            noise_mse=per_real["noise"],
            noise_free_mse=per_real["noise_free"],
            clipping_mse=per_real["clipping"],
            predicted_clipping_mse=per_real["predicted_clipping"],
            mean_energy=per_real["energy"],
            aligned_snr=safe_ratio(per_real["signal"], per_real["noise"]),
            is_silent=self.silent_uses == self.all_uses,
            silent_share=self.silent_uses / self.all_uses,
            tx_power=self.tx_energy / max(1, self.uses),
            channel_uses=self.uses,
            control_bytes=control_bytes,
            announced_bytes=announced_bytes,
            unheard_reals=self.unheard,
        )
