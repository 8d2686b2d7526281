"""The emulator on the wire: exactness, size, secrecy."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.blocks import block_of, stack_paths
from fl_app.fomo.compress import Compression
from fl_app.fomo.emulator import Split, middle_parameters
from fl_app.fomo.package import EmulatorPackage, content_hash, pack, unpack
from tests.fixtures_models import (
    CASES,
    DEPTH,
    TinyModels,
    logits_of,
    state_bytes,
    task_of,
    tiny_examples,
    tiny_package,
)
from tests.oracles import compression as oracle

_SPLIT = Split(1, 2, 1, DEPTH)
_CLASSES = "sequence_classification"


def _package(
    tiny: TinyModels, family: str = "bert", task: str = _CLASSES, split: Split = _SPLIT
) -> EmulatorPackage:
    return tiny_package(tiny, family, task, split)


def _data_bytes(blob: bytes) -> int:
    """Bytes of the tensors alone (a safetensors file is: header length, header, tensors)."""
    return len(blob) - 8 - int.from_bytes(blob[:8], "little")


@pytest.mark.parametrize(("family", "task"), CASES)
def test_compressed_emulator_of_every_family_survives_the_wire(
    tiny: TinyModels, family: str, task: str
) -> None:
    """The middle's matrices have at most 2^bits values and the stated zeros; the rest is exact."""
    package = _package(tiny, family, task)
    how = Compression(sparsity=0.25, bits=3)
    received = unpack(pack(package, how, "float32"))
    assert (received.split, received.task) == (package.split, package.task)
    assert (received.labels, received.files) == (package.labels, package.files)
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in received.model.parameters())
    assert not any(module.training for module in received.model.modules())
    assert torch.isfinite(logits_of(received.model, tiny.batch(family, task, 3))).all()
    middle = middle_parameters(received.model, _SPLIT)
    matrices = 0
    for name, parameter in package.model.named_parameters():
        back = dict(received.model.named_parameters())[name]
        if name in middle and parameter.ndim == 2:
            matrices += 1
            zeros = back == 0
            assert int(zeros.sum()) == parameter.numel() // 4  # a drawn weight is never 0
            assert len(torch.unique(back[~zeros])) <= 2**3
            kept = parameter.detach()[~zeros]
            step = float(kept.max() - kept.min()) / 7
            assert float((back[~zeros] - kept).abs().max()) <= step / 2 + 1e-6
        else:
            assert torch.equal(back, parameter)
    assert matrices >= 8


@pytest.mark.parametrize(
    ("family", "task"), [("bert", _CLASSES), ("gpt2", "causal_lm"), ("t5", "causal_lm")]
)
@pytest.mark.parametrize(("sparsity", "bits"), [(0.0, 4), (0.5, None), (0.25, 7), (0.0, 16)])
def test_payload_has_the_closed_form_size(
    tiny: TinyModels, family: str, task: str, sparsity: float, bits: int | None
) -> None:
    """Two bytes for each exact weight, packed bytes for each matrix of the middle, no more."""
    package = _package(tiny, family, task)
    middle = middle_parameters(package.model, _SPLIT)
    expected = 0
    for name, parameter in package.model.named_parameters():  # lists a shared weight once
        if name in middle and parameter.ndim == 2:
            expected += oracle.packed_size(parameter.numel(), sparsity, bits, 2)
        else:
            expected += 2 * parameter.numel()
    blob = pack(package, Compression(sparsity=sparsity, bits=bits), "float16")
    assert _data_bytes(blob) == expected


