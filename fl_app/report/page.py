"""The self-contained ``report.html``: inline style, embedded images, no scripts, no links.

Every text that is not written in this module passes through ``html.escape`` in one of the three
small builders of ``markup``, so that a configuration value can never become markup.
"""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fl_app.report.ensemble import ensemble_table
from fl_app.report.markup import details as _details
from fl_app.report.markup import image as _image
from fl_app.report.markup import table as _table
from fl_app.report.style import CSS
from fl_app.report.text import (
    direction,
    format_difference,
    format_score,
    human_bytes,
    human_seconds,
    summary,
)
from fl_app.report.wording import wording_of
from fl_app.result import RoundRecord, RunResult

_ONLY_GRADIENT = ("gradient_bytes", "feature_bytes")
"""Totals that are left out where they are 0: emulator download has none."""
_NAMES = {
    "name": "model",
    "num_parameters": "parameters",
    "num_blocks": "blocks",
    "connection_nmse": "connection NMSE",
    "connection_feature_nmse": "NMSE of features",
    "connection_gradient_nmse": "NMSE of their gradients",
    "connection_clipping_nmse": "of this clipping",
    "connection_clipped_share": "symbols clipped",
}


def render_page(result: RunResult, plots: Mapping[str, bytes]) -> str:
    """Returns the report as one HTML document.

    Args:
        result: an ok or a failed result.
        plots: file name (``ladder.png`` and so on) to PNG bytes; missing ones are left out.
    """
    images = {name: _image(name, content) for name, content in plots.items()}
    wording = wording_of(result)
    title = wording.title
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}: {escape(_short_verdict(result))}</title>",
            f"<style>{CSS}</style></head>",
            "<body>",
            f"<h1>{title}</h1>",
            *_banner(result),
            f"<p>{wording.introduction}</p>",
            *_facts(result),
            *_ladder(result),
            images.get("ladder.png", ""),
            images.get("curves.png", ""),
            *_ensemble(result),
            images.get("ensemble.png", ""),
            *_traffic(result),
            images.get("traffic.png", ""),
            *_rounds(result),
            images.get("devices.png", ""),
            images.get("ranks.png", ""),
            images.get("schedule.png", ""),
            *_transfers(result),
            *_provenance(result),
            "</body></html>",
            "",
        ]
    )


def _short_verdict(result: RunResult) -> str:
    if result.verdict == "failed":
        return "failed"
    return f"{result.metric.name} {format_score(result.metric, result.final['plug_in'])}"


def _banner(result: RunResult) -> Iterator[str]:
    """The verdict and, in words, what the figures say."""
    if result.reason is not None:
        yield f'<p class="verdict failed"><strong>Failed.</strong> {escape(result.reason)}</p>'
        return
    headline, *comparisons = summary(result) or ["The run reached its end."]
    yield f'<div class="verdict ok"><strong>Ok.</strong> {escape(headline)}'
    if comparisons:
        items = "".join(f"<li>{escape(words)}</li>" for words in comparisons)
        yield f"<ul>{items}</ul>"
    yield "</div>"


def _facts(result: RunResult) -> Iterator[str]:
    """A strip of small facts: the model, the seed, the time."""
    facts = {_NAMES.get(key, _spaced(key)): value for key, value in result.model.items()}
    facts |= {"seed": str(result.seed), "time": human_seconds(result.seconds)}
    yield '<dl class="facts">'
    for name, value in facts.items():
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(_show_fact(value))}</dd></div>"
    yield "</dl>"


def _ladder(result: RunResult) -> Iterator[str]:
    """The figures of the whole run."""
    metric, final, ladder = result.metric, result.final, wording_of(result).ladder
    yield "<h2>What came out</h2>"
    rows = [
        [
            rung.label,
            format_score(metric, final[rung.key]),
            ""
            if rung.key == "frozen"
            else format_difference(metric, final["frozen"], final[rung.key]),
        ]
        for rung in ladder
    ]
    heads = ["", f"{metric.name} ({direction(metric)})", "better than (a) by"]
    main = [rung.key for rung in ladder].index("plug_in")
    yield _table(heads, rows, numbers=(1, 2), main=main)


def _ensemble(result: RunResult) -> Iterator[str]:
    """Members of a prompt ensemble, alone and together."""
    if (found := ensemble_table(result)) is not None:
        heads, rows = found
        yield "<h2>The ensemble</h2>"
        yield _table(heads, rows, numbers=(1, 2, 3), main=len(rows) - 1)


