"""Vectors forward and gradients backward through a neural connection."""

import math

import numpy as np
import pytest

from fl_app.wireless.channel import complex_normal, estimate_gains
from fl_app.wireless.errors import ChannelError
from fl_app.wireless.mimo import NeuralConnection
from fl_app.wireless.mimo_design import design_connection
from fl_app.wireless.rotation import Rotation


def _connection(
    seed: int = 1, *, is_complex: bool = False, shape: tuple[int, int] = (10, 12)
) -> NeuralConnection:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape)
    if is_complex:
        weight = weight + 1j * rng.standard_normal(shape)
    return design_connection(weight, complex_normal(rng, (6, 4)), power=2.0)


def _vectors(seed: int, shape: tuple[int, int], *, is_complex: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = 3.0 * rng.standard_normal(shape) + 1.5
    return vectors + 1j * rng.standard_normal(shape) if is_complex else vectors


@pytest.mark.parametrize("weight_is_complex", [False, True])
@pytest.mark.parametrize("input_is_complex", [False, True])
@pytest.mark.parametrize("adapts_power", [False, True])
def test_without_noise_forward_is_the_map(
    weight_is_complex: bool, input_is_complex: bool, adapts_power: bool
) -> None:
    connection = _connection(is_complex=weight_is_complex)
    vectors = _vectors(2, (5, 12), is_complex=input_is_complex)
    before = vectors.tobytes()
    out, report = connection.forward(
        vectors, np.random.default_rng(0), noise_power=0.0, adapts_power=adapts_power
    )
    assert np.allclose(out, vectors @ connection.weight.T, rtol=1e-12, atol=1e-11)
    assert np.iscomplexobj(out) == (weight_is_complex or input_is_complex)
    assert vectors.tobytes() == before
    assert report.channel_uses == 3 * 5
    assert report.predicted_mse < 1e-20


@pytest.mark.parametrize("weight_is_complex", [False, True])
@pytest.mark.parametrize("input_is_complex", [False, True])
def test_without_noise_backward_is_the_adjoint(
    weight_is_complex: bool, input_is_complex: bool
) -> None:
    """W^H g, and <g, W x> = <W^H g, x>; catches a missing conjugate."""
    connection = _connection(3, is_complex=weight_is_complex)
    gradients = _vectors(4, (5, 10), is_complex=input_is_complex)
    back, report = connection.backward(
        gradients, np.random.default_rng(0), noise_power=0.0, power=7.0
    )
    expected = np.stack([connection.weight.conj().T @ g for g in gradients])
    assert np.allclose(back, expected, rtol=1e-12, atol=1e-11)
    assert np.allclose(report.tx_power, 7.0)
    vectors = _vectors(5, (5, 12))
    forward, _ = connection.forward(vectors, np.random.default_rng(0), noise_power=0.0)
    assert np.vdot(gradients, forward) == pytest.approx(np.vdot(back, vectors), rel=1e-10)


@pytest.mark.parametrize("is_complex", [False, True])
def test_forward_error_is_the_closed_form(is_complex: bool) -> None:
    """White vectors, 300 batches, five standard errors; complex outputs keep twice the noise."""
    connection = _connection(6, is_complex=is_complex)
    rng = np.random.default_rng(7)
    ratios, predicted, powers = [], [], []
    for _ in range(300):
        vectors = rng.standard_normal((8, 12))
        vectors -= vectors.mean()
        vectors /= np.sqrt(np.mean(vectors**2))
        _, report = connection.forward(vectors, rng, noise_power=0.3, adapts_power=False)
        ratios.append(report.realised_mse)
        predicted.append(report.predicted_mse)
        powers.append(report.tx_power)
    energy = np.sum(np.abs(connection.weight) ** 2) / 10  # per output of a white unit vector
    closed = connection.predicted_nmse(0.3) * energy
    assert np.allclose(predicted, closed, rtol=1e-9)
    assert abs(np.mean(ratios) - closed) <= 5.0 * np.std(ratios, ddof=1) / math.sqrt(300)
    spent = np.array(powers)
    # 96 centred numbers of unit mean square are correlated by -1 / 95.
    wanted = [
        np.sum(np.abs(p) ** 2) * 96 / 95 - np.sum(np.abs(p.sum(axis=1)) ** 2) / 95
        for p in connection.precoders
    ]
    error = spent.std(axis=0, ddof=1) / math.sqrt(300)
    assert (np.abs(spent.mean(axis=0) - wanted) <= 5.0 * error).all()


def test_forward_error_of_loud_vectors_is_predicted_too() -> None:
    """Not white, power adapted: 300 rounds of noise over one batch, five standard errors."""
    connection = _connection(8)
    vectors = _vectors(9, (4, 12)) * np.linspace(0.1, 5.0, 12)
    rng = np.random.default_rng(10)
    reports = [connection.forward(vectors, rng, noise_power=0.5)[1] for _ in range(300)]
    realised = np.array([r.realised_mse for r in reports])
    error = realised.std(ddof=1) / math.sqrt(300)
    assert abs(realised.mean() - reports[0].predicted_mse) <= 5.0 * error
    assert np.allclose(reports[0].tx_power, 2.0, rtol=1e-12)  # never above the limit


def test_backward_error_is_predicted() -> None:
    """sigma^2 sum_u |P_u|_F^2 mean|C_u g|^2 / P_server, half of it kept; 300 rounds."""
    connection = _connection(11)
    gradients = _vectors(12, (4, 10))
    rng = np.random.default_rng(13)
    reports = [
        connection.backward(gradients, rng, noise_power=0.5, power=3.0)[1] for _ in range(300)
    ]
    closed = 0.0
    for precoder, combiner in zip(connection.precoders, connection.combiners, strict=True):
        radiated = np.mean([np.sum(np.abs(combiner.conj().T @ g) ** 2) for g in gradients])
        closed += 0.5 * 0.5 * np.sum(np.abs(precoder) ** 2) * radiated / 3.0 / 12
    assert reports[0].predicted_mse == pytest.approx(closed, rel=1e-9)
    realised = np.array([r.realised_mse for r in reports])
    assert abs(realised.mean() - closed) <= 5.0 * realised.std(ddof=1) / math.sqrt(300)


def test_ten_decibels_more_tx_snr_are_ten_decibels_less_error() -> None:
    connection, vectors = _connection(14), _vectors(15, (3, 12))
    errors = [
        connection.forward(vectors, np.random.default_rng(0), noise_power=n)[1].realised_nmse
        for n in (1.0, 0.1)
    ]
    assert errors[0] == pytest.approx(10.0 * errors[1], rel=1e-6)


def test_a_wrongly_known_channel_is_part_of_the_prediction() -> None:
    connection, vectors = _connection(16), _vectors(17, (3, 12))
    true = estimate_gains(connection.channel[None], 0.1, 1, 0)[0]
    out, report = connection.forward(
        vectors, np.random.default_rng(0), noise_power=0.0, channel=true
    )
    assert report.realised_mse > 0.0
    assert report.predicted_mse == pytest.approx(report.realised_mse, rel=1e-9)
    centred = vectors - vectors.mean()
    expected = centred @ connection.effective(true).real.T
    expected += vectors.mean() * connection.weight.sum(axis=1)
    assert np.allclose(out, expected)


def test_split_training_without_noise_is_the_central_step() -> None:
    """Loss |W x - t|^2 / 2: the gradient with respect to x through the air."""
    connection, vectors = _connection(18), _vectors(19, (6, 12))
    targets = _vectors(20, (6, 10))
    rng = np.random.default_rng(0)
    out, _ = connection.forward(vectors, rng, noise_power=0.0)
    back, _ = connection.backward(out - targets, rng, noise_power=0.0, power=1.0)
    central = (vectors @ connection.weight.T - targets) @ connection.weight
    assert np.allclose(vectors - 0.1 * back, vectors - 0.1 * central, rtol=1e-11, atol=1e-10)


def test_rotation_changes_nothing_without_noise_and_lowers_peaks_of_features() -> None:
    """Feature transport of vectors with two outliers, width 48 padded to 64."""
    rng = np.random.default_rng(21)
    channel = complex_normal(rng, (4, 4))
    vectors = 0.1 * rng.standard_normal((32, 48))
    vectors[:, [3, 30]] = 20.0 * rng.choice([-1.0, 1.0], (32, 2))
    rotation = Rotation(48, 22)
    plain = design_connection(np.eye(48), channel, power=1.0)
    turned = design_connection(rotation.apply(np.eye(48)), channel, power=1.0)
    one, loud = plain.forward(vectors, rng, noise_power=0.0)
    two, calm = turned.forward(rotation.apply(vectors), rng, noise_power=0.0)
    assert np.allclose(one, vectors, atol=1e-10)
    assert np.allclose(two, vectors, atol=1e-10)
    assert plain.num_uses == turned.num_uses == 12
    assert calm.papr < loud.papr


def test_a_map_of_rank_zero_needs_no_channel_use() -> None:
    connection = design_connection(np.zeros((3, 4)), np.eye(2, dtype=complex), power=1.0)
    assert connection.num_uses == 0
    assert connection.predicted_nmse(1.0) == 0.0
    rng = np.random.default_rng(0)
    out, report = connection.forward(_vectors(23, (2, 4)), rng, noise_power=1.0)
    assert not out.any()
    assert (report.channel_uses, report.realised_nmse) == (0, 0.0)
    back, _ = connection.backward(_vectors(24, (2, 3)), rng, noise_power=1.0, power=1.0)
    assert back.shape == (2, 4)
    assert not back.any()


def test_constant_vectors_and_zero_gradients_travel_without_noise() -> None:
    connection = _connection(25)
    rng = np.random.default_rng(0)
    vectors = np.full((3, 12), 0.3)
    out, report = connection.forward(vectors, rng, noise_power=1.0)
    assert np.allclose(out, vectors @ connection.weight.T, rtol=1e-12)
    assert report.channel_uses == 0
    assert report.predicted_mse < 1e-25
    back, report = connection.backward(np.zeros((3, 10)), rng, noise_power=1.0, power=1.0)
    assert not back.any()
    assert report.predicted_mse == 0.0


def test_what_cannot_be_sent_is_refused() -> None:
    connection = _connection(26)
    rng = np.random.default_rng(0)
    with pytest.raises(ChannelError, match="vectors"):
        connection.forward(np.ones((2, 11)), rng, noise_power=0.1)
    with pytest.raises(ChannelError, match="finite"):
        connection.forward(np.full((1, 12), np.inf), rng, noise_power=0.1)
    with pytest.raises(ChannelError, match="noise_power"):
        connection.forward(np.ones((1, 12)), rng, noise_power=-0.1)
    with pytest.raises(ChannelError, match="power"):
        connection.backward(np.ones((1, 10)), rng, noise_power=0.1, power=0.0)
