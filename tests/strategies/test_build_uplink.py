"""Every option of a channel reaches the radio, the power control or the digital setup."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest

from fl_app.errors import ConfigError
from fl_app.schema import AircompChannel, DigitalChannel
from fl_app.wireless.cell import Cell
from fl_app.wireless.channel import draw_antenna_gains, estimate_gains
from fl_app.wireless.power import (
    CotafScaling,
    OptimalThreshold,
    PhaseOnly,
    TruncatedInversion,
    ZeroForcing,
)
from strategies.build_uplink import build_uplink
from tests.oracles.air_beam import heard
from tests.radio_rounds import config_of

# Option word, where it is held (a path of attributes), what is held there.
_RADIO: list[tuple[str, str, object]] = [
    ("fading=rician", "_radio.fading.kind", "rician"),
    ("num_subcarriers=7", "_radio.fading.num_subcarriers", 7),
    ("num_taps=3", "_radio.fading.num_taps", 3),
    ("rician_k=5", "_radio.fading.rician_k", 5.0),
    ("correlation=0.7", "_radio.fading.correlation", 0.7),
    ("csi_error=0.2", "_radio.csi_error", 0.2),
    ("phase_jitter_rad=0.3", "_radio.jitter_rad", 0.3),
    ("tx_power_dbm=10", "_radio.power", pytest.approx(0.01)),
    ("tx_snr_db=10 channel.tx_power_dbm=30", "_radio.noise_power", pytest.approx(0.1)),
    ("tx_snr_db=inf", "_radio.noise_power", 0.0),
    ("placement=cell", "_radio.cell", Cell()),
    (
        "bandwidth_hz=2e6 channel.placement=cell channel.cell.radius_m=900",
        "_radio.cell",
        Cell(radius_m=900.0, bandwidth_hz=2e6),
    ),
]
_AIR: list[tuple[str, str, object]] = [
    ("scheme=zf", "_control", ZeroForcing()),
    ("scheme=optimal", "_control", OptimalThreshold()),
    ("scheme=phase", "_control", PhaseOnly()),
    ("scheme=cotaf channel.gain_floor=0.3", "_control", CotafScaling(gain_floor=0.3)),
    ("scheme=truncated channel.gain_floor=0.3", "_control", TruncatedInversion(gain_floor=0.3)),
    ("scheme=obda channel.gain_floor=0.3", "_control", TruncatedInversion(gain_floor=0.3)),
    ("scheme=truncated channel.budget=per_use", "_control", TruncatedInversion(budget="per_use")),
    ("scheme=obda channel.budget=per_use", "_control", TruncatedInversion(budget="per_use")),
    ("num_antennas=3", "_radio.num_antennas", 3),
    ("scheme=zf", "_radio.treats_alike", False),
    ("scheme=truncated", "_radio.treats_alike", True),
    ("scheme=cotaf", "_radio.treats_alike", True),
    ("scheme=obda", "_radio.treats_alike", True),
    ("peak_to_mean_db=3 channel.tx_power_dbm=30", "_peak_power", pytest.approx(10**0.3)),
    ("scheme=obda channel.vote_step=0.5", "_step", 0.5),
    ("bandwidth_hz=3e5", "_band.bandwidth_hz", 3e5),
    ("power=density", "_band.power", "density"),
    ("max_bits_per_use=6", "_band.max_bits_per_use", 6.0),
    ("outage=0.2", "_band.outage", 0.2),
    ("scheme=obda channel.outage=0.2", "_band.outage", 0.2),
]
_DIGITAL: list[tuple[str, str, object]] = [
    ("bits=5", "_setup.bits", 5),
    ("bits=null channel.max_uses_per_real=2", "_setup.bits", None),
    ("target_bits_per_use=1.5", "_setup.target_bits_per_use", 1.5),
    ("gain_floor=0.4", "_setup.gain_floor", 0.4),
    ("max_uses_per_real=0.5", "_setup.max_uses_per_real", 0.5),
    ("bandwidth_hz=3e5", "_setup.bandwidth_hz", 3e5),
    ("power=density", "_setup.power", "density"),
    ("max_bits_per_use=6", "_setup.max_bits_per_use", 6.0),
    ("outage=0.2", "_setup.outage", 0.2),
]
_ROWS = [
    *[("aircomp", *row) for row in (*_RADIO, *_AIR)],
    *[("digital", *row) for row in (*_RADIO, *_DIGITAL)],
]


@pytest.mark.parametrize(("channel", "words", "path", "held"), _ROWS)
def test_an_option_is_held_where_it_acts(channel: str, words: str, path: str, held: object) -> None:
    options = f"channel={channel} channel.{words}".split()
    uplink = build_uplink(config_of(*options).channel, 0)
    found: Any = functools.reduce(getattr, path.split("."), uplink)
    assert found == held


@pytest.mark.parametrize(
    ("kind", "channel"), [(AircompChannel, "aircomp"), (DigitalChannel, "digital")]
)
def test_the_table_has_every_option(kind: type, channel: str) -> None:
    words = " ".join(f"channel.{row[1]}" for row in _ROWS if row[0] == channel)
    missing = [f.name for f in dataclasses.fields(kind) if f"channel.{f.name}" not in words]
    assert not missing


@pytest.mark.parametrize("channel", ["aircomp", "digital"])
def test_the_seed_of_the_run_draws_the_channel(channel: str) -> None:
    config = config_of(f"channel={channel}")
    drawn: list[Any] = [build_uplink(config.channel, seed) for seed in (4, 5)]
    first, second = (uplink._radio.state(1, [0], np.ones(1)).gains for uplink in drawn)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("channel=digital channel.bits=null", "max_uses_per_real"),
        ("channel=digital channel.bits=25", "1 to 24"),
        ("channel=digital channel.max_bits_per_use=inf", "max_bits_per_use"),
        ("channel=aircomp channel.power=most", "whole, density"),
        ("channel=aircomp channel.outage=1", "outage"),
        ("channel=aircomp channel.budget=yearly", "long_term, per_use"),
    ],
)
def test_what_an_option_cannot_be_is_refused_by_name(words: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config_of(*words.split())


# --- what the radio makes of them --------------------------------------------------------------


def _state(*words: str) -> Any:
    uplink: Any = build_uplink(config_of("channel=aircomp", *words).channel, 0)
    return uplink._radio.state(2, [1, 4, 6], np.array([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("num_antennas", [1, 4])
def test_estimates_are_wrong_by_the_error_and_jitter_turns_the_truth(num_antennas: int) -> None:
    """E|h-hat - sqrt(1 - eps^2) h|^2 = eps^2 at one antenna, within five standard errors; behind a
    beam, which leans towards what it knows, the known gain is larger and the error no smaller."""
    words = (f"channel.num_antennas={num_antennas}", "channel.num_subcarriers=500")
    sure = _state(*words)
    assert np.array_equal(sure.gains, sure.known_gains)
    assert sure.csi_error == 0.0
    wrong = _state(*words, "channel.csi_error=0.3")
    off = np.abs(wrong.known_gains - math.sqrt(1.0 - 0.3**2) * wrong.gains) ** 2
    error = off.std() / math.sqrt(off.size)
    assert wrong.csi_error == 0.3
    if num_antennas == 1:
        assert abs(off.mean() - 0.3**2) <= 5.0 * error
    else:
        assert off.mean() >= 0.3**2 - 5.0 * error
    turned = _state(*words, "channel.phase_jitter_rad=0.2")
    angles = np.angle(turned.gains / turned.known_gains)
    assert angles == pytest.approx(np.repeat(angles[:, :1], 500, axis=1), abs=1e-9)
    assert len(set(np.round(angles[:, 0], 6))) == 3
    assert np.abs(turned.gains) == pytest.approx(np.abs(turned.known_gains), rel=1e-9)


def test_correlation_carries_a_channel_into_the_next_round() -> None:
    """E h_2 h_1* = rho over 2000 subcarriers; the standard error is at most 1 / sqrt(2000)."""
    words = ("channel=aircomp", "channel.correlation=0.8", "channel.num_subcarriers=2000")
    uplink: Any = build_uplink(config_of(*words).channel, 0)
    one, two = (uplink._radio.state(r, [3], np.ones(1)).gains[0] for r in (1, 2))
    assert abs(np.mean(two * one.conj()) - 0.8) <= 5.0 / math.sqrt(2000)


def test_the_beam_hears_with_all_antennas() -> None:
    """Known gains behind the beam are f^H h-hat of one beam for all devices, subcarrier by
    subcarrier: three devices and two antennas leave one linear relation, which must hold."""
    words = ("channel.num_antennas=2", "channel.num_subcarriers=3", "channel.csi_error=0.2")
    state = _state(*words)
    uplink: Any = build_uplink(config_of("channel=aircomp", *words).channel, 0)
    devices = [1, 4, 6]
    true = draw_antenna_gains(uplink._radio.fading, 0, 2, devices, 2)
    known = estimate_gains(true, 0.2, 0, 2, devices)
    for m in range(3):
        beam = np.linalg.solve(known[:2, m], state.known_gains[:2, m]).conj()
        assert np.linalg.norm(beam) == pytest.approx(1.0)
        for k in range(3):
            assert state.known_gains[k, m] == pytest.approx(
                heard(beam.tolist(), known[k, m].tolist())
            )
            assert state.gains[k, m] == pytest.approx(heard(beam.tolist(), true[k, m].tolist()))
