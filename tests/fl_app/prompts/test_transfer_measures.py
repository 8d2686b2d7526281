"""Steps saved against the closed form, and a prompt that comes home unchanged."""

import math

import pytest
import torch

from fl_app.prompts.advert import advert_of
from fl_app.prompts.batched import tensors_of
from fl_app.prompts.errors import PromptError
from fl_app.prompts.measure import measure
from fl_app.prompts.packing import pack
from fl_app.prompts.transfer import receive
from fl_app.prompts.transfer_measures import negative_rate, retention, steps_to_reach
from tests.fixtures_models import TinyModels
from tests.prompt_fixtures import CLASSES, card_for, drawn_member, easy_rows, fit_for


def _descent(start: float, rate: float, curvature: float, steps: int) -> list[float]:
    """Plain gradient descent by torch on mu / 2 x^2; distances from the optimum."""
    x = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([x], lr=rate)
    distances = [start]
    for _ in range(steps):
        optimiser.zero_grad()
        (curvature / 2 * x**2).sum().backward()
        optimiser.step()
        distances.append(float(x.detach()))
    return distances


def test_steps_saved_on_a_quadratic() -> None:
    """Distance shrinks by 1 - lr mu a step: saved = ln(d_rand / d_src) / -ln(1 - lr mu)."""
    rate, curvature, target = 0.1, 0.5, 1e-3
    far, near = 8.0, 0.25
    found = [steps_to_reach(_descent(d, rate, curvature, 400), target) for d in (far, near)]
    assert found[0] is not None
    assert found[1] is not None
    saved = math.log(far / near) / -math.log(1 - rate * curvature)
    assert saved > 60
    assert abs((found[0] - found[1]) - saved) < 1  # both counts are rounded up
    assert steps_to_reach(_descent(far, rate, curvature, 3), target) is None
    assert steps_to_reach([1.0], 1.0) == 0


def test_a_transfer_to_the_same_task_and_model_changes_nothing(tiny: TinyModels) -> None:
    """Oracle: zero-shot accuracy and loss are the source's, exactly."""
    backbone, task = tiny.load("bert", CLASSES), tiny.task("bert", CLASSES)
    fit, encoded = fit_for(backbone), task.encode(easy_rows(40))
    source = drawn_member(fit, 4, with_head=True)
    blob = pack(source)
    arrived = receive(blob, advert_of(card_for(fit), blob, source.prompt.mean(0)), fit)
    there, here = (
        measure(backbone.model, [tensors_of(m)], task, encoded) for m in (source, arrived)
    )
    assert here == there
    assert retention(here.ensemble, there.ensemble) == 1.0


def test_rates_by_hand() -> None:
    assert negative_rate([1.0, 2.0, 3.0, 4.0], [1.0, 2.5, 1.0, 5.0]) == 0.5
    assert retention(0.72, 0.75) == pytest.approx(0.96)
    for bad in (lambda: retention(1.0, 0.0), lambda: negative_rate([], [])):
        with pytest.raises(PromptError, match="bad-measure"):
            bad()
