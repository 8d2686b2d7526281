"""NMSE over transmit SNR: JSON against closed forms in plain Python, and the verdict on it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scripts import air_nmse, nmse_curves
from scripts.nmse_curves import NUM_ANTENNAS, Point, draw_channels, draw_updates
from tests.air_figures_fixtures import (
    NMSE_DEVICES,
    NMSE_DRAWS,
    NMSE_PARAMS,
    NMSE_SEED,
    read_strictly,
)
from tests.oracles.air_power import least_sum_mse


def test_nmse_has_every_curve_and_point(nmse: tuple[Any, Path]) -> None:
    figures = nmse[0]
    keys = [(c["scheme"], c["num_devices"], c["csi_error"]) for c in figures["curves"]]
    names = ("zf", "truncated", "optimal", "cotaf", "phase_only", "beam")
    assert sorted(keys) == sorted(
        (n, k, e) for n in names for k in NMSE_DEVICES for e in (0.0, 0.1)
    )
    assert (figures["seed"], figures["num_draws"], figures["num_params"]) == (3, 2, 80)
    assert "obda" in figures["left_out"]
    assert figures["verdict"] == "ok"
    for curve in figures["curves"]:
        snrs = [point["tx_snr_db"] for point in curve["points"]]
        assert snrs == [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, "inf"]
        assert curve["verdict"] == "ok"
        largest = max(point["errors_off"] for point in curve["points"])
        assert curve["largest_errors_off"] == largest <= 5.0
        # Two draws tell no spread.
        assert curve["largest_predicted_errors_off"] is None
        assert {point["predicted_errors_off"] for point in curve["points"]} == {None}


def zero_forcing(
    targets: Sequence[float], known: Sequence[complex], noise_power: float
) -> tuple[list[complex], list[bool], float]:
    """Returns what the server would hear if gains were known: b_k / sqrt(eta), who, eta."""
    eta = min(abs(h) ** 2 / a**2 for a, h in zip(targets, known, strict=True))
    return [a / h for a, h in zip(targets, known, strict=True)], [True] * len(known), eta


def truncated(
    targets: Sequence[float], known: Sequence[complex], noise_power: float
) -> tuple[list[complex], list[bool], float]:
    """The same; E1(0.1) = 1.8229239584193906 (Abramowitz and Stegun, table 5.1)."""
    eta = min(1.0 / a**2 for a in targets) / 1.8229239584193906
    heard = [abs(h) ** 2 >= 0.1 for h in known]
    sent = [a / h if on else 0j for a, h, on in zip(targets, known, heard, strict=True)]
    return sent, heard, eta


def cotaf(
    targets: Sequence[float], known: Sequence[complex], noise_power: float
) -> tuple[list[complex], list[bool], float]:
    """The same, eta from the gain floor."""
    sent, heard, _ = truncated(targets, known, noise_power)
    return sent, heard, 0.1 / max(targets) ** 2


def phase_only(
    targets: Sequence[float], known: Sequence[complex], noise_power: float
) -> tuple[list[complex], list[bool], float]:
    """The same; everybody at power 1."""
    energy = noise_power + math.fsum(abs(h) ** 2 for h in known)
    root = energy / math.fsum(a * abs(h) for a, h in zip(targets, known, strict=True))
    return [h.conjugate() / abs(h) / root for h in known], [True] * len(known), root**2


@pytest.mark.parametrize("csi_error", [0.0, 0.1])
@pytest.mark.parametrize("num_devices", NMSE_DEVICES)
@pytest.mark.parametrize(
    ("scheme", "rule"),
    [
        ("zf", zero_forcing),
        ("beam", zero_forcing),
        ("truncated", truncated),
        ("cotaf", cotaf),
        ("phase_only", phase_only),
    ],
)
def test_predicted_nmse_is_the_closed_form(
    nmse: tuple[Any, Path],
    scheme: str,
    rule: Callable[..., tuple[list[complex], list[bool], float]],
    num_devices: int,
    csi_error: float,
) -> None:
    """Sum over devices |h b / sqrt(eta) / W - a|^2 plus noise, subcarrier by subcarrier."""
    curve = next(
        c
        for c in nmse[0]["curves"]
        if (c["scheme"], c["num_devices"], c["csi_error"]) == (scheme, num_devices, csi_error)
    )
    rounds = []
    for draw in range(NMSE_DRAWS):
        updates, weights = draw_updates(NMSE_SEED, draw, num_devices, NMSE_PARAMS)
        channels = draw_channels(NMSE_SEED, draw, csi_error, weights * updates.std(axis=1))
        rounds.append((updates, weights, channels[NUM_ANTENNAS if scheme == "beam" else 1]))
    for point in curve["points"]:
        noise_power = 10.0 ** (-float(point["tx_snr_db"]) / 10.0)
        errors, energies = [], []
        for updates, weights, state in rounds:
            shares = (weights / weights.sum()).tolist()
            spreads = np.sqrt(np.mean(updates**2, axis=1)) if scheme == "cotaf" else updates.std(1)
            means = [0.0] * num_devices if scheme == "cotaf" else updates.mean(axis=1).tolist()
            targets = [w * s for w, s in zip(shares, spreads.tolist(), strict=True)]
            for m in range(state.gains.shape[1]):  # 80 reals: 10 uses on each of 4 subcarriers
                gains, known = state.gains[:, m].tolist(), state.known_gains[:, m].tolist()
                sent, heard, eta = rule(targets, known, noise_power)
                weight = math.fsum(w for w, on in zip(shares, heard, strict=True) if on)
                error = noise_power / eta / weight**2
                for a, h, c in zip(targets, gains, sent, strict=True):
                    error += abs(h * c / weight - a) ** 2
                counted = [
                    w * m if on else 0.0 for w, m, on in zip(shares, means, heard, strict=True)
                ]
                wanted = [w * m for w, m in zip(shares, means, strict=True)]
                error += (math.fsum(counted) / weight - math.fsum(wanted)) ** 2
                errors.append(error)
            energies.append(float(np.mean((np.array(shares) @ updates) ** 2)))
        closed = math.fsum(errors) / len(errors) / (math.fsum(energies) / NMSE_DRAWS)
        assert point["predicted_nmse"] == pytest.approx(closed, rel=1e-9, abs=1e-25)


def test_optimal_is_the_least_of_a_grid(nmse: tuple[Any, Path]) -> None:
    """The grid's step of 4000 is well below 1 %; around a minimum it costs its square."""
    curve = next(
        c
        for c in nmse[0]["curves"]
        if (c["scheme"], c["num_devices"], c["csi_error"]) == ("optimal", 8, 0.0)
    )
    point = curve["points"][2]
    errors, energies = [], []
    for draw in range(NMSE_DRAWS):
        updates, weights = draw_updates(NMSE_SEED, draw, 8, NMSE_PARAMS)
        shares = weights / weights.sum()
        amplitudes = (shares * updates.std(axis=1)).tolist()
        state = draw_channels(NMSE_SEED, draw, 0.0, weights * updates.std(axis=1))[1]
        for m in range(state.gains.shape[1]):
            errors.append(least_sum_mse(np.abs(state.gains[:, m]).tolist(), amplitudes, 0.1))
        energies.append(float(np.mean((shares @ updates) ** 2)))
    closed = np.mean(errors) / np.mean(energies)
    assert point["predicted_nmse"] == pytest.approx(closed, rel=1e-4)


