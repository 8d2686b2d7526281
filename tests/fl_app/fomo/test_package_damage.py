"""A damaged or strange emulator blob is refused with a typed error, whatever is wrong with it."""

import json
from typing import Any

import pytest

from fl_app.errors import ModelError
from fl_app.fomo.compress import Compression
from fl_app.fomo.emulator import Split
from fl_app.fomo.package import pack, unpack
from fl_app.seeding import generator
from tests.fixtures_models import DEPTH, TinyModels, tiny_package


def _blob(tiny: TinyModels, how: Compression) -> bytes:
    split = Split(1, 2, 1, DEPTH)
    return pack(tiny_package(tiny, "bert", "sequence_classification", split), how)


def _header_of(blob: bytes) -> dict[str, Any]:
    outer = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    header: dict[str, Any] = json.loads(outer["__metadata__"]["deft"])
    return header


def _with_header(blob: bytes, header: dict[str, Any]) -> bytes:
    end = 8 + int.from_bytes(blob[:8], "little")
    outer = json.loads(blob[8:end])
    outer["__metadata__"]["deft"] = json.dumps(header)
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + blob[end:]


def test_truncated_blob(tiny: TinyModels) -> None:
    """Cut anywhere: in the length, the header or the tensors."""
    blob = _blob(tiny, Compression(bits=4))
    header_end = 8 + int.from_bytes(blob[:8], "little")
    for end in (0, 1, 7, 8, 9, header_end - 1, header_end, header_end + 1, len(blob) - 1):
        with pytest.raises(ModelError, match="blob is damaged"):
            unpack(blob[:end])
    with pytest.raises(ModelError, match="blob is damaged"):
        unpack(blob + b"\0")


def test_flipped_header_bytes_never_escape_as_another_error(tiny: TinyModels) -> None:
    """Every 149th byte in turn: a typed error, or a change so small that it is another emulator.

    The latter (a letter of a label, say) is what the content hash is there to notice.
    """
    blob = _blob(tiny, Compression(bits=4))
    header_end = 8 + int.from_bytes(blob[:8], "little")
    refused = 0
    positions = range(0, header_end, 149)
    for position in positions:
        broken = bytearray(blob)
        broken[position] ^= 0x04
        try:
            unpack(bytes(broken))
        except ModelError:
            refused += 1
    assert refused > len(positions) / 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "deft-emulator/9"),
        ("config", []),
        ("config", {}),
        ("config", {"model_type": "no-such-model"}),
        ("config", {"model_type": "bert", "num_attention_heads": 0}),
        ("split", [1, 2]),
        ("split", [1, 9, 1, 5]),
        ("split", None),
        ("compression", [0.0, 99]),
        ("compression", [0.5, 4]),
        ("packed", {}),
        ("packed", []),
        ("labels", 3),
        ("task", "sequence_generation"),
        ("task", "causal_lm"),
    ],
)
def test_wrong_header_field(tiny: TinyModels, field: str, value: Any) -> None:
    """Each is refused with a typed error; a missing one too."""
    blob = _blob(tiny, Compression(bits=4))
    header = _header_of(blob)
    unpack(_with_header(blob, header))
    with pytest.raises(ModelError):
        unpack(_with_header(blob, {**header, field: value}))
    del header[field]
    with pytest.raises(ModelError, match="blob is damaged"):
        unpack(_with_header(blob, header))


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 32), ("num_hidden_layers", 3), ("vocab_size", 7)]
)
def test_configuration_that_does_not_fit_the_weights(
    tiny: TinyModels, field: str, value: int
) -> None:
    """Shapes and names are compared before anything runs."""
    blob = _blob(tiny, Compression())
    header = _header_of(blob)
    assert header["config"][field] != value
    header["config"][field] = value
    with pytest.raises(ModelError):
        unpack(_with_header(blob, header))


def test_noise_is_no_emulator() -> None:
    """Random bytes, and no bytes."""
    noise = generator(0, "noise").bytes(1000)
    for blob in (b"", noise, (900).to_bytes(8, "little") + noise):
        with pytest.raises(ModelError, match="blob is damaged"):
            unpack(blob)
