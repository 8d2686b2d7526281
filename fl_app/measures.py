"""What an adapter is worth: on the full model, and on the emulator as devices see it."""

from fl_app.bench import Bench
from fl_app.errors import ConfigError
from fl_app.evaluate import evaluate
from fl_app.tasks import Encoded
from fl_app.updates import Update


def measure_plug_in(bench: Bench, adapter: Update, rows: Encoded) -> float:
    """Measures an adapter plugged into the full model, through its connection if it has one.

    An ensemble's adapter is measured as an ensemble.
    """
    if bench.ensemble is not None:
        return bench.ensemble.measure(bench.full.bare_model, adapter, rows).ensemble
    bench.full.write(adapter)
    if bench.full_link is not None:
        bench.full_link.measure()
    return evaluate(bench.full.model, bench.task, rows)


def measure(bench: Bench, adapter: Update, rows: Encoded) -> dict[str, float]:
    """Measures an adapter plugged into the full model, and on the emulator if there is one.

    Returns:
        ``plug_in`` and, as a device would see it, ``emulator``; of an ensemble also
        ``member_mean`` and ``member_best`` on the full model.
    """
    figures = {"plug_in": measure_plug_in(bench, adapter, rows)}
    if bench.piece.emulated is not None:
        figures["emulator"] = measure_emulator(bench, adapter, rows)
    if bench.ensemble is not None and (found := bench.ensemble.latest) is not None:
        triple = found.as_result()
        figures |= {name: triple[name] for name in ("member_mean", "member_best")}
    return figures


def measure_emulator(bench: Bench, adapter: Update, rows: Encoded) -> float:
    """Measures an adapter on the emulator, as a device would see it.

    Raises:
        ConfigError: the strategy has none.
    """
    emulated, link = bench.piece.emulated, bench.piece.emulated_link
    if emulated is None:
        raise ConfigError(f"strategy {type(bench.config.strategy).__name__} has no emulator")
    if bench.ensemble is not None:
        return bench.ensemble.measure(emulated.bare_model, adapter, rows).ensemble
    emulated.write(adapter)
    if link is not None:
        link.measure()
    return evaluate(emulated.model, bench.task, rows)