def report(realised: float, predicted: float, deviation: float) -> Any:
    """A round with mean energy 2 and expectation 1."""
    return SimpleNamespace(
        mean_energy=2.0,
        realised_mse=realised,
        realised_nmse=realised / 2.0,
        expected_mse=1.0,
        predicted_mse=predicted,
        expected_mse_deviation=deviation,
        silent_share=np.array([0.0, 0.5]),
    )


def test_a_point_knows_how_far_it_is_off() -> None:
    """Two rounds, by hand: gaps 1 and 0 have the standard error 1 / 2 before division by 2."""
    point = nmse_curves.summarise(10.0, [report(2.0, 1.0, 0.3), report(3.0, 3.0, 0.4)])
    assert point.realised_nmse == pytest.approx(2.5 / 2.0)
    assert point.expected_nmse == pytest.approx(0.5)
    assert point.standard_error == pytest.approx(0.5 / 2 / 2.0)
    assert point.errors_off == pytest.approx((2.5 - 1.0) / 0.25)
    assert point.predicted_standard_error == pytest.approx(0.5 / 2.0)
    assert point.predicted_errors_off == pytest.approx((2.5 - 2.0) / 0.5)
    assert point.silent_share == 0.25


def test_exact_points_are_right_and_only_exact_ones() -> None:
    exact = Point(math.inf, 1e-31, 0.0, 0.0, 0.0, 0.0, 1e-31, 0.0)
    assert (exact.errors_off, exact.predicted_errors_off) == (0.0, 0.0)
    wrong = Point(math.inf, 1e-3, 0.0, 0.0, 0.0, 0.0, 1e-3, 0.0)
    assert wrong.errors_off == math.inf


@pytest.mark.parametrize(("factor", "num_draws", "code"), [(1.2, 2, 1), (1.0, 2, 0), (1.0, 30, 1)])
def test_a_point_beyond_five_standard_errors_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, num_draws: int, code: int
) -> None:
    """Realised beside expected by 20 at a standard error of 3 %; closed form wrong by half.

    The latter only counts with draws enough to tell its standard error.
    """

    def measure(num_devices: int, csi_error: float, **_: Any) -> list[nmse_curves.Curve]:
        points = [
            Point(snr, factor, 1.0, 0.03, 1.5, 0.03, 1.0, 0.0) for snr in nmse_curves.TX_SNRS_DB
        ]
        return [nmse_curves.Curve("zf", num_devices, csi_error, num_draws, points)]

    monkeypatch.setattr(air_nmse, "measure", measure)
    monkeypatch.setattr(air_nmse, "draw_plot", lambda curves: b"")
    assert air_nmse.main(["--devices", "10", "--out", str(tmp_path)]) == code
    assert read_strictly(tmp_path / "air_nmse.json")["verdict"] == ("failed" if code else "ok")


def test_infinite_distances_are_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(num_devices: int, csi_error: float, **_: Any) -> list[nmse_curves.Curve]:
        points = [Point(math.inf, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)]
        return [nmse_curves.Curve("zf", num_devices, csi_error, 1, points)]

    monkeypatch.setattr(air_nmse, "measure", measure)
    monkeypatch.setattr(air_nmse, "draw_plot", lambda curves: b"")
    assert air_nmse.main(["--out", str(tmp_path)]) == 1
    curve = read_strictly(tmp_path / "air_nmse.json")["curves"][0]
    assert curve["largest_errors_off"] == curve["points"][0]["errors_off"] == "inf"
