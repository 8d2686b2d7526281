"""Plans of rounds against brute force over all assignments."""

import itertools
from typing import Any

import numpy as np
import pytest

from fl_app.block_times import BlockTimes, ClassTimes, groups_of
from fl_app.scheduling.bandwidth import equal_finish, equal_split
from fl_app.scheduling.errors import ScheduleError
from fl_app.scheduling.uplinks import Faded, Shannon
from fl_app.updates import Update
from fl_app.wireless.channel import ChannelState
from fl_app.wireless.ofdma import Band
from strategies.schedule import BlockScheduler, RoundPlan, spread

BAND = 2e6


def _times(seed: int, num_devices: int, num_groups: int) -> BlockTimes:
    """Every device a class of its own; deeper groups take longer."""
    rng = np.random.default_rng(seed)
    depth = np.cumsum(rng.uniform(0.1, 1.0, num_groups))
    classes = {
        str(device): ClassTimes(depth / speed, BAND / num_devices, snr)
        for device, (speed, snr) in enumerate(
            zip(
                rng.uniform(0.3, 3.0, num_devices),
                10 ** rng.uniform(6, 8, num_devices),
                strict=True,
            )
        )
    }
    layouts = [
        {b: 2 * (b == num_groups - 1 - g) for b in range(num_groups)} for g in range(num_groups)
    ]
    return BlockTimes(layouts, classes, {d: str(d) for d in range(num_devices)})


def _tuned(num_groups: int) -> Update:
    """Payloads fall with depth, so that depth does not order what pairs take."""
    sizes = {f"x.{b}.lora_B.weight": (50_000 + 20_000 * b, 2) for b in range(num_groups)}
    return {name: np.zeros(shape, np.float32) for name, shape in sizes.items()}


def _scheduler(way: str, times: BlockTimes) -> BlockScheduler:
    def links(server_round: int, devices: Any) -> tuple[Shannon, float]:
        return Shannon(np.array([times.of(device).snr_hz for device in devices])), BAND

    def bits(tuned: Update) -> int:
        return 16 * sum(array.size for array in tuned.values())

    return BlockScheduler(way=way, times=times, links=links, payload_bits=bits, seed=0)


def _ends(times: BlockTimes, groups: Any, *, equal: bool) -> float:
    """Seconds of the round in which device k tunes the given group."""
    num = len(times.layouts)
    payload = np.array([16.0 * 2 * (50_000 + 20_000 * (num - 1 - g)) for g in groups])
    compute = np.array([times.of(k).compute_s[g] for k, g in enumerate(groups)])
    links = Shannon(np.array([times.of(k).snr_hz for k in range(len(groups))]))
    return (equal_split if equal else equal_finish)(payload, compute, links, BAND).round_s


@pytest.mark.parametrize(("num_devices", "num_groups"), [(3, 3), (4, 2), (5, 2), (5, 3)])
def test_assignment_is_that_of_brute_force(num_devices: int, num_groups: int) -> None:
    """Over all ways to give every device a group, each as often as ``spread`` says."""
    better = 0
    for seed in range(4):
        times = _times(seed, num_devices, num_groups)
        tuned, who = _tuned(num_groups), range(num_devices)
        places = spread(num_groups, num_devices).tolist()
        ways = set(itertools.permutations(places))
        plans = {
            way: _scheduler(way, times).plan(1, who, tuned)
            for way in ("random", "matching", "equal_finish", "joint")
        }
        for plan in plans.values():
            tunes = sorted(num_groups - 1 - turn.blocks[0] for turn in plan.turns)
            assert tunes == places
            assert {turn.device for turn in plan.turns} == set(who)
        wanted = min(_ends(times, one, equal=True) for one in ways)
        assert plans["matching"].round_s == pytest.approx(wanted, rel=1e-9)
        wanted = min(_ends(times, one, equal=False) for one in ways)
        assert plans["joint"].round_s == pytest.approx(wanted, rel=1e-6)
        seconds = [plans[way].round_s for way in ("matching", "equal_finish", "joint")]
        assert seconds == sorted(seconds, reverse=True)
        better += plans["joint"].round_s < 0.95 * plans["random"].round_s
        _check_equal_finish(plans["joint"])
    assert better >= 2


def _check_equal_finish(plan: RoundPlan) -> None:
    ends = [turn.finish_s for turn in plan.turns]
    np.testing.assert_allclose(ends, plan.round_s, rtol=1e-6)
    shares = plan.bandwidths_hz([turn.device for turn in plan.turns])
    assert shares is not None
    assert shares.sum() == pytest.approx(BAND, rel=1e-6)


def test_groups_are_neighbours_counted_from_the_loss() -> None:
    assert groups_of([0, 1, 4, 5, 6], 1) == [(6,), (5,), (4,), (1,), (0,)]
    assert groups_of([0, 1, 4, 5, 6], 2) == [(6, 5), (4, 1), (0,)]
    assert [spread(2, 5).tolist(), spread(3, 3).tolist()] == [[0, 0, 0, 1, 1], [0, 1, 2]]
    assert np.bincount(spread(3, 11)).tolist() == [4, 4, 3]


def test_a_group_that_nobody_can_hold_and_too_few_devices_are_named() -> None:
    times = _times(0, 3, 2)
    for one in times.classes.values():
        one.compute_s[1] = np.inf
    with pytest.raises(ScheduleError, match="no assignment gives every block"):
        _scheduler("joint", times).plan(1, range(3), _tuned(2))
    with pytest.raises(ScheduleError, match="3 blocks for 2 devices"):
        _scheduler("matching", _times(0, 2, 3)).plan(1, range(2), _tuned(3))


def test_a_faded_link_is_shared_for_equal_finish_too() -> None:
    """Bisection inverts the law; a cap on bits per use and either use of power."""
    rng = np.random.default_rng(0)
    gains = rng.standard_normal((3, 8)) + 1j * rng.standard_normal((3, 8))
    state = ChannelState(gains, gains, 0.05, np.full(3, 2.0))
    for use, most in (("whole", 16.0), ("whole", 3.0), ("density", 16.0)):
        band = Band(bandwidth_hz=BAND, power=use, max_bits_per_use=most)  # type: ignore[arg-type]
        links = Faded(state, 1.0, band)
        wanted = links.rate_bps(np.full(3, BAND))[:, None] * np.array([0.0, 0.1, 0.6, 1.01])
        shares = links.bandwidth_hz(wanted)
        assert (shares[:, 0] == 0.0).all()
        assert np.isinf(shares[:, 3]).all()
        for column in (1, 2):
            back = links.rate_bps(shares[:, column])
            np.testing.assert_allclose(back, wanted[:, column], rtol=1e-9)
            np.testing.assert_allclose(links.coded_bps(shares[:, column]), back, rtol=1e-12)
        split = equal_finish(np.full(3, 1e6), np.array([0.0, 0.1, 0.2]), links, BAND)
        np.testing.assert_allclose(split.finish_s, split.round_s, rtol=1e-6)
        assert split.bandwidths_hz.sum() == pytest.approx(BAND, rel=1e-6)
