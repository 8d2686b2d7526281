"""Writes ``docs/serving.md``: real requests by curl to a real service, good and bad.

``python -m scripts.serve_transcript`` tunes two prompts of MiniLM on four classes of the embedded
utterances (some ten seconds of computing), starts ``scripts.serve_ensemble`` with the first of
them, and runs the requests below with curl. The page holds requests and answers as they were.
"""

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fl_app.data.examples import Examples
from fl_app.data.readers import read_table
from fl_app.errors import DeftError, RunError
from fl_app.fomo.backbone import load_backbone
from fl_app.fomo.minilm import minilm_path
from fl_app.prompts.fit import Fit, fit_of
from fl_app.prompts.member import Card, Member
from fl_app.prompts.packing import pack
from fl_app.prompts.pool import Pool
from fl_app.prompts.service import columns
from fl_app.seeding import generator
from fl_app.tasks import build_task
from scripts.transfer_tuning import Domain, Settings, Workbench

_ROOT = Path(__file__).resolve().parents[1]
_MAX_LENGTH, _NUM_LABELS, _NUM_HELD = 24, 4, 40
_JSON = "-H 'content-type: application/json'"
_OCTETS = "-H 'content-type: application/octet-stream'"
_HEAD = """# Serving an ensemble of prompts

`scripts/serve_ensemble.py` answers queries with all prompts of a pool in one batched pass, moves
their weights by feedback, and takes in new prompts while it runs. There is no encryption and no
login: listen on loopback, or behind a proxy that has both.

Everything below was run, not typed: `python -m scripts.serve_transcript` starts the service,
sends these requests with curl, and writes this page. `$URL` is the address that the service prints
when it starts. Each answer ends with its HTTP status, for curl is also given
`-w ' %{http_code}'`, which is left out below.

A prompt fits the model it was tuned on, to the last weight. A run may have changed its checkpoint:
`model.pooler=standardised` (the default of `model=minilm`) replaces the pooler, and
`strategy.wire_dtype` rounds the device part. Its `pool/` holds the difference (`model.frozen`, with
the labels and the tokens after which texts were cut); the service puts it into the checkpoint that
`--model` names. So a run is served by
`python -m scripts.serve_ensemble --pool outputs/latest/pool` (classes only: the pool of a language
model is refused). Without that file, or with another checkpoint, all members are refused as
`wrong-model`. What the service refuses at its start stays in the folder as it is.

The folder also keeps the weights (`hedge.json`) and the best accuracy that the members have had on
the probe rows (`door.json`): newcomers may cost a point of it altogether, whatever is restarted.
Delete a file to start it anew.
"""
_SECTIONS: Sequence[tuple[str, Sequence[str]]] = (
    (
        "A day of the service",
        (
            "curl -s $URL/state",
            f'curl -s $URL/query {_JSON} -d \'{{"texts": ["TEXT0", "TEXT1"]}}\'',
            f'curl -s $URL/feedback {_JSON} -d \'{{"id": 1, "label": "LABEL0"}}\'',
            f"curl -s $URL/prompts {_OCTETS} --data-binary @newcomer.prompt",
            f'curl -s $URL/query {_JSON} -d \'{{"texts": ["TEXT1"]}}\'',
            f'curl -s $URL/feedback {_JSON} -d \'{{"id": 3, "label": "LABEL1"}}\'',
            "curl -s $URL/state",
        ),
    ),
    (
        "Bad queries",
        (
            f"curl -s $URL/query {_JSON} -d '{{\"texts\": '",
            f"curl -s $URL/query {_JSON} -d '[]'",
            f'curl -s $URL/query {_JSON} -d \'{{"texts": "not a list"}}\'',
            f"curl -s $URL/query {_JSON} -d '{{\"texts\": []}}'",
            f'curl -s $URL/query {_JSON} -d \'{{"texts": ["  "]}}\'',
            f'curl -s $URL/query {_JSON} -d \'{{"texts": ["\\ud800"]}}\'',
            f'curl -s $URL/query {_JSON} -d \'{{"texts": ["hello"], "more": 1}}\'',
            "curl -s $URL/query -H 'content-type: text/plain' -d 'hello'",
            f"curl -s $URL/query {_JSON} --data-binary @large.json",
        ),
    ),
    (
        "Bad feedback",
        (
            f'curl -s $URL/feedback {_JSON} -d \'{{"id": 1, "label": "LABEL0"}}\'',
            f'curl -s $URL/feedback {_JSON} -d \'{{"id": 999, "label": "LABEL0"}}\'',
            f'curl -s $URL/feedback {_JSON} -d \'{{"id": 2, "label": "no such label"}}\'',
            f'curl -s $URL/feedback {_JSON} -d \'{{"id": "2", "label": "LABEL0"}}\'',
        ),
    ),
    (
        "Bad prompts",
        (
            f"curl -s $URL/prompts {_OCTETS} --data-binary 'no prompt at all'",
            f"curl -s $URL/prompts {_OCTETS} --data-binary @damaged.prompt",
            f"curl -s $URL/prompts {_OCTETS} --data-binary @newcomer.prompt",
            f"curl -s $URL/prompts {_OCTETS} --data-binary @other-model.prompt",
            f"curl -s $URL/prompts {_OCTETS} --data-binary @wide.prompt",
            f"curl -s $URL/prompts {_OCTETS} --data-binary @huge.prompt",
            f"curl -s $URL/prompts {_OCTETS} --data-binary @random.prompt",
            f"curl -s $URL/prompts {_JSON} -d '{{}}'",
        ),
    ),
    ("No such thing", ("curl -s $URL/nowhere", "curl -s $URL/query")),
)


