"""Tensor-parallel partial products, added up by the channel; gradients over the reciprocal one."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.connection_sum import AirSum, SplitLinear
from fl_app.seeding import generator, torch_seed
from fl_app.wireless.broadcast import broadcast
from fl_app.wireless.channel import Fading, draw_state
from fl_app.wireless.partial_sums import sum_partials
from fl_app.wireless.power import TruncatedInversion, ZeroForcing

FADING = Fading(num_subcarriers=2)


def air_of(num_devices: int = 3, **changes: Any) -> AirSum:
    fields: dict[str, Any] = {"tx_snr_db": math.inf, "gradient_tx_snr_db": math.inf, "seed": 0}
    fields |= {"coefficients": [1.0] * num_devices, "fading": FADING}
    air = AirSum(**(fields | changes))
    air.redraw(1)
    return air


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """float64, so that what is left of a difference is rounding and nothing else."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_noise_a_split_layer_is_the_whole_layer(dtype: torch.dtype) -> None:
    """Outputs and all gradients are plain autograd's; 7 outputs of 9 features on 3 devices.

    A sum takes each value through some 30 roundings of the largest intermediate, the sum of
    magnitudes times the spread of the devices' gains; the bound is that.
    """
    weight, vectors = drawn(7, 9).to(dtype), drawn(2, 5, 9, seed=1).to(dtype).requires_grad_()
    layer = SplitLinear(weight, [2, 3, 4], air_of())
    out = layer(vectors)
    gradient = drawn(2, 5, 7, seed=2).to(dtype)
    out.backward(gradient)
    plain = vectors.detach().clone().requires_grad_()
    whole = weight.clone().requires_grad_()
    wanted = plain @ whole.T
    wanted.backward(gradient)
    assert vectors.grad is not None
    assert plain.grad is not None
    assert whole.grad is not None
    tuned = torch.cat([part.grad for part in layer.parts], dim=1)  # type: ignore[misc]
    gains = np.abs(layer.air.state(0.0).gains)
    roundings = 30 * torch.finfo(dtype).eps * float(gains.max() / gains.min())
    for given, exact, terms in (
        (out.detach(), wanted.detach(), vectors.detach().abs() @ weight.abs().T),
        (vectors.grad, plain.grad, gradient.abs() @ weight.abs()),
        (tuned, whole.grad, gradient.flatten(0, 1).abs().T @ vectors.detach().flatten(0, 1).abs()),
    ):
        bound = roundings * float(terms.max())
        assert bound < 1e-2 * float(exact.abs().max())
        assert float((given - exact).abs().max()) <= bound
    # 70 reals in 35 uses, forward by all at once and back to all at once
    assert (layer.air.book.forward_uses, layer.air.book.backward_uses) == (35, 35)


def test_it_computes_what_the_numpy_reference_computes() -> None:
    """Signs, noise and wrong CSI in both directions, from the same streams, bit for bit."""
    coefficients = [2.0, -0.5, 1.0, 0.0]
    changes: dict[str, Any] = {"tx_snr_db": 6.0, "gradient_tx_snr_db": 3.0, "csi_error": 0.2}
    air = air_of(coefficients=coefficients, seed=5, name="here", **changes)
    partials = drawn(4, 3, 5).requires_grad_()
    out = air(partials)
    gradient = drawn(3, 5, seed=1)
    out.backward(gradient)

    def state(noise_power: float) -> Any:
        own = torch_seed(5, "connection-sum")
        ones = np.ones(4)
        return draw_state(FADING, own, 1, mean_gains=ones, noise_power=noise_power, csi_error=0.2)

    def rng(way: str) -> np.random.Generator:
        return generator(5, "connection-noise", "here", 1, way)

    total, report = sum_partials(
        partials.detach().numpy().reshape(4, 15),
        np.array(coefficients),
        state(1.0 / 10.0**0.6),
        ZeroForcing(),
        rng("forward"),
    )
    assert total is not None
    assert np.array_equal(out.detach().numpy().ravel(), total)
    assert air.report is not None
    assert air.report.realised_mse == report.realised_mse
    heard = np.ones((4, 2), np.bool_)
    received, _ = broadcast(
        gradient.numpy().ravel(), state(1.0 / 10.0**0.3), heard, rng("backward")
    )
    assert partials.grad is not None
    wanted = np.array(coefficients)[:, None] * received
    assert np.array_equal(partials.grad.numpy().reshape(4, 15), wanted)


@pytest.mark.parametrize("num_devices", [1, 2, 20])
def test_channel_uses_do_not_grow_with_the_number_of_devices(num_devices: int) -> None:
    air = air_of(num_devices)
    partials = drawn(num_devices, 3, 5).requires_grad_()
    air(partials).sum().backward()
    assert (air.book.forward_uses, air.book.backward_uses) == (8, 8)
    # mean and deviation of every device; one scale for all
    assert (air.book.forward_bytes, air.book.backward_bytes) == (16 * num_devices, 8)


def test_a_silent_device_has_no_part_in_the_sum_and_gets_no_gradient() -> None:
    """The floor lies between the gains of two devices on a flat channel."""
    quiet = air_of(2, fading=Fading())
    gains = np.abs(quiet.state(0.0).gains[:, 0]) ** 2
    weak = int(gains.argmin())
    floor = TruncatedInversion(gain_floor=float(gains.mean()))
    air = air_of(2, fading=Fading(), control=floor)
    partials = drawn(2, 6).requires_grad_()
    out = air(partials)
    out.sum().backward()
    assert air.report is not None
    assert air.report.is_silent[weak]
    # the sum stays the right size: twice what was heard
    assert torch.allclose(out, 2.0 * partials[1 - weak], rtol=1e-9)
    assert partials.grad is not None
    assert not partials.grad[weak].any()
    assert torch.allclose(partials.grad[1 - weak], torch.ones(6, dtype=torch.float64))
    nobody = air_of(2, fading=Fading(), control=TruncatedInversion(gain_floor=20.0))
    assert not nobody(partials).any()


def test_rounds_and_names_have_their_own_noise_and_repeat() -> None:
    def run(round_: int, name: str) -> bytes:
        air = air_of(name=name, tx_snr_db=5.0)
        air.redraw(round_)
        return bytes(air(drawn(3, 4)).numpy().tobytes())

    ways = [(1, ""), (2, ""), (1, "b")]
    results = [run(*way) for way in ways]
    assert len(set(results)) == len(ways)
    assert [run(*way) for way in ways] == results


def test_what_does_not_fit_is_refused() -> None:
    for coefficients in ([0.0, 0.0], [1.0, math.nan]):
        with pytest.raises(ModelError, match="coefficients"):
            air_of(coefficients=coefficients)
    fresh = AirSum(coefficients=[1.0], tx_snr_db=0.0, gradient_tx_snr_db=0.0, seed=0)
    with pytest.raises(ModelError, match="redraw"):
        fresh(drawn(1, 4))
    with pytest.raises(ModelError, match="partials"):
        air_of()(drawn(2, 4))
    for sizes in ([2, 2, 4], [4, 5], [0, 4, 5]):
        with pytest.raises(ModelError, match="sizes"):
            SplitLinear(drawn(7, 9), sizes, air_of())
