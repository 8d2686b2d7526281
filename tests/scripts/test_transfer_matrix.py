"""The transfer matrix on two easy domains and one that contradicts them, on the tiny model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fl_app.prompts.batched import tensors_of
from fl_app.prompts.descriptors import activation_bits
from scripts.transfer_matrix import main, prepared, probe_of, run
from scripts.transfer_measured import DESCRIPTORS, step_bytes, summarise
from scripts.transfer_picture import draw_bars, draw_matrix, matrix_of, show
from scripts.transfer_tuning import Domain, Settings, Workbench
from tests.fixtures_models import TinyModels
from tests.prompt_fixtures import CLASSES, easy_rows

_STEPS = Settings(40, batch_size=12, num_tokens=4, every=10, early=10, lr=0.05, head_lr=0.05)
_NAMES = ("plain", "again", "more", "flipped")


def _bench(tiny: TinyModels, folder: Path) -> tuple[Workbench, list[Domain]]:
    task = tiny.task("bert", CLASSES)
    domains = [
        prepared(
            task,
            name,
            easy_rows(80, seed, flipped=name == "flipped"),
            easy_rows(30, 10 + seed, flipped=name == "flipped"),
            rows=60,
            test_rows=30,
        )
        for seed, name in enumerate(_NAMES)
    ]
    return Workbench(tiny.load("bert", CLASSES), task, folder), domains


@pytest.fixture(scope="module")
def made(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("matrix")
    bench, domains = _bench(tiny, folder)
    return run(bench, domains, _STEPS, [0], console=Console(quiet=True)), folder


def test_like_domains_serve_each_other_and_the_gate_stops_the_other(
    made: tuple[dict[str, Any], Path],
) -> None:
    result, _ = made
    assert len(result["entries"]) == len(_NAMES) * (len(_NAMES) - 1)
    for entry in result["entries"]:
        crosses = (entry["target"] == "flipped") != (entry["source"] == "flipped")
        if crosses:  # what one calls right is wrong for the other
            assert entry["score"] < 0.5 < entry["own_score"]
            assert not entry["passes"]
            assert not entry["is_chosen"] or entry["target"] == "flipped"
        else:
            assert entry["retention"] > 0.8
        assert entry["retention"] == pytest.approx(entry["score"] / entry["own_score"])
    summary = result["summary"]
    assert summary["negative_rate"]["gate_on"] <= summary["negative_rate"]["gate_off"]
    assert summary["negative_rate"]["gate_off"] >= 0.5  # six of twelve cross
    assert summary["spearman"]["probe_loss"] > 0
    assert set(summary["spearman"]) == set(DESCRIPTORS)
    json.dumps(result, allow_nan=False)


def test_a_domain_of_its_own_is_measured_as_the_library_does(
    tiny: TinyModels, made: tuple[dict[str, Any], Path]
) -> None:
    """Nothing is tuned again: files of the first call are found, and give the same figures."""
    result, folder = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len(before) == 2 * len(_NAMES)
    bench, domains = _bench(tiny, folder)
    again = run(bench, domains, _STEPS, [0], console=Console(quiet=True))
    assert again == result
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    start = bench.start(_STEPS, 0)
    tuned = bench.tuned(domains[0], start, _STEPS, 0, "plain")
    assert len(tuned.losses) == 1 + _STEPS.steps // _STEPS.every
    losses, _ = bench.losses([start, tuned.member, tuned.early], domains[0].validation)
    assert losses[0] == pytest.approx(tuned.losses[0], rel=1e-4)
    assert losses[1] == pytest.approx(min(tuned.losses), rel=1e-4)
    assert losses[2] == pytest.approx(tuned.losses[_STEPS.early // _STEPS.every], rel=1e-4)


def test_other_settings_and_damage_are_tuned_again(
    tiny: TinyModels, made: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    bench, domains = _bench(tiny, tmp_path)
    short = Settings(10, batch_size=12, num_tokens=4, every=10, early=10)
    start = bench.start(short, 0)
    first = bench.tuned(domains[0], start, short, 0, "plain")
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert bench.tuned(domains[0], start, short, 0, "plain").losses == first.losses
    assert path.read_bytes() == whole
    other = Settings(10, batch_size=12, num_tokens=4, every=10, early=10, lr=0.5)
    assert bench.tuned(domains[0], start, other, 0, "plain").losses != first.losses


def _entry(target: str, source: str, **fields: Any) -> dict[str, Any]:
    plain = dict.fromkeys(DESCRIPTORS, 0.0) | {
        "seed": 0,
        "target": target,
        "source": source,
        "score": 0.5,
        "retention": 0.5,
        "own_score": 0.8,
        "early_score": 0.6,
        "start_score": 0.4,
        "early_loss": 1.0,
        "loss": 0.5,
        "passes": True,
        "bytes": 10,
        "retraining_bytes": 1000,
        "is_chosen": False,
        "steps_random": None,
        "steps_chosen": None,
    }
    return {**plain, **fields}


def test_the_summary_is_what_can_be_counted_by_hand() -> None:
    entries = [
        _entry("t", "a", mean_cosine=0.1, score=0.6, retention=0.6, bits=3.0, loss=2.0),
        _entry("t", "b", mean_cosine=0.2, score=0.7, retention=0.7, bits=2.0, loss=0.9),
        _entry(
            "t", "c", mean_cosine=0.3, score=0.8, retention=0.8, bits=1.0, passes=False, loss=3.0,
            is_chosen=True, steps_random=40, steps_chosen=10,
        ),
    ]  # fmt: skip
    summary = summarise(entries)
    assert summary["spearman"]["mean_cosine"] == pytest.approx(1.0)
    assert summary["spearman"]["bits"] == pytest.approx(-1.0)
    assert summary["spearman"]["euclid"] is None  # all alike
    assert summary["negative_rate"] == {"gate_off": 2 / 3, "gate_on": 1 / 2}
    assert summary["let_in"] == pytest.approx(2 / 3)
    assert summary["retention"] == pytest.approx(
        {"mean": 0.7, "best_on_test_rows": 0.8, "chosen": 0.8, "untuned": 0.5}
    )
    assert summary["accuracy"] == pytest.approx(
        {"untuned": 0.4, "early": 0.6, "chosen": 0.8, "own": 0.8}
    )
    assert summary["steps"]["saved"] == 30
    assert summary["bytes"] == {"transfer": 10, "retraining": 1000}


def test_targets_that_never_reach_the_level_are_counted() -> None:
    """Five targets; medians of the whole set, those that never arrive behind all others."""

    def chosen(*steps: int | None) -> dict[str, Any]:
        return summarise(
            [
                _entry(f"t{i}", "a", is_chosen=True, steps_random=100, steps_chosen=n)
                for i, n in enumerate(steps)
            ]
        )["steps"]

    some = {"targets": 5, "censored": 2, "random": 100, "chosen": 90, "saved": 10}
    assert chosen(20, None, 90, 40, None) == some  # of the three that arrive it would be 40
    most = {"targets": 5, "censored": 3, "random": 100, "chosen": None, "saved": None}
    assert chosen(20, None, None, 40, None) == most


def test_descriptors_compare_what_a_requester_has(
    tiny: TinyModels, made: tuple[dict[str, Any], Path]
) -> None:
    """Its early prompt with the source's finished one, by the formulas, from the kept files."""
    result, folder = made
    bench, domains = _bench(tiny, folder)
    start = bench.start(_STEPS, 0)
    own = {d.name: bench.tuned(d, start, _STEPS, 0, d.name) for d in domains}
    assert any(t.early.content_hash != t.member.content_hash for t in own.values())
    for entry in result["entries"]:
        mine = own[entry["target"]].early.prompt.astype(float)
        theirs = own[entry["source"]].member.prompt.astype(float)
        gap = np.sqrt(((mine - theirs) ** 2).sum())
        assert entry["euclid"] == pytest.approx(1 / (1 + gap))
        a, b = mine.ravel(), theirs.ravel()
        assert entry["flat_cosine"] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    target, source = (own[name] for name in ("plain", "again"))
    texts = bench.task.batch(probe_of(domains), range(16))
    bits = activation_bits(
        bench.model, [tensors_of(m) for m in (target.early, source.member)], texts
    )
    both = (bits[0] & bits[1]).sum() / np.sqrt(float(bits[0].sum()) * bits[1].sum())
    entry = next(e for e in result["entries"] if (e["target"], e["source"]) == ("plain", "again"))
    assert entry["bits"] == pytest.approx(both)


