"""The server's outputs of many adapters in one pass, and losses of them on both sides."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fl_app import scalar_wire
from fl_app.errors import WireError
from fl_app.features_wire import FeatureWire
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.backbone import head_modules
from fl_app.fomo.front import Front
from fl_app.fomo.head import Head
from fl_app.fomo.head_output import HeadOutput
from fl_app.fomo.lora import LoraSpec, lora_start
from fl_app.fomo.parts import DevicePart, build_device_part, build_trunk_part
from fl_app.fomo.trunk import Trunk
from fl_app.scalar_wire import Start
from fl_app.seeding import generator
from fl_app.updates import Update
from strategies.feature_reader import FeatureReader
from strategies.label_rule import label_rule
from strategies.scalar_server import ScalarServer
from tests.fixtures_models import CASES, DEPTH, TinyModels, tiny_examples

_SPEC = LoraSpec(rank=2, alpha=4.0, targets=(), train_a=True)
_TUNED = (0, DEPTH - 1)


class Cut:
    """A tiny model cut for tuning by scalars, and the same model whole."""

    def __init__(self, tiny: TinyModels, family: str, task: str) -> None:
        model = tiny.load(family, task).model
        self.heads, self.task = head_modules(model, task), tiny.task(family, task)
        whole = copy.deepcopy(model)
        self.part: DevicePart = build_device_part(model, task, 0)
        rest = build_trunk_part(model, task, 0)
        lora: dict[str, Any] = {"tuned_blocks": _TUNED, "spec": _SPEC, "seed": 0}
        self.central = Adapter(whole, blocks=range(DEPTH), heads=self.heads, **lora)
        tuned = Adapter(
            rest.model, blocks=rest.blocks[0], later_blocks=rest.blocks[-1], heads=(), **lora
        )
        own: dict[str, torch.nn.Parameter] = {}
        if self.heads:
            blocks = self.part.blocks
            own = Adapter(
                self.part.model, blocks=blocks, tuned_blocks=(), heads=self.heads, spec=None, seed=0
            ).parameters
        self.head = Head(self.part)
        self.trunk = Trunk(rest, tuned.parameters)
        self.server = ScalarServer(
            self.trunk,
            reader=FeatureReader(
                self.trunk,
                wire=FeatureWire("float32"),
                num_stacks=self.part.num_stacks,
                num_prompt=0,
                max_rows=4,
                max_length=64,
                labels=label_rule(model, task, with_counts=bool(self.heads)),
            ),
            head=self.head,
            head_parameters=own,
            task=self.task,
            logit_adjustment=0.0,
        )

    def adapter(self, number: int) -> Update:
        """Draws values for everything that is tuned."""
        return {
            name: generator(number, "values", name).normal(0, 0.3, p.shape).astype(np.float32)
            for name, p in self.central.parameters.items()
        }

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        encoded = self.task.encode(tiny_examples(9))
        for rows in ([0, 1], [2, 3, 4, 5], [6, 7, 8]):
            yield self.task.batch(encoded, rows)

    def start(self, batch: dict[str, torch.Tensor]) -> Start:
        """What a device with this one batch sends."""
        features = Front(self.part, self.head).features(batch, self.task.loss)
        arrays = FeatureWire("float32").features(features, generator(0, "none"))
        labels = {"labels": batch["labels"].numpy()}
        counts = np.array([3, 0, 1]) if self.heads else None
        return Start(np.zeros(1, np.int32), "", [arrays | labels], counts, 0.0)


@pytest.mark.parametrize(("family", "task"), CASES)
def test_losses_are_those_of_the_whole_model(tiny: TinyModels, family: str, task: str) -> None:
    """Three devices of unlike sizes, two adapters each, one pass; here and at the device."""
    cut = Cut(tiny, family, task)
    batches = list(cut.batches())
    arrived = [cut.server.read(cut.start(b), with_labels=True)[0] for b in batches for _ in "+-"]
    adapters = [cut.adapter(number) for number in range(6)]
    outputs = cut.server.outputs(arrived, adapters)
    reader = HeadOutput(cut.head, is_tuned=bool(cut.heads))
    for i, batch in enumerate(batches):
        readout = cut.server.readout(arrived[2 * i])
        assert (readout is None) == bool(cut.heads)
        payload = scalar_wire.sides(0, outputs[2 * i], outputs[2 * i + 1], readout)
        *sides, places = scalar_wire.read_sides(payload)
        for k in range(2):
            cut.central.write(adapters[2 * i + k])
            with torch.no_grad():
                wanted = float(cut.task.loss(cut.central.model, batch))
            here = cut.server.loss(arrived[2 * i + k], outputs[2 * i + k])
            there = reader.loss(sides[k], places, batch["labels"], cut.task.loss)
            assert here == pytest.approx(wanted, rel=1e-5)
            assert there == here
    assert len({round(float(out.double().sum()), 6) for out in outputs}) == 6


def test_no_graph_is_held(tiny: TinyModels) -> None:
    cut = Cut(tiny, "bert", "sequence_classification")
    arrived = [cut.server.read(cut.start(batch), with_labels=True)[0] for batch in cut.batches()]
    outputs = cut.server.outputs(arrived, [cut.adapter(0)] * 3)
    assert all(not out.requires_grad and out.grad_fn is None for out in outputs)


@pytest.mark.parametrize("train_a", [True, False])
def test_starting_values_follow_from_shapes_and_seed(tiny: TinyModels, train_a: bool) -> None:
    model = tiny.load("bert", "sequence_classification").model
    spec = LoraSpec(rank=2, alpha=4.0, targets=(), train_a=train_a)
    adapter = Adapter(model, blocks=range(DEPTH), tuned_blocks=_TUNED, heads=(), spec=spec, seed=7)
    wanted = adapter.read()
    found = lora_start({name: array.shape for name, array in wanted.items()}, 7)
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in wanted.items()}
    assert any(array.any() for array in found.values()) == train_a


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda arrays: arrays.pop("labels"), "missing"),
        (lambda arrays: arrays.pop("mask0"), "missing"),
        (lambda arrays: arrays["hidden0.values"].fill(np.nan), "not-finite"),
        (lambda arrays: arrays.update({"mask0": np.ones((1, 1), np.bool_)}), "wrong-shape"),
        (
            lambda arrays: arrays.update({"prompt.values": np.ones((2, 8), np.float32)}),
            "wrong-shape",
        ),
        (lambda arrays: arrays.update({"own|x": np.ones(1, np.float32)}), "missing"),
        (lambda arrays: arrays.update({"labels": np.array([0, 3])}), "bad-labels"),
        (lambda arrays: arrays.update({"labels": np.array([0, -1])}), "bad-labels"),
        (lambda arrays: arrays.update({"labels": np.array([0])}), "wrong-shape"),
        (lambda arrays: arrays.update({"labels": np.array([0.0, 1.0])}), "wrong-dtype"),
    ],
)
def test_unfit_features_are_refused(tiny: TinyModels, spoil: Any, reason: str) -> None:
    cut = Cut(tiny, "bert", "sequence_classification")
    start = cut.start(next(cut.batches()))
    spoil(start.batches[0])
    with pytest.raises(WireError) as caught:
        cut.server.read(start, with_labels=True)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"counts": np.array([0, 3, -1])}, "bad-labels"),
        ({"counts": np.array([0, 3, 2**62])}, "bad-labels"),
        ({"counts": np.zeros(3, np.int64)}, "bad-labels"),
        ({"counts": None}, "missing"),
        ({"counts": np.array([0, 3])}, "wrong-shape"),
        ({"counts": np.ones(3, np.int32)}, "wrong-dtype"),
        ({"error": None}, "missing"),
        ({"error": -0.5}, "missing"),
        ({"error": float("nan")}, "missing"),
    ],
)
def test_what_comes_beside_features_is_checked(
    tiny: TinyModels, change: dict[str, Any], reason: str
) -> None:
    cut = Cut(tiny, "bert", "sequence_classification")
    start = replace(cut.start(next(cut.batches())), **change)
    with pytest.raises(WireError) as caught:
        cut.server.read(start, with_labels=True)
    assert caught.value.reason == reason