def prepare(folder: Path, model: str, table: Examples, *, steps: int) -> dict[str, str]:
    """Tunes two prompts and writes all files that the requests send.

    Args:
        folder: where to.
        model: a model folder.
        table: labelled texts.
        steps: of each tuning.

    Returns:
        What stands for the words in capitals in the requests, and ``labels``.
    """
    names = sorted(set(table.column("label")))[:_NUM_LABELS]
    labels = tuple(str(name) for name in names)
    mine = table.take(i for i, label in enumerate(table.column("label")) if label in labels)
    backbone = load_backbone(model, task="sequence_classification", labels=labels, seed=0)
    fit = fit_of(backbone, max_length=_MAX_LENGTH)
    task = build_task(
        backbone.task,
        files=backbone.files,
        labels=labels,
        columns=columns(),
        max_length=_MAX_LENGTH,
        model_config=backbone.model.config,
    )
    order = [int(i) for i in generator(0, "transcript").permutation(len(mine))]
    probe, rest = mine.take(order[:40]), order[40:]
    bench = Workbench(backbone, task, folder / "tuned")
    settings = Settings(steps, num_tokens=8, every=steps, early=steps)
    members = []
    for seed in range(2):
        part, other = (mine.take(rest[place::2]) for place in (seed, 1 - seed))
        # rows of the gate are for the gate: what is tuned is looked at on the other device's
        held = task.encode(other.take(range(min(_NUM_HELD, len(other)))))
        domain = Domain(f"device{seed}", task.encode(part), held, held, held)
        made = bench.tuned(domain, bench.start(settings, seed), settings, seed, domain.name).member
        members.append(_with_card(made, fit, seed))
    pool = Pool(fit, capacity=4)
    pool.admit(members[0])
    pool.save(folder / "pool")
    rows = zip(probe.column("text"), probe.column("label"), strict=True)
    lines = "".join(f"{text}\t{label}\n" for text, label in rows)
    (folder / "probe.tsv").write_text(f"text\tlabel\n{lines}", encoding="utf-8")
    _write_prompts(folder, members[1], fit)
    (folder / "large.json").write_text('{"texts": ["' + "a" * 2**20 + '"]}', encoding="utf-8")
    shown = mine.take(rest[:2])
    words = {f"TEXT{i}": str(text) for i, text in enumerate(shown.column("text"))}
    words |= {f"LABEL{i}": str(label) for i, label in enumerate(shown.column("label"))}
    return {**words, "labels": ",".join(labels)}


