"""The connection module against the NumPy connection, closed forms and autograd."""

import math

import numpy as np
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.connection import Connection
from fl_app.wireless.mimo_design import design_connection
from tests.connection_fixtures import (
    EPS,
    MAPS,
    in_pieces,
    rounding_bound,
    spec_of,
    vectors_of,
    weight_of,
    white_batch,
)


@pytest.mark.parametrize(("weight", "width"), MAPS)
@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("power_per_use", [False, True])
def test_precoder_channel_and_combiner_make_the_map(
    weight: torch.Tensor | None, width: int, rotation: bool, power_per_use: bool
) -> None:
    """Without noise y = W x, and gradients are autograd's; catches a lost transpose or scale."""
    spec = spec_of(rotation=rotation, power_per_use=power_per_use)
    connection = Connection(width=width, spec=spec, seed=0, weight=weight)
    connection.redraw(3)
    in_pieces(connection)
    vectors = vectors_of(4, 6, width)
    out = connection(vectors)
    matrix = torch.eye(width) if weight is None else weight
    plain = vectors.detach().clone().requires_grad_()
    wanted = plain @ matrix.T
    gradient = vectors_of(*wanted.shape, seed=1).detach()
    out.backward(gradient)
    wanted.backward(gradient)
    assert vectors.grad is not None
    assert plain.grad is not None
    for given, exact, bound in (
        (out.detach(), wanted.detach(), rounding_bound(connection, vectors)),
        (vectors.grad, plain.grad, rounding_bound(connection, gradient, back=True)),
    ):
        assert float((given - exact).abs().max()) <= bound
        assert bound < 0.01 * float(exact.abs().max())


@pytest.mark.parametrize(("weight", "width"), MAPS)
def test_perfect_csi_without_noise_is_the_map_itself(
    weight: torch.Tensor | None, width: int
) -> None:
    connection = Connection(width=width, spec=spec_of(rotation=True), seed=0, weight=weight)
    connection.redraw(0)
    vectors = vectors_of(5, width)
    wanted = vectors if weight is None else vectors @ weight.T
    assert torch.equal(connection(vectors), wanted)


@pytest.mark.parametrize("csi_error", [0.0, 0.2])
@pytest.mark.parametrize(("weight", "width"), MAPS)
def test_without_noise_it_computes_what_the_numpy_connection_computes(
    weight: torch.Tensor | None, width: int, csi_error: float
) -> None:
    """Both directions, wrong CSI too; the mean travels digitally, so it always meets W.

    A last use that is not full shares its components among uses in another way there, which only
    shows where CSI is wrong.
    """
    if csi_error and weight is None and width % 4:
        pytest.skip("features are grouped in another way")
    spec = spec_of(csi_error=csi_error)
    connection = Connection(width=width, spec=spec, seed=5, weight=weight)
    connection.redraw(2, device=3)
    in_pieces(connection)
    true, known = spec.draw(5, "local", 2, 3)
    matrix = np.eye(width) if weight is None else weight.numpy().astype(np.float64)
    design = design_connection(matrix, known, power=1.0)
    vectors = vectors_of(7, width)
    rng = np.random.default_rng(0)
    given = connection(vectors)
    exact = vectors.detach().numpy().astype(np.float64)
    wanted, _ = design.forward(exact, rng, noise_power=0.0, channel=true)
    gradient = vectors_of(7, len(matrix), seed=1).detach()
    given.backward(gradient)
    back, _ = design.backward(
        gradient.numpy().astype(np.float64), rng, noise_power=0.0, power=1.0, channel=true
    )
    assert vectors.grad is not None
    for ours, theirs, bound in (
        (given.detach().numpy(), wanted, rounding_bound(connection, vectors)),
        (vectors.grad.numpy(), back, rounding_bound(connection, gradient, back=True)),
    ):
        assert np.abs(ours - theirs).max() <= bound
        assert bound < 0.01 * np.abs(theirs).max()


