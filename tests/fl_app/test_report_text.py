"""Words and numbers of the report, and the table printed at the end of a run."""

import dataclasses
import re
from typing import Any

import pytest

from fl_app.report import final_table, human_bytes
from fl_app.report.page import render_page
from fl_app.report.text import compare, format_difference, format_score, gap_words, human_seconds
from fl_app.result import FINAL_KEYS, Metric, RoundRecord, RunResult, failed_result

_ACCURACY = Metric(name="accuracy", higher_is_better=True)
_PERPLEXITY = Metric(name="perplexity", higher_is_better=False)


def _result(metric: Metric, figures: list[float]) -> RunResult:
    ledger: dict[str, Any] = {
        "downlink_bytes": 110_631_110,
        "emulator_bytes": 98_765_430,
        "adapter_downlink_bytes": 11_865_680,
        "uplink_bytes": 5_583_300,
    }
    return RunResult(
        verdict="ok",
        reason=None,
        metric=metric,
        final=dict(zip(FINAL_KEYS, figures, strict=True)),
        rounds=[
            RoundRecord(round=1, metrics={}, devices=[0, 1], dropped={}, seconds=1.0),
            RoundRecord(round=2, metrics={}, devices=[], dropped={"late": [0]}, seconds=1.0),
        ],
        ledger=ledger,
        seconds=192.4,
        seed=0,
        versions={},
        config={},
        adapter_sha256=None,
        model={},
        timings={},
    )


def test_comparisons_follow_the_metric() -> None:
    """Better and worse follow the metric's direction; what prints alike is level."""
    assert compare(_ACCURACY, 0.5, 0.75) == "25.0 points better than"
    assert compare(_PERPLEXITY, 10.0, 12.5) == "2.50 worse than"
    assert compare(_PERPLEXITY, 12.5, 10.0) == "2.50 better than"
    assert compare(_ACCURACY, 0.50001, 0.5) == "level with"
    assert compare(_ACCURACY, None, 0.5) is None
    assert compare(_ACCURACY, 0.5, float("nan")) is None
    assert gap_words(_ACCURACY, 0.713, 0.722) == "0.9 points"
    assert gap_words(_PERPLEXITY, 12.31, 11.98) == "0.33"
    assert gap_words(_PERPLEXITY, 11.98, 12.31) == "none (0.33 ahead)"
    assert gap_words(_ACCURACY, 0.5, 0.5) == "none"
    assert gap_words(_ACCURACY, 0.5, None) is None
    assert format_difference(_PERPLEXITY, 10.0, 12.5) == "-2.50"
    assert format_difference(_ACCURACY, 0.5, 0.4) == "-10.0 points"
    assert format_difference(_ACCURACY, 0.50001, 0.5) == "+0.0 points"
    assert format_score(_ACCURACY, None) == "not run"
    assert format_score(_PERPLEXITY, float("inf")) == "not finite"
    assert format_score(_PERPLEXITY, 12345.678) == "12,345.68"


def test_the_table_holds_all_figures() -> None:
    """The printed table has every rung, the bytes, the time and the verdict in 88 columns."""
    table = final_table(_result(_ACCURACY, [0.478, 0.672, 0.713, 0.722, 0.731]))
    for words in (
        *("(a) frozen FoMo, head only", "(b) adapter on the emulator (what a device sees)"),
        *("(c) adapter plugged into the full FoMo", "(d) same federation, full FoMo on every"),
        *("(e) centralised tuning", "47.8 %", "67.2 %", "71.3 %", "72.2 %", "73.1 %"),
        *("98.8 MB (98,765,430 B)", "11.9 MB (11,865,680 B)", "192.4 s", "verdict: ok"),
    ):
        assert words in table
    assert re.search(r"aggregated rounds +1$", table, re.MULTILINE)
    assert max(map(len, table.splitlines())) <= 88
    assert "\x1b" not in table


def test_table_and_page_hold_what_neural_connections_cost() -> None:
    """Each figure has a value of its own, so that none can stand in another's place."""
    result = _result(_ACCURACY, [0.478, 0.672, 0.713, 0.722, 0.731])
    spent = {"uses": 1_234_567, "seconds": 2.5, "joules": 0.75, "server_joules": 0.125}
    ledger = dict(result.ledger) | {f"connection_{part}": spent[part] for part in spent}
    crossed = dataclasses.replace(result, ledger=ledger)
    table = final_table(crossed)
    assert "1,234,567" in table
    assert "2.500 s, 0.750 J + 0.125 J" in table
    assert max(map(len, table.splitlines())) <= 88
    page = render_page(crossed, plots={})
    for words in ("1,234,567", "2.500", "0.750", "0.125", "neural connection"):
        assert words in page
    assert "neural connection" not in final_table(result) + render_page(result, plots={})


def test_the_table_says_what_was_not_run_and_why_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets in a reason are no markup, and colour stays out even if forced."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = final_table(
        failed_result(
            reason="device [bold]3[/bold] :smile: vanished",
            metric=_ACCURACY,
            seed=0,
            config={},
            seconds=1.0,
        )
    )
    assert table.count("not run") == len(FINAL_KEYS)
    assert "verdict: failed (device [bold]3[/bold] :smile: vanished)" in table
    assert "\x1b" not in table


def test_the_table_calls_a_falling_perplexity_better() -> None:
    """The last column is positive for what is better, in both directions."""
    table = final_table(_result(_PERPLEXITY, [31.42, 14.87, 12.31, 40.0, 11.52]))
    assert "lower is better" in table
    assert "+19.11" in table
    assert "-8.58" in table


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_960, "1.0 MB"),
        (22_700_000, "22.7 MB"),
        (3.5e9, "3.5 GB"),
        (2e18, "2000.0 PB"),
    ],
)
def test_bytes_are_readable(num_bytes: float, words: str) -> None:
    """Decimal units, and never 1000 of one unit."""
    assert human_bytes(num_bytes) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (7384, "2 h 3 min")],
)
def test_durations_are_readable(seconds: float, words: str) -> None:
    """Seconds, minutes and hours, rounded once."""
    assert human_seconds(seconds) == words
