"""Links, vectors and maps for the tests of neural connections; a bound on float32's rounding."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.fomo.connection import Connection
from fl_app.fomo.connection_link import LinkSpec

INF = math.inf
EPS = float(np.finfo(np.float32).eps)


def spec_of(**changes: Any) -> LinkSpec:
    """Returns a link without noise, 4 to 6 antennas, with changes."""
    fields: dict[str, Any] = {"tx_snr_db": INF, "gradient_tx_snr_db": INF, "num_rx": 6}
    return LinkSpec(**(fields | changes))


def vectors_of(*shape: int, seed: int = 0) -> torch.Tensor:
    """Loud and off centre; the first feature is an outlier."""
    rng = np.random.default_rng(seed)
    drawn = 3.0 * rng.standard_normal(shape) + 1.5
    drawn[..., 0] *= 20.0
    return torch.from_numpy(drawn.astype(np.float32)).requires_grad_()


def weight_of(outputs: int, width: int, rank: int | None = None) -> torch.Tensor:
    """Returns a map of full rank, or of the rank given."""
    rng = np.random.default_rng(7)
    full = rng.standard_normal((outputs, width))
    if rank is not None:  # small integers, so that no rounding adds to the rank
        full = rng.integers(-3, 4, (outputs, rank)) @ rng.integers(-3, 4, (rank, width))
    return torch.from_numpy(full.astype(np.float32))


def white_batch(rows: int, width: int) -> torch.Tensor:
    """Vectors of mean 0 and covariance I, exactly: orthogonal columns, orthogonal to ones."""
    drawn = np.random.default_rng(3).standard_normal((rows, width + 1))
    drawn[:, 0] = 1.0
    columns = np.linalg.qr(drawn)[0][:, 1:]
    return torch.from_numpy((columns * math.sqrt(rows)).astype(np.float32))


def in_pieces(connection: Connection) -> Connection:
    """Makes a connection with perfect CSI take E, H and F instead of W itself."""
    connection._link = dataclasses.replace(connection.link, is_exact=False)
    return connection


MAPS = [
    pytest.param(None, 16, id="transport"),
    pytest.param(None, 10, id="transport, last use not full"),
    pytest.param(None, 3, id="transport, narrower than the channel"),
    pytest.param(weight_of(5, 16), 16, id="down"),
    pytest.param(weight_of(16, 5), 5, id="up"),
    pytest.param(weight_of(9, 12, rank=2), 12, id="rank 2"),
]


def rounding_bound(connection: Connection, vectors: torch.Tensor, *, back: bool = False) -> float:
    """Bounds what float32 may change of a noise-free pass, forward or back.

    A chain of matrix products changes an entry by at most eps / 2 of the same chain over magnitudes
    for every rounding: one per term of each product, and a dozen for tables, scale and mean, whose
    own values cancel. A whole eps covers what is of second order.
    """
    link, rotation = connection.link, connection._rotation
    through = link.through.double().abs()
    if (
        connection.spec.peak_db is not None and not back
    ):  # antenna by antenna; clipping only shrinks
        through = link.launch.abs().double() @ link.capture.abs().double()
    sizes = dataclasses.replace(
        link, enter=link.enter.double().abs(), leave=link.leave.double().abs(), through=through
    )
    terms = vectors.detach().double().reshape(-1, vectors.shape[-1])
    centre = 0.0 if back else float(terms.mean())
    terms = terms.abs() + abs(centre)
    weight = connection._weight
    width = vectors.shape[-1] if weight is None else weight.shape[1 if back else 0]
    base = abs(centre) * torch.ones(1)
    if weight is not None and not back:
        base = base * weight.double().abs().sum(1)
    num_roundings = 12 + 2 * vectors.shape[-1] + 2 * len(through) + len(link.enter)
    if rotation is not None:
        num_roundings += 2 * len(rotation)
        terms = terms @ rotation.double().abs()
    heard = sizes.to_streams(terms, back=back) @ (through.T if back else through)
    arrived = sizes.from_streams(heard, width, back=back)
    if rotation is not None:
        arrived = arrived @ rotation.double().abs().T
    return num_roundings * EPS * float((arrived + base).max())
