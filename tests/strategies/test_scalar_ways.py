"""Language models by scalars, and scalars over a stream."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from fl_app.bench import prepare
from fl_app.client_app import app
from fl_app.config import load_config
from fl_app.job import adapter_sha256, federate
from fl_app.local_grid import ThreadedGrid
from fl_app.scalar_wire import SIDES
from tests.federation_fixtures import (
    NUM_DEVICES,
    Player,
    TinyFederation,
    player,
    tiny_federation,
)
from tests.fixtures_models import write_checkpoint
from tests.scalar_fixtures import LABELS, SCALAR, tune

__all__ = ["player", "tiny_federation"]

_LANGUAGE = (
    "model.task=causal_lm",
    "data.prompt_column=null",
    "data.completion_column=text",
    "strategy.num_rounds=2",
)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def language(
    request: pytest.FixtureRequest, player: Player, tmp_path_factory: pytest.TempPathFactory
) -> Player:
    folder: Path = tmp_path_factory.mktemp(request.param)
    model = write_checkpoint(folder / "model", request.param, "causal_lm")
    return Player(TinyFederation(model, player.tiny.data), folder / "cache")


def test_a_language_model_is_tuned_wherever_its_labels_are(language: Player) -> None:
    """Its head is frozen, so with private labels states go down, 8 d bytes each."""
    private, server = (tune(language, *_LANGUAGE, f"strategy.labels={w}") for w in LABELS)
    assert private.devices(2) == server.devices(2) == list(range(NUM_DEVICES))
    assert adapter_sha256(private.outcome.adapter) == adapter_sha256(server.outcome.adapter)
    moved = [np.abs(a - private.start[n]).max() for n, a in private.outcome.adapter.items()]
    assert min(moved) > 0
    sides = next(c.down for c in private.of(2, 0) if c.down.kind == SIDES)
    num_read = int(sides.arrays["readout"].sum())
    assert num_read > 0
    assert sides.arrays["side|plus"].shape == sides.arrays["side|minus"].shape == (num_read, 16)


def test_a_stream_gives_the_same_bits(player: Player) -> None:
    overrides = player.tiny.overrides(*SCALAR, "strategy.transport=stream")
    bench = prepare(load_config(overrides))
    grid = ThreadedGrid(
        app, num_nodes=NUM_DEVICES, run_config={"overrides": overrides, "reference": ""}
    )
    with grid, patch.multiple("strategies.roster", _SETTLE_S=0.02, _POLL_S=0.01):
        outcome = federate(grid, bench, measure_rounds=False)
    assert [len(record.devices) for record in outcome.rounds[1:]] == [NUM_DEVICES] * 2
    messages = tune(player).outcome
    assert adapter_sha256(outcome.adapter) == adapter_sha256(messages.adapter)
    for link in ("uplink", "downlink"):
        # the header says seconds, with as many digits as they have
        sizes = [one.ledger.total_bytes(round=2, link=link) for one in (outcome, messages)]  # type: ignore[arg-type]
        assert abs(sizes[0] - sizes[1]) < NUM_DEVICES * 24


def test_coded_features_say_what_they_lose_once(player: Player) -> None:
    """Every number is off by 2^-11 of itself at most, so all together are."""
    exact, coded = (tune(player, f"strategy.features={how}") for how in ("float32", "float16"))
    errors = [one.outcome.rounds[1].metrics["feature_error"] for one in (exact, coded)]
    assert errors[0] == 0.0
    assert errors[1] is not None
    assert 0 < errors[1] <= 2**-11
    assert "feature_error" not in coded.outcome.rounds[2].metrics  # nothing was sent in it
