"""The report: self-contained, escaped, oriented by the metric, and there for failed runs too."""

import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.ledger import Ledger
from fl_app.report import write_report
from fl_app.report.canvas import spread
from fl_app.report.page import render_page
from fl_app.result import FINAL_KEYS, Metric, RoundRecord, RunResult, failed_result

_ACCURACY = Metric(name="accuracy", higher_is_better=True)
_PERPLEXITY = Metric(name="perplexity", higher_is_better=False)
_PLOTS = ["curves.png", "devices.png", "ladder.png", "traffic.png"]
_HOSTILE = "<script>alert('x')</script><img src=https://evil.example/x.png>\"&$\\frac$"


def example(metric: Metric = _ACCURACY, num_rounds: int = 10, **changes: Any) -> RunResult:
    """Returns a result with figures as a real run has them."""
    if metric.higher_is_better:
        final = [0.478, 0.672, 0.713, 0.722, 0.731]
        start = {"plug_in": 0.478, "emulator": 0.401}
    else:
        final = [31.42, 14.87, 12.31, 11.98, 11.52]
        start = {"plug_in": 31.42, "emulator": 66.3}
    figures = dict(zip(FINAL_KEYS, final, strict=True))
    ledger = Ledger()
    rng = np.random.default_rng(0)
    rounds = []
    for number in range(1, num_rounds + 1):
        asked = sorted(rng.choice(10, size=8, replace=False).tolist())
        dropped = {"late": asked[2:3]} if number % 3 == 0 else {}
        if number == 5:
            dropped["not-finite"] = asked[4:6]
        lost = {device for devices in dropped.values() for device in devices}
        for device in asked:
            if not ledger.total_bytes(device=device, what="emulator"):
                ledger.book(
                    round=number, device=device, link="downlink", what="emulator", num_bytes=9876543
                )
            ledger.book(
                round=number, device=device, link="downlink", what="adapter", num_bytes=148321
            )
            if device not in lost:
                ledger.book(
                    round=number, device=device, link="uplink", what="update", num_bytes=74444
                )
        progress = float(np.expm1(-3.0 * number / num_rounds) / np.expm1(-3.0))
        metrics = {key: start[key] + (figures[key] - start[key]) * float(progress) for key in start}
        rounds.append(
            RoundRecord(
                round=number,
                metrics=metrics | {"train_loss": 2.3 - 1.4 * progress},
                devices=[device for device in asked if device not in lost],
                dropped=dropped,
                seconds=4.2,
            )
        )
    values: dict[str, Any] = {
        "verdict": "ok",
        "reason": None,
        "metric": metric,
        "final": figures,
        "rounds": rounds,
        "ledger": ledger.as_dict(),
        "seconds": 192.4,
        "seed": 0,
        "versions": {"python": "3.11.9", "flwr": "1.41.0"},
        "config": {
            "peft": {"rank": 4, "targets": ["query", "value"]},
            "strategy": {"emulator": {"left": 2, "middle": 1}},
        },
        "adapter_sha256": "ab" * 32,
        "model": {
            "name": "minilm",
            "num_parameters": 22_713_216,
            "split": "2-1-2",
        },
        "timings": {"federation": 61.0, "references": 120.5},
    }
    return RunResult(**(values | changes))


def failed(reason: str = "no round was aggregated: every device was dropped") -> RunResult:
    """Returns a result of a run that ended before its first round."""
    return failed_result(reason=reason, metric=_ACCURACY, seed=3, config={}, seconds=1.5)


