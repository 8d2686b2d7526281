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
