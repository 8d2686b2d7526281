"""Gradient download whose features cross a neural connection: what arrives."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from fl_app.bench import prepare
from fl_app.config import load_config
from fl_app.connections import link_spec
from fl_app.errors import ConfigError
from fl_app.features_wire import FEATURES, GRADIENT
from fl_app.fomo.features import FeatureGradient
from fl_app.fomo.front import Front
from fl_app.local_grid import ThreadedGrid
from fl_app.measures import measure_plug_in
from fl_app.payload import Payload
from fl_app.variants import REFERENCES
from fl_app.wireless.mimo_design import design_connection
from tests.connection_fixtures import EPS
from tests.crossing_fixtures import ONCE, WIDTH, through
from tests.federation_fixtures import NUM_DEVICES, Player, player, tiny_federation
from tests.gradient_fixtures import (
    VARIANTS,
    GradientPlayed,
    equal_bits,
    play,
    words_of,
)

__all__ = ["player", "tiny_federation"]

LABELS = ["private", "server"]
_COSTS = {
    *("feature_bytes", "gradient_bytes", "control_bytes", "downlink_bytes"),
    *(f"connection_{what}" for what in ("uses", "seconds", "joules", "server_joules")),
}


def sent_by(played: GradientPlayed, kind: str) -> dict[int, Payload]:
    """The only payload of a kind to or from every device."""
    found = {
        e.place.device: p for e in played.grid.steps for p in (e.down, *e.up) if p.kind == kind
    }
    assert len(found) == NUM_DEVICES
    return found


def tensors(arrays: Any) -> dict[str, Any]:
    """What may cross, in float64."""
    found = {}
    for name in ("hidden0", "prompt"):
        if f"{name}.values" in arrays:
            found[name] = arrays[f"{name}.values"].astype(np.float64)
    return found


@contextmanager
def arriving() -> Iterator[list[FeatureGradient]]:
    """Collects the gradients that devices back-propagate, in the order of the devices."""
    found: list[FeatureGradient] = []
    backward: Callable[..., None] = Front.backward

    def noted(self: Front, batch: Any, prompt: Any, gradient: FeatureGradient) -> None:
        found.append(gradient)
        backward(self, batch, prompt, gradient)

    with patch.object(Front, "backward", noted):
        yield found


def nmse(pairs: list[tuple[Any, Any]]) -> float:
    """Of (sent, received) pairs together."""
    error = sum(float(((y - x) ** 2).sum()) for x, y in pairs)
    return error / sum(float((x**2).sum()) for x, _ in pairs)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_noise_it_is_the_plain_run_bit_for_bit(
    player: Player, variant: str, labels: str
) -> None:
    words = (f"strategy.labels={labels}",)
    plain = play(player, *words_of(variant, *words))
    air = play(player, *through(variant, *words, tx_snr_db=math.inf))
    assert equal_bits(air.adapter, plain.adapter)
    for number in (1, 2):
        assert air.metrics(number)["connection_feature_nmse"] == 0.0
        assert air.metrics(number).get("connection_gradient_nmse") == (
            None if variant == "lora" else 0.0
        )
        assert not {"connection_feature_nmse"} & set(plain.metrics(number))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reported_nmse_is_that_of_what_was_sent_and_what_arrived(
    player: Player, variant: str
) -> None:
    """In the first step features are those of a run without a link, and payloads hold what arrived.

    What a device back-propagates is what arrived of the gradient in the server's payload.
    """
    plain = play(player, *words_of(variant, *ONCE))
    with arriving() as arrived:
        air = play(player, *through(variant, *ONCE))
    ups = []
    for device, exact in sent_by(plain, FEATURES).items():
        received = sent_by(air, FEATURES)[device]
        mask = exact.arrays["mask0"]
        was, got = tensors(exact.arrays), tensors(received.arrays)
        assert np.array_equal(was["hidden0"][~mask], got["hidden0"][~mask])
        ups += [(was["hidden0"][mask], got["hidden0"][mask])]
        ups += [(was["prompt"], got["prompt"])] if variant == "prompt" else []
    # errors are differences of float32 numbers, so of the order of EPS / sqrt(NMSE) off
    given = air.metrics(1)
    assert given["connection_feature_nmse"] == pytest.approx(nmse(ups), rel=1e-5)
    assert 0 < nmse(ups) < 1
    if variant == "lora":
        assert "connection_gradient_nmse" not in given
        return
    downs = []
    gradients = zip(sent_by(air, GRADIENT).items(), arrived, strict=True)
    for (device, payload), one in gradients:
        mask = sent_by(plain, FEATURES)[device].arrays["mask0"]
        (was_down,) = tensors(payload.arrays).values()
        if variant == "prompt":
            assert one.prompt is not None
            downs.append((was_down, one.prompt.numpy().astype(np.float64)))
        else:
            assert one.hidden is not None
            downs.append((was_down[mask], one.hidden[0].numpy().astype(np.float64)[mask]))
    assert given["connection_gradient_nmse"] == pytest.approx(nmse(downs), rel=1e-5)
    assert 0 < nmse(downs) < 1


@pytest.mark.parametrize("variant", ["prompt", "cut"])
def test_the_gradient_that_arrives_is_the_reciprocal_link_s(player: Player, variant: str) -> None:
    """Wrong CSI and no noise: conj(P)^T H^T conj(C) g of each device's own channel, in float64."""
    words = through(variant, *ONCE, "connection.csi_error=0.3", tx_snr_db=math.inf)
    with arriving() as arrived:
        played = play(player, *words)
    spec, seed = link_spec(played.bench.config.connection), played.bench.config.seed
    for (device, payload), one in zip(sent_by(played, GRADIENT).items(), arrived, strict=True):
        true, known = spec.draw(seed, "local", 1, device)
        design = design_connection(np.eye(WIDTH), known, power=1.0)
        (sent,) = tensors(payload.arrays).values()
        mask = sent_by(played, FEATURES)[device].arrays["mask0"]
        rows = sent if variant == "prompt" else sent[mask]
        wanted, _ = design.backward(
            rows, np.random.default_rng(0), noise_power=0.0, power=1.0, channel=true
        )
        got: Any = one.prompt if one.hidden is None else one.hidden[0][mask]
        # a hundred roundings or so of numbers up to the gain of the weakest eigenchannel
        bound = 100 * EPS * np.abs(wanted).max() * np.linalg.cond(known)
        assert np.abs(got.numpy() - wanted).max() <= bound < 0.01 * np.abs(wanted).max()
        assert np.abs(wanted - rows).max() > 0.05 * np.abs(rows).max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_transports_give_equal_bits(player: Player, variant: str) -> None:
    words = through(variant, "finetune.max_steps=2", tx_snr_db=5.0)
    messages = play(player, *words, shuffle=1)
    streams = play(player, *words, "strategy.transport=stream", grid_type=ThreadedGrid)
    assert equal_bits(messages.adapter, streams.adapter)
    # of the uplink's bytes those of updates hold seconds, whose digits vary
    costs = [
        {key: value for key, value in played.outcome.ledger.as_dict().items() if key in _COSTS}
        for played in (messages, streams)
    ]
    assert costs[0] == costs[1]
    assert len(costs[0]) == len(_COSTS)
    assert messages.metrics(2) == streams.metrics(2)
    plain = play(player, *words_of(variant, "finetune.max_steps=2"))
    assert not equal_bits(messages.adapter, plain.adapter)


