"""The same job by all three ways in: Ray simulation, SuperLink with SuperNodes, in process.

Real Flower processes, a tiny model; what is compared is the hash of the adapter's bytes.
"""

import json
import shlex
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

from fl_app.result import read_result
from scripts.deploy_loopback import LoopbackFlower
from scripts.flower import ROOT, LocalFlower
from scripts.simulate import simulate
from tests.federation_fixtures import TinyFederation

pytestmark = pytest.mark.e2e

_DEVICES = 3
_TIMEOUT_S = 300.0


@pytest.fixture
def words(tiny_federation: TinyFederation) -> list[str]:
    text = tiny_federation.overrides(f"federation.num_devices={_DEVICES}", "seed=7")
    return shlex.split(text)


@pytest.fixture
def gradient_words(tiny_federation: TinyFederation) -> list[str]:
    """Gradient download with its default: a prompt, private labels; two rounds of two steps."""
    text = tiny_federation.overrides(
        "strategy=gradient_download",
        "peft=prompt",
        "peft.num_tokens=3",
        "finetune.max_steps=2",
        f"federation.num_devices={_DEVICES}",
        "seed=7",
    )
    return shlex.split(text)


def _in_process(words: list[str], folder: Path) -> str:
    assert simulate(shlex.join([*words, f"output.dir={folder}"])) == 0
    sha = read_result(folder).adapter_sha256
    assert sha is not None
    return sha


@pytest.fixture
def in_process(words: list[str], tmp_path: Path) -> str:
    return _in_process(words, tmp_path / "in-process")


@pytest.fixture
def gradient_in_process(gradient_words: list[str], tmp_path: Path) -> str:
    return _in_process(gradient_words, tmp_path / "gradient-in-process")


def test_flwr_run_twice_equals_the_in_process_grid(
    words: list[str],
    in_process: str,
    gradient_words: list[str],
    gradient_in_process: str,
    tmp_path: Path,
) -> None:
    schema = json.loads((ROOT / "docs" / "result.schema.json").read_text())
    results = []
    with LocalFlower(num_supernodes=2) as flower:
        for name in ("first", "second"):
            outcome = flower.run(words, output_dir=tmp_path / name, timeout_s=_TIMEOUT_S)
            assert outcome.verdict == "ok", outcome.reason
            jsonschema.validate(outcome.result, schema)
            results.append(outcome.result)
        gradient = flower.run(
            gradient_words, output_dir=tmp_path / "gradient", timeout_s=_TIMEOUT_S
        )
        air = flower.run(
            [*words, "channel=aircomp", "channel.tx_snr_db=inf"],
            output_dir=tmp_path / "air",
            timeout_s=_TIMEOUT_S,
        )
        broken = flower.run(
            [*words, "peft.rnk=3"], output_dir=tmp_path / "broken", timeout_s=_TIMEOUT_S
        )
    first, second = results
    assert first["adapter_sha256"] == second["adapter_sha256"] == in_process
    assert first["final"] == second["final"]
    assert first["ledger"] == second["ledger"]
    assert first["rounds"][-1]["devices"] == list(range(_DEVICES))
    assert gradient.verdict == "ok", gradient.reason
    assert gradient.result is not None
    jsonschema.validate(gradient.result, schema)
    assert gradient.result["adapter_sha256"] == gradient_in_process
    assert air.verdict == "ok", air.reason
    _assert_same_adapter(tmp_path / "first", tmp_path / "air")
    assert air.result["ledger"]["channel_uses"] > 0
    assert broken.verdict == "failed"
    assert "peft.rnk" in str(broken.reason)
    assert "rank" in str(broken.reason)


def _assert_same_adapter(ideal: Path, air: Path) -> None:
    """A sum in the air without noise is the mean, to 1e-6 of every tensor's norm."""
    wanted, given = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (ideal, air))
    assert wanted.keys() == given.keys()
    for name, tensor in wanted.items():
        assert np.linalg.norm(given[name] - tensor) <= 1e-6 * np.linalg.norm(tensor), name


def test_three_supernodes_on_loopback_equal_the_in_process_grid(
    words: list[str],
    in_process: str,
    gradient_words: list[str],
    gradient_in_process: str,
    tmp_path: Path,
) -> None:
    """Gradient download goes over streams there: ``strategy.transport=auto`` chooses them."""
    with LoopbackFlower(num_nodes=_DEVICES) as flower:
        outcome = flower.run(
            [*words, "federation=edge"], output_dir=tmp_path / "edge", timeout_s=_TIMEOUT_S
        )
        gradient = flower.run(
            [*gradient_words, "federation=edge"],
            output_dir=tmp_path / "gradient-edge",
            timeout_s=_TIMEOUT_S,
        )
    assert outcome.verdict == "ok", outcome.reason
    assert outcome.result is not None
    assert outcome.result["adapter_sha256"] == in_process
    assert outcome.result["rounds"][-1]["devices"] == list(range(_DEVICES))
    assert gradient.verdict == "ok", gradient.reason
    assert gradient.result is not None
    assert gradient.result["adapter_sha256"] == gradient_in_process
    for record in gradient.result["rounds"][1:]:
        assert (record["devices"], record["dropped"]) == (list(range(_DEVICES)), {})
