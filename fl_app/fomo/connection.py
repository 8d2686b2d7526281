"""The neural connection inside a model: y = W x over MIMO, gradients over the reciprocal channel.

After Yang et al. 2023 (arXiv:2210.04742). Device and server tune parameters on both sides of the
connection; what crosses it is analog and noisy, forward and backward. ``connection_link`` holds the
design, ``connection_insert`` puts a connection into a model. All tokens of a pass are one *block*.
The reference, in NumPy and antenna by antenna, is ``fl_app.wireless.mimo``.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from fl_app.errors import ModelError
from fl_app.fomo.connection_air import AirModule
from fl_app.fomo.connection_link import (
    LinkSpec,
    StreamLink,
    link_for,
    predicted_nmse,
    rotation_matrix,
)
from fl_app.wireless.units import db_to_linear

_REAL_BYTES = 8
"""Bytes of one real of side information, as everywhere in ``fl_app.wireless``."""
_ROUNDING = 1e-6
"""A spread this far below the mean is float32's rounding."""


class Connection(AirModule):
    """A linear map realised by precoders, a MIMO channel and combiners.

    Args:
        width: features of a vector, >= 1.
        spec: the link.
        seed: the run's seed.
        name: tells connections of one model apart; they share channels, never noise.
        weight: [num_outputs, width] real W, read at every ``redraw`` and never tuned through the
            connection; None transports features (W = I).

    Raises:
        ModelError: the weight has another width.
    """

    def __init__(
        self,
        *,
        width: int,
        spec: LinkSpec,
        seed: int,
        name: str = "",
        weight: torch.Tensor | None = None,
    ) -> None:
        super().__init__(spec=spec, seed=seed, name=name)
        if weight is not None and (weight.ndim != 2 or weight.shape[1] != width):
            raise ModelError(f"weight {tuple(weight.shape)} must be [num_outputs, {width}]")
        self.width = width
        self._weight = weight
        self._rotation: torch.Tensor | None = None
        if spec.rotation and weight is None:
            self._rotation = rotation_matrix(width, seed)
        self._link: StreamLink | None = None

    @override
    def _meet(self, true: Any, known: Any) -> None:
        weight = self._weight
        matrix = None if weight is None else _matrix(weight)
        self._link = link_for(matrix, self.width, true, known)

    @property
    def link(self) -> StreamLink:
        """The current channel's design.

        Raises:
            ModelError: no channel has been drawn yet.
        """
        if self._link is None:
            raise ModelError("a connection needs a channel: call redraw(round) first")
        return self._link

    def predicted_nmse(self) -> float:
        """Returns the closed-form forward NMSE for white vectors on the current channel.

        Perfect CSI, no clipping.
        """
        energy = float(self.width if self._weight is None else self._weight.square().sum())
        return predicted_nmse(self.link, self.spec.noise_power, energy)

    @override
    def forward(self, vectors: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Sends vectors from device to server; backward sends gradients the other way.

        Both ways a block is scaled to mean transmit power P = 1. Forward, its mean over all entries
        is taken out before, travels digitally and is put back. Clipping happens at the device and
        is ignored by gradients.

        Args:
            vectors: [..., width]; not changed.
            mask: [...], true for real tokens. Padding is not sent: it costs no channel uses and
                gets no noise; feature transport passes it on as it is, with its gradient, any other
                W makes zeros of it. None: every vector is sent.

        Returns:
            [..., num_outputs] what the server has.

        Raises:
            ModelError: no channel was drawn, the width is wrong or a vector is not finite.
        """
        if vectors.shape[-1] != self.width:
            raise ModelError(f"vectors {tuple(vectors.shape)} must be [..., {self.width}]")
        self._begin_pass()
        out: torch.Tensor = _Exchange.apply(  # type: ignore[no-untyped-call]
            vectors, self, _real_rows(mask)
        )
        return out

    def send(self, vectors: torch.Tensor, mask: torch.Tensor | None, *, back: bool) -> torch.Tensor:
        """Sends one way without autograd: what ``forward`` or its backward pass makes of vectors.

        Args:
            vectors: [..., width], or gradients [..., num_outputs] to send back; not changed.
            mask: [...], true for real tokens, as for ``forward``.
            back: from server to device.

        Raises:
            ModelError: no channel was drawn, or a vector is not finite.
        """
        self._begin_pass()
        return self.exchange(vectors, _real_rows(mask), self.link, back=back)

    def exchange(
        self, vectors: torch.Tensor, rows: torch.Tensor | None, link: StreamLink, *, back: bool
    ) -> torch.Tensor:
        """Sends one way those rows of [..., width] vectors that are no padding; no autograd."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        if rows is None:
            sent = self._send(flat, link, back=back)
            return sent.view(*vectors.shape[:-1], sent.shape[-1])
        sent = self._send(flat[rows], link, back=back)
        if self._weight is None:
            out = flat.clone()
        else:
            out = sent.new_zeros(len(flat), sent.shape[1])
        out[rows] = sent
        return out.view(*vectors.shape[:-1], sent.shape[-1])

    def _send(self, vectors: torch.Tensor, link: StreamLink, *, back: bool) -> torch.Tensor:
        """Sends [num_vectors, width] vectors, or gradients back; returns what is received."""
        exact = self._exact(vectors, back=back)
        if len(vectors) == 0:
            return exact
        received = self._transmit(vectors, exact, link, back=back)
        if self.is_measuring and not back:
            self.measured.num_reals += exact.numel()
            self.measured.energy += _energy(exact)
            self.measured.error += _energy(received - exact)
        return received

    def _transmit(
        self, vectors: torch.Tensor, exact: torch.Tensor, link: StreamLink, *, back: bool
    ) -> torch.Tensor:
        """Returns what is received where ``exact`` is wanted."""
        centre = vectors.new_zeros(()) if back else vectors.mean()
        unit = vectors - centre
        scale = unit.square().mean().sqrt()
        if not bool(torch.isfinite(scale)):
            raise ModelError(
                "what crosses the connection is not finite; lower finetune.lr or finetune.head_lr"
            )
        if float(scale) <= _ROUNDING * abs(float(centre)):  # nothing around the mean to send
            self._book(0, 0, back=back)
            return exact
        unit = unit / scale
        if self._rotation is not None:
            unit = unit @ self._rotation.to(unit)
        streams = link.to_streams(unit, back=back)
        power = streams.square().sum(-1).mean(0)
        speaks = power > 0.0
        num_uses = int(speaks.sum())
        self._book(len(vectors), num_uses, back=back)
        if not self.spec.power_per_use:
            power = speaks * (power.sum() / max(num_uses, 1))
        heard, lost = self._hear(streams, power, link, back=back)
        if lost is not None:
            clipped_off = scale * link.from_streams(lost, exact.shape[1], back=back)
            self.measured.clipping += _energy(clipped_off)  # rotation back keeps the energy
        noise = self._noise(streams, power, back=back)
        if heard is None:  # exactly W: no need to compute it in pieces
            base, received = exact, noise
        else:
            base = self._exact(centre.expand(1, vectors.shape[1]), back=back)
            received = heard if noise is None else heard + noise
        if received is None:
            return base
        arrived = link.from_streams(received, exact.shape[1], back=back)
        if self._rotation is not None:
            arrived = arrived @ self._rotation.T.to(unit)
        return base + scale * arrived

    def _exact(self, vectors: torch.Tensor, *, back: bool) -> torch.Tensor:
        """Returns W x, or W^T g."""
        if self._weight is None:
            return vectors
        weight = self._weight.detach().to(vectors)
        return vectors @ (weight if back else weight.T)

    def _hear(
        self, streams: torch.Tensor, power: torch.Tensor, link: StreamLink, *, back: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Returns [num_vectors, U, n] received streams without noise, and what clipping took.

        The first is None where nothing is lost, the second where nobody measures a peak limit.
        """
        if self.spec.peak_db is not None and not back:
            limit = (power * (db_to_linear(self.spec.peak_db) / self.spec.num_tx)).sqrt()
            antennas = streams.to(torch.complex64) @ link.launch.to(streams.device)
            loudness = antennas.abs()
            clipped = antennas * (limit[:, None] / loudness.clamp_min(1e-30)).clamp_max(1.0)
            capture = link.capture.to(streams.device)
            heard = (clipped @ capture).real.to(streams.dtype)
            if not self.is_measuring:
                return heard, None
            self.measured.num_symbols += loudness.numel()
            self.measured.num_clipped += int((loudness > limit[:, None]).sum())
            return heard, ((antennas - clipped) @ capture).real.to(streams.dtype)
        if link.is_exact:
            return None, None
        through = link.through.to(streams)
        return streams @ (through.T if back else through), None

    def _noise(
        self, streams: torch.Tensor, power: torch.Tensor, *, back: bool
    ) -> torch.Tensor | None:
        """Draws receiver noise, [num_vectors, U, n], relative to streams before power control.

        A use in which nobody speaks is not listened to.
        """
        spec = self.spec
        variance = 0.5 * (spec.gradient_noise_power if back else spec.noise_power)
        if variance == 0.0:
            return None
        stream = self._backward_noise if back else self._forward_noise
        drawn = torch.randn(streams.shape, generator=stream).to(streams)
        return drawn.mul_((power * variance).sqrt()[:, None])

    def _book(self, num_vectors: int, num_uses: int, *, back: bool) -> None:
        """Books channel uses, and the mean, the scale and where asked for a scale per use."""
        reals = (not back) + (num_uses > 0)
        if self.spec.power_per_use:
            reals += num_uses - (back and num_uses > 0)
        if back:
            self.book.backward_uses += num_vectors * num_uses
            self.book.backward_bytes += _REAL_BYTES * reals
        else:
            self.book.forward_uses += num_vectors * num_uses
            self.book.forward_bytes += _REAL_BYTES * reals


def _real_rows(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Returns the indices of real tokens; None where all are."""
    if mask is None or bool(mask.all()):
        return None
    return mask.reshape(-1).nonzero().squeeze(1)


def _energy(values: torch.Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))


def _matrix(weight: torch.Tensor) -> NDArray[np.float64]:
    """Returns W for a design, without the components that float32's rounding alone puts there."""
    matrix = weight.detach().cpu().numpy().astype(np.float64)
    lefts, strengths, rights = np.linalg.svd(matrix, full_matrices=False)
    rounding = max(matrix.shape) * float(np.finfo(np.float32).eps) * strengths[0]
    kept = strengths > rounding
    if kept.all():
        return matrix
    cleaned: NDArray[np.float64] = (lefts[:, kept] * strengths[kept]) @ rights[kept]
    return cleaned


class _Exchange(torch.autograd.Function):
    """Forward over the uplink, backward over the same channel the other way."""

    @staticmethod
    @override
    def forward(
        ctx: Any, vectors: torch.Tensor, connection: Connection, rows: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.connection, ctx.rows, ctx.link = connection, rows, connection.link
        return connection.exchange(vectors, rows, connection.link, back=False)

    @staticmethod
    @override
    def backward(ctx: Any, gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        back = ctx.connection.exchange(gradients, ctx.rows, ctx.link, back=True)
        return back, None, None