def _traffic(result: RunResult) -> Iterator[str]:
    """Bytes of the whole run, for people and exactly."""
    ledger = result.ledger
    words = {
        "downlink_bytes": "downlink (server to devices)",
        "emulator_bytes": f"of these: {wording_of(result).piece}, once per device",
        "adapter_downlink_bytes": "of these: adapters, every round",
        "gradient_bytes": "of these: last states and gradients, every step",
        "uplink_bytes": "uplink (devices to server)",
        "feature_bytes": "of these: features and gradients of last states, every step",
        "control_bytes": "control messages, part of both",
    }
    rows = [
        [text, human_bytes(ledger[key]), f"{ledger[key]:,}"]
        for key, text in words.items()
        if key in ledger and (ledger[key] or key not in _ONLY_GRADIENT)
    ]
    yield "<h2>What was sent</h2>"
    yield _table(["all devices together", "size", "bytes"], rows, numbers=(1, 2))
    if uses := ledger.get("connection_uses"):
        crossed = [
            ["channel uses (complex symbols), forward and back", f"{uses:,}"],
            ["seconds on air, devices taking turns", f"{ledger['connection_seconds']:,.3f}"],
            ["joules transmitted by devices", f"{ledger['connection_joules']:,.3f}"],
            ["joules transmitted by the server", f"{ledger['connection_server_joules']:,.3f}"],
        ]
        yield _table(["neural connection, tuning", "all rounds"], crossed, numbers=(1,))
    if uses := ledger.get("channel_uses"):
        radio = [
            ["channel uses (complex symbols)", f"{uses:,}"],
            ["seconds on air", f"{ledger['radio_seconds']:,.3f}"],
            ["joules transmitted", f"{ledger['radio_joules']:,.3f}"],
        ]
        yield _table(["radio uplink, by the channel's model", "all rounds"], radio, numbers=(1,))


def _rounds(result: RunResult) -> Iterator[str]:
    """Metrics and dropped devices of every round."""
    if not result.rounds:
        return
    names = list(dict.fromkeys(name for record in result.rounds for name in record.metrics))
    known = {**_NAMES, "plug_in": wording_of(result).score}
    yield "<h2>Round by round</h2>"
    heads = [
        "round",
        *(known.get(name, _spaced(name)) for name in names),
        "devices",
        "time",
        "dropped",
    ]
    rows = [
        [
            str(record.round),
            *(_round_metric(result, record, name) for name in names),
            str(len(record.devices)),
            human_seconds(record.seconds),
            _dropped(record),
        ]
        for record in result.rounds
    ]
    yield _table(heads, rows, numbers=range(len(heads) - 1))


def _transfers(result: RunResult) -> Iterator[str]:
    """Every device's search for another device's prompt."""
    if result.transfer is None:
        return
    found = result.transfer
    yield "<h2>Prompts from device to device</h2>"
    yield (
        f'<p class="note">{found["adopted"]} of {found["searches"]} searches ended with another '
        f"device's prompt in use. {human_bytes(found['bytes'])} went from device to device, "
        f"{human_bytes(found['trial_bytes'])} to the server and back for trials at the gate; the "
        f"tuning behind the adopted prompts had cost "
        f"{human_bytes(found['source_tuning_bytes'])}. Losses in nats on rows of the device "
        "that are never tuned on.</p>"
    )
    losses = ("loss_own", "loss_candidate", "loss_tuned")
    heads = ["round", "device", "offers", "from", "own", "as it is", "tuned", "end", "refused"]
    rows = [
        [
            *(str(one[name]) for name in ("round", "device", "offers")),
            "mixture" if one["is_mixed"] else "" if one["source"] is None else str(one["source"]),
            *("" if one[name] is None else f"{one[name]:.4f}" for name in losses),
            one["action"],
            ", ".join(one["refused"]),
        ]
        for one in found["devices"]
    ]
    yield _table(heads, rows, numbers=range(7))


def _round_metric(result: RunResult, record: RoundRecord, name: str) -> str:
    """One value of a round; only those named like a rung are the run's metric."""
    value = record.metrics.get(name)
    if value is None:
        return ""
    is_score = name in (*result.final, "member_mean", "member_best")
    return format_score(result.metric, value) if is_score else f"{value:.4g}"


def _dropped(record: RoundRecord) -> str:
    return "; ".join(
        f"{reason}: {', '.join(map(str, devices))}"
        for reason, devices in sorted(record.dropped.items())
        if devices
    )


def _provenance(result: RunResult) -> Iterator[str]:
    """All that is needed to run it again."""
    yield "<h2>How it was made</h2>"
    yield (
        '<p class="note">The names on the left are the override keys; the same seed and the same '
        "configuration give the same figures.</p>"
    )
    yield _details("Configuration", list(_flat(result.config)))
    yield _details("Versions", sorted(result.versions.items()))
    yield _details("Time per phase", [(k, human_seconds(v)) for k, v in result.timings.items()])
    if result.adapter_sha256 is not None:
        yield f'<p class="note">Adapter SHA-256: <code>{escape(result.adapter_sha256)}</code></p>'


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields dotted key and value, as an override would name them."""
    for key, value in config.items():
        match value:
            case Mapping() if value:
                yield from _flat(value, f"{prefix}{key}.")
            case _:
                yield f"{prefix}{key}", _show(value)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _show_fact(value: object) -> str:
    """Returns a fact for reading; unlike in the configuration, large counts are grouped."""
    match value:
        case int() if value >= 10_000:
            return f"{value:,}"
    return _show(value)


def _show(value: object) -> str:
    """Returns a value as a person would type it."""
    match value:
        case bool() | None:
            return json.dumps(value)
        case list() | tuple():
            return f"[{', '.join(map(_show, value))}]"
    return str(value)
