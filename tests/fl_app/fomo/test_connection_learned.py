"""Learned links: gradients, tuning through noise, and what they are measured on."""

import math

import numpy as np
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.connection import Connection
from fl_app.fomo.connection_learned import LearnedLink
from fl_app.seeding import generator
from tests.connection_fixtures import spec_of, vectors_of


@pytest.mark.parametrize("power_per_use", [False, True])
def test_a_learned_links_gradients_are_autograds_through_the_same_channel(
    power_per_use: bool,
) -> None:
    """Without noise; the oracle writes the complex maps out and lets autograd work.

    In float64, so that half of its digits may go and any mistake still shows.
    """
    spec = spec_of(power_per_use=power_per_use)
    link = LearnedLink(width=6, spec=spec, seed=0, num_outputs=5).double()
    link.redraw(0)
    channel = torch.from_numpy(link.spec.draw(0, "local", 0, 0)[0]).to(torch.complex64)
    channel = channel.to(torch.complex128)
    vectors = vectors_of(7, 6).detach().double().requires_grad_()
    gradient = vectors_of(7, 5, seed=1).detach().double()
    link(vectors).backward(gradient)
    given = [vectors.grad, link.precoder.grad, link.combiner.grad]
    plain = vectors.detach().clone().requires_grad_()
    precoder = link.precoder.detach().clone().requires_grad_()
    combiner = link.combiner.detach().clone().requires_grad_()
    real, imaginary = precoder.chunk(2)
    sent = plain.to(torch.complex128) @ torch.complex(real, imaginary).T
    sent = sent.view(7, link.num_uses, 4)
    power = sent.abs().square().sum(-1)
    sent = sent / (power.mean(0)[:, None] if power_per_use else power.mean()).sqrt()
    heard = (sent @ channel.T).flatten(1)
    received = torch.cat([heard.real, heard.imag], dim=1)
    torch.nn.functional.layer_norm(received @ combiner.T, (5,)).backward(gradient)
    for ours, theirs in zip(given, (plain.grad, precoder.grad, combiner.grad), strict=True):
        assert ours is not None
        assert theirs is not None
        rounding = math.sqrt(torch.finfo(torch.float64).eps) * float(theirs.abs().max())
        assert float((ours - theirs).abs().max()) <= rounding
    assert link.book.forward_uses == link.book.backward_uses == 7 * 2
    # the combiner needs no scale; gradients do, one for the block or one per use
    assert (link.book.forward_bytes, link.book.backward_bytes) == (0, 8 * (1 + power_per_use))


def test_a_learned_link_learns_through_the_noise_and_keeps_it_when_measured() -> None:
    """Normalised vectors through a static channel it is never told.

    An output that says nothing has an error of 1; the design that knows the channel has its closed
    form. A link that has learned is nearer, in decibels, to the latter; measured, it is as good as
    it was tuned. Five standard errors of 20 batches each.
    """
    spec = spec_of(tx_snr_db=15.0, gradient_tx_snr_db=15.0)
    informed = Connection(width=8, spec=spec, seed=0)
    informed.redraw(0)
    link = LearnedLink(width=8, spec=spec, seed=0)
    link.redraw(0)
    optimiser = torch.optim.Adam(link.parameters(), lr=0.02)
    rng = generator(0, "toy")

    def loss() -> torch.Tensor:
        drawn = torch.from_numpy(rng.standard_normal((32, 8)).astype(np.float32))
        wanted = torch.nn.functional.layer_norm(drawn, (8,))
        return (link(wanted) - wanted).square().mean()

    losses = []
    for _ in range(400):
        losses.append(loss())
        optimiser.zero_grad()
        losses[-1].backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    tuned = np.array([float(value.detach()) for value in losses[-20:]])
    link.measure()
    with torch.no_grad():
        measured = np.array([float(loss()) for _ in range(20)])
    halfway = math.sqrt(1.0 * informed.predicted_nmse())
    for errors in (tuned, measured):
        assert errors.mean() + 5.0 * errors.std(ddof=1) / math.sqrt(20) < halfway
    spread = math.sqrt((tuned.var(ddof=1) + measured.var(ddof=1)) / 20)
    assert measured.mean() <= tuned.mean() + 5.0 * spread


def test_a_learned_links_padding_is_not_sent() -> None:
    link = LearnedLink(width=8, spec=spec_of(rotation=True), seed=0)
    link.redraw(0)
    mask = torch.tensor([[True, False], [True, True]])
    out = link(vectors_of(2, 2, 8), mask)
    assert (out[~mask] == 0.0).all()
    assert (out[mask] != 0.0).all()
    assert link.book.forward_uses == 3 * 2
    with pytest.raises(ModelError, match=r"\[..., 8\]"):
        link(vectors_of(2, 5))
    with pytest.raises(ModelError, match="num_uses"):
        LearnedLink(width=8, spec=spec_of(), seed=0, num_uses=0)


def test_a_learned_link_is_measured_on_the_channel_it_was_tuned_on() -> None:
    """Nobody knows the channel, so any other makes the tuned link worthless; only noise is new."""
    vectors = vectors_of(4, 8).detach()
    quiet = LearnedLink(width=8, spec=spec_of(), seed=0)
    with pytest.raises(ModelError, match="redraw"):
        quiet.measure()
    quiet.redraw(2, device=1)
    tuned_on = quiet(vectors)
    quiet.measure()
    assert torch.equal(quiet(vectors), tuned_on)
    assert torch.equal(quiet(vectors), tuned_on)
    noisy = LearnedLink(width=8, spec=spec_of(tx_snr_db=3.0), seed=0)
    noisy.redraw(2, device=1)
    outputs = [noisy(vectors)]
    for _ in range(2):
        noisy.measure()
        outputs += [noisy(vectors), noisy(vectors)]
    assert len({out.detach().numpy().tobytes() for out in outputs[:3]}) == 3
    assert all(torch.equal(outputs[i], outputs[i + 2]) for i in (1, 2))


@pytest.mark.parametrize("power_per_use", [False, True])
def test_a_learned_links_gradients_carry_the_noise_of_their_power(power_per_use: bool) -> None:
    """N(0, sigma^2 p_u / 2) per real at the device's antennas, p_u the power of use u, or the mean.

    Read where the noise enters: what the antennas hear, less what they hear without noise. Five
    standard errors of 4000 squared draws per use.
    """
    spec = spec_of(gradient_tx_snr_db=4.0, power_per_use=power_per_use)
    link = LearnedLink(width=8, spec=spec, seed=0)
    link.redraw(0)
    gradients = torch.randn(500, 2, 12, generator=torch.Generator().manual_seed(1))
    gradients[:, 1] *= 10.0
    heard = link.propagate(gradients, link._channel, back=True) - gradients @ link._channel
    squares = heard.square().flatten(0, 1).view(500, 2, 8).transpose(0, 1).flatten(1)
    powers = gradients.square().sum(-1).mean(0)
    if not power_per_use:
        powers = powers.mean().expand(2)
    wanted = 0.5 * 10.0**-0.4 * powers
    spread = squares.std(1) / squares.shape[1] ** 0.5
    assert ((squares.mean(1) - wanted).abs() <= 5.0 * spread).all()


@pytest.mark.parametrize("option", [{"csi_error": 0.1}, {"peak_db": 6.0}])
def test_what_means_nothing_for_a_learned_link_is_refused_by_name(
    option: dict[str, float],
) -> None:
    (name,) = option
    with pytest.raises(ModelError, match=f"{name}=.*learned"):
        LearnedLink(width=8, spec=spec_of(**option), seed=0)
