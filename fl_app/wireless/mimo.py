"""A neural connection: a linear map y = W x realised by precoders, a MIMO channel and combiners.

After Yang et al. 2023 (arXiv:2210.04742): W = sum_u C_u^H H P_u over U channel uses. The device
sends P_u x, the server combines y_hat = sum_u C_u^H (H P_u x + noise), and gradients come back
through the reciprocal channel H^T. ``mimo_design`` finds P_u and C_u. Timing and, unless a true
channel is given, CSI are perfect.

This is the reference: it takes real and complex maps, sends antenna by antenna in float64 and
accounts for every error. What runs inside models is ``fl_app.fomo.connection``, a fast form of the
same for real maps with clipping, rotation and padding; both share ``mimo_design``, and the tests
hold the one against the other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.wireless.channel import Complex, complex_normal
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.report import Relative, safe_ratio

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ConnectionReport(Relative):
    """Figures of one batch of vectors through a connection, forward or backward.

    Attributes:
        predicted_mse: mean over the noise, per output entry, for the very vectors that were sent;
            the error that a wrongly known channel makes is included.
        realised_mse: what happened.
        mean_energy: mean square of an entry of the exact output.
        tx_power: [num_uses] mean transmit power of a channel use over the batch.
        papr: largest power of one antenna in one channel use over the mean of all of them.
        channel_uses: complex symbols in time; antennas share a use.
        control_bytes: digital side information, 8 bytes per real.
    """

    predicted_mse: float
    realised_mse: float
    mean_energy: float
    tx_power: Floats
    papr: float
    channel_uses: int
    control_bytes: int


@dataclass(frozen=True)
class NeuralConnection:
    """A linear map over the air; made by ``mimo_design.design_connection``.

    Attributes:
        weight: [num_outputs, num_inputs] W, real or complex.
        precoders: [num_uses, num_tx, num_inputs] P_u.
        combiners: [num_uses, num_outputs, num_rx] C_u^H.
        use_gains: [num_uses] output noise energy of a use per unit of sigma^2, before real parts.
        channel: [num_rx, num_tx] H that the design believes in.
        power: mean transmit power P of a channel use, summed over antennas.
    """

    weight: NDArray[Any]
    precoders: Complex
    combiners: Complex
    use_gains: Floats
    channel: Complex
    power: float

    @property
    def num_uses(self) -> int:
        """Channel uses per vector."""
        return len(self.precoders)

    @property
    def is_real(self) -> bool:
        """Tells whether W is real, so that real vectors have real outputs."""
        return not np.iscomplexobj(self.weight)

    def effective(self, channel: Complex | None = None) -> NDArray[Any]:
        """Returns [num_outputs, num_inputs] what the connection computes through a channel."""
        met = self.channel if channel is None else channel
        return np.asarray(np.einsum("uor,rt,uti->oi", self.combiners, met, self.precoders))

    def predicted_nmse(self, noise_power: float) -> float:
        """Returns the closed-form NMSE for white vectors; W = 0 has 0."""
        noise = noise_power * float(self.use_gains.sum()) * (0.5 if self.is_real else 1.0)
        return safe_ratio(noise, float(np.sum(np.abs(self.weight) ** 2)))

    def forward(
        self,
        vectors: NDArray[Any],
        rng: np.random.Generator,
        *,
        noise_power: float,
        channel: Complex | None = None,
        adapts_power: bool = True,
    ) -> tuple[NDArray[Any], ConnectionReport]:
        """Sends a batch of vectors; device to server.

        The batch is centred and scaled to unit mean square; that mean and scale travel digitally.

        Args:
            vectors: [batch, num_inputs] real or complex; not changed.
            rng: draws the receiver's noise, and nothing else.
            noise_power: sigma^2 per receive antenna, >= 0.
            channel: [num_rx, num_tx] true H; None if the design knows it.
            adapts_power: scale every use so that the batch's mean power is exactly P (one more
                number per use travels digitally). If False vectors that are not white may need more
                or less than P.

        Returns:
            ([batch, num_outputs] received W x, report).

        Raises:
            ChannelError: shapes disagree, vectors are not finite or ``noise_power`` is negative.
        """
        self._check(vectors, self.weight.shape[1], noise_power)
        centre = vectors.mean()
        centred = vectors - centre
        scale = float(np.sqrt(np.mean(np.abs(centred) ** 2)))
        if scale <= 1e-13 * abs(centre):
            scale, centred = 0.0, np.zeros_like(centred)
        unit = centred if scale == 0.0 else centred / scale
        sent = np.einsum("uti,bi->ubt", self.precoders, unit)
        loudness = self._loudness(sent, self.power, adapts_power)
        offset = centre * self.weight.sum(axis=1)
        is_real = self.is_real and not np.iscomplexobj(vectors)
        met = self.channel if channel is None else channel
        exact = vectors @ self.weight.T
        received, expected = self._exchange(
            sent, met, self.combiners.transpose(0, 2, 1), loudness, noise_power, rng
        )
        clean, noisy = scale * expected + offset, scale * received + offset
        noise = np.sum(self.use_gains / loudness**2) if scale else 0.0
        return _finish(
            exact,
            clean.real if is_real else clean,
            noisy.real if is_real else noisy,
            noise_energy=float(scale**2 * noise_power * noise) * (0.5 if is_real else 1.0),
            sent=sent * loudness[:, None, None],
            control_reals=2 + (self.num_uses if adapts_power else 0) if scale else 1,
        )

    def backward(
        self,
        gradients: NDArray[Any],
        rng: np.random.Generator,
        *,
        noise_power: float,
        power: float,
        channel: Complex | None = None,
    ) -> tuple[NDArray[Any], ConnectionReport]:
        """Sends gradients back through the reciprocal channel H^T; server to device.

        The server radiates conj(C_u g) and the device applies P_u^T and conjugates, which gives
        (sum_u C_u^H H P_u)^H g = W^H g. The server scales every use so that the batch's mean power
        is ``power``; those scales travel digitally.

        Args:
            gradients: [batch, num_outputs] with respect to y; not changed.
            rng: draws the receiver's noise, and nothing else.
            noise_power: sigma^2 per antenna of the device, >= 0.
            power: the server's mean transmit power of a channel use, > 0.
            channel: [num_rx, num_tx] true H of the forward direction; None if the design knows it.

        Returns:
            ([batch, num_inputs] received W^H g, report).

        Raises:
            ChannelError: shapes disagree, gradients are not finite or a power is out of range.
        """
        self._check(gradients, self.weight.shape[0], noise_power)
        if not 0.0 < power < np.inf:
            raise ChannelError(f"power={power} must be finite and > 0")
        sent = np.einsum("uor,bo->ubr", self.combiners, gradients.conj())
        loudness = self._loudness(sent, power, adapts=True)
        met = self.channel if channel is None else channel
        is_real = self.is_real and not np.iscomplexobj(gradients)
        received, clean = self._exchange(sent, met.T, self.precoders, loudness, noise_power, rng)
        received, clean = received.conj(), clean.conj()
        gains = np.sum(np.abs(self.precoders) ** 2, axis=(1, 2)) / loudness**2
        noise = float(noise_power * gains.sum()) if np.any(gradients) else 0.0
        return _finish(
            gradients @ self.weight.conj(),
            clean.real if is_real else clean,
            received.real if is_real else received,
            noise_energy=noise * (0.5 if is_real else 1.0),
            sent=sent * loudness[:, None, None],
            control_reals=self.num_uses,
        )

    @staticmethod
    def _loudness(sent: Complex, power: float, adapts: bool) -> Floats:
        """Returns [num_uses] factors that make the mean power of every use ``power``."""
        mean = np.sum(np.abs(sent) ** 2, axis=2).mean(axis=1)
        factors: Floats = np.ones(len(sent))
        if adapts:
            np.divide(np.sqrt(power), np.sqrt(mean), out=factors, where=mean > 0.0)
        return factors

    @staticmethod
    def _exchange(
        sent: Complex,
        channel: Complex,
        receivers: Complex,
        loudness: Floats,
        noise_power: float,
        rng: np.random.Generator,
    ) -> tuple[Complex, Complex]:
        """Returns [batch, width] what is received, with and without noise.

        ``sent`` is [uses, batch, antennas] before loudness, which cancels; ``receivers`` is
        [uses, antennas, width]. A use in which nobody speaks is not listened to.
        """
        heard = sent @ channel.T
        noise = complex_normal(rng, heard.shape, noise_power) / loudness[:, None, None]
        noise *= np.any(sent != 0.0, axis=(1, 2), keepdims=True)
        clean: Complex = np.einsum("ubr,ruo->bo", heard, receivers.transpose(1, 0, 2))
        added: Complex = np.einsum("ubr,ruo->bo", noise, receivers.transpose(1, 0, 2))
        return clean + added, clean

    @staticmethod
    def _check(vectors: NDArray[Any], width: int, noise_power: float) -> None:
        """Refuses what cannot be sent."""
        if vectors.ndim != 2 or vectors.shape[1] != width or len(vectors) == 0:
            raise ChannelError(f"vectors {vectors.shape} must be [batch, {width}], batch >= 1")
        if not np.isfinite(vectors).all():
            raise ChannelError("vectors to send must be finite; drop the batch")
        if not 0.0 <= noise_power < np.inf:
            raise ChannelError(f"noise_power={noise_power} must be finite and >= 0")


def _finish(
    exact: NDArray[Any],
    clean: NDArray[Any],
    received: NDArray[Any],
    *,
    noise_energy: float,
    sent: Complex,
    control_reals: int,
) -> tuple[NDArray[Any], ConnectionReport]:
    """Returns what was received and its report."""
    radiated = np.abs(sent) ** 2
    mean = float(radiated.mean()) if radiated.size else 0.0
    return received, ConnectionReport(
        predicted_mse=noise_energy / exact.shape[1] + float(np.mean(np.abs(clean - exact) ** 2)),
        realised_mse=float(np.mean(np.abs(received - exact) ** 2)),
        mean_energy=float(np.mean(np.abs(exact) ** 2)),
        tx_power=radiated.sum(axis=2).mean(axis=1),
        papr=safe_ratio(float(radiated.max()), mean) if radiated.size else 0.0,
        channel_uses=sent.shape[0] * sent.shape[1] if mean > 0.0 else 0,
        control_bytes=8 * control_reals,
    )