@pytest.mark.parametrize(("weight", "width"), MAPS[:1] + MAPS[3:5])
@pytest.mark.parametrize("rotation", [False, True])
def test_forward_error_is_the_closed_form(
    weight: torch.Tensor | None, width: int, rotation: bool
) -> None:
    """NMSE = sigma^2 / (2 P) sum_u (sum w_i / sigma_i)^2 / |W|^2 for white vectors.

    200 passes, five standard errors; catches complex noise where half of it is due.
    """
    spec = spec_of(tx_snr_db=7.0, rotation=rotation)
    connection = Connection(width=width, spec=spec, seed=1, weight=weight)
    connection.redraw(0)
    matrix = np.eye(width) if weight is None else weight.numpy().astype(np.float64)
    design = design_connection(matrix, spec.draw(1, "local", 0, 0)[1], power=1.0)
    closed = design.predicted_nmse(10.0**-0.7)
    assert connection.predicted_nmse() == pytest.approx(closed, rel=matrix.size * EPS)
    vectors = white_batch(2 * width + 5, width)
    exact = vectors @ torch.from_numpy(matrix.T.astype(np.float32))
    with torch.no_grad():
        errors = np.array(
            [float(((connection(vectors) - exact) ** 2).sum()) for _ in range(200)]
        ) / float(exact.square().sum())
    assert abs(errors.mean() - closed) <= 5.0 * errors.std(ddof=1) / math.sqrt(200)


@pytest.mark.parametrize(("weight", "width"), MAPS[:1] + MAPS[3:5])
def test_backward_error_is_the_numpy_connections(weight: torch.Tensor | None, width: int) -> None:
    """sigma^2 sum_u |P_u|_F^2 mean|C_u g|^2 / (2 P); 200 passes, five standard errors."""
    spec = spec_of(gradient_tx_snr_db=5.0)
    connection = Connection(width=width, spec=spec, seed=2, weight=weight)
    connection.redraw(0)
    matrix = np.eye(width) if weight is None else weight.numpy().astype(np.float64)
    design = design_connection(matrix, spec.draw(2, "local", 0, 0)[1], power=1.0)
    gradients = vectors_of(6, len(matrix), seed=4).detach()
    exact = gradients @ torch.from_numpy(matrix.astype(np.float32))
    report = design.backward(
        gradients.numpy().astype(np.float64),
        np.random.default_rng(0),
        noise_power=10.0**-0.5,
        power=1.0,
    )[1]
    errors = []
    for _ in range(200):
        vectors = vectors_of(6, width)
        connection(vectors).backward(gradients)
        assert vectors.grad is not None
        errors.append(float(((vectors.grad - exact) ** 2).mean()))
    spread = np.std(errors, ddof=1) / math.sqrt(200)
    assert abs(np.mean(errors) - report.predicted_mse) <= 5.0 * spread


def test_one_scale_for_the_block_spreads_noise_evenly_and_power_per_use_does_not() -> None:
    """The use with the outlier is 20 times louder, and so is its noise where uses are scaled."""
    vectors = vectors_of(2000, 16).detach()
    for power_per_use in (False, True):
        spec = spec_of(tx_snr_db=10.0, power_per_use=power_per_use)
        connection = Connection(width=16, spec=spec, seed=0)
        connection.redraw(0)
        streams = connection.link.to_streams(vectors - vectors.mean(), back=False)
        power = streams.square().sum(-1).mean(0)
        assert power[0] > 20.0 * power[1]
        first, second = (power[:2] if power_per_use else torch.ones(2)).tolist()
        error = (connection(vectors) - vectors).square()
        difference = error[:, :4].sum(1) / first - error[:, 4:8].sum(1) / second
        # of like noise relative to a use's power: the mean vanishes, within five standard errors
        assert abs(float(difference.mean())) <= 5.0 * float(difference.std()) / math.sqrt(2000)


def test_uses_and_side_information_are_booked() -> None:
    """ceil(rank / 4) uses per vector; mean, scale and one scale per use as 8-byte reals."""
    vectors = vectors_of(2, 5, 10)
    connection = Connection(width=10, spec=spec_of(), seed=0)
    connection.redraw(0)
    connection(vectors).sum().backward()
    book = connection.book
    assert (book.forward_uses, book.backward_uses) == (10 * 3, 10 * 3)
    assert (book.forward_bytes, book.backward_bytes) == (8 * (2 + 3), 8 * 3)
    connection = Connection(width=10, spec=spec_of(power_per_use=False, num_tx=2), seed=0)
    connection.redraw(0)
    connection(vectors).sum().backward()
    book = connection.book + connection.book
    assert (book.forward_uses, book.backward_uses) == (2 * 10 * 5, 2 * 10 * 5)
    assert (book.forward_bytes, book.backward_bytes) == (2 * 16, 2 * 8)
    weight = weight_of(9, 2) @ weight_of(2, 12)  # of rank 2 but for float32's rounding
    connection = Connection(width=12, spec=spec_of(), seed=0, weight=weight)
    connection.redraw(0)
    connection(vectors_of(7, 12))
    assert connection.book.forward_uses == 7


