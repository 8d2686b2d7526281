"""Devices that share a pass do not touch each other: lengths, NaN, vanishing, own parameters."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.adapter import Adapter, LoraSpec
from fl_app.fomo.features import FeatureGradient, Features
from fl_app.fomo.front import Front
from fl_app.fomo.head import Head
from fl_app.fomo.parts import TrunkPart, build_device_part, build_trunk_part
from fl_app.fomo.trunk import Held, Trunk
from tests.fixtures_models import DEPTH, TinyModels, tiny_examples

_CLASSES = "sequence_classification"
FAMILIES = [("bert", _CLASSES), ("gpt2", "causal_lm"), ("llama", "causal_lm"), ("t5", "causal_lm")]
_ALL = ("prompt", "hidden", "parameters")
_SPEC = LoraSpec(rank=2, alpha=4.0, targets=("all-linear",), train_a=True)
_ROWS = ([0, 1], [2, 3, 4, 5], [6])


def _draw(shape: Sequence[int], seed: int) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Federation:
    """Three devices' features and the gradients they would send, and a trunk with LoRA."""

    def __init__(self, tiny: TinyModels, family: str, task: str) -> None:
        model, job = tiny.load(family, task).model, tiny.task(family, task)
        part = build_device_part(model, task, 0)
        front = Front(part, Head(part))
        encoded = job.encode(tiny_examples(7))
        batches = [job.batch(encoded, rows) for rows in _ROWS]
        self.features = [
            front.features(batch, job.loss, _draw((2, 16), i)) for i, batch in enumerate(batches)
        ]
        rest = build_trunk_part(model, task, 0)
        self.adapter = Adapter(
            rest.model, blocks=range(DEPTH), tuned_blocks=[1, 3], heads=(), spec=_SPEC, seed=0
        )
        self.values = [
            {n: _draw(p.shape, seed) for n, p in self.adapter.parameters.items()}
            for seed in range(3)
        ]
        self.adapter.write({n: v.numpy() for n, v in self.values[0].items()})
        self.part: TrunkPart = rest
        self.trunk = Trunk(rest, self.adapter.parameters)
        self.slopes = [
            _draw((int(one.readout.sum()), 16), 10 + i) for i, one in enumerate(self.features)
        ]

    def run(
        self, devices: Sequence[int], features: Sequence[Features] | None = None, **options: Any
    ) -> tuple[Held, list[FeatureGradient | None]]:
        chosen = [(features or self.features)[i] for i in devices]
        held = self.trunk.forward(chosen, want=_ALL, **options)
        return held, self.trunk.backward(held, [self.slopes[i] for i in devices])


@pytest.fixture(params=FAMILIES, ids=lambda case: case[0])
def federation(tiny: TinyModels, request: pytest.FixtureRequest) -> Federation:
    return Federation(tiny, *request.param)


def _tensors(gradient: FeatureGradient | None) -> dict[str, torch.Tensor]:
    assert gradient is not None
    assert gradient.hidden is not None
    assert gradient.prompt is not None
    hidden = {f"hidden {i}": tensor for i, tensor in enumerate(gradient.hidden)}
    return {"prompt": gradient.prompt, **hidden, **gradient.parameters}


