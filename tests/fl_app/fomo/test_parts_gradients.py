"""One step of gradient download equals centralised autograd on the concatenated batch."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.fomo.adapter import Adapter, LoraSpec
from fl_app.fomo.backbone import head_modules
from fl_app.fomo.features import FeatureGradient, Features
from fl_app.fomo.front import Front
from fl_app.fomo.head import Head
from fl_app.fomo.parts import build_device_part, build_trunk_part
from fl_app.fomo.trunk import Trunk
from fl_app.seeding import generator
from fl_app.tasks import IGNORED
from tests.fixtures_models import DEPTH, TinyModels, tiny_examples
from tests.oracles.central_gradient import adapter_gradient, prompt_gradient

_CLASSES = "sequence_classification"
FAMILIES = [("bert", _CLASSES), ("gpt2", "causal_lm"), ("llama", "causal_lm"), ("t5", "causal_lm")]
_SPEC = LoraSpec(rank=2, alpha=4.0, targets=(), train_a=True)
_SIZES = (2, 4, 3)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def _batches(tiny: TinyModels, family: str, task: str) -> tuple[list[Any], Any, list[float]]:
    """Three devices' batches, unequal in size and length; the joint batch; the loss's weights."""
    job = tiny.task(family, task)
    encoded = job.encode(tiny_examples(sum(_SIZES)))
    order = np.argsort(encoded.lengths, kind="stable")
    shares = np.split(order, np.cumsum(_SIZES)[:-1])
    batches = [job.batch(encoded, [int(i) for i in share]) for share in shares]
    assert len({batch["input_ids"].shape[1] for batch in batches}) == 3
    joint = job.batch(encoded, [int(i) for i in order])
    counts = [len(b["labels"]) for b in batches]
    if task == "causal_lm":
        counts = [int((b["labels"] != IGNORED).sum()) for b in batches]
        assert len(set(counts)) == 3
        if family != "t5":  # the first token is given, so its label carries no loss
            assert all((b["labels"][:, 0] == IGNORED).all() for b in batches)
    return batches, joint, [count / sum(counts) for count in counts]


def _draw(shape: Sequence[int], name: str) -> torch.Tensor:
    draw = generator(0, "gradient-test", name).normal(0.0, 0.3, tuple(shape))
    return torch.from_numpy(draw.astype(np.float32))


def _fill(adapter: Adapter, names: Collection[str] | None = None) -> Adapter:
    """Draws tuned values by their canonical names, B included: at 0 it would hide A.

    What is not in ``names`` keeps its starting value, with which LoRA changes nothing.
    """
    arrays = adapter.read()
    for name in arrays if names is None else names:
        arrays[name] = _draw(arrays[name].shape, name).numpy()
    adapter.write(arrays)
    return adapter


@dataclass
class Step:
    """One step of three devices, by weighted sums of what each of them gets."""

    features: list[Features] = field(default_factory=list)
    gradients: list[FeatureGradient | None] = field(default_factory=list)
    loss: float = 0.0


def _step(
    front: Front,
    head: Head,
    trunk: Trunk,
    loss: Any,
    batches: list[Any],
    weights: list[float],
    want: tuple[str, ...],
    prompt: torch.nn.Parameter | None = None,
) -> Step:
    """Runs the protocol; weighting each device's state gradient weights all that follows."""
    step = Step([front.features(batch, loss, prompt) for batch in batches])
    held = trunk.forward(step.features, want=want)
    slopes: list[torch.Tensor | None] = []
    for one, batch, states, weight in zip(
        step.features, batches, held.states, weights, strict=True
    ):
        m = one.num_prompt
        value, slope = head.loss_gradient(
            states, one.readout, batch["labels"], lambda *a, w=weight: w * loss(*a), m
        )
        step.loss += value
        slopes.append(slope)
    step.gradients = trunk.backward(held, slopes)
    for batch, gradient in zip(batches, step.gradients, strict=True):
        assert gradient is not None
        front.backward(batch, prompt, gradient)
    return step


def _close(found: dict[str, Any], wanted: dict[str, torch.Tensor]) -> None:
    """In float32 to 1e-5 of the largest entry of all; in float64 to 1e-6 of each tensor's largest.

    Float64 shows that a small gradient is right too, which float32's rounding would hide. RMS norms
    compute in float32 even then.
    """
    assert found.keys() == wanted.keys()
    largest = max(float(tensor.abs().max()) for tensor in wanted.values())
    for name, tensor in wanted.items():
        exact = tensor.dtype == torch.float64
        own = float(tensor.abs().max())
        assert own > 1e-6 * largest, f"{name}: nothing to compare"
        error = float((found[name] - tensor).abs().max())
        assert error < (1e-6 * own if exact else 1e-5 * largest), f"{name}: {error / own}"