def test_four_bits_save_what_they_promise(tiny: TinyModels) -> None:
    """Against half precision, each matrix of the middle shrinks from 2 to 1/2 byte an entry."""
    package = _package(tiny)
    sizes = [p.numel() for p in middle_parameters(package.model, _SPLIT).values() if p.ndim == 2]
    whole = pack(package, Compression(), "float16")
    small = pack(package, Compression(bits=4), "float16")
    assert _data_bytes(whole) - _data_bytes(small) == sum(2 * n - n // 2 - 8 for n in sizes)
    assert len(small) < len(whole)


def test_half_precision_rounds_to_the_nearest(tiny: TinyModels) -> None:
    """``auto`` rounds as soon as a block is dropped; ``float32`` does not."""
    package = _package(tiny)
    state = package.model.state_dict()
    for wire_dtype in ("auto", "float16"):
        received = unpack(pack(package, Compression(), wire_dtype)).model.state_dict()
        assert all(torch.equal(received[name], state[name].half().float()) for name in state)
    exact = unpack(pack(package, Compression(), "float32")).model
    assert state_bytes(exact) == state_bytes(package.model)


def test_exact_weights_are_stored_in_half_precision_where_that_loses_nothing(
    tiny: TinyModels,
) -> None:
    """A checkpoint published in half precision costs two bytes a weight, exactly."""
    package = _package(tiny)
    package.model.half().float()
    blob = pack(package, Compression(), "float32")
    assert _data_bytes(blob) == 2 * sum(p.numel() for p in package.model.parameters())
    assert state_bytes(unpack(blob).model) == state_bytes(package.model)


@pytest.mark.parametrize("how", [Compression(), Compression(bits=4), Compression(sparsity=0.5)])
def test_content_hash_is_stable(tiny: TinyModels, how: Compression) -> None:
    """Two packs of two separately loaded models: the same bytes, and so the same name."""
    one, two = (pack(_package(tiny, "t5", "causal_lm"), how) for _ in range(2))
    assert one == two
    assert content_hash(one) == content_hash(two)


def test_packing_what_was_unpacked_gives_the_same_bytes(tiny: TinyModels) -> None:
    """Nothing but the listed parts is in a blob, and nothing is lost on the way."""
    blob = pack(_package(tiny, "t5", "causal_lm"), Compression())
    assert pack(unpack(blob), Compression()) == blob


def test_content_hash_sees_one_changed_bit(tiny: TinyModels) -> None:
    """It is SHA-256 of the bytes."""
    blob = bytearray(pack(_package(tiny), Compression(bits=4)))
    name = content_hash(bytes(blob))
    blob[-1] ^= 1
    assert content_hash(bytes(blob)) != name
    assert content_hash(b"abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


def test_packing_does_not_change_the_emulator(tiny: TinyModels) -> None:
    """The server goes on with its own, exact one."""
    package = _package(tiny)
    before = state_bytes(package.model)
    pack(package, Compression(sparsity=0.5, bits=2), "float16")
    assert state_bytes(package.model) == before


def _rows(array: np.ndarray[Any, Any]) -> Iterator[bytes]:
    """Rows of 16 weights or more as they would stand in a blob, in both precisions."""
    for row in array.reshape(-1, array.shape[-1]):
        yield row.tobytes()
        yield row.astype(np.float16).tobytes()


@pytest.mark.parametrize("how", [Compression(bits=4), Compression(sparsity=0.5, bits=8)])
@pytest.mark.parametrize(("family", "task"), [("bert", _CLASSES), ("opt", "causal_lm")])
@pytest.mark.parametrize("wire_dtype", ["float32", "float16"])
def test_no_middle_weight_of_the_full_model_is_in_the_blob(
    tiny: TinyModels, family: str, task: str, how: Compression, wire_dtype: str
) -> None:
    """No row of any middle matrix, in either precision; of dropped blocks no vector either.

    The rows of the outer blocks are found by the same search, so it can find what is there.
    """
    package = _package(tiny, family, task)
    blob = pack(package, how, wire_dtype)
    full = tiny.load(family, task).model
    stacks = stack_paths(full)
    searched = found = 0
    for name, parameter in full.named_parameters():
        place = block_of(name, stacks)
        array = parameter.detach().numpy()
        if place is None or (array.ndim < 2 and place[1] in _SPLIT.blocks):
            continue
        present = sum(row in blob for row in _rows(array))
        if place[1] in _SPLIT.outer:
            found += present
        else:
            searched += 1
            assert present == 0, name
    assert searched > 0
    assert found > 100


def test_dropped_blocks_are_not_sent_without_compression_either(tiny: TinyModels) -> None:
    """Layer-drop alone."""
    blob = pack(_package(tiny), Compression(), "float32")
    full = tiny.load("bert", _CLASSES).model
    dropped = set(range(DEPTH)) - set(_SPLIT.blocks)
    for name, parameter in full.named_parameters():
        place = block_of(name, stack_paths(full))
        if place is not None and place[1] in dropped:
            assert not any(row in blob for row in _rows(parameter.detach().numpy()))


def test_blob_does_not_say_where_the_server_keeps_its_model(tiny: TinyModels) -> None:
    """Paths of the server are none of the devices' business, nor should they change the hash."""
    blob = pack(_package(tiny), Compression())
    assert str(tiny.path("bert", _CLASSES)).encode() not in blob


def test_unknown_wire_dtype(tiny: TinyModels) -> None:
    """The text lists the choices."""
    with pytest.raises(ModelError, match=r"wire_dtype='int8'; choose one of \['auto', 'float16'"):
        pack(_package(tiny), Compression(), "int8")


def test_weight_beyond_half_precision_is_an_error_not_an_infinity(tiny: TinyModels) -> None:
    """With the remedy; and the remedy works."""
    package = _package(tiny)
    with torch.no_grad():
        package.model.classifier.weight[0, 0] = 70_000.0
    with pytest.raises(ModelError, match=r"overflows half precision; set .*wire_dtype=float32"):
        pack(package, Compression(), "auto")
    received = unpack(pack(package, Compression(), "float32")).model
    assert float(received.classifier.weight[0, 0]) == 70_000.0


def test_facts_about_the_data_travel_with_the_emulator(tiny: TinyModels) -> None:
    facts = {"class_shares": (0.7, 0.1, 0.2), "data_digest": "ab" * 32}
    package = dataclasses.replace(_package(tiny), **facts)  # type: ignore[arg-type]
    received = unpack(pack(package, Compression()))
    assert (received.class_shares, received.data_digest) == tuple(facts.values())
    assert pack(_package(tiny), Compression()) != pack(package, Compression())


def test_device_prepares_inputs_from_the_package_alone(tiny: TinyModels) -> None:
    """Tokenizer files travel too: the same ids as at the server."""
    package = _package(tiny)
    received = unpack(pack(package, Compression(bits=8)))
    backbone = tiny.load("bert", _CLASSES)
    backbone_there = type(backbone)(
        received.model, received.task, received.labels, received.files, random_head=False
    )
    rows = tiny_examples(6)
    here, there = task_of(backbone).encode(rows), task_of(backbone_there).encode(rows)
    assert (here.rows, here.targets) == (there.rows, there.targets)
