"""Language modelling: the loss is on the completion, and long prompts lose their beginning."""

import math
from typing import Any

import pytest
import torch

from fl_app.data.examples import Examples
from fl_app.errors import ModelError
from fl_app.fomo.backbone import tokenizer_from
from fl_app.tasks import IGNORED, CausalLm
from tests.fixtures_models import (
    CASES,
    TinyModels,
    task_of,
    tiny_examples,
)
from tests.oracles.likelihood import decoder_nll, encoder_decoder_nll

_LANGUAGE = tuple(family for family, task in CASES if task == "causal_lm")
_DECODERS = tuple(family for family in _LANGUAGE if family != "t5")


def _ids(backbone: Any, texts: list[str]) -> list[list[int]]:
    tokenizer = tokenizer_from(backbone.files)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.mark.parametrize("with_prompt", [True, False])
@pytest.mark.parametrize("family", _DECODERS)
def test_decoder_loss_is_on_the_completion_alone(
    tiny: TinyModels, family: str, with_prompt: bool
) -> None:
    """Sum over examples, one at a time, of -log softmax at each completion token and the end."""
    backbone = tiny.load(family, "causal_lm")
    task = task_of(backbone, max_length=64, prompt="prompt" if with_prompt else None)
    rows = tiny_examples(6)
    end = [4]
    completions = _ids(backbone, list(rows.column("completion")))
    prompts = _ids(backbone, list(rows.column("prompt"))) if with_prompt else [[]] * 6
    parts = [
        decoder_nll(backbone.model, prompt, completion + end)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    nats, tokens = sum(part[0] for part in parts), sum(part[1] for part in parts)
    assert tokens == sum(len(c) + with_prompt for c in completions)
    batch = task.batch(task.encode(rows), range(6))
    with torch.inference_mode():
        total, count = task.score(backbone.model, batch)
        loss = float(task.loss(backbone.model, batch))
    assert count == tokens
    assert total == pytest.approx(nats, rel=1e-5)
    assert loss == pytest.approx(nats / tokens, rel=1e-5)
    assert task.measure(total, count) == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert (task.metric, task.higher_is_better) == ("perplexity", False)


def test_encoder_decoder_loss_is_on_the_completion(tiny: TinyModels) -> None:
    """The encoder reads the prompt and its end; the decoder writes the completion and its end."""
    backbone = tiny.load("t5", "causal_lm")
    rows = tiny_examples(6)
    prompts, completions = (
        [[*ids, 4] for ids in _ids(backbone, list(rows.column(name)))]
        for name in ("prompt", "completion")
    )
    parts = [
        encoder_decoder_nll(backbone.model, prompt, completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    nats, tokens = sum(part[0] for part in parts), sum(part[1] for part in parts)
    task = tiny.task("t5", "causal_lm")
    encoded = task.encode(rows)
    assert encoded.rows == prompts
    assert encoded.targets == completions
    with torch.inference_mode():
        total, count = task.score(backbone.model, task.batch(encoded, range(6)))
    assert count == tokens
    assert total == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("family", _LANGUAGE)
def test_long_prompt_loses_its_beginning_and_the_completion_stays(
    tiny: TinyModels, family: str
) -> None:
    """What is closest to the answer matters most."""
    task = task_of(tiny.load(family, "causal_lm"), max_length=8)
    backbone = tiny.load(family, "causal_lm")
    prompt = " ".join(f"w{i}" for i in range(9))
    long = " ".join(f"w{i}" for i in range(20))
    rows = Examples({"prompt": [prompt, prompt, "w1"], "completion": ["w7 w8", long, "w2"]})
    encoded = task.encode(rows)
    (prompt_ids, *_), (short_ids, long_ids, last_ids) = (
        _ids(backbone, list(rows.column(name))) for name in ("prompt", "completion")
    )
    one_ids = _ids(backbone, ["w1"])[0]
    if family == "t5":
        assert encoded.rows == [[*prompt_ids, 4][-8:], [*prompt_ids, 4][-8:], [*one_ids, 4]]
        assert encoded.targets == [[*short_ids, 4], long_ids[:8], [*last_ids, 4]]
        return
    kept = prompt_ids[-(8 - len(short_ids) - 1) :]
    assert encoded.rows == [
        [*kept, *short_ids, 4],
        long_ids[:8],
        [*one_ids, *last_ids, 4],
    ]
    assert encoded.targets == [
        [IGNORED] * len(kept) + [*short_ids, 4],
        long_ids[:8],
        [IGNORED] * len(one_ids) + [*last_ids, 4],
    ]
    assert encoded.lengths.tolist() == [len(row) for row in encoded.rows]


def test_loss_pads_labels_with_what_is_ignored(tiny: TinyModels) -> None:
    """Not with the padding token: for GPT-2 that is the end, which must be predicted."""
    task = tiny.task("gpt2", "causal_lm")
    rows = Examples({"prompt": ["w0", "w0 w1"], "completion": ["w2", "w2 w3"]})
    batch = task.batch(task.encode(rows), [0, 1])
    assert batch["input_ids"].tolist() == [[5, 7, 4, 4, 4], [5, 6, 7, 8, 4]]
    assert batch["labels"].tolist() == [[-100, 7, 4, -100, -100], [-100, -100, 7, 8, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_encoder_decoder_needs_a_prompt_column(tiny: TinyModels) -> None:
    """The text names the setting."""
    with pytest.raises(ModelError, match=r"needs data\.prompt_column"):
        task_of(tiny.load("t5", "causal_lm"), prompt=None)


def test_batch_without_a_predicted_token_has_no_loss(tiny: TinyModels) -> None:
    """Empty texts: nothing to predict, so zero and not NaN, for the step must not poison."""
    backbone = tiny.load("gpt2", "causal_lm")
    task = task_of(backbone, prompt=None)
    assert isinstance(task, CausalLm)
    batch = task.batch(task.encode(Examples({"completion": ["", ""]})), [0, 1])
    with torch.inference_mode():
        assert float(task.loss(backbone.model, batch)) == 0.0
        assert task.score(backbone.model, batch) == (0.0, 0.0)