@pytest.mark.parametrize(("family", "task"), FAMILIES)
@pytest.mark.parametrize("m", [1, 5])
@DTYPES
def test_prompt_step_equals_central_prompt_tuning(
    tiny: TinyModels, family: str, task: str, m: int, dtype: torch.dtype
) -> None:
    """PEFT's prompt tuning on the joint batch is the reference: loss, prompt, classifier head."""
    model = tiny.load(family, task).model
    batches, joint, weights = _batches(tiny, family, task)
    prompt = torch.nn.Parameter(_draw((m, 16), "prompt").to(dtype))
    part = build_device_part(model, task, 0)
    heads = head_modules(model, task)
    own: dict[str, torch.nn.Parameter] = {}
    if heads:
        own = Adapter(
            part.model, blocks=part.blocks, tuned_blocks=(), heads=heads, spec=None, seed=0
        ).parameters
    part.model.to(dtype)
    rest = build_trunk_part(model, task, 0)
    rest.model.to(dtype)
    head, trunk = Head(part), Trunk(rest)
    loss = tiny.task(family, task).loss
    step = _step(Front(part, head), head, trunk, loss, batches, weights, ("prompt",), prompt)
    found = {name.removeprefix("base_model.model."): p.grad for name, p in own.items()}
    value, wanted = prompt_gradient(model, task, prompt.detach(), joint)
    assert step.loss == pytest.approx(value, rel=1e-5)
    assert len(wanted) == 1 + 2 * len(heads)
    _close({"prompt": prompt.grad, **found}, wanted)
    for one in step.gradients:
        assert one is not None
        assert one.hidden is None
        assert one.parameters == {}
        assert one.prompt is not None
        assert one.prompt.shape == (m, 16)  # whatever batch and length


@pytest.mark.parametrize(("family", "task"), FAMILIES)
@pytest.mark.parametrize("cut", [1, 2])
@DTYPES
def test_cut_step_equals_central_fine_tuning(
    tiny: TinyModels, family: str, task: str, cut: int, dtype: torch.dtype
) -> None:
    """LoRA in the front, and the classifier head, on the device."""
    _adapter_step(tiny, family, task, cut=cut, front=range(cut), trunk=(), dtype=dtype)


@pytest.mark.parametrize(("family", "task"), FAMILIES)
@pytest.mark.parametrize("cut", [0, 2])
@DTYPES
def test_trunk_lora_step_equals_central_fine_tuning(
    tiny: TinyModels, family: str, task: str, cut: int, dtype: torch.dtype
) -> None:
    """LoRA at the server, head on the device; blocks of both stacks keep their names."""
    _adapter_step(tiny, family, task, cut=cut, front=(), trunk=range(cut, DEPTH), dtype=dtype)


def test_lora_on_both_sides_in_every_linear_map(tiny: TinyModels) -> None:
    """OPT flattens rows and tokens in front of its feed-forward maps."""
    _adapter_step(
        tiny,
        "opt",
        "causal_lm",
        cut=1,
        front=(0,),
        trunk=(2, 4),
        targets=("all-linear",),
        dtype=torch.float64,
    )


def _adapter_step(
    tiny: TinyModels,
    family: str,
    task: str,
    *,
    cut: int,
    front: Sequence[int],
    trunk: Sequence[int],
    dtype: torch.dtype,
    targets: tuple[str, ...] = (),
) -> None:
    spec = LoraSpec(rank=2, alpha=4.0, targets=targets, train_a=True)
    model = tiny.load(family, task).model
    batches, joint, weights = _batches(tiny, family, task)
    heads = head_modules(model, task)
    part, rest = build_device_part(model, task, cut), build_trunk_part(model, task, cut)
    found: dict[str, torch.nn.Parameter] = {}
    at_server: dict[str, torch.nn.Parameter] = {}
    if front or heads:
        device = Adapter(
            part.model,
            blocks=part.blocks,
            tuned_blocks=front,
            heads=heads,
            spec=spec if front else None,
            seed=0,
        )
        found = _fill(device).parameters
    if trunk:
        server = Adapter(
            rest.model,
            blocks=rest.blocks[0],
            later_blocks=rest.blocks[-1],
            tuned_blocks=trunk,
            heads=(),
            spec=spec,
            seed=0,
        )
        at_server = _fill(server).parameters
    for one in (model, part.model, rest.model):
        one.to(dtype)
    head, loss = Head(part), tiny.task(family, task).loss
    want = ("hidden", "parameters") if front else ("parameters",)
    step = _step(Front(part, head), head, Trunk(rest, at_server), loss, batches, weights, want)
    gradients = {name: p.grad for name, p in found.items()}
    for name in at_server:
        gradients[name] = sum(one.parameters[name] for one in step.gradients if one is not None)

    central = Adapter(
        model,
        blocks=range(DEPTH),
        tuned_blocks=[*front, *trunk],
        heads=heads,
        spec=spec,
        seed=0,
    )
    _fill(central, {*found, *at_server})
    central.model.to(dtype)
    wanted = adapter_gradient(central, loss, joint)
    # an encoder-decoder's decoder has no blocks on the device: those are central's alone there
    if family == "t5" and front:
        wanted = {name: g for name, g in wanted.items() if ".encoder." in name}
    assert len(gradients) >= 2
    _close(gradients, wanted)
