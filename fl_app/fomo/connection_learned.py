"""A learned link: precoder and combiner are tuned, and nobody estimates the channel.

The channel H enters the forward simulation alone (implicit CSI; Yang et al. 2023,
arXiv:2210.04742): the device sends P_u x scaled to its power, the server normalises what
C_u^H (H P_u x + noise) makes of it layer-wise, and gradients return over the reciprocal channel.
The server's own gradient of C_u uses what it received, the device's of P_u the noisy gradient that
came back. A learned link follows a channel that is static or changes slowly, and is worthless on
any other; it is therefore measured, with fresh noise, on the last channel it was tuned on.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from fl_app.errors import ModelError
from fl_app.fomo.connection_air import AirModule
from fl_app.fomo.connection_link import LinkSpec, rotation_matrix
from fl_app.seeding import torch_seed


class LearnedLink(AirModule):
    """Trainable precoders and combiners around a MIMO channel, then a layer norm.

    Args:
        width: features of a vector, >= 1.
        spec: the link; there are no channel estimates to be wrong (``csi_error``) and no limit on
            peaks (``peak_db``).
        seed: seeds the starting values too.
        name: tells links of one model apart.
        num_outputs: entries of an output, >= 1; None for ``width``.
        num_uses: channel uses per vector, >= 1; None for what the smaller side needs,
            ceil(min(width, num_outputs) / min(num_tx, num_rx)).

    Raises:
        ModelError: ``num_uses`` is out of range, or the link has what a learned one cannot.
    """

    def __init__(
        self,
        *,
        width: int,
        spec: LinkSpec,
        seed: int,
        name: str = "",
        num_outputs: int | None = None,
        num_uses: int | None = None,
    ) -> None:
        if spec.csi_error != 0.0 or spec.peak_db is not None:
            raise ModelError(
                f"csi_error={spec.csi_error} and peak_db={spec.peak_db} mean nothing for a learned "
                "link; leave them at 0 and None"
            )
        super().__init__(spec=spec, seed=seed, name=name)
        outputs = width if num_outputs is None else num_outputs
        needed = -(-min(width, outputs) // min(spec.num_tx, spec.num_rx))
        self.num_uses = needed if num_uses is None else num_uses
        if self.num_uses < 1:
            raise ModelError(f"num_uses={num_uses} of a learned link must be >= 1")
        self.width = width
        sent, heard = self.num_uses * spec.num_tx, self.num_uses * spec.num_rx
        stream = torch.Generator().manual_seed(torch_seed(seed, "learned-link", name))
        # Real parts first, then imaginary parts, so that both maps are real matrices.
        self.precoder = nn.Parameter(
            torch.randn(2 * sent, width, generator=stream) / math.sqrt(width)
        )
        self.combiner = nn.Parameter(
            torch.randn(outputs, 2 * heard, generator=stream) / math.sqrt(2 * heard)
        )
        self.norm = nn.LayerNorm(outputs)
        self._rotation = rotation_matrix(width, seed) if spec.rotation else None

    @override
    def measure(self) -> None:
        """From here on every pass has noise of its own, on the channel of the last ``redraw``.

        Raises:
            ModelError: no channel has been drawn yet.
        """
        if not self._is_drawn:
            raise ModelError(
                "a learned link is measured on the channel it was tuned on: call redraw(round)"
            )
        super().measure()

    @override
    def _draw_to_measure(self, number: int) -> None:
        """Stays on the channel it was tuned on."""

    @override
    def _meet(self, true: Any, known: Any) -> None:
        # H as a real map from [real, imaginary] of the antennas to the same of the receiver.
        pair = np.block([[true.real, -true.imag], [true.imag, true.real]])
        self._channel = torch.from_numpy(pair.astype(np.float32))

    @override
    def forward(self, vectors: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Sends vectors from device to server.

        Args:
            vectors: [..., width]; not changed.
            mask: [...], true for real tokens; zeros come out of padding. None: all are sent.

        Returns:
            [..., num_outputs], normalised over the last axis.

        Raises:
            ModelError: no channel was drawn or the width is wrong.
        """
        if vectors.shape[-1] != self.width:
            raise ModelError(f"vectors {tuple(vectors.shape)} must be [..., {self.width}]")
        self._begin_pass()
        flat = vectors.reshape(-1, self.width)
        rows = None if mask is None else mask.reshape(-1).nonzero().squeeze(1)
        kept = flat if rows is None else flat[rows]
        if self._rotation is not None:
            kept = kept @ self._rotation.to(kept)
        out = self.norm(self._over_the_air(kept) @ self.combiner.T)
        if rows is not None:
            out = out.new_zeros(len(flat), out.shape[1]).index_copy(0, rows, out)
        shaped: torch.Tensor = out.view(*vectors.shape[:-1], out.shape[-1])
        return shaped

    def _over_the_air(self, vectors: torch.Tensor) -> torch.Tensor:
        """Returns [num_vectors, 2 U num_rx] what the server's antennas receive."""
        antennas = vectors @ self.precoder.T
        # [num_vectors, 2, U, num_tx] to [num_vectors, U, 2 num_tx]
        shape = (len(vectors), 2, self.num_uses, self.spec.num_tx)
        sent = antennas.view(shape).transpose(1, 2).flatten(2)
        scale = self._power_of(sent).clamp_min(1e-30).sqrt()
        heard = _Air.apply(sent / scale[:, None], self)  # type: ignore[no-untyped-call]
        self.book.forward_uses += len(vectors) * self.num_uses
        shape = (len(vectors), self.num_uses, 2, self.spec.num_rx)
        received: torch.Tensor = heard.view(shape).transpose(1, 2).flatten(1)
        return received

    def propagate(self, sent: torch.Tensor, channel: torch.Tensor, *, back: bool) -> torch.Tensor:
        """Returns what one side's antennas hear of [num_vectors, U, 2 antennas] of the other's."""
        matrix = channel.to(sent)
        heard = sent @ (matrix if back else matrix.T)
        spec = self.spec
        variance = 0.5 * (spec.gradient_noise_power if back else spec.noise_power)
        if variance == 0.0:
            return heard
        # Gradients have any scale; the server sends them with power 1.
        power = self._power_of(sent) if back else sent.new_ones(self.num_uses)
        stream = self._backward_noise if back else self._forward_noise
        drawn = torch.randn(heard.shape, generator=stream).to(heard)
        return heard + drawn * (power * variance).sqrt()[:, None]

    def _power_of(self, sent: torch.Tensor) -> torch.Tensor:
        """Returns [U] what is scaled to mean power 1: a use's own power, or the mean over uses."""
        power = sent.square().sum(-1).mean(0)
        return power if self.spec.power_per_use else power.mean().expand_as(power)

    def book_gradients(self, num_vectors: int) -> None:
        """Books gradients sent back: channel uses, and their scale or scales, 8 bytes each.

        Forward none is needed: the combiner is tuned to what arrives.
        """
        self.book.backward_uses += num_vectors * self.num_uses
        self.book.backward_bytes += 8 * (self.num_uses if self.spec.power_per_use else 1)


class _Air(torch.autograd.Function):
    """H forward; the reciprocal H backward, whose noise-free result is the adjoint of H."""

    @staticmethod
    @override
    def forward(ctx: Any, sent: torch.Tensor, link: LearnedLink) -> torch.Tensor:
        ctx.link, ctx.channel = link, link._channel
        return link.propagate(sent, link._channel, back=False)

    @staticmethod
    @override
    def backward(ctx: Any, gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.link.book_gradients(len(gradients))
        return ctx.link.propagate(gradients, ctx.channel, back=True), None
