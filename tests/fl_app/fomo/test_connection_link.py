"""One channel draw as real matrices, and the rotation that both ends know."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.fomo.connection_link import link_for, rotation_matrix
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.mimo_design import design_connection
from fl_app.wireless.rotation import Rotation
from tests.connection_fixtures import EPS, INF, spec_of


@pytest.mark.parametrize("width", [1, 2, 3, 8, 12, 384])
def test_rotation_is_orthogonal_and_flat(width: int) -> None:
    matrix = rotation_matrix(width, 5).double()
    # every entry is rounded once, and rows have length 1
    off = matrix @ matrix.T - torch.eye(width, dtype=torch.float64)
    assert float(off.abs().max()) <= 2.0 * EPS
    assert float(matrix.abs().max()) <= math.sqrt(2.0 / width) * (1.0 + EPS)
    if width & (width - 1) == 0:
        rotated = Rotation(width, 5).apply(np.eye(width))
        assert np.abs(matrix.numpy() - rotated).max() <= EPS
    assert torch.equal(rotation_matrix(width, 5), matrix.float())


def test_transport_of_many_features_is_as_good_as_one_large_design() -> None:
    known = spec_of().draw(0, "local", 0, 0)[1]
    link = link_for(None, 16, known, known)
    assert link.noise_gain == pytest.approx(
        float(design_connection(np.eye(16), known, power=1.0).use_gains.sum())
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"tx_snr_db": math.nan},
        {"gradient_tx_snr_db": -INF},
        {"num_tx": 0},
        {"csi_error": 1.5},
        {"peak_db": -1.0},
    ],
)
def test_a_link_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ChannelError, match=next(iter(wrong))):
        spec_of(**wrong)
