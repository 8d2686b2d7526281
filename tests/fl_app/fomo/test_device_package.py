"""The device part on the wire: exactness, size, secrecy, damage."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.blob import content_hash
from fl_app.fomo.blocks import block_of, stack_paths
from fl_app.fomo.compress import Compression
from fl_app.fomo.device_package import DevicePackage, pack_device_part, unpack_device_part
from fl_app.fomo.emulator import Split
from fl_app.fomo.front import Front
from fl_app.fomo.head import Head
from fl_app.fomo.package import pack
from fl_app.fomo.parts import build_device_part
from fl_app.seeding import generator
from tests.fixtures_models import CASES, DEPTH, TinyModels, state_bytes, tiny_package

_CLASSES = "sequence_classification"


def _package(tiny: TinyModels, family: str, task: str, cut: int) -> DevicePackage:
    backbone = tiny.load(family, task)
    part = build_device_part(backbone.model, task, cut)
    return DevicePackage(part, backbone.labels, backbone.files, (0.5, 0.3, 0.2), "ab" * 32)


@pytest.mark.parametrize(("family", "task"), CASES)
@pytest.mark.parametrize("cut", [0, 2])
def test_device_part_of_every_family_survives_the_wire(
    tiny: TinyModels, family: str, task: str, cut: int
) -> None:
    """float32 is exact, weights and features; and packing again gives the same bytes."""
    package = _package(tiny, family, task, cut)
    blob = pack_device_part(package, "float32")
    received = unpack_device_part(blob)
    assert state_bytes(received.part.model) == state_bytes(package.part.model)
    assert (received.part.cut, received.part.task) == (cut, task)
    assert (received.labels, received.files) == (package.labels, package.files)
    assert (received.class_shares, received.data_digest) == ((0.5, 0.3, 0.2), "ab" * 32)
    assert not any(p.requires_grad for p in received.part.model.parameters())
    assert not any(module.training for module in received.part.model.modules())
    batch, loss = tiny.batch(family, task, 3), tiny.task(family, task).loss
    here, there = (
        Front(one.part, Head(one.part)).features(batch, loss) for one in (package, received)
    )
    for one, two in zip(here.hidden, there.hidden, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(here.readout, there.readout)
    assert pack_device_part(received, "float32") == blob
    assert content_hash(pack_device_part(_package(tiny, family, task, cut), "float32")) == (
        content_hash(blob)
    )


def test_half_precision_rounds_to_the_nearest(tiny: TinyModels) -> None:
    package = _package(tiny, "bert", _CLASSES, 1)
    state = package.part.model.state_dict()
    before = state_bytes(package.part.model)
    blob = pack_device_part(package)
    received = unpack_device_part(blob).part.model.state_dict()
    assert all(torch.equal(received[name], state[name].half().float()) for name in state)
    assert state_bytes(package.part.model) == before
    data = len(blob) - 8 - int.from_bytes(blob[:8], "little")
    assert data == 2 * sum(p.numel() for p in package.part.model.parameters())


def _rows(array: np.ndarray[Any, Any]) -> Iterator[bytes]:
    for row in array.reshape(-1, array.shape[-1]):
        yield row.tobytes()
        yield row.astype(np.float16).tobytes()


@pytest.mark.parametrize(
    ("family", "task"), [("bert", _CLASSES), ("t5", "causal_lm"), ("vit", "image_classification")]
)
@pytest.mark.parametrize("wire_dtype", ["float16", "float32"])
def test_no_weight_behind_the_cut_is_in_the_blob(
    tiny: TinyModels, family: str, task: str, wire_dtype: str
) -> None:
    """No row of any trunk weight in either precision; the same search finds the front's rows."""
    cut = 1
    blob = pack_device_part(_package(tiny, family, task, cut), wire_dtype)
    full = tiny.load(family, task).model
    stacks = stack_paths(full)
    found = searched = 0
    for name, parameter in full.named_parameters():
        place = block_of(name, stacks)
        # a table of position biases has rows of two numbers: too short to search for
        if place is None or parameter.shape[-1] < 8:
            continue
        present = sum(row in blob for row in _rows(parameter.detach().numpy()))
        if place[0] == stacks[0] and place[1] < cut:
            found += present
        else:
            searched += 1
            assert present == 0, name
    assert found > 30
    assert searched > 20


def _with(blob: bytes, field: str, value: Any) -> bytes:
    end = 8 + int.from_bytes(blob[:8], "little")
    outer = json.loads(blob[8:end])
    header = json.loads(outer["__metadata__"]["deft"])
    outer["__metadata__"]["deft"] = json.dumps(header | {field: value})
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + blob[end:]


def test_damage_is_a_typed_error(tiny: TinyModels) -> None:
    """Cut off, noise, an emulator, or a header that does not fit."""
    blob = pack_device_part(_package(tiny, "bert", _CLASSES, 1))
    header_end = 8 + int.from_bytes(blob[:8], "little")
    noise = generator(0, "noise").bytes(500)
    for broken in (b"", noise, blob + b"\0", *(blob[:end] for end in (7, 9, header_end, -1))):
        with pytest.raises(ModelError, match="device part's blob is damaged"):
            unpack_device_part(broken)
    emulator = tiny_package(tiny, "bert", _CLASSES, Split(1, 2, 1, DEPTH))
    with pytest.raises(ModelError, match="unknown device part format 'deft-emulator/1'"):
        unpack_device_part(pack(emulator, Compression()))
    unpack_device_part(_with(blob, "data_digest", "cd"))
    for field, value in [
        ("config", {}),
        ("cut", 2),
        ("task", "causal_lm"),
        ("task", "none"),
        ("labels", 3),
        ("format", "deft-device-part/9"),
    ]:
        with pytest.raises(ModelError):
            unpack_device_part(_with(blob, field, value))


def test_precision_is_checked(tiny: TinyModels) -> None:
    """Unknown names, and weights beyond half precision, with the remedy; the remedy works."""
    package = _package(tiny, "bert", _CLASSES, 0)
    with pytest.raises(ModelError, match=r"strategy.wire_dtype='int8'; choose one of"):
        pack_device_part(package, "int8")
    with torch.no_grad():
        package.part.model.classifier.weight[0, 0] = 70_000.0
    with pytest.raises(ModelError, match=r"set strategy.wire_dtype=float32"):
        pack_device_part(package)
    received = unpack_device_part(pack_device_part(package, "float32")).part.model
    assert float(received.classifier.weight[0, 0]) == 70_000.0