class _Page(HTMLParser):
    """Collects what a browser would see: tags with attributes, and text outside the style."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._is_style = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._is_style = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._is_style:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._is_style = False


def _page(result: RunResult) -> _Page:
    return _Page(render_page(result, {}))


def _report(folder: Path, result: RunResult) -> tuple[str, _Page]:
    write_report(folder, result)
    source = (folder / "report.html").read_text(encoding="utf-8")
    return source, _Page(source)


def test_all_plots_are_real_pictures_and_embedded(tmp_path: Path) -> None:
    """Four PNG files of a legible size, each embedded with a description."""
    _, page = _report(tmp_path, example())
    assert sorted(path.name for path in tmp_path.glob("*.png")) == _PLOTS
    for name in _PLOTS:
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", content[16:24])
        assert width >= 1000
        assert height >= 400
        assert len(content) > 10_000
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == len(_PLOTS)
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in images)
    assert all(image["alt"] for image in images)


@pytest.mark.parametrize("result", [example(), example(_PERPLEXITY), failed()])
def test_the_page_needs_nothing_from_outside(tmp_path: Path, result: RunResult) -> None:
    """No scripts, no links and no address outside the file, for any kind of result."""
    source, page = _report(tmp_path, result)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "a", "object"})
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "background", "style"):
            assert re.match(
                r"data:image/png;base64,", attributes.get(name) or "data:image/png;base64,"
            )
    assert "http://" not in source
    assert "https://" not in source
    assert not re.search(r"url\(|@import", source)


def test_hostile_values_stay_text_wherever_they_come_from(tmp_path: Path) -> None:
    """Markup in any field is shown as text and never becomes a tag."""
    record = RoundRecord(
        round=1, metrics={_HOSTILE: 1.0}, devices=[0], dropped={_HOSTILE: [1]}, seconds=1.0
    )
    result = example(
        metric=Metric(name=_HOSTILE, higher_is_better=True),
        rounds=[record],
        config={_HOSTILE: {_HOSTILE: _HOSTILE, "list": [_HOSTILE]}},
        versions={_HOSTILE: _HOSTILE},
        model={_HOSTILE: _HOSTILE},
        timings={_HOSTILE: 1.0},
        adapter_sha256=_HOSTILE,
    )
    source, page = _report(tmp_path, result)
    assert "<script" not in source
    assert "<img src" not in source
    assert {tag for tag, _ in page.tags}.isdisjoint({"script"})
    # title, banner, ladder, round metric, reason, 3 in config, 2 versions, 2 model, timing, hash
    assert page.text.count(_HOSTILE) >= 13
    assert _HOSTILE in _page(failed(_HOSTILE)).text


def test_the_page_says_everything() -> None:
    """Figures, bytes, dropped devices, configuration, versions and time are all there."""
    result = example()
    page = _page(result)
    for words in (
        *("47.8 %", "67.2 %", "71.3 %", "72.2 %", "73.1 %", "+23.5 points"),
        *(
            f"{result.ledger[key]:,}"
            for key in ("uplink_bytes", "downlink_bytes", "emulator_bytes")
        ),
        *("98.8 MB", "strategy.emulator.left", "22,713,216", "1.41.0", "3 min 12 s"),
        *(
            "peft.targets",
            "[query, value]",
            "not-finite: ",
            "late: ",
            "higher is better",
            "ab" * 32,
        ),
        "0.9 points worse than the same federation with the full model",
    ):
        assert words in page.text
    assert "Failed." not in page.text


def test_a_failed_run_has_a_banner_and_no_empty_plots(tmp_path: Path) -> None:
    """The reason is on top, and no plot is drawn without data."""
    _, page = _report(tmp_path, failed())
    assert "Failed. no round was aggregated: every device was dropped" in page.text
    assert list(tmp_path.glob("*.png")) == []
    assert page.text.count("not run") == len(FINAL_KEYS)


def test_a_run_that_failed_half_way_shows_what_it_has(tmp_path: Path) -> None:
    """What was reached before the failure is drawn."""
    whole = example()
    result = failed_result(
        reason="the server was stopped",
        metric=_ACCURACY,
        seed=0,
        config={},
        seconds=60.0,
        final={"frozen": 0.478},
        rounds=whole.rounds[:3],
        ledger=whole.ledger,
    )
    _, page = _report(tmp_path, result)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == _PLOTS
    assert page.text.count("not run") == 4


def test_many_devices_and_rounds_are_drawn_in_bounds(tmp_path: Path) -> None:
    """A long run of many devices makes plots of the usual width and a bounded height."""
    records = [
        RoundRecord(
            round=number,
            metrics={"plug_in": 0.5, "emulator": None},
            devices=list(range(number, number + 300)),
            dropped={f"reason {index}": [number + 300 + index] for index in range(30)},
            seconds=1.0,
        )
        for number in range(1, 101)
    ]
    _report(tmp_path, example(rounds=records))
    for name in _PLOTS:
        _, height = struct.unpack(">II", (tmp_path / name).read_bytes()[16:24])
        assert height <= 1500


@pytest.mark.parametrize(
    "changes",
    [
        {"final": dict.fromkeys(FINAL_KEYS, float("nan"))},
        {"final": dict.fromkeys(FINAL_KEYS, 0.0)},
        {"final": dict.fromkeys(FINAL_KEYS, 0.5)},
        {"rounds": []},
        {"ledger": {"uplink_bytes": 0, "downlink_bytes": 0, "per_round": []}},
        {"ledger": {"uplink_bytes": 10, "downlink_bytes": 0, "joules": 3.5}},
    ],
)
def test_thin_results_make_a_page_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Missing, equal, zero or non-finite figures neither raise nor print as nan."""
    source, _ = _report(tmp_path, example(num_rounds=1, **changes))
    assert "nan" not in re.sub(r"base64,[^\"]*", "", source).lower()


def test_lower_is_better_turns_the_words_and_not_the_figures() -> None:
    """A perplexity that falls is called better and is not shown in percent."""
    page = _page(example(_PERPLEXITY))
    for words in (
        "lower is better",
        "12.31",
        "19.11 better than the frozen model",
        "0.33 worse than the same federation with the full model",
    ):
        assert words in page.text
    assert " %" not in page.text
    assert "points" not in page.text


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6).map(sorted))
def test_labels_are_moved_apart_and_no_further_than_needed(heights: list[float]) -> None:
    """Labels keep their distance and their mean; far ones stay in place."""
    placed = np.array(spread(heights, 0.1))
    assert (np.diff(placed) >= 0.1 - 1e-9).all()
    np.testing.assert_allclose(placed.mean(), np.mean(heights), atol=1e-9)
    if (np.diff(heights) >= 0.1).all():
        np.testing.assert_allclose(placed, heights, atol=1e-9)


def test_the_report_module_does_not_load_matplotlib() -> None:
    """Only the end of a run pays for the plotting library."""
    code = "import sys, fl_app.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
