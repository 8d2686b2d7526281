"""One channel draw of a neural connection, as real matrices a torch module can use.

For real W the designs of ``fl_app.wireless.mimo_design`` are real in the eigenbasis of the known
channel H = sum_j sigma_j p_j q_j^H: use u sends the n real *streams* E_u x on the transmit
eigenvectors, H takes stream i to stream i with gain sigma_i, and the receiver adds up F_u times
what it hears. Noise CN(0, sigma^2) per antenna is N(0, sigma^2 / 2) per received stream. So

    y = sum_u F_u Re(D) E_u x + F_u noise_u,    D = [p_j]^H H_true [q_j],

and D = diag(sigma_i), y = W x + noise where CSI is perfect. Gradients take the transposed way.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.seeding import generator, torch_seed
from fl_app.wireless.channel import Complex, Fading, draw_mimo_gains, estimate_gains
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.mimo_design import design_connection
from fl_app.wireless.report import safe_ratio
from fl_app.wireless.units import noise_power_from_tx_snr

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LinkSpec:
    """The link between a device and the server; transmit power P is 1 on both sides.

    Attributes:
        tx_snr_db: tx-SNR P / sigma^2 of the device, in dB before fading; ``inf`` for no noise.
        gradient_tx_snr_db: the same of the server, which sends gradients back.
        num_tx: antennas of the device, >= 1.
        num_rx: antennas of the server, >= 1.
        fading: small-scale fading; one subcarrier.
        csi_error: relative error eps of CSI, 0 (perfect) to 1 (worthless).
        rotation: rotate vectors by a random orthogonal matrix known to both ends, which spreads
            outlier features over all; for feature transport and learned links alone, since
            the precoders of any other W send its singular components, rotated or not.
        power_per_use: scale every channel use to mean power P over a block, which takes one more
            real of side information per use. If False one scale for the whole block keeps the mean
            over the uses that speak at P.
        peak_db: limit, in dB, of the power of a device's antenna over its mean P / num_tx; what is
            louder is clipped. None for no limit.
    """

    tx_snr_db: float
    gradient_tx_snr_db: float
    num_tx: int = 4
    num_rx: int = 8
    fading: Fading = field(default_factory=Fading)
    csi_error: float = 0.0
    rotation: bool = False
    power_per_use: bool = True
    peak_db: float | None = None

    def __post_init__(self) -> None:
        """Raises ChannelError on a value out of range."""
        for name in ("tx_snr_db", "gradient_tx_snr_db"):
            value = getattr(self, name)
            if math.isnan(value) or value == -math.inf:
                raise ChannelError(f"{name}={value} must be a number of dB, or inf")
        if self.num_tx < 1 or self.num_rx < 1:
            raise ChannelError(f"num_tx={self.num_tx} and num_rx={self.num_rx} must be >= 1")
        if not 0.0 <= self.csi_error <= 1.0:
            raise ChannelError(f"csi_error={self.csi_error} must be 0..1")
        if self.peak_db is not None and not 0.0 <= self.peak_db < math.inf:
            raise ChannelError(f"peak_db={self.peak_db} must be finite and >= 0, or None")

    @property
    def noise_power(self) -> float:
        """sigma^2 of one antenna of the server."""
        return noise_power_from_tx_snr(self.tx_snr_db)

    @property
    def gradient_noise_power(self) -> float:
        """sigma^2 of one antenna of the device."""
        return noise_power_from_tx_snr(self.gradient_tx_snr_db)

    def draw(self, seed: int, purpose: str, number: int, device: int) -> tuple[Complex, Complex]:
        """Returns [num_rx, num_tx] (true channel, known channel) of one coherence block.

        Args:
            seed: the run's seed.
            purpose: names the stream, for example "local".
            number: the block: a round, or a pass; >= 0.
            device: partition index, >= 0.
        """
        own = torch_seed(seed, "connection", purpose, device)
        gains = draw_mimo_gains(self.fading, own, number, 0, self.num_rx, self.num_tx)[:1]
        return gains[0], estimate_gains(gains, self.csi_error, own, number)[0]


@dataclass(frozen=True)
class StreamLink:
    """What both ends do during one coherence block; n streams per channel use, U uses per vector.

    Attributes:
        enter: E, [U n, num_inputs], or its diagonal [U n] for feature transport.
        leave: F transposed, [U n, num_outputs], or its diagonal.
        through: [n, n] Re(D) transposed: received streams are ``streams @ through``.
        launch: [n, num_tx] transmit eigenvectors transposed: antennas send ``streams @ launch``.
        capture: [num_tx, n] what the streams hear of the device's antennas.
        num_uses: U.
        is_exact: CSI is perfect, so that without noise and clipping W is met exactly.
        noise_gain: E|y - W x|^2 per unit of sigma^2 for white x, P = 1.
    """

    enter: torch.Tensor
    leave: torch.Tensor
    through: torch.Tensor
    launch: torch.Tensor
    capture: torch.Tensor
    num_uses: int
    is_exact: bool
    noise_gain: float

    @property
    def num_streams(self) -> int:
        """n, the streams of a use."""
        return len(self.through)

    def to_streams(self, vectors: torch.Tensor, *, back: bool) -> torch.Tensor:
        """Returns [num_vectors, U, n] streams of [num_vectors, width] vectors."""
        matrix = self.leave if back else self.enter
        if matrix.ndim == 1:
            missing = len(matrix) - vectors.shape[1]
            streams = torch.nn.functional.pad(vectors, (0, missing)) * matrix.to(vectors)
        else:
            streams = vectors @ matrix.T.to(vectors)
        return streams.view(len(vectors), self.num_uses, self.num_streams)

    def from_streams(self, streams: torch.Tensor, width: int, *, back: bool) -> torch.Tensor:
        """Returns the [num_vectors, width] vectors that received streams make."""
        matrix = (self.enter if back else self.leave).to(streams)
        flat = streams.reshape(len(streams), -1)
        return (flat * matrix)[:, :width] if matrix.ndim == 1 else flat @ matrix


def link_for(weight: Floats | None, width: int, true: Complex, known: Complex) -> StreamLink:
    """Designs both ends for a map, or for the transport of features.

    Args:
        weight: [num_outputs, width] W; None for the identity, whose uses are all alike, so that one
            small design serves any width.
        width: entries of a vector, >= 1.
        true: [num_rx, num_tx] the channel.
        known: [num_rx, num_tx] what both ends believe it is.

    Raises:
        ChannelError: W or a channel cannot be used, see ``design_connection``.
    """
    into_rx, _, from_tx = np.linalg.svd(known, full_matrices=False)
    rank = int(np.linalg.matrix_rank(known))
    into_rx, from_tx = into_rx[:, :rank], from_tx[:rank]
    if weight is None:
        num_uses, rest = divmod(width, rank)
        enter: NDArray[Any] = np.zeros(0)
        leave: NDArray[Any] = np.zeros(0)
        gain = 0.0
        for size, count in ((rank, num_uses), (rest, 1)):
            if size and count:
                part = design_connection(np.eye(size), known, power=1.0)
                inward = np.diagonal(from_tx @ part.precoders[0]).real
                outward = np.diagonal(part.combiners[0] @ into_rx).real
                idle = (0, rank - size)  # eigenchannels that the last use leaves alone
                enter = np.concatenate([enter, np.tile(np.pad(inward, idle), count)])
                leave = np.concatenate([leave, np.tile(np.pad(outward, idle), count)])
                gain += count * float(part.use_gains.sum())
        num_uses += rest > 0
    else:
        design = design_connection(weight, known, power=1.0)
        num_uses = design.num_uses
        enter = (from_tx @ design.precoders).real.reshape(-1, width)
        leave = (design.combiners @ into_rx).real.transpose(0, 2, 1).reshape(-1, len(weight))
        gain = float(design.use_gains.sum())
    met = into_rx.conj().T @ true
    return StreamLink(
        enter=_tensor(enter),
        leave=_tensor(leave),
        through=_tensor((met @ from_tx.conj().T).real.T),
        launch=_tensor(from_tx.conj()),
        capture=_tensor(met.T),
        num_uses=int(num_uses),
        is_exact=bool(np.array_equal(true, known)),
        noise_gain=gain,
    )


def predicted_nmse(link: StreamLink, noise_power: float, energy: float) -> float:
    """Returns the closed-form NMSE for white vectors, ||W||_F^2 = ``energy``, perfect CSI."""
    return safe_ratio(0.5 * noise_power * link.noise_gain, energy)


def rotation_matrix(width: int, seed: int) -> torch.Tensor:
    """Returns [width, width] Q, orthogonal, whose entries all have about the same magnitude.

    Width q 2^k, q odd: random signs, then the Kronecker product of the cosine transform of order q
    and the Hadamard matrix of order 2^k. For q = 1 it is ``fl_app.wireless.rotation.Rotation``; for
    q > 1 no padding is needed, hence no further channel uses. Both ends draw it from the same seed.
    """
    signs = generator(seed, "rotation").choice([-1.0, 1.0], width)
    odd = width
    matrix: Floats = np.ones((1, 1))
    while odd % 2 == 0:
        odd //= 2
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / math.sqrt(2.0)
    order = np.arange(odd)
    cosines = np.cos(np.pi * (2 * order[None] + 1) * order[:, None] / (2 * odd))
    cosines *= np.where(order == 0, 1.0, math.sqrt(2.0))[:, None] / math.sqrt(odd)
    return _tensor(signs[:, None] * np.kron(cosines, matrix).T)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    wanted = np.complex64 if np.iscomplexobj(array) else np.float32
    return torch.from_numpy(np.ascontiguousarray(array, dtype=wanted))
