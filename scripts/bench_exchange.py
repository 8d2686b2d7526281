"""Seconds of an exchange with all devices: ``python -m scripts.bench_exchange``.

In one process, so that nothing but the transports is measured: messages to a grid that delivers at
once, and TLS streams to nodes in threads of their own. Devices answer with what they were sent.
Elsewhere Flower's own polling (0.1 s in simulation, seconds on real nodes) comes on top of every
exchange by messages, but only of the first one of a stream.
"""

import argparse
import statistics
import time
from pathlib import Path

from clients.exchange_app import exchange_app
from fl_app.errors import RunError
from fl_app.local_grid import FIRST_NODE_ID, LocalGrid, ThreadedGrid
from fl_app.step_wire import ACTION_STEP
from scripts.bench_output import emit
from strategies.exchange import Exchange, Lost, MessageExchange
from strategies.roster import Roster
from strategies.stream_exchange import StreamExchange
from strategies.stream_listener import StreamListener

_DEADLINE_S = 120.0


def bench_exchange(devices: int, num_bytes: int, repeats: int) -> dict[str, float]:
    """Returns seconds of the first exchange and the median of the others, for each way.

    Args:
        devices: devices of an exchange, >= 1.
        num_bytes: bytes to and from each, >= 0.
        repeats: timed exchanges after the first, >= 1.
    """
    app = exchange_app(lambda _state, blob: (None, blob))
    roster = Roster(node_of={device: FIRST_NODE_ID + device for device in range(devices)})
    figures: dict[str, float] = {}

    def measure(name: str, begun: Exchange) -> None:
        times = []
        with begun as exchange:
            for repeat in range(repeats + 1):
                outgoing = {d: bytes([repeat % 256]) * num_bytes for d in range(devices)}
                start = time.perf_counter()
                answers = exchange.exchange(outgoing, _DEADLINE_S)
                times.append(time.perf_counter() - start)
                if answers != outgoing:
                    lost = [answer for answer in answers.values() if isinstance(answer, Lost)]
                    raise RunError(f"{name}: devices did not answer as they should: {lost[:3]}")
        figures[f"{name}_first_s"] = times[0]
        figures[f"{name}_s"] = statistics.median(times[1:])

    with LocalGrid(app, num_nodes=devices, run_config={}) as local:
        measure("messages", MessageExchange(local, roster, ACTION_STEP, 1))
    with StreamListener() as listener, ThreadedGrid(app, num_nodes=devices, run_config={}) as grid:
        measure("streams", StreamExchange(listener, grid, roster, 1))
    figures["streams_bytes_per_s"] = 2 * devices * num_bytes / figures["streams_s"]
    return figures


def main(words: list[str] | None = None) -> None:
    """Parses the command line, prints a line per figure and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--bytes", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args(words)
    emit(bench_exchange(chosen.devices, chosen.bytes, chosen.repeats), chosen.json)


if __name__ == "__main__":
    main()
