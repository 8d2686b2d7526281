"""Features and their gradient over a link, against the antenna-by-antenna reference in NumPy."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.connection import Connection
from fl_app.fomo.connection_link import LinkSpec
from fl_app.fomo.feature_link import FeatureLink
from fl_app.fomo.features import FeatureGradient, Features
from fl_app.wireless.mimo_design import design_connection
from tests.connection_fixtures import rounding_bound, spec_of, vectors_of

WIDTH, SEED, ROUND, DEVICE = 16, 5, 2, 3
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])
REAL = int(MASK.sum())


def link_of(spec: LinkSpec | None, **place: int) -> FeatureLink:
    return FeatureLink(spec, SEED, place.get("round", ROUND), place.get("device", DEVICE))


def features_of(num_prompt: int = 3) -> Features:
    """Two texts with padding, and a prompt."""
    return Features(
        hidden=(vectors_of(2, 4, WIDTH).detach(),),
        masks=(MASK,),
        prompt=vectors_of(num_prompt, WIDTH, seed=1).detach(),
        readout=torch.ones(2, 4 + num_prompt, dtype=torch.bool),
    )


def gradient_of(num_prompt: int = 3) -> FeatureGradient:
    return FeatureGradient(
        hidden=(vectors_of(2, 4, WIDTH, seed=2).detach() * 1e-3,),
        prompt=vectors_of(num_prompt, WIDTH, seed=3).detach(),
        parameters={"b": torch.ones(2)},
    )


def drawn(spec: LinkSpec) -> tuple[Any, Any]:
    """The round's channel, and the reference design for what both ends believe it to be."""
    true, known = spec.draw(SEED, "local", ROUND, DEVICE)
    return true, design_connection(np.eye(WIDTH), known, power=1.0)


