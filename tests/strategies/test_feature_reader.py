"""What a device may ask of the server's memory, and whose head may hurt whom."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.errors import WireError
from fl_app.features_wire import ERROR, FEATURES, FeatureWire
from fl_app.fomo.features import Features
from fl_app.fomo.parts import build_trunk_part
from fl_app.fomo.trunk import Trunk
from fl_app.payload import Payload
from strategies.conversation import Conversation
from strategies.exchange import Lost
from strategies.feature_reader import Arrived, FeatureReader
from strategies.label_rule import label_rule
from strategies.round_log import RoundLog
from tests.federation_fixtures import Player, TinyFederation, player, tiny_federation
from tests.fixtures_models import TinyModels, write_checkpoint
from tests.gradient_fixtures import lying, on, play, words_of

__all__ = ["player", "tiny_federation"]

ROWS, LENGTH, NUM_PROMPT = 3, 5, 2


def _read(tiny: TinyModels, readout: torch.Tensor, length: int = LENGTH) -> Arrived:
    """A decoder's features through a reader that takes at most ROWS of LENGTH."""
    model = tiny.load("gpt2", "causal_lm").model
    trunk = Trunk(build_trunk_part(model, "causal_lm", 0))
    wire, rows = FeatureWire("float32"), len(readout)
    reader = FeatureReader(
        trunk,
        wire=wire,
        num_stacks=1,
        num_prompt=NUM_PROMPT,
        max_rows=ROWS,
        max_length=LENGTH,
        labels=label_rule(model, "causal_lm", with_counts=False),
    )
    features = Features(
        hidden=(torch.ones(rows, length, trunk.width),),
        masks=(torch.ones(rows, length, dtype=torch.bool),),
        prompt=torch.ones(NUM_PROMPT, trunk.width),
        readout=readout,
    )
    arrays = wire.features(features, np.random.default_rng(0))
    return reader.read(Payload(FEATURES, 0, {ERROR: 0.0}, arrays), {}, with_labels=False)


def _places(rows: int, length: int = LENGTH) -> torch.Tensor:
    places = torch.ones(rows, NUM_PROMPT + length, dtype=torch.bool)
    places[:, :NUM_PROMPT] = False
    return places


def test_a_decoder_may_read_every_token_and_no_prompt(tiny: TinyModels) -> None:
    places = _places(ROWS)
    assert _read(tiny, places).num_terms == ROWS * LENGTH
    places[1, NUM_PROMPT - 1] = True
    with pytest.raises(WireError, match="reads more states") as caught:
        _read(tiny, places)
    assert caught.value.reason == "wrong-shape"


@pytest.mark.parametrize(("rows", "length"), [(ROWS + 1, LENGTH), (ROWS, LENGTH + 1)])
def test_more_rows_or_tokens_are_refused(tiny: TinyModels, rows: int, length: int) -> None:
    with pytest.raises(WireError, match=r"finetune\.batch_size.*model\.max_length") as caught:
        _read(tiny, _places(rows, length), length)
    assert caught.value.reason == "wrong-shape"


class _Sends:
    """An exchange that answers what it is sent."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.sent: list[int] = []

    def exchange(self, outgoing: Any, deadline_s: float) -> dict[int, bytes | Lost]:
        self.sent += outgoing
        return dict(outgoing)


def test_who_would_be_sent_too_much_is_dropped_alone() -> None:
    booked: list[int] = []
    book = RoundLog()
    exchange: Any = _Sends(10_000)
    talk = Conversation(
        exchange,
        timeout_s=1.0,
        number=1,
        log=book,
        book=lambda _link, device, _what, _size: booked.append(device),
        uplink={},
    )
    sizes = {0: 10, 1: 3000, 2: 20}
    answers = talk.send(
        {d: Payload("states", 0, {}, {"x": np.ones(n, np.float32)}) for d, n in sizes.items()},
        "states",
    )
    assert list(answers) == exchange.sent == [0, 2]
    assert set(booked) == {0, 2}  # nothing crossed for the other
    assert dict(book.dropped) == {"too-large": [1]}


def _burst(payload: Payload) -> Payload:
    """Finite head values whose logits are finite and whose gradient is not."""
    found = dict(payload.arrays)
    for name in found:
        if name.startswith("own|"):
            found[name] = np.zeros_like(found[name])
            if "out_proj.weight" in name:
                found[name] += np.where(np.arange(len(found[name])) == 0, 3e38, -3e38)[:, None]
    return Payload(payload.kind, payload.step, payload.scalars, found)


@pytest.mark.parametrize("shared", ["true", "false"])
def test_a_head_that_overflows_costs_its_own_device(
    player: Player, tmp_path: Path, shared: str
) -> None:
    model = write_checkpoint(tmp_path / "roberta", "roberta", "sequence_classification")
    other = Player(TinyFederation(model, player.tiny.data), tmp_path / "cache")
    words = words_of(
        "prompt",
        "strategy.num_rounds=1",
        "finetune.max_steps=1",
        "strategy.labels=server",
        f"strategy.shared_gradient={shared}",
    )
    played = play(other, *words, spoil=on("begin", lying(_burst), devices=[1]))
    assert played.dropped(1) == {"not-finite": [1]}
    assert played.devices(1) == [0, 2, 3]
