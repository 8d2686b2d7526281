"""Precoders and combiners: exact, within power, and as good as brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.wireless.channel import complex_normal
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.mimo_design import design_connection, group_components
from tests.oracles.air_mimo import consecutive_grouping, least_grouping, least_pairing


def _map(rng: np.random.Generator, shape: tuple[int, int], rank: int, kind: str) -> np.ndarray:
    left, right = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    if kind == "complex":
        return (left + 1j * rng.standard_normal(left.shape)) @ right
    return left @ right


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize(
    ("shape", "rank", "antennas"),
    [
        ((12, 16), 12, (4, 6)),
        ((5, 3), 3, (8, 4)),
        ((7, 9), 2, (3, 3)),
        ((1, 6), 1, (1, 1)),
        ((6, 1), 1, (2, 5)),
        ((8, 8), 7, (1, 4)),
    ],
)
def test_the_channel_computes_the_map(
    kind: str, shape: tuple[int, int], rank: int, antennas: tuple[int, int]
) -> None:
    """Any shape and rank, more antennas than inputs too, in ceil(rank / min(Nt, Nr)) uses."""
    rng = np.random.default_rng(1)
    weight = _map(rng, shape, rank, kind)
    channel = complex_normal(rng, antennas)
    connection = design_connection(weight, channel, power=2.5)
    assert connection.num_uses == math.ceil(rank / min(antennas))
    assert np.abs(connection.effective() - weight).max() <= 1e-12 * np.abs(weight).max()
    power = np.sum(np.abs(connection.precoders) ** 2, axis=(1, 2))
    assert np.allclose(power, 2.5, rtol=1e-12)  # E|P_u x|^2 of white x


def test_noise_gain_is_that_of_the_combiners() -> None:
    """E|C_u^H n|^2 = sigma^2 |C_u|_F^2, summed over uses."""
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((9, 7))
    connection = design_connection(weight, complex_normal(rng, (3, 4)), power=0.7)
    frobenius = np.sum(np.abs(connection.combiners) ** 2, axis=(1, 2))
    assert np.allclose(connection.use_gains, frobenius, rtol=1e-12)
    nmse = 0.5 * 0.2 * frobenius.sum() / np.sum(weight**2)
    assert connection.predicted_nmse(0.2) == pytest.approx(nmse, rel=1e-12)


def test_no_other_split_or_pairing_of_a_use_makes_less_noise() -> None:
    """2000 random splits at the same power, and all 24 pairings."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((4, 6))
    channel = complex_normal(rng, (4, 5))
    connection = design_connection(weight, channel, power=1.0)
    strengths = np.linalg.svd(weight, compute_uv=False)
    sigmas = np.linalg.svd(channel, compute_uv=False)
    gain = float(connection.use_gains[0])
    assert gain == pytest.approx(least_pairing(strengths.tolist(), sigmas.tolist()), rel=1e-12)
    for _ in range(2000):
        split = rng.uniform(0.05, 3.0, 4)  # precoder t, combiner w / (sigma t)
        assert np.sum(split**2) * np.sum((strengths / sigmas / split) ** 2) >= gain * (1 - 1e-12)


@given(
    strengths=st.lists(st.floats(0.05, 10.0), min_size=1, max_size=6),
    sigmas=st.lists(st.floats(0.2, 3.0), min_size=1, max_size=3),
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_groups_are_complete_and_between_the_best_and_the_plain_ones(
    strengths: list[float], sigmas: list[float]
) -> None:
    strengths, sigmas = sorted(strengths, reverse=True), sorted(sigmas, reverse=True)
    groups = group_components(np.array(strengths), np.array(sigmas))
    assert sorted(int(i) for group in groups for i in group) == list(range(len(strengths)))
    assert max(len(group) for group in groups) <= len(sigmas)
    assert len(groups) == math.ceil(len(strengths) / len(sigmas))
    cost = sum(
        math.fsum(strengths[i] / s for i, s in zip(group, sigmas, strict=False)) ** 2
        for group in groups
    )
    assert cost <= consecutive_grouping(strengths, sigmas) * (1 + 1e-12)
    assert cost >= least_grouping(strengths, sigmas) * (1 - 1e-12)


def test_components_are_dealt_out_so_that_uses_are_about_equally_loud() -> None:
    """(4 + 1)^2 + (3 + 2)^2 = 50, the best there is; consecutive ones make 7^2 + 3^2 = 58."""
    groups = group_components(np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 1.0]))
    assert sorted(group.tolist() for group in groups) == [[0, 3], [1, 2]]
    assert least_grouping([4.0, 3.0, 2.0, 1.0], [1.0, 1.0]) == 50.0
    assert consecutive_grouping([4.0, 3.0, 2.0, 1.0], [1.0, 1.0]) == 58.0


def test_fewer_streams_use_stronger_eigenchannels_longer() -> None:
    rng = np.random.default_rng(4)
    weight, channel = rng.standard_normal((6, 6)), complex_normal(rng, (3, 3))
    many = design_connection(weight, channel, power=1.0)
    one = design_connection(weight, channel, power=1.0, num_streams=1)
    assert (many.num_uses, one.num_uses) == (2, 6)
    assert np.allclose(one.effective(), weight)
    assert one.predicted_nmse(0.1) < many.predicted_nmse(0.1)


def test_a_rank_deficient_channel_offers_the_streams_it_has() -> None:
    rng = np.random.default_rng(5)
    channel = np.outer(complex_normal(rng, (4,)), complex_normal(rng, (3,)))
    weight = rng.standard_normal((2, 5))
    connection = design_connection(weight, channel, power=1.0)
    assert connection.num_uses == 2
    assert np.allclose(connection.effective(), weight)


def test_what_cannot_be_designed_is_refused() -> None:
    eye = np.eye(2, dtype=complex)
    with pytest.raises(ChannelError, match="channel is 0"):
        design_connection(np.eye(2), 0 * eye, power=1.0)
    with pytest.raises(ChannelError, match="weight"):
        design_connection(np.ones(3), eye, power=1.0)
    with pytest.raises(ChannelError, match="weight"):
        design_connection(np.full((2, 2), np.nan), eye, power=1.0)
    with pytest.raises(ChannelError, match="channel"):
        design_connection(np.eye(2), eye[0], power=1.0)
    with pytest.raises(ChannelError, match="power"):
        design_connection(np.eye(2), eye, power=0.0)
    for streams in (0, 3):
        with pytest.raises(ChannelError, match="num_streams"):
            design_connection(np.eye(2), eye, power=1.0, num_streams=streams)
