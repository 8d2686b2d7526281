"""Layouts of the tiny models, as tests of allocations and prices make them."""

import shlex
from typing import Any

from fl_app.allocation import Allocation, allocate
from fl_app.config import load_config
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.emulator import Split
from fl_app.pricing import LayoutPrices
from fl_app.records import to_blob
from fl_app.schema import LoraConfig
from fl_app.settings import adapter_for
from fl_app.updates import Update
from tests.fixtures_models import DEPTH, LABELS, TinyModels

SPLIT = Split(2, 1, 2, DEPTH)
CASES = [
    ("bert", "sequence_classification"),
    ("gpt2", "causal_lm"),
    ("t5", "causal_lm"),
    ("llama", "sequence_classification"),
    ("vit", "image_classification"),
]


def allocated(
    tiny: TinyModels, *words: str, case: tuple[str, str] = CASES[0], gains: Any = None
) -> tuple[Allocation, Adapter, LayoutPrices]:
    """Returns the layouts of a tiny model with LoRA of rank 4, its adapter, and their prices."""
    plain = ["model=local", "model.path=x", f"model.task={case[1]}", "peft.rank=4"]
    config = load_config(shlex.join([*plain, "model.max_length=16", *words]))
    backbone = tiny.load(*case)
    adapter = adapter_for(config, backbone.model, blocks=range(DEPTH), tuned=SPLIT.outer)
    peft = config.peft
    assert type(peft) is LoraConfig
    shape: dict[str, Any] = {"num_labels": 0 if case[1] == "causal_lm" else len(LABELS)}
    shape["split"] = SPLIT
    made = allocate(config, backbone.model.config, adapter=adapter, gains=gains, **shape)
    shapes = {name: tuple(p.shape) for name, p in adapter.parameters.items()}
    prices = LayoutPrices(config, peft, backbone.model.config, shapes=shapes, **shape)
    adapter.resize(made.server)
    return made, adapter, prices


def sent_bytes(adapter: Update) -> int:
    """Returns the bytes of a serialised adapter."""
    return len(to_blob(adapter))