def test_a_use_without_anything_to_send_is_neither_paid_for_nor_listened_to() -> None:
    """Features 4 to 7 are all the mean; with one busy use one scale is that use's own, bit by bit.

    Booked uses have mean power P then, which is what joules are computed from.
    """
    vectors = torch.full((50, 8), 2.0)
    vectors[:, :4] += torch.tensor([1.0, -1.0, 3.0, -3.0]) * white_batch(50, 1)
    outputs = []
    for power_per_use in (True, False):
        spec = spec_of(tx_snr_db=3.0, power_per_use=power_per_use)
        connection = Connection(width=8, spec=spec, seed=0)
        connection.redraw(0)
        outputs.append(connection(vectors))
        assert connection.book.forward_uses == 50
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0][:, 4:], vectors[:, 4:])
    assert (outputs[0][:, :4] != vectors[:, :4]).all()


def test_padding_costs_nothing_and_gets_no_noise() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    connection = Connection(width=8, spec=spec_of(tx_snr_db=0.0, gradient_tx_snr_db=0.0), seed=0)
    connection.redraw(0)
    vectors = vectors_of(2, 3, 8)
    out = connection(vectors, mask)
    gradient = torch.ones_like(out)
    out.backward(gradient)
    assert vectors.grad is not None
    for given, sent in ((out, vectors), (vectors.grad, gradient)):
        assert torch.equal(given[~mask], sent[~mask])
        assert (given[mask] != sent[mask]).all()
    assert connection.book.forward_uses == connection.book.backward_uses == 3 * 2
    changed = vectors.detach().clone()
    changed[~mask] = 1e6  # must not reach mean, scale or noise either
    connection.redraw(0)
    assert torch.equal(connection(changed, mask)[mask], out[mask])
    connection = Connection(width=8, spec=spec_of(tx_snr_db=0.0), seed=0, weight=weight_of(3, 8))
    connection.redraw(0)
    assert (connection(vectors, mask)[~mask] == 0.0).all()
    assert connection(vectors, torch.zeros_like(mask)).shape == (2, 3, 3)
    assert connection.book.forward_uses == 3


def test_rounds_devices_and_names_have_their_own_noise_and_repeat_bit_for_bit() -> None:
    def run(round_: int, device: int, name: str, seed: int) -> bytes:
        spec = spec_of(tx_snr_db=3.0, gradient_tx_snr_db=3.0)
        connection = Connection(width=8, spec=spec, seed=seed, name=name)
        connection.redraw(round_, device=device)
        vectors = vectors_of(4, 8)
        out = connection(vectors)
        out.sum().backward()
        assert vectors.grad is not None
        return out.detach().numpy().tobytes() + vectors.grad.numpy().tobytes()

    ways = [(0, 0, "", 0), (1, 0, "", 0), (0, 1, "", 0), (0, 0, "b", 0), (0, 0, "", 1)]
    results = [run(*way) for way in ways]
    assert len(set(results)) == len(ways)
    torch.manual_seed(99)  # the global state has no say
    assert [run(*way) for way in ways] == results


def test_measuring_repeats_and_leaves_tuning_alone() -> None:
    connection = Connection(width=8, spec=spec_of(tx_snr_db=3.0), seed=0)
    vectors = vectors_of(4, 8).detach()

    def measured() -> list[bytes]:
        connection.measure()
        return [connection(vectors).numpy().tobytes() for _ in range(3)]

    def tuned() -> bytes:
        connection.redraw(1)
        return connection(vectors).numpy().tobytes()

    first, local = measured(), tuned()
    assert len({*first, local}) == 4  # every pass meets its own channel
    assert measured() == first
    assert tuned() == local


def test_what_cannot_be_sent_is_refused() -> None:
    connection = Connection(width=4, spec=spec_of(), seed=0)
    with pytest.raises(ModelError, match="redraw"):
        connection(vectors_of(2, 4))
    with pytest.raises(ModelError, match="redraw"):
        _ = connection.link
    connection.redraw(0)
    with pytest.raises(ModelError, match=r"\[..., 4\]"):
        connection(vectors_of(2, 5))
    with pytest.raises(ModelError, match="not finite"):
        connection(torch.full((2, 4), math.nan))
    constant = torch.full((2, 4), 3.7)
    assert torch.equal(connection(constant), constant)  # its mean says it all
    assert connection.book.forward_uses == 0
    assert connection.book.forward_bytes == 8
    with pytest.raises(ModelError, match="weight"):
        Connection(width=4, spec=spec_of(), seed=0, weight=torch.ones(3, 5))
