"""Transfer of prompts between domains: ``python -m scripts.transfer_matrix --seeds 0 1 2``.

On the 8 domains of reviews8 and on SST-2 (below DEFT_ASSETS; MiniLM) a prompt with its head is
tuned for each domain. Every one is then used as it is on every other (zero-shot retention), the
one with the lowest probe loss is tuned further (steps saved against a prompt nobody has tuned), and
every descriptor's ranking of sources is compared with what the transfers really brought. Each
tuning is kept below ``--out`` and not made again, so an interrupted call goes on where it stopped.
Writes ``transfer_matrix.json``, a table, ``transfer_matrix.png`` and ``transfer_bars.png``.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fl_app.data.examples import Examples
from fl_app.data.readers import read_table
from fl_app.errors import DataError
from fl_app.fomo.backbone import Backbone, load_backbone
from fl_app.fomo.minilm import minilm_path
from fl_app.fomo.pooler import standardise_pooler
from fl_app.fomo.soft_prompt import PromptedModel, PromptSpec
from fl_app.seeding import generator
from fl_app.tasks import Columns, Encoded, Task, build_task
from scripts.transfer_measured import Entry, cross, summarise
from scripts.transfer_picture import draw_bars, draw_matrix, show
from scripts.transfer_tuning import Domain, Settings, Workbench

LABELS = ("0", "1")
SST2 = "sst2"
DOMAINS = (
    "apparel",
    "books",
    "camera_photo",
    "electronics",
    "health_personal_care",
    "kitchen_housewares",
    "music",
    "toys_games",
    SST2,
)
_TASK = "sequence_classification"
_PROBE_TEXTS = 16
"""Texts, of all domains in turn, on which neurons are read; the same for everybody."""


def read_domains(assets: Path, names: Sequence[str]) -> dict[str, tuple[Examples, Examples]]:
    """Returns (training rows, test rows) by domain.

    Raises:
        DataError: a file is missing or broken, or a domain is unknown.
    """
    if strange := sorted(set(names) - set(DOMAINS)):
        raise DataError(f"domains {strange} are unknown; choose among {', '.join(DOMAINS)}")
    parts = [read_table(assets / "reviews8" / f"{part}.tsv.gz") for part in ("train", "test")]
    found = {}
    for name in names:
        if name == SST2:
            folder = assets / SST2
            found[name] = read_table(folder / "train.tsv"), read_table(folder / "test.tsv")
            continue
        first, second = (
            part.take(i for i, domain in enumerate(part.column("domain")) if domain == name)
            for part in parts
        )
        found[name] = first, second
    return found


def prepared(
    task: Task, name: str, train: Examples, test: Examples, *, rows: int, test_rows: int
) -> Domain:
    """Cuts a domain's rows: a fixed draw of 32 for the gate, 100 for validation, the rest to tune.

    Small tables give a quarter of their training rows to either.
    """
    order = [int(i) for i in generator(0, "matrix-rows", name).permutation(len(train))]
    probe, validation = min(32, len(order) // 4), min(100, len(order) // 4)
    cut = probe + validation
    kept = order[cut : cut + rows]
    shown = [int(i) for i in generator(0, "matrix-test", name).permutation(len(test))[:test_rows]]
    return Domain(
        name,
        task.encode(train.take(kept)),
        task.encode(train.take(order[:probe])),
        task.encode(train.take(order[probe:cut])),
        task.encode(test.take(shown)),
    )


def model_and_task(max_length: int, num_tokens: int) -> tuple[Backbone, Task]:
    """Returns MiniLM with a drawn head for two classes, and the task."""
    backbone = load_backbone(str(minilm_path()), task=_TASK, labels=LABELS, seed=0)
    task = build_task(
        _TASK,
        files=backbone.files,
        labels=LABELS,
        columns=Columns(
            text="text", label="label", prompt="prompt", completion="completion", image="image"
        ),
        max_length=max_length,
        model_config=backbone.model.config,
    )
    return backbone, task


def run(
    bench: Workbench,
    domains: Sequence[Domain],
    settings: Settings,
    seeds: Sequence[int],
    *,
    console: Console,
) -> dict[str, Any]:
    """Tunes and measures everything; returns what ``transfer_matrix.json`` holds."""
    entries: list[Entry] = []
    columns = (TextColumn("domains"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=2 * len(domains) * len(seeds))
        probe = probe_of(domains)
        for seed in seeds:
            start = bench.start(settings, seed)
            own = []
            for domain in domains:
                own.append(bench.tuned(domain, start, settings, seed, domain.name))
                progress.advance(bar)
            for target in range(len(domains)):
                texts = bench.task.batch(probe, range(len(probe)))
                entries += cross(bench, domains, own, start, target, settings, seed, texts)
                progress.advance(bar)
    return {
        "settings": asdict(settings),
        "domains": [domain.name for domain in domains],
        "seeds": list(seeds),
        "summary": summarise(entries),
        "entries": entries,
    }


def probe_of(domains: Sequence[Domain]) -> Encoded:
    """Returns the first probe rows of all domains in turn."""
    turns = [(domain.probe, i) for i in range(_PROBE_TEXTS) for domain in domains]
    picked = [(part, i) for part, i in turns if i < len(part)][:_PROBE_TEXTS]
    return Encoded(
        [part.rows[i] for part, i in picked],
        [part.targets[i] for part, i in picked],
        domains[0].probe.lengths[[0] * len(picked)],
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--assets", type=Path, default=Path(os.environ.get("DEFT_ASSETS", "")))
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=DOMAINS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=200, help="of every tuning")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-tokens", type=int, default=20, help="virtual tokens of a prompt")
    parser.add_argument("--lr", type=float, default=Settings.lr, help="of the prompt")
    parser.add_argument("--head-lr", type=float, default=Settings.head_lr)
    parser.add_argument("--every", type=int, default=20, help="steps between points of a curve")
    parser.add_argument("--early", type=int, default=40, help="steps of a requester's own prompt")
    parser.add_argument("--rows", type=int, default=1200, help="training rows of a domain")
    parser.add_argument("--test-rows", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/transfer_matrix"))
    options = parser.parse_args(arguments)
    every, early, steps = options.every, options.early, options.steps
    if not 1 <= every <= early <= steps or steps % every or early % every:
        parser.error("--every must divide --early and --steps, and --early be at most --steps")
    if len(set(options.domains)) < max(2, len(options.domains)):
        parser.error("--domains: give two or more, each once; prompts go from one to another")
    console = Console(stderr=True)
    if not (options.assets / "reviews8").is_dir():
        console.print(f"skipped: {options.assets / 'reviews8'} is not there; set DEFT_ASSETS")
        return 0
    torch.set_num_threads(options.threads)
    backbone, task = model_and_task(options.max_length, options.num_tokens)
    tables = read_domains(options.assets, options.domains)
    domains = [
        prepared(task, name, train, test, rows=options.rows, test_rows=options.test_rows)
        for name, (train, test) in tables.items()
    ]
    prompted = PromptedModel(backbone.model.base_model, PromptSpec(options.num_tokens), seed=0)
    batches = [task.batch(each.probe, range(len(each.probe))) for each in domains]
    standardise_pooler(backbone.model, batches, prompted)
    settings = Settings(
        options.steps,
        batch_size=options.batch_size,
        num_tokens=options.num_tokens,
        every=options.every,
        early=options.early,
        lr=options.lr,
        head_lr=options.head_lr,
    )
    bench = Workbench(backbone, task, options.out)
    result = run(bench, domains, settings, options.seeds, console=console)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    (options.out / "transfer_matrix.json").write_text(text, encoding="utf-8")
    draw_matrix(result, options.out / "transfer_matrix.png")
    draw_bars(result, options.out / "transfer_bars.png")
    show(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
