"""Deep prompts: length 0, a forward pass by hand, gradients, nested lengths, masks, files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fl_app.errors import ModelError
from fl_app.fomo.adapter import Adapter, is_head
from fl_app.fomo.backbone import auto_class, head_modules
from fl_app.fomo.deep_prompt import DeepPrompt, DeepPromptSpec, attend
from fl_app.fomo.emulator import Split, build_emulator
from fl_app.fomo.load_adapter import load_adapter
from fl_app.layout.prefix import cut, layout_of
from fl_app.updates import Update
from tests.fixtures_models import CASES, DEPTH, TinyModels, logits_of

OUTER = (0, 3, 4)
BERT = ("bert", "sequence_classification")
EPS = torch.finfo(torch.float32).eps
KEY_WIDTH = {"llama": 8, "mistral": 8, "qwen2": 8}
"""Where heads of keys are grouped: one head of width 8, not 16."""


def _adapter(tiny: TinyModels, case: tuple[str, str] = BERT, num_tokens: int = 3) -> Adapter:
    model = tiny.load(*case).model
    return Adapter(
        model,
        blocks=range(DEPTH),
        tuned_blocks=OUTER,
        heads=head_modules(model, case[1]),
        spec=DeepPromptSpec(num_tokens),
        seed=0,
    )


def _drawn(adapter: Adapter, seed: int = 1) -> Update:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, 0.7, a.shape).astype(np.float32) for n, a in adapter.read().items()}


@pytest.mark.parametrize("case", CASES)
def test_length_0_everywhere_is_the_frozen_model_bit_for_bit(
    tiny: TinyModels, case: tuple[str, str]
) -> None:
    """And the start is N(0, 1) keys, values of 0, as many as the closed form says."""
    batch, bare = tiny.batch(*case, 5), tiny.load(*case).model
    wanted = logits_of(bare, batch)
    adapter = _adapter(tiny, case)
    start = adapter.read()
    sized = {name: array for name, array in start.items() if not is_head(name)}
    stacks, width = 2 if case[0] == "t5" else 1, KEY_WIDTH.get(case[0], 16)
    assert sum(array.size for array in sized.values()) == stacks * len(OUTER) * 2 * 3 * width
    assert all((array == 0).all() == name.endswith("values") for name, array in sized.items())
    assert not torch.equal(logits_of(adapter.model, batch), wanted)  # tokens draw attention
    adapter.resize(dict.fromkeys(OUTER, 0))
    assert torch.equal(logits_of(adapter.model, batch), wanted)
    assert all(map(is_head, adapter.parameters))
    adapter.resize({0: 2, 3: 0, 4: 5})
    assert layout_of(adapter.read()) == {0: 2, 4: 5}
    adapter.resize(dict.fromkeys(OUTER, 3))
    back = adapter.read()
    assert all(np.array_equal(back[name], start[name]) for name in start)


def _bert_by_hand(
    model: Any, arrays: Any, batch: Any, seen: dict[int, int] | None = None
) -> torch.Tensor:
    """Logits of a float64 BERT with attention written out; ``seen``: tokens of a block, if fewer.

    Unseen virtual tokens are there and masked, their scores minus infinity.
    """
    heads, bert = model.config.num_attention_heads, model.bert
    text = torch.where(batch["attention_mask"] == 1, 0.0, -torch.inf).double()
    hidden = bert.embeddings(batch["input_ids"])

    def split(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (heads, -1)).transpose(-3, -2)

    for index, block in enumerate(bert.encoder.layer):
        own, mask = block.attention.self, text
        query, key, value = own.query(hidden), own.key(hidden), own.value(hidden)
        lead = f"base_model.model.bert.encoder.layer.{index}.attention.self.prompt."
        if f"{lead}keys" in arrays:
            tokens = [torch.as_tensor(arrays[lead + end]).double() for end in ("keys", "values")]
            own_mask = torch.zeros(len(text), len(tokens[0])).double()
            own_mask[:, (seen or {}).get(index, len(tokens[0])) :] = -torch.inf
            mask = torch.cat([own_mask, mask], 1)
            key, value = (
                torch.cat([token.expand(len(text), -1, -1), states], 1)
                for token, states in zip(tokens, (key, value), strict=True)
            )
        scores = split(query) @ split(key).mT / (hidden.shape[-1] // heads) ** 0.5
        weights = (scores + mask[:, None, None, :]).softmax(-1)
        mixed = (weights @ split(value)).transpose(1, 2).flatten(2)
        attended = block.attention.output(mixed, hidden)
        hidden = block.output(block.intermediate(attended), attended)
    logits: torch.Tensor = model.classifier(bert.pooler(hidden))
    return logits


def _plain(tiny: TinyModels, values: Update) -> Any:
    plain = tiny.load(*BERT).model.double()
    for name in ("weight", "bias"):
        given = torch.from_numpy(values[f"base_model.model.classifier.{name}"])
        getattr(plain.classifier, name).data.copy_(given)
    return plain


def test_forward_and_gradients_are_those_by_hand(tiny: TinyModels) -> None:
    """Oracle: softmax over virtual tokens and text, in float64, and autograd through it."""
    batch, adapter = tiny.batch(*BERT, 5), _adapter(tiny)
    assert (batch["attention_mask"] == 0).any()
    adapter.resize({0: 2, 3: 0, 4: 5})
    values = _drawn(adapter)
    adapter.write(values)
    leaves: Any = {
        name: torch.from_numpy(array).double().requires_grad_()
        for name, array in values.items()
        if not is_head(name)
    }
    wanted = _bert_by_hand(_plain(tiny, values), leaves, batch)
    given = adapter.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    bound = 500 * EPS * float(wanted.detach().abs().max())
    assert (given - wanted).abs().max() < bound
    loss = torch.nn.functional.cross_entropy
    loss(wanted, batch["labels"]).backward()
    loss(given, batch["labels"]).backward()
    assert len(leaves) == 4
    for name, leaf in leaves.items():
        gradient, scale = adapter.parameters[name].grad, float(leaf.grad.abs().max())
        assert gradient is not None
        assert (gradient - leaf.grad).abs().max() < 2000 * EPS * scale
        assert scale > 0


def test_a_shorter_prompt_is_one_with_masked_tokens(tiny: TinyModels) -> None:
    layout = {0: 1, 3: 3, 4: 0}
    batch, adapter = tiny.batch(*BERT, 5), _adapter(tiny)
    whole = _drawn(adapter)
    adapter.write(whole)
    adapter.resize(layout)
    part, wanted = adapter.read(), cut(whole, layout)
    assert part.keys() == wanted.keys()
    assert all(np.array_equal(part[name], wanted[name]) for name in part)
    plain = _plain(tiny, whole)
    masked = _bert_by_hand(plain, whole, batch, layout)
    short = logits_of(adapter.model, batch)
    assert (short - masked).abs().max() < 500 * EPS * float(masked.abs().max())
    unmasked = _bert_by_hand(plain, whole, batch)
    assert (unmasked - masked).abs().max() > 0.01 * float(masked.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_every_virtual_token_is_attended_to(tiny: TinyModels, case: tuple[str, str]) -> None:
    """In every family, in both stacks: each row of keys and values has a gradient."""
    batch, adapter = tiny.batch(*case, 5), _adapter(tiny, case)
    adapter.write(_drawn(adapter))
    tiny.task(*case).loss(adapter.model, batch).backward()
    sized = {name: p for name, p in adapter.parameters.items() if not is_head(name)}
    assert len(sized) == 2 * len(OUTER) * (2 if case[0] == "t5" else 1)
    for parameter in sized.values():
        assert parameter.grad is not None
        assert (parameter.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "mistral", "qwen2"])
def test_text_stays_causal(tiny: TinyModels, family: str, has_mask: bool) -> None:
    """Another last token changes the last logits and no earlier ones, with a mask or without."""
    adapter = _adapter(tiny, (family, "causal_lm"))
    adapter.write(_drawn(adapter))
    ids = torch.arange(5, 17).reshape(2, 6)
    other = ids.clone()
    other[:, -1] = 30
    extra = {"attention_mask": torch.ones_like(ids)} if has_mask else {}
    one, two = (logits_of(adapter.model, {"input_ids": each, **extra}) for each in (ids, other))
    bound = 16 * EPS * float(one.abs().max())
    assert (one[:, :-1] - two[:, :-1]).abs().max() <= bound
    assert (one[:, -1] - two[:, -1]).abs().max() > 1000 * bound


@pytest.mark.parametrize("num_queries", [1, 4, 6])
@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float", "bias", "causal bias"])
def test_attention_by_hand_under_every_mask(kind: str, num_queries: int) -> None:
    """Oracle: softmax over virtual tokens and what a query may see, of grouped heads."""
    rng = torch.Generator().manual_seed(3)
    heads, keys, width, length, num_keys = 4, 2, 8, 3, 6

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    query = draw(2, heads, num_queries, width)
    key, value = draw(2, keys, num_keys, width), draw(2, keys, num_keys, width)
    adapter = DeepPrompt()
    adapter.keys = torch.nn.Parameter(draw(length, keys * width))
    adapter.values = torch.nn.Parameter(draw(length, keys * width))
    is_causal = kind.startswith("causal")
    module = SimpleNamespace(
        prompt=adapter, num_key_value_groups=heads // keys, is_causal=is_causal
    )
    sees = torch.rand(2, 1, num_queries, num_keys, generator=rng) > 0.3
    sees[..., 0] = True
    mask = {"bool": sees, "float": torch.where(sees, 0.0, -torch.inf).double()}.get(kind)
    bias = draw(1, heads, num_queries, num_keys) if "bias" in kind else None
    given, _ = attend(module, query, key, value, mask, bias, scaling=0.5)
    text = torch.zeros(2, heads, num_queries, num_keys, dtype=torch.float64)
    if kind in ("bool", "float"):
        text = text.masked_fill(~sees, -torch.inf)
    if is_causal:
        later = torch.arange(num_keys)[None] > torch.arange(num_queries)[:, None] + (
            num_keys - num_queries
        )
        text = text.masked_fill(later, -torch.inf)
    if bias is not None:
        text = text + bias
    own = torch.zeros(2, heads, num_queries, length, dtype=torch.float64)

    def whole(tokens: Any, states: torch.Tensor) -> torch.Tensor:
        split = tokens.view(length, keys, width).transpose(0, 1).expand(2, -1, -1, -1)
        return torch.cat([split, states], 2).repeat_interleave(heads // keys, 1)

    scores = 0.5 * query @ whole(adapter.keys, key).mT + torch.cat([own, text], -1)
    wanted = (scores.softmax(-1) @ whole(adapter.values, value)).transpose(1, 2)
    torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


def test_an_adapter_of_the_emulator_plugs_into_the_full_model(tiny: TinyModels) -> None:
    backbone = tiny.load("llama", "causal_lm")
    model = build_emulator(backbone.model, "causal_lm", Split(1, 1, 2, DEPTH))
    common: dict[str, Any] = {"tuned_blocks": OUTER, "heads": (), "spec": DeepPromptSpec(2)}
    emulated = Adapter(model, blocks=(0, 2, 3, 4), seed=0, **common)
    full = Adapter(backbone.model, blocks=range(DEPTH), seed=0, **common)
    assert emulated.layout_hash() == full.layout_hash()
    one, two = emulated.read(), full.read()
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_on_the_untouched_checkpoint(
    tiny: TinyModels, case: tuple[str, str], tmp_path: Path
) -> None:
    batch = tiny.batch(*case, 5)
    adapter = _adapter(tiny, case)
    adapter.resize({0: 5, 3: 0, 4: 2})
    adapter.write(_drawn(adapter))
    wanted = logits_of(adapter.model, batch)
    adapter.save(tmp_path)
    config = tiny.load(*case).model.config
    base = auto_class(case[1], config).from_pretrained(tiny.path(*case))
    base.config.pad_token_id = getattr(config, "pad_token_id", None)
    assert torch.equal(logits_of(load_adapter(base, tmp_path), batch), wanted)


def test_what_does_not_fit_is_named(tiny: TinyModels) -> None:
    adapter = _adapter(tiny)
    with pytest.raises(ModelError, match=r"\[0, 3, 4\]"):
        adapter.resize({0: 1})
    one = dict.fromkeys(OUTER, 1)
    with pytest.raises(ModelError, match="travel whole"):
        adapter.resize(one, {block: (2,) for block in OUTER})
    with pytest.raises(ModelError, match=r"another peft\.layout\.rule than cost_aware"):
        adapter.probed()
    model = tiny.load(*BERT).model
    model.set_attn_implementation("eager")
    with pytest.raises(ModelError, match=r"attn_implementation=sdpa.*eager"):
        Adapter(
            model,
            blocks=range(DEPTH),
            tuned_blocks=OUTER,
            heads=("classifier",),
            spec=DeepPromptSpec(1),
            seed=0,
        )