def _write_prompts(folder: Path, member: Member, fit: Fit) -> None:
    """Writes the newcomer, and what is wrong in a way of its own."""
    good = pack(member)
    damaged = bytearray(good)
    damaged[-1] ^= 1
    (folder / "damaged.prompt").write_bytes(damaged)
    (folder / "newcomer.prompt").write_bytes(good)
    card, prompt = member.card, member.prompt
    drawn = generator(0, "transcript-random").normal(0.0, prompt.std(), prompt.shape)
    others = {
        "other-model": Member(
            prompt, dataclasses.replace(card, model_hash="0" * 64), dict(member.head)
        ),
        "wide": Member(prompt.repeat(2, axis=1), card),
        "huge": Member(prompt * 2 * fit.max_row_norm, card, dict(member.head)),
        "random": Member(
            drawn.astype("float32"),
            card,
            {name: -array for name, array in member.head.items()},
        ),
    }
    for name, other in others.items():
        (folder / f"{name}.prompt").write_bytes(pack(other))


def _with_card(member: Member, fit: Fit, device: int) -> Member:
    card = Card(fit.model_hash, fit.tokenizer_hash, device, "utterances", 1)
    return Member(member.prompt.copy(), card, dict(member.head))


@contextmanager
def serving(folder: Path, model: str, labels: str) -> Iterator[str]:
    """Runs the service as a process of its own; gives its address."""
    words = [sys.executable, "-m", "scripts.serve_ensemble", "--port", "0", "--threads", "1"]
    words += ["--model", model, "--labels", labels, "--max-length", str(_MAX_LENGTH)]
    words += ["--pool", str(folder / "pool"), "--probe", str(folder / "probe.tsv")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=_ROOT)  # noqa: S603
    try:
        if process.stdout is None or not (url := process.stdout.readline().strip()):
            raise RunError("the service did not start; see above for the reason")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def transcript(folder: Path, url: str, words: dict[str, str]) -> str:
    """Runs every request and returns the page.

    Raises:
        RunError: curl failed, which a refusal by the service is not.
    """
    page = [_HEAD]
    shell = shutil.which("sh") or "/bin/sh"
    for title, requests in _SECTIONS:
        page += [f"## {title}", "", "```console"]
        for request in requests:
            for name, word in words.items():
                request = request.replace(name, word.replace("'", "'\\''"))
            done = subprocess.run(  # noqa: S603
                [shell, "-c", f"{request} --noproxy '*' -w ' %{{http_code}}'"],
                capture_output=True,
                text=True,
                cwd=folder,
                env={**os.environ, "URL": url},
                check=False,
            )
            if done.returncode:
                raise RunError(f"{request}: curl ended with {done.returncode}: {done.stderr}")
            page += [f"$ {request}", done.stdout]
        page += ["```", ""]
    return "\n".join(page)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 where something is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", help="a model folder; MiniLM if left out")
    parser.add_argument("--table", type=Path, help="labelled texts; the utterances if left out")
    parser.add_argument("--steps", type=int, default=60, help="local steps of each prompt")
    parser.add_argument("--out", type=Path, default=_ROOT / "docs" / "serving.md")
    options = parser.parse_args(arguments)
    if shutil.which("curl") is None:
        print("curl is not installed", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    try:
        table = read_table(options.table or _ROOT / "fl_app/data/utterances/train.jsonl")
        model = options.model or str(minilm_path())
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            words = prepare(folder, model, table, steps=options.steps)
            with serving(folder, model, words.pop("labels")) as url:
                page = transcript(folder, url, words)
    except DeftError as error:
        print(error, file=sys.stderr)
        return 1
    options.out.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