def numbers(tensor: torch.Tensor | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    assert tensor is not None
    return tensor.numpy().astype(np.float64)


@pytest.mark.parametrize("csi_error", [0.0, 0.2])
def test_without_noise_both_ways_are_the_numpy_link_s(csi_error: float) -> None:
    """With wrong CSI what arrives is not what was sent, and still a closed form."""
    spec = spec_of(csi_error=csi_error)
    true, design = drawn(spec)
    features, gradient, link = features_of(), gradient_of(), link_of(spec)
    up, down = link.up(features, 0), link.down(gradient, features.masks, 0)
    rng = np.random.default_rng(0)
    probe = Connection(width=WIDTH, spec=spec, seed=SEED)
    probe.redraw(ROUND, device=DEVICE)
    for sent, given in (
        (features.hidden[0][MASK], up.hidden[0][MASK]),
        (features.prompt, up.prompt),
    ):
        assert sent is not None
        wanted, _ = design.forward(numbers(sent), rng, noise_power=0.0, channel=true)
        assert np.abs(numbers(given) - wanted).max() <= rounding_bound(probe, sent)
        assert (np.abs(wanted - numbers(sent)).max() > 0.1) == (csi_error > 0)
    assert gradient.hidden is not None
    assert down.hidden is not None
    for sent, given in (
        (gradient.hidden[0][MASK], down.hidden[0][MASK]),
        (gradient.prompt, down.prompt),
    ):
        assert sent is not None
        wanted, _ = design.backward(numbers(sent), rng, noise_power=0.0, power=1.0, channel=true)
        assert np.abs(numbers(given) - wanted).max() <= rounding_bound(probe, sent, back=True)
    if csi_error == 0:  # to the last bit, padding too
        assert torch.equal(up.hidden[0], features.hidden[0])
        assert torch.equal(down.hidden[0], gradient.hidden[0])
        assert link.energy.forward_error == link.energy.backward_error == 0.0
    assert down.parameters is gradient.parameters  # digital


@pytest.mark.parametrize("back", [False, True])
def test_the_error_has_the_closed_form_of_the_direction(back: bool) -> None:
    """Of 300 steps, whose noise is independent: five standard errors of the mean.

    Catches noise of the other direction, and noise that repeats from step to step.
    """
    spec = spec_of(
        tx_snr_db=math.inf if back else 5.0, gradient_tx_snr_db=5.0 if back else math.inf
    )
    _, design = drawn(spec)
    features, gradient = features_of(), gradient_of()
    rng, noise = np.random.default_rng(0), 10.0**-0.5
    assert gradient.hidden is not None
    sent = (gradient.hidden if back else features.hidden)[0][MASK]
    if back:
        report = design.backward(numbers(sent), rng, noise_power=noise, power=1.0)[1]
    else:  # the mean goes digitally
        report = design.forward(numbers(sent - sent.mean()), rng, noise_power=noise)[1]
    errors = []
    for step in range(300):
        link = link_of(spec)
        if back:
            arrived = link.down(gradient, features.masks, step).hidden
            assert arrived is not None
            energy, error = link.energy.backward_energy, link.energy.backward_error
        else:
            arrived = link.up(features, step).hidden
            energy, error = link.energy.forward_energy, link.energy.forward_error
        errors.append(float(((arrived[0][MASK] - sent).double() ** 2).mean()))
        assert 0 < error < energy
    spread = np.std(errors, ddof=1) / math.sqrt(len(errors))
    assert abs(np.mean(errors) - report.predicted_mse) <= 5.0 * spread


def test_energies_and_uses_are_those_of_real_positions() -> None:
    """16 numbers over 4 streams: four uses a vector. Prompt and states are blocks of their own."""
    features, gradient = features_of(), gradient_of()
    link = link_of(spec_of(tx_snr_db=3.0, gradient_tx_snr_db=3.0))
    up, down = link.up(features, 1), link.down(gradient, features.masks, 1)
    assert (link.book.forward_uses, link.book.backward_uses) == (4 * (REAL + 3), 4 * (REAL + 3))
    # mean, scale and a scale a use; no mean on the way back; eight bytes each
    assert (link.book.forward_bytes, link.book.backward_bytes) == (8 * 2 * (2 + 4), 8 * 2 * 4)
    for sent, given, pair in (
        (features, up, (link.energy.forward_energy, link.energy.forward_error)),
        (gradient, down, (link.energy.backward_energy, link.energy.backward_error)),
    ):
        assert sent.hidden is not None  # type: ignore[attr-defined]
        whole = [numbers(sent.hidden[0][MASK]), numbers(sent.prompt)]  # type: ignore[attr-defined]
        got = [numbers(given.hidden[0][MASK]), numbers(given.prompt)]  # type: ignore[attr-defined]
        energy = sum((x**2).sum() for x in whole)
        error = sum(((y - x) ** 2).sum() for x, y in zip(whole, got, strict=True))
        # the error is a difference of float32 numbers, rounded to float32 of the numbers' size
        assert pair == pytest.approx((energy, error), rel=1e-6)
        assert error > 0
    assert torch.equal(up.hidden[0][~MASK], features.hidden[0][~MASK])
    assert set(link.scalars()) == {
        f"{way}_{what}"
        for way in ("forward", "backward")
        for what in ("uses", "bytes", "energy", "error")
    }


def test_rounds_devices_steps_and_tensors_have_noise_of_their_own_and_repeat() -> None:
    """Steps of a round share its channel: with wrong CSI and no noise they are spoiled alike."""
    spec = spec_of(tx_snr_db=3.0)
    same = features_of(num_prompt=REAL)
    same = dataclasses.replace(same, prompt=same.hidden[0][MASK])

    def sent(step: int, **place: int) -> list[bytes]:
        up = link_of(spec, **place).up(same, step)
        return [numbers(up.hidden[0][MASK]).tobytes(), numbers(up.prompt).tobytes()]

    ways: list[dict[str, int]] = [
        {"step": 0},
        {"step": 1},
        {"step": 0, "round": 9},
        {"step": 0, "device": 9},
    ]
    found = [sent(**way) for way in ways]
    assert len({noisy for pair in found for noisy in pair}) == 2 * len(ways)
    assert [sent(**way) for way in ways] == found
    spec = spec_of(csi_error=0.3)
    first, second, other = sent(0), sent(1), sent(0, round=9)
    assert first == second
    assert first != other


def test_without_a_link_nothing_happens() -> None:
    features, gradient, link = features_of(), gradient_of(), link_of(None)
    assert link.up(features, 0) is features
    assert link.down(gradient, features.masks, 0) is gradient
    assert link.scalars() == {}


def test_a_gradient_of_parameters_alone_crosses_nothing() -> None:
    link = link_of(spec_of(tx_snr_db=0.0))
    gradient = FeatureGradient(hidden=None, prompt=None, parameters={"b": torch.ones(2)})
    assert link.down(gradient, (), 0) == gradient
    assert link.book.backward_uses == link.book.backward_bytes == 0


def test_what_is_not_finite_is_refused() -> None:
    features = features_of()
    features.hidden[0][0, 0, 0] = math.nan
    with pytest.raises(ModelError, match="not finite"):
        link_of(spec_of()).up(features, 0)
