"""Server seconds of a step, devices at once or one by one: ``python -m scripts.bench_gradient``.

A step is forward and backward of the trunk on the features of devices whose texts differ in length,
as a round makes it. Both ways alternate in one process, with one thread and with torch's default.
Peak memory against ``strategy.max_in_flight`` is measured in a fresh process each. CPU seconds, of
all threads, are printed too: on a busy machine they say more than the clock.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from fl_app.fomo.adapter import Adapter, LoraSpec
from fl_app.fomo.backbone import load_backbone
from fl_app.fomo.blocks import num_blocks
from fl_app.fomo.features import Features
from fl_app.fomo.minilm import minilm_path
from fl_app.fomo.parts import build_trunk_part
from fl_app.fomo.trunk import Trunk
from scripts.bench_output import emit, peak_memory_bytes

_WANTED = {"prompt": "prompt", "cut": "hidden", "lora": "parameters"}
"""What the server differentiates with respect to, by variant."""
_NUM_PROMPT = 20


@dataclass(frozen=True)
class Load:
    """What is measured.

    Attributes:
        model: model folder; empty for MiniLM-L6.
        task: the model's task.
        variant: a key of ``_WANTED``.
        num_devices: devices of a step, >= 1.
        batch_size: texts of a device, >= 1.
        shortest: tokens of the shortest device's longest text, >= 1.
        longest: those of the longest device's; the others lie evenly between.
    """

    model: str
    task: str
    variant: str
    num_devices: int
    batch_size: int
    shortest: int
    longest: int


def trunk_of(load: Load) -> Trunk:
    """Loads the model and cuts the server's blocks off; LoRA sits in the last two of them."""
    source = load.model or str(minilm_path())
    model = load_backbone(source, task=load.task, labels=("no", "yes"), seed=0).model
    part = build_trunk_part(model, load.task, 1 if load.variant == "cut" else 0)
    if load.variant != "lora":
        return Trunk(part)
    total = num_blocks(model.config)
    adapter = Adapter(
        part.model,
        blocks=part.blocks[0],
        later_blocks=part.blocks[-1],
        tuned_blocks=range(total - 2, total),
        heads=(),
        spec=LoraSpec(rank=8, alpha=16.0, targets=("all-linear",), train_a=False),
        seed=0,
    )
    return Trunk(part, adapter.parameters)


def features_of(load: Load, width: int) -> list[Features]:
    """Returns each device's features: random states, rows half to fully as long as the longest."""
    rng = torch.Generator().manual_seed(0)
    m = _NUM_PROMPT if load.variant == "prompt" else 0
    features = []
    for place in torch.linspace(load.shortest, load.longest, load.num_devices):
        length = round(float(place))
        tokens = torch.randint((length + 1) // 2, length + 1, (load.batch_size,), generator=rng)
        tokens[0] = length
        readout = torch.zeros(load.batch_size, m + length, dtype=torch.bool)
        readout[:, 0] = True
        features.append(
            Features(
                hidden=(torch.randn(load.batch_size, length, width, generator=rng),),
                masks=(torch.arange(length) < tokens[:, None],),
                prompt=torch.randn(m, width, generator=rng) if m else None,
                readout=readout,
            )
        )
    return features


def run_step(trunk: Trunk, features: Sequence[Features], want: str, in_flight: int) -> None:
    """Computes all devices' gradients, at most ``in_flight`` graphs at once."""
    for start in range(0, len(features), in_flight):
        held = trunk.forward(features[start : start + in_flight], want=(want,))
        trunk.backward(held, [torch.ones_like(states) for states in held.states])


def bench_step(load: Load, repeats: int, num_threads: Sequence[int]) -> dict[str, float]:
    """Returns seconds of a step both ways, and their ratio, for each number of threads.

    Args:
        load: what is measured.
        repeats: timed steps of each way, >= 1; the ways alternate.
        num_threads: threads torch may use.
    """
    trunk = trunk_of(load)
    features = features_of(load, trunk.width)
    want, before = _WANTED[load.variant], torch.get_num_threads()
    ways = {"batched": load.num_devices, "one_by_one": 1}
    figures: dict[str, float] = {}
    try:
        for threads in dict.fromkeys(num_threads):
            torch.set_num_threads(threads)
            clock: dict[str, list[float]] = {name: [] for name in ways}
            cpu: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(repeats + 1):  # the first step of each warms up
                for name, in_flight in ways.items():
                    start, begun = time.perf_counter(), time.process_time()
                    run_step(trunk, features, want, in_flight)
                    clock[name].append(time.perf_counter() - start)
                    cpu[name].append(time.process_time() - begun)
            for suffix, times in (("", clock), ("_cpu", cpu)):
                medians = {name: statistics.median(values[1:]) for name, values in times.items()}
                figures |= {f"{n}{suffix}_s_threads{threads}": s for n, s in medians.items()}
                ratio = medians["one_by_one"] / medians["batched"]
                figures[f"ratio{suffix}_threads{threads}"] = ratio
    finally:
        torch.set_num_threads(before)
    return figures


def peak_of(load: Load, in_flight: int) -> float:
    """Returns bytes by which two steps raise this process's peak memory; call it in a fresh one."""
    trunk = trunk_of(load)
    features = features_of(load, trunk.width)
    before = peak_memory_bytes()
    for _ in range(2):
        run_step(trunk, features, _WANTED[load.variant], in_flight)
    return float(peak_memory_bytes() - before)


def bench_memory(load: Load, in_flight: Sequence[int]) -> dict[str, float]:
    """Returns peak bytes of a step beyond the loaded model for each ``max_in_flight``."""
    figures = {}
    for number in in_flight:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            figures[f"peak_bytes_in_flight{number}"] = fresh.submit(peak_of, load, number).result()
    return figures


def main(words: list[str] | None = None) -> None:
    """Parses the command line, prints a line per figure and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="", metavar="DIR", help="default: MiniLM-L6")
    parser.add_argument("--task", default="sequence_classification")
    parser.add_argument("--variant", choices=list(_WANTED), default="prompt")
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--shortest", type=int, default=32)
    parser.add_argument("--longest", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--in-flight", type=int, nargs="*", default=[1, 2, 5, 10])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args(words)
    load = Load(
        model=chosen.model,
        task=chosen.task,
        variant=chosen.variant,
        num_devices=chosen.devices,
        batch_size=chosen.batch,
        shortest=chosen.shortest,
        longest=chosen.longest,
    )
    figures = bench_step(load, chosen.repeats, chosen.threads)
    emit(figures | bench_memory(load, chosen.in_flight), chosen.json)


if __name__ == "__main__":
    main()
