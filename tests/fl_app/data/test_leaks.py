"""The leak check against brute force, and its script."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.data.leaks import find_leaks, fold
from fl_app.errors import ConfigError
from scripts.check_leaks import main

SENTENCES = st.lists(st.lists(st.sampled_from("abcde!"), max_size=5).map(" ".join), max_size=6)


@settings(derandomize=True, max_examples=100)
@given(train=SENTENCES, test=SENTENCES, threshold=st.sampled_from([0.2, 0.5, 0.6, 1.0]))
def test_same_pairs_as_comparing_all(train: list[str], test: list[str], threshold: float) -> None:
    """The word index finds exactly the pairs a double loop finds."""
    expected = []
    for (row, probe), (other, known) in itertools.product(enumerate(test), enumerate(train)):
        one, two = set(fold(probe).split()), set(fold(known).split())
        overlap = len(one & two) / len(one | two) if one | two else 1.0
        if overlap >= threshold or fold(probe) == fold(known):
            expected.append((row, other))
    found = find_leaks(train, test, threshold=threshold)
    assert [(leak.test_row, leak.train_row) for leak in found] == expected


def test_case_and_punctuation_do_not_hide_a_copy() -> None:
    """Folding joins what people type differently."""
    leaks = find_leaks(["It's 5 o'clock!", "something else"], ["its 5 oclock"])
    assert [(leak.train_row, leak.overlap) for leak in leaks] == [(0, 1.0)]


def test_overlap_at_the_threshold_counts() -> None:
    """Three of five words shared is 0.6; two of five is not enough."""
    assert [leak.overlap for leak in find_leaks(["a b c d"], ["a b c e"], threshold=0.6)] == [0.6]
    assert find_leaks(["a b c d"], ["a b e"], threshold=0.6) == []


@pytest.mark.parametrize("threshold", [0.0, 1.1, float("nan")])
def test_threshold_out_of_range(threshold: float) -> None:
    """A threshold of 0 would report every pair."""
    with pytest.raises(ConfigError, match="threshold"):
        find_leaks([], [], threshold=threshold)


def test_script_reports_and_exits_with_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 with a leak, 0 without, 2 where a file is missing; --json holds the pairs."""
    train, test, report = (tmp_path / name for name in ("train.tsv", "test.tsv", "leaks.json"))
    train.write_text("text\nturn on the lamp\n", encoding="utf-8")
    test.write_text("text\nturn on the lamp, please\nhello\n", encoding="utf-8")
    files = ["--train", str(train), "--test", str(test)]

    assert main([*files, "--json", str(report)]) == 1
    assert "1 leaks; 2 test against 1 training sentences" in capsys.readouterr().out
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["threshold"] == 0.6
    assert written["leaks"] == [
        {
            "test_row": 0,
            "train_row": 0,
            "overlap": 0.8,
            "test": "turn on the lamp, please",
            "train": "turn on the lamp",
        }
    ]
    assert main([*files, "--threshold", "0.9"]) == 0
    assert main(["--train", str(tmp_path / "no.tsv"), "--test", str(test)]) == 2
    assert "--train: there is no file" in capsys.readouterr().err


def test_script_checks_the_embedded_set_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Without arguments it is the check the utterances' README names."""
    assert main([]) == 0
    assert "0 leaks; 396 test against 1116 training sentences" in capsys.readouterr().out
