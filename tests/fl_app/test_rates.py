"""Learning rates that fall over a run: one curve, however the run is cut into rounds and steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.finetune import LocalTuning, num_local_steps
from fl_app.schema import Config, EmulatorDownloadStrategy, EnsembleMean, FinetuneConfig
from fl_app.settings import cycle_of, round_tuning
from tests.tuning_fixtures import tuning_of


def _tunings(num_rounds: int, lr_final: float) -> list[LocalTuning]:
    config = Config(
        strategy=EmulatorDownloadStrategy(num_rounds=num_rounds),
        finetune=FinetuneConfig(lr_final=lr_final),
    )
    return [round_tuning(config, number) for number in range(1, num_rounds + 1)]


@settings(derandomize=True, deadline=None)
@given(num_rounds=st.integers(1, 6), num_steps=st.integers(1, 6), lr_final=st.floats(1e-4, 1.0))
def test_steps_are_equal_ratios_across_rounds(
    num_rounds: int, num_steps: int, lr_final: float
) -> None:
    shares = [
        tuning.rate_share(step, num_steps)
        for tuning in _tunings(num_rounds, lr_final)
        for step in range(num_steps)
    ]
    ratio = lr_final ** (1 / (num_rounds * num_steps))
    expected, share = [], 1.0
    for _ in shares:
        expected.append(share)
        share *= ratio
    assert shares == pytest.approx(expected, rel=1e-9)
    assert share == pytest.approx(lr_final, rel=1e-9)


@pytest.mark.parametrize(("num_rounds", "num_cycles"), [(4, 2), (5, 2), (3, 3), (6, 1)])
def test_snapshots_end_where_the_rate_is_lowest(num_rounds: int, num_cycles: int) -> None:
    """The rates are those of torch's cosine schedule, started again with every cycle."""
    num_steps, config = 3, Config(strategy=EmulatorDownloadStrategy(num_rounds=num_rounds))
    config.prompt = EnsembleMean(num_members=num_cycles, members_from="snapshots")
    cycles = [cycle_of(config, number) for number in range(1, num_rounds + 1)]
    assert sorted(set(cycles)) == list(range(num_cycles))
    assert cycles == sorted(cycles)
    sizes = [cycles.count(cycle) for cycle in range(num_cycles)]
    assert max(sizes) - min(sizes) <= 1
    shares = [
        round_tuning(config, number).rate_share(step, num_steps)
        for number in range(1, num_rounds + 1)
        for step in range(num_steps)
    ]
    wanted = []
    for size in sizes:
        dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(dummy, T_max=size * num_steps)
        for _ in range(size * num_steps):
            wanted.append(dummy.param_groups[0]["lr"])
            dummy.step()
            schedule.step()
    assert shares == pytest.approx(wanted, abs=1e-9)


def test_constant_is_constant_to_the_last_bit() -> None:
    assert {t.rate_share(2, 3) for t in _tunings(5, 1.0)} == {1.0}


@pytest.mark.parametrize(
    ("rows", "epochs", "max_steps", "steps"),
    [(10, 1, None, 3), (10, 2, None, 6), (10, 2, 5, 5), (8, 1, 100, 2), (1, 3, None, 3)],
)
def test_local_steps_of_a_round(rows: int, epochs: int, max_steps: int | None, steps: int) -> None:
    """Batches of four; every epoch ends with what is left over."""
    assert num_local_steps(rows, tuning_of(epochs=epochs, max_steps=max_steps)) == steps
