"""Prompt ensembles of language models: perplexity of the mixture, and a vote on strings."""

import math
import shlex
from typing import Any

import numpy as np
import pytest
import torch

from fl_app import updates
from fl_app.bench import prepare
from fl_app.client_app import app
from fl_app.config import load_config
from fl_app.job import federate
from fl_app.local_grid import LocalGrid
from fl_app.measures import measure
from fl_app.tasks import IGNORED
from tests.ensemble_fixtures import language_words
from tests.fixtures_models import WORDS as WORDS_KNOWN

_LETTERS = {0, 1, 2, *range(5, 5 + len(WORDS_KNOWN))}
"""Tokens this tokenizer writes out; 3 and 4 are special to it, those above are unknown to it."""


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Overrides of a tiny decoder that completes two words by one."""
    return shlex.join(
        [
            *language_words(tmp_path_factory.mktemp("language")),
            "data.partition.kind=iid",
            "data.public_fraction=0",
            "federation.num_devices=3",
            "strategy.num_rounds=2",
            "strategy.references=[]",
            "peft=prompt",
            "peft.num_tokens=3",
            "prompt=ensemble_vote",
            "prompt.num_members=3",
            "prompt.max_new_tokens=4",
            "finetune.batch_size=4",
            "finetune.lr=0.05",
        ]
    )


@pytest.mark.parametrize(
    "strategy",
    [
        "strategy.emulator.left=1 strategy.emulator.middle=1 strategy.emulator.right=1 "
        "strategy.emulator.distil.steps=0",
        "strategy=gradient_download",
    ],
    ids=["emulator download", "gradient download"],
)
def test_language_models_vote_on_strings(language: str, strategy: str) -> None:
    """Perplexity of the mixture by hand; completions decoded one token after the other."""
    overrides = f"{strategy} {language}"
    bench = prepare(load_config(overrides))
    with LocalGrid(app, num_nodes=3, run_config={"overrides": overrides}) as grid:
        outcome = federate(grid, bench)
    ensemble = bench.ensemble
    assert ensemble is not None
    figures = measure(bench, outcome.adapter, bench.test)
    assert ensemble.latest is not None
    members = updates.split(outcome.adapter, 3)
    total = count = 0.0
    said: list[list[list[int]]] = []
    picked = []
    for member in members:
        bench.full.write(member)
        own, decoded = [], []
        for ids, targets in zip(bench.test.rows, bench.test.targets, strict=True):
            with torch.inference_mode():
                logits = bench.full.model(input_ids=torch.tensor([ids])).logits[0].double()
                places = [t for t in range(len(ids) - 1) if targets[t + 1] != IGNORED]
                own += [float(logits[t].log_softmax(-1)[ids[t + 1]]) for t in places]
                prompt = [i for i, t in zip(ids, targets, strict=True) if t == IGNORED]
                decoded.append(_greedy(bench.full.model, prompt, 4))
        picked.append(own)
        said.append(decoded)
    mixed = np.log(np.mean(np.exp(picked), axis=0))
    total, count = -mixed.sum(), mixed.size
    assert figures["plug_in"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert figures["plug_in"] <= figures["member_mean"]  # the mean's loss is the lower, always
    entry = ensemble.entry(outcome.adapter, bench.test, ensemble.latest)
    wanted = [[t for t in targets if t in _LETTERS] for targets in bench.test.targets]
    hits = [[a == b for a, b in zip(one, wanted, strict=True)] for one in said]
    decoded_entry = entry["decoded"]
    assert decoded_entry["rows"] == 16
    assert decoded_entry["member_mean"] == pytest.approx(np.mean(hits))
    assert decoded_entry["member_best"] == pytest.approx(np.max(np.mean(hits, axis=1)))
    majority = np.sum(hits, axis=0) >= 2
    split = [len({tuple(one[row]) for one in said}) == 3 for row in range(16)]
    lowest = np.mean(majority)  # where all differ, the surest decides
    assert lowest <= decoded_entry["ensemble"] <= np.mean(majority | np.array(split))


def _greedy(model: Any, prompt: list[int], most: int) -> list[int]:
    """Decodes without a cache up to the end token (4); other tokens than words have no letters."""
    ids = list(prompt)
    for _ in range(most):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 4:
            break
    return [token for token in ids[len(prompt) :] if token in _LETTERS]
