"""Local tuning on a hand-made loss: the proximal pull, and a loss that is not finite."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fl_app.data.examples import Examples
from fl_app.errors import ModelError
from fl_app.finetune import tune
from fl_app.seeding import generator
from fl_app.tasks import Batch, Encoded, LossFunction
from tests.tuning_fixtures import free_tuning, token_rows


class _Linear:
    """A task whose loss is slope * w: every gradient of the data is known."""

    metric, higher_is_better = "loss", False

    def __init__(self, slope: NDArray[np.float32], bad_step: int | None = None) -> None:
        self._slope = torch.from_numpy(slope)
        self._bad_step = bad_step
        self.seen: list[NDArray[np.float32]] = []

    def encode(self, examples: Examples) -> Encoded:
        raise AssertionError("local tuning asks a task for batches and losses only")

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> Batch:
        return {}

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        self.seen.append(model.detach().numpy().copy())
        loss: torch.Tensor = (self._slope * model).sum()
        return loss * float("nan") if len(self.seen) == self._bad_step else loss

    def class_shares(self, encoded: Encoded) -> tuple[float, ...]:
        raise AssertionError("local tuning asks a task for batches and losses only")

    def class_counts(self, encoded: Encoded) -> NDArray[np.int64]:
        raise AssertionError("local tuning asks a task for batches and losses only")

    def adjusts(self, logit_adjustment: float) -> bool:
        raise AssertionError("local tuning asks a task for batches and losses only")

    def local_loss(self, encoded: Encoded, logit_adjustment: float) -> LossFunction:
        return self.loss

    def counted_loss(self, counts: NDArray[np.int64], logit_adjustment: float) -> LossFunction:
        raise AssertionError("local tuning asks a task for batches and losses only")

    def score(self, model: Any, batch: Batch) -> tuple[float, float]:
        raise AssertionError("local tuning asks a task for batches and losses only")

    def measure(self, total: float, count: float) -> float:
        raise AssertionError("local tuning asks a task for batches and losses only")


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_fedprox_pulls_back_from_both_sides(mu: float) -> None:
    """Gradient = slope + mu (w - w_received), for entries that rise and entries that fall."""
    received = np.array([1.0, -2.0, 0.5, 0.0], np.float32)
    slope = np.array([0.3, -0.3, 2.0, -2.0], np.float32)
    w = nn.Parameter(torch.from_numpy(received.copy()))
    gradients: list[NDArray[np.float32]] = []

    def note(*_: Any) -> None:
        assert w.grad is not None
        gradients.append(w.grad.numpy().copy())

    task = _Linear(slope)
    tuning = free_tuning(epochs=3, batch_size=1, head_lr=0.1, proximal_mu=mu)
    handle: Any = register_optimizer_step_pre_hook(note)
    try:
        loss, steps = tune(w, {"w": w}, task, token_rows([1]), tuning, generator(0, "local"))
    finally:
        handle.remove()
    assert steps == 3
    moved = task.seen[-1] - received
    assert (np.sign(moved) == -np.sign(slope)).all()
    for at, gradient in zip(task.seen, gradients, strict=True):
        np.testing.assert_allclose(gradient, slope + mu * (at - received), rtol=1e-6)
    # the loss reported is the data's, without the pull
    assert loss == pytest.approx(np.mean([(slope * at).sum() for at in task.seen]), rel=1e-6)


@pytest.mark.parametrize("bad_step", [1, 3])
def test_loss_that_is_not_finite_is_an_error(bad_step: int) -> None:
    """The text names the step, both rates and so the remedy; parameters stay finite."""
    w = nn.Parameter(torch.ones(2))
    task = _Linear(np.ones(2, np.float32), bad_step)
    text = rf"loss is nan at local step {bad_step}; lower finetune\.lr=0\.01 or finetune\.head_lr="
    with pytest.raises(ModelError, match=text):
        tune(w, {"w": w}, task, token_rows([1] * 16), free_tuning(), generator(0, "local"))
    assert torch.isfinite(w).all()