def test_a_shared_gradient_reaches_everybody_over_a_link_of_its_own(player: Player) -> None:
    with arriving() as arrived:
        played = play(player, *through("prompt", *ONCE, "strategy.shared_gradient=true"))
    sent = {p.arrays["prompt.values"].tobytes() for p in sent_by(played, GRADIENT).values()}
    assert len(sent) == 1
    assert len({g.prompt.numpy().tobytes() for g in arrived if g.prompt is not None}) == NUM_DEVICES


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_server_measures_through_a_connection_too(
    player: Player, variant: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="deft"):
        bench, start = player.bench(player.tiny.overrides(*through(variant)))
    assert "no gradient returns" not in caplog.text
    assert bench.full_link is not None
    first = measure_plug_in(bench, start, bench.test)
    assert 0 < bench.full_link.figures()["connection_nmse"] < 1
    assert measure_plug_in(bench, start, bench.test) == first


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("variant", ["prompt", "cut"])
def test_comparison_runs_tune_through_the_connection(
    player: Player, variant: str, reference: str
) -> None:
    num_nodes = 1 if reference == "centralised" else NUM_DEVICES
    words = through(variant, "strategy.num_rounds=1", "finetune.max_steps=1")
    played = play(player, *words, reference=reference, num_nodes=num_nodes)
    assert played.outcome.aggregated == 1
    assert played.outcome.ledger.as_dict()["connection_uses"] > 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("variant", "words", "says"),
    [
        ("cut", ("connection.block=1",), r"block=1.*variant=cut.*set connection\.block=2"),
        ("prompt", ("connection.block=2",), r"block=2.*prompt.*set connection\.block=0"),
        ("lora", ("connection.block=1",), r"block=1.*lora.*set connection\.block=0"),
        (
            "lora",
            ("connection.block=0", "connection.carries=lora_a"),
            r"carries=lora_a.*carries=features",
        ),
        (
            "cut",
            ("connection.block=2", "strategy.features=int8"),
            r"features=int8.*features=float32",
        ),
        ("scalar", ("connection.block=0",), r"variant=scalar.*keeps them.*connection\.block=null"),
    ],
)
def test_what_does_not_go_with_it_is_named(
    player: Player, variant: str, words: tuple[str, ...], says: str
) -> None:
    choice = VARIANTS.get(variant, ("strategy.variant=scalar",))
    overrides = player.tiny.overrides("strategy=gradient_download", *choice, *words)
    with pytest.raises(ConfigError, match=says):
        prepare(load_config(overrides))
