"""A federation in which prompts go from device to device, small but large enough to learn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.trial import Rows, deal
from fl_app.fomo.soft_prompt import PROMPT_NAME
from fl_app.material import load_material
from fl_app.payload import Payload
from fl_app.prompts.advert import Advert, read_advert
from fl_app.prompts.member import Member
from fl_app.prompts.packing import unpack
from fl_app.tasks import Encoded
from fl_app.transfer_wire import bytes_of
from fl_app.updates import Update
from tests.federation_fixtures import Player, TinyFederation, write_rows
from tests.fixtures_models import write_checkpoint
from tests.gradient_fixtures import Exchanged, GradientPlayed, words_of

NUM_DEVICES, PHASE = 8, 2
HELD = 10
"""Probe rows of a device, and as many validation rows: a quarter of its 40."""
LOSS_ROUNDING = 2e-5
"""Losses of one model in two orders of float32 sums: a few hundred sums of numbers near 1, each off
by 2^-24 at most."""
WORDS = (
    "prompt=transfer",
    f"prompt.rounds=[{PHASE}]",
    f"prompt.most={NUM_DEVICES}",
    "prompt.contacts.area_m=50",
    f"federation.num_devices={NUM_DEVICES}",
    "strategy.num_rounds=2",
    "finetune.max_steps=25",
    "finetune.epochs=20",
    "finetune.lr=0.05",
)


@pytest.fixture(scope="module")
def transfer_player(tmp_path_factory: pytest.TempPathFactory) -> Player:
    """Runs federations on 320 rows."""
    root = tmp_path_factory.mktemp("transfer")
    data = root / "data"
    data.mkdir()
    write_rows(data / "train.tsv", 40 * NUM_DEVICES, "train")
    write_rows(data / "test.tsv", 40, "test")
    model: Path = write_checkpoint(root / "bert", "bert", "sequence_classification")
    return Player(TinyFederation(model, data), root / "cache")


def transfer_words(*more: str) -> tuple[str, ...]:
    """Returns overrides; later words win."""
    return words_of("prompt", *WORDS, *more)


@dataclass(frozen=True)
class Seen:
    """What crossed the wire in the round that begins with a transfer phase."""

    played: GradientPlayed

    def of(self, kind: str) -> dict[int, Exchanged]:
        """Exchanges of one kind by device, the first of each."""
        found: dict[int, Exchanged] = {}
        for one in self.played.grid.steps:
            if one.place.kind == kind and one.place.round == PHASE:
                found.setdefault(one.place.device, one)
        return found

    def adverts(self) -> dict[int, Advert]:
        """Adverts by device."""
        return {
            d: read_advert(_octets(one.up[0], "advert")) for d, one in self.of("advertise").items()
        }

    def prompts(self) -> dict[int, Member]:
        """Prompts that were given, by device."""
        return {d: unpack(self.blob(d), max_bytes=10**6) for d in self.of("give")}

    def blob(self, device: int) -> bytes:
        """A prompt as it was sent."""
        return _octets(self.of("give")[device].up[0], "given")

    def adapter(self) -> Update:
        """The adapter that askers were sent."""
        payload = next(iter(self.of("try").values())).down
        return {
            n.removeprefix("adapter|"): a
            for n, a in payload.arrays.items()
            if n.startswith("adapter|")
        }

    @property
    def records(self) -> dict[int, dict[str, Any]]:
        """Records of ``result.json`` by device."""
        result = self.played.outcome.results["transfer"]
        return {record["device"]: record for record in result["devices"]}


def device_rows(played: GradientPlayed, device: int) -> tuple[Encoded, Rows]:
    """Returns a device's prepared rows and how they are dealt."""
    config = played.bench.config
    encoded = played.bench.task.encode(load_material(config).of_device(device))
    dealt = deal(len(encoded), probe=16, validation=16, seed=config.seed, device=device)
    return encoded, dealt


def central_loss(
    played: GradientPlayed, adapter: Update, prompt: Any, encoded: Encoded, rows: Sequence[int]
) -> float:
    """Loss in nats of a prompt behind an adapter's head, on the undivided model."""
    played.bench.full.write({**adapter, PROMPT_NAME: np.array(prompt)})
    batch = played.bench.task.batch(encoded, rows)
    with torch.no_grad():
        return float(played.bench.task.loss(played.bench.full.model, batch))


def _octets(payload: Payload, name: str) -> bytes:
    return bytes_of(payload, name, 10**6)
