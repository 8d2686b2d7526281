"""The bench of the server's steps runs on a tiny model, and its figures hang together."""

import json
from pathlib import Path

import pytest

from fl_app.fomo.features import Features
from scripts.bench_gradient import Load, features_of, main, run_step, trunk_of
from tests.fixtures_models import write_checkpoint

WORDS = "--devices 3 --batch 2 --shortest 4 --longest 9 --repeats 1 --threads 1".split()


@pytest.mark.parametrize("variant", ["prompt", "cut", "lora"])
def test_bench_prints_ratio_and_memory(
    variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small, so times mean nothing here."""
    model = write_checkpoint(
        tmp_path / "bert", "bert", "sequence_classification", max_position_embeddings=64
    )
    target = tmp_path / "bench.json"
    in_flight = ["2"] if variant == "prompt" else []  # a fresh process takes seconds
    words = [*WORDS, "--model", str(model), "--variant", variant, "--json", str(target)]
    main([*words, "--in-flight", *in_flight])
    figures = json.loads(target.read_text(encoding="utf-8"))
    quotient = figures["one_by_one_s_threads1"] / figures["batched_s_threads1"]
    assert figures["ratio_threads1"] == pytest.approx(quotient)
    assert figures["batched_cpu_s_threads1"] > 0
    assert [name for name in figures if "peak" in name] == [
        f"peak_bytes_in_flight{number}" for number in in_flight
    ]
    assert all(figures[name] >= 0 for name in figures)
    assert "ratio_threads1" in capsys.readouterr().out


def test_features_are_of_the_lengths_asked_for_and_every_device_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_checkpoint(tmp_path / "gpt2", "gpt2", "causal_lm")
    load = Load(str(model), "causal_lm", "cut", 3, 2, 4, 8)
    trunk = trunk_of(load)
    features = features_of(load, trunk.width)
    assert [one.masks[0].shape[1] for one in features] == [4, 6, 8]
    assert all(int(one.masks[0].sum(1).max()) == one.masks[0].shape[1] for one in features)
    sizes = []
    forward = trunk.forward

    def counting(some: list[Features], want: tuple[str, ...]) -> object:
        sizes.append(len(some))
        return forward(some, want=want)

    monkeypatch.setattr(trunk, "forward", counting)
    run_step(trunk, features, "hidden", 2)
    assert sizes == [2, 1]