def _same(one: FeatureGradient | None, two: FeatureGradient | None) -> None:
    """Bit for bit."""
    first, second = _tensors(one), _tensors(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def _near(one: FeatureGradient | None, two: FeatureGradient | None) -> None:
    """To 1e-5 of the largest entry of all: other shapes sum in another order."""
    first, second = _tensors(one), _tensors(two)
    largest = max(float(tensor.abs().max()) for tensor in second.values())
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert float((tensor - second[name]).abs().max()) < 1e-5 * largest, name


def test_a_device_gets_in_company_what_it_gets_alone(federation: Federation) -> None:
    """States and gradients, whoever else is there and however long their texts are."""
    alone = [federation.run([i]) for i in range(3)]
    for company in ([0, 1, 2], [2, 1], [1, 0], [2, 2, 0]):
        held, gradients = federation.run(company)
        for place, device in enumerate(company):
            torch.testing.assert_close(
                held.states[place], alone[device][0].states[0], rtol=1e-5, atol=1e-5
            )
            _near(gradients[place], alone[device][1][0])


def test_nan_stays_with_the_device_that_sent_it(federation: Federation) -> None:
    """In its hidden states and prompt; the others' bits are as if it had sent numbers."""
    _, clean = federation.run([0, 1, 2])
    first = federation.features[1]
    broken = dataclasses.replace(
        first,
        hidden=tuple(torch.full_like(state, math.nan) for state in first.hidden),
        prompt=torch.full((2, 16), math.inf),
    )
    held, gradients = federation.run(
        [0, 1, 2], [federation.features[0], broken, federation.features[2]]
    )
    assert torch.isnan(held.states[1]).all()
    assert all(torch.isnan(tensor).any() for tensor in _tensors(gradients[1]).values())
    for device in (0, 2):
        assert torch.isfinite(held.states[device]).all()
        _same(gradients[device], clean[device])


def test_a_nan_gradient_stays_with_its_device(federation: Federation) -> None:
    _, clean = federation.run([0, 1, 2])
    federation.slopes[1] = torch.full_like(federation.slopes[1], math.nan)
    _, gradients = federation.run([0, 1, 2])
    assert all(torch.isnan(tensor).any() for tensor in _tensors(gradients[1]).values())
    for device in (0, 2):
        _same(gradients[device], clean[device])


def test_a_vanished_device_is_left_out(federation: Federation) -> None:
    """The others' gradients keep every bit; its own place is empty."""
    _, whole = federation.run([0, 1, 2])
    held = federation.trunk.forward(federation.features, want=_ALL)
    gradients = federation.trunk.backward(held, [federation.slopes[0], None, federation.slopes[2]])
    assert gradients[1] is None
    _same(gradients[0], whole[0])
    _same(gradients[2], whole[2])
    held = federation.trunk.forward(federation.features, want=_ALL)
    assert federation.trunk.backward(held, [None, None, None]) == [None, None, None]


def test_devices_own_their_parameters_in_one_pass(federation: Federation) -> None:
    """Each gets what a trunk holding its values gives it alone."""
    held, gradients = federation.run([0, 1, 2], parameters=federation.values)
    for device in range(3):
        arrays = {n: v.numpy() for n, v in federation.values[device].items()}
        federation.adapter.write(arrays)
        alone, gradient = federation.run([device])
        torch.testing.assert_close(held.states[device], alone.states[0], rtol=1e-5, atol=1e-5)
        _near(gradients[device], gradient[0])
    assert float((held.states[0][0] - federation.run([0])[0].states[0][0]).abs().max()) > 1e-3


def test_all_devices_share_one_forward_and_one_backward_pass(federation: Federation) -> None:
    """Counted at one adapted map."""
    passes = {"forward": 0, "backward": 0}

    def count(_module: Any, _args: Any, output: torch.Tensor) -> None:
        passes["forward"] += 1
        assert len(output) == 7
        output.register_hook(lambda _grad: passes.update(backward=passes["backward"] + 1))

    lora = next(module for module in federation.part.model.modules() if hasattr(module, "lora_A"))
    lora.register_forward_hook(count)
    federation.run([0, 1, 2], parameters=federation.values)
    assert passes == {"forward": 1, "backward": 1}


def test_a_graph_is_used_once_and_freed(federation: Federation) -> None:
    held, _ = federation.run([0])
    released = federation.trunk.forward(federation.features[:1], want=_ALL)
    released.release()
    released.release()
    for gone in (held, released):
        with pytest.raises(ModelError, match="the graph of this step is gone"):
            federation.trunk.backward(gone, [federation.slopes[0]])


def test_nothing_wanted_builds_no_graph(federation: Federation) -> None:
    """For evaluation; and the states are the same."""
    held = federation.trunk.forward(federation.features, want=())
    assert all(not state.requires_grad for state in held.take()[0])
    wanted, _ = federation.run([0, 1, 2])
    assert all(torch.equal(a, b) for a, b in zip(held.states, wanted.states, strict=True))


def test_what_does_not_fit_is_refused(federation: Federation) -> None:
    """Typed errors, before anything is computed."""
    one = federation.features[0]
    wide = tuple(torch.zeros(*state.shape[:2], 17) for state in one.hidden)
    for strange in (
        dataclasses.replace(one, hidden=wide),
        dataclasses.replace(one, hidden=one.hidden[:-1]),
        dataclasses.replace(one, readout=one.readout[:, 1:]),
        dataclasses.replace(one, readout=one.readout[1:]),
        dataclasses.replace(one, prompt=torch.zeros(2, 17)),
        dataclasses.replace(one, masks=tuple(mask[:, 1:] for mask in one.masks)),
    ):
        with pytest.raises(ModelError, match="do not fit"):
            federation.trunk.forward([strange])
    with pytest.raises(ModelError, match=r"want=\['all'\]; choose among"):
        federation.trunk.forward([one], want=("all",))
    with pytest.raises(ModelError, match="not those the trunk tunes"):
        federation.trunk.forward([one], parameters=[{}])
    held = federation.trunk.forward([one])
    with pytest.raises(ModelError, match=r"has shape \[1, 3\], expected"):
        federation.trunk.backward(held, [torch.zeros(1, 3)])


def test_a_trunk_tunes_linear_maps_only(tiny: TinyModels) -> None:
    part = build_trunk_part(tiny.load("bert", _CLASSES).model, _CLASSES, 0)
    table = part.model.get_input_embeddings().weight
    with pytest.raises(ModelError, match="weights of linear maps only"):
        Trunk(part, {"table": table})


@pytest.mark.parametrize(
    ("family", "task", "cut", "remedy"),
    [
        ("bert", _CLASSES, 1, "a soft prompt needs strategy.cut=0"),
        ("vit", "image_classification", 0, "choose strategy.variant=cut"),
        ("t5", _CLASSES, 0, "choose strategy.variant=cut"),
    ],
)
def test_where_a_prompt_cannot_go(
    tiny: TinyModels, family: str, task: str, cut: int, remedy: str
) -> None:
    part = build_device_part(tiny.load(family, task).model, task, cut)
    batch, job = tiny.batch(family, task, 2), tiny.task(family, task)
    with pytest.raises(ModelError, match=remedy):
        Front(part, Head(part)).features(batch, job.loss, torch.zeros(2, 16))
