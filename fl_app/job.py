"""The main job's federation, the same for every way in.

``flwr run`` in simulation, real SuperNodes and the in-process grid all call ``prepare`` and
``federate``; only the ``Grid`` differs.
"""

import hashlib
import logging
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from fl_app.bench import Bench, starting_adapter
from fl_app.errors import RunError
from fl_app.ledger import Ledger
from fl_app.measures import measure
from fl_app.profiling import most_units
from fl_app.records import blob_of, blob_record, from_blob, to_blob
from fl_app.result import RoundRecord
from fl_app.schema import Config, SizedConfig
from fl_app.updates import Update
from strategies.adaptive import build_layouts, build_start
from strategies.ask_gains import ask_gains
from strategies.build import build_strategy
from strategies.build_uplink import build_uplink
from strategies.fit import require_enough
from strategies.judge import require_nothing
from strategies.roster import call_roster
from strategies.round_log import RoundLog
from strategies.schedule import facts_of

log = logging.getLogger("deft")


@dataclass
class Outcome:
    """What a federation leaves behind, up to date while it runs and also where it raises.

    Attributes:
        adapter: the last adapter.
        rounds: one record per round, the start included as round 0.
        ledger: all traffic.
        results: further entries of ``result.json`` that the strategy has, by name.
        late_units: LoRA units that were cut only after the last round, to end within the budget.
    """

    adapter: Update = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    results: dict[str, Any] = field(default_factory=dict)
    late_units: int = 0

    @property
    def aggregated(self) -> int:
        """Number of rounds in which an update counted."""
        return sum(bool(record.devices) for record in self.rounds)


def federate(
    grid: Grid, bench: Bench, *, measure_rounds: bool = True, outcome: Outcome | None = None
) -> Outcome:
    """Runs the federation and measures its adapter.

    Args:
        grid: the way to the devices.
        bench: the prepared server; its adapters are left at the final layout, and at the final
            values where rounds are measured.
        measure_rounds: measure emulator and plug-in after every round, for the curves.
        outcome: filled and returned; pass one to see what was reached before an exception.

    Raises:
        RunError: no node joined, or a worker process died.
    """
    config, outcome = bench.config, outcome or Outcome()
    roster = call_roster(grid, config.federation)
    require_enough(config, roster)
    match config.peft:
        case SizedConfig() as peft if bench.allocation.is_waiting:
            gains = ask_gains(
                grid,
                roster,
                outcome.ledger,
                blob=bench.piece.blob,
                adapter=bench.full.read(),
                layout=bench.full.layout,
                largest=most_units(peft, len(bench.full.layout)),
                timeout_s=config.federation.timeout_s,
                uplink=build_uplink(config.channel, config.seed),
            )
            bench.take(gains)
    layouts, scoring = build_layouts(bench.allocation, is_a_sent=bench.full.sends_whole_units)
    layouts, start = build_start(config, layouts)
    strategy = build_strategy(
        config,
        roster=roster,
        ledger=outcome.ledger,
        layouts=layouts,
        scoring=scoring,
        start=start,
        times=bench.times,
        blob=bench.piece.blob,
        server=bench.piece.server,
        require=require_nothing if bench.ensemble is None else bench.ensemble.require,
    )
    measured: dict[int, dict[str, float]] = {}
    outcome.adapter = starting_adapter(bench)

    def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        outcome.adapter = from_blob(blob_of(arrays))
        if bench.ensemble is not None:
            devices = strategy.groups.of_members(bench.ensemble.num_members)
            bench.ensemble.note(server_round, outcome.adapter, devices)
        bench.resize(layouts.server, scoring.units)
        if measure_rounds:
            measured[server_round] = {
                **measure(bench, outcome.adapter, bench.round_test),
                **({} if bench.full_link is None else bench.full_link.figures()),
            }
        _progress(config, server_round, strategy.rounds, measured.get(server_round, {}))
        return None

    try:
        strategy.start(
            grid,
            blob_record(to_blob(outcome.adapter)),
            num_rounds=config.strategy.num_rounds,
            timeout=config.federation.timeout_s,
            evaluate_fn=after_round,
        )
    finally:
        strategy.close()
        books = {0: RoundLog(), **strategy.rounds}
        outcome.rounds = [
            RoundRecord(
                round=number,
                metrics={**measured.get(number, {}), **book.metrics},
                devices=book.devices,
                dropped=book.dropped,
                seconds=book.seconds,
            )
            for number, book in sorted(books.items())
        ]
        turns = {number: book.turns for number, book in sorted(strategy.rounds.items())}
        outcome.results = strategy.results | {"schedule": facts_of(config.strategy, turns)}
    before = sum(layouts.server.values())
    outcome.adapter = scoring.finish(outcome.adapter)
    outcome.late_units = before - sum(layouts.server.values())
    if outcome.late_units:
        log.warning(
            "the last rounds kept the adapter; %d LoRA units are cut after them, by the last "
            "scores known",
            outcome.late_units,
        )
        bench.resize(layouts.server, scoring.units)
    return outcome


def require_progress(outcome: Outcome) -> None:
    """Raises ``RunError`` where no round aggregated anything: such a run has no result."""
    if outcome.aggregated == 0:
        reasons = sorted({reason for record in outcome.rounds for reason in record.dropped})
        raise RunError(
            f"no round aggregated an update (devices dropped for: {', '.join(reasons) or 'none'}); "
            "each device's own log has the text of its errors"
        )


def adapter_sha256(adapter: Update) -> str:
    """Returns the hash of an adapter's serialised form: equal hashes, equal bits."""
    return hashlib.sha256(to_blob(adapter)).hexdigest()


def _progress(
    config: Config, server_round: int, books: dict[int, Any], measured: dict[str, float]
) -> None:
    total = config.strategy.num_rounds
    filled = round(20 * server_round / total)
    parts = [f"{name} {value:.4g}" for name, value in measured.items()]
    if book := books.get(server_round):
        dropped = sum(len(devices) for devices in book.dropped.values())
        parts.append(f"{len(book.devices)} devices, {dropped} dropped, {book.seconds:.1f} s")
    bar = "#" * filled + "." * (20 - filled)
    log.info("round %2d/%d [%s] %s", server_round, total, bar, " | ".join(parts))