def test_bytes_of_a_step_add_up() -> None:
    """Two texts of 3 and 5 tokens, a prompt of 4, width 6: counted one by one."""
    up = 4 * (8 * 6) + 8 + 4 * (4 * 6) + 4 * (2 * 6)
    down = 4 * (2 * 6) + 4 * (4 * 6)
    assert step_bytes(8, Settings(1, batch_size=2, num_tokens=4), 6) == up + down


def test_pictures_and_table(
    made: tuple[dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = made
    draw_matrix(result, tmp_path / "matrix.png")
    draw_bars(result, tmp_path / "bars.png")
    for name in ("matrix", "bars"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    show(result)
    told = capsys.readouterr().out
    for words in ("used on", "untuned", "best source", "gate_on", "censored", "retraining"):
        assert words in told
    scores = matrix_of(result)
    for entry in result["entries"]:
        place = _NAMES.index(entry["source"]), _NAMES.index(entry["target"])
        assert scores[place] == pytest.approx(entry["score"])
    assert not np.isnan(scores).any()


def test_without_assets_nothing_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--assets", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 0
    assert "set DEFT_ASSETS" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--every 0", "--every must divide"),
        ("--every 30 --steps 200", "--every must divide"),
        ("--early 400 --steps 200", "--early be at most --steps"),
        ("--domains sst2", "two or more"),
        ("--domains sst2 music sst2", "each once"),
    ],
)
def test_options_that_measure_nothing_are_named(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words.split())
    assert says in capsys.readouterr().err
