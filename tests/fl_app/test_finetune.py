"""Local fine-tuning: batches, the optimiser, and what one step means for a federation."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_app.finetune import local_batches, tune
from fl_app.fomo.adapter import Adapter, LoraSpec
from fl_app.fomo.backbone import head_modules
from fl_app.seeding import generator
from tests.fixtures_models import DEPTH, TinyModels, state_bytes, tiny_examples
from tests.oracles import adamw
from tests.tuning_fixtures import free_tuning, token_rows

_CLASSES = "sequence_classification"


def _adapter(tiny: TinyModels, family: str, task: str) -> Adapter:
    model = tiny.load(family, task).model
    return Adapter(
        model,
        blocks=range(DEPTH),
        tuned_blocks=(0, DEPTH - 1),
        heads=head_modules(model, task),
        spec=LoraSpec(rank=2, alpha=4.0, targets=(), train_a=True),
        seed=0,
    )


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=120),
    batch_size=st.integers(1, 9),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_every_epoch_sees_every_example_once(
    lengths: list[int], batch_size: int, epochs: int, seed: int
) -> None:
    """In batches of at most the size, none empty, as many in each epoch; the stream decides."""
    encoded = token_rows(lengths)

    def deal() -> list[list[int]]:
        rng = generator(seed, "local")
        return list(local_batches(encoded, batch_size=batch_size, epochs=epochs, rng=rng))

    batches = deal()
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    per_epoch, rest = divmod(len(batches), epochs)
    assert (per_epoch, rest) == (-(-len(lengths) // batch_size), 0)
    for epoch in range(epochs):
        part = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert Counter(i for batch in part for i in batch) == Counter(range(len(lengths)))
    assert deal() == batches


@settings(derandomize=True, max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=32), seed=st.integers(0, 99))
def test_batches_of_one_pool_do_not_overlap_in_length(lengths: list[int], seed: int) -> None:
    """Up to eight batches are cut from one sorted pool, so little padding is computed."""
    batches = local_batches(
        token_rows(lengths), batch_size=4, epochs=1, rng=generator(seed, "local")
    )
    spans = sorted((min(s), max(s)) for s in ([lengths[i] for i in batch] for batch in batches))
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))


def test_chance_stays_in() -> None:
    """Equal lengths: which examples share a batch, and the order of batches, differ by epoch."""
    first, second, third, fourth = local_batches(
        token_rows([3] * 40), batch_size=20, epochs=2, rng=generator(0, "local")
    )
    assert {frozenset(first), frozenset(second)} != {frozenset(third), frozenset(fourth)}
    starts = [
        next(local_batches(token_rows([1, 2]), batch_size=1, epochs=1, rng=generator(seed, "s")))
        for seed in range(20)
    ]
    assert {tuple(start) for start in starts} == {(0,), (1,)}  # one side only: 2 in a million


@pytest.mark.parametrize(
    ("changes", "clipped"),
    [
        ({}, False),
        ({"weight_decay": 0.3}, False),
        ({"eps": 1e-5}, False),
        ({"clip_norm": 0.05}, True),
        ({"proximal_mu": 2.0, "weight_decay": 0.1, "clip_norm": 0.5}, True),
        ({"lr_final": 0.01, "progress": (0.25, 0.5), "weight_decay": 0.3}, False),
    ],
)
@pytest.mark.parametrize(("family", "task_name"), [("bert", _CLASSES), ("gpt2", "causal_lm")])
def test_tuning_equals_adamw_by_the_book(
    tiny: TinyModels, family: str, task_name: str, changes: dict[str, Any], clipped: bool
) -> None:
    """The same batches through a hand-written optimiser in float64."""
    task = tiny.task(family, task_name)
    encoded = task.encode(tiny_examples(10))
    tuning = free_tuning(epochs=2, **changes)
    batches = list(local_batches(encoded, batch_size=4, epochs=2, rng=generator(0, "local")))
    reference = _adapter(tiny, family, task_name)
    losses: list[float] = []

    def gradients(values: adamw.Doubles, step: int) -> adamw.Doubles:
        reference.write({name: array.astype(np.float32) for name, array in values.items()})
        loss = task.loss(reference.model, task.batch(encoded, batches[step]))
        losses.append(loss.item())
        names, parameters = zip(*reference.parameters.items(), strict=True)
        grads = torch.autograd.grad(loss, parameters)
        return {name: grad.double().numpy() for name, grad in zip(names, grads, strict=True)}

    start = reference.read()
    wanted, norms = adamw.tuned(
        start,
        gradients,
        {name: tuning.lr if ".lora_" in name else tuning.head_lr for name in start},
        num_steps=len(batches),
        eps=tuning.eps,
        weight_decay=tuning.weight_decay,
        clip_norm=tuning.clip_norm,
        proximal_mu=tuning.proximal_mu,
        shares=np.geomspace(0.01**0.25, 0.1, 7)[:6] if tuning.lr_final < 1 else None,
    )
    assert (max(norms) > tuning.clip_norm) == clipped

    adapter = _adapter(tiny, family, task_name)
    loss, steps = tune(
        adapter.model, adapter.parameters, task, encoded, tuning, generator(0, "local")
    )
    assert steps == len(batches) == 6
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    got = adapter.read()
    for name, array in wanted.items():
        # AdamW divides by sqrt(v): where a gradient is nearly zero, rounding of the gradient
        # decides the direction; a hundredth of one step is allowed for that
        rate = tuning.lr if ".lora_" in name else tuning.head_lr
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=0.01 * rate)
        assert np.abs(array - start[name]).max() > 0.1 * rate


def test_tuning_repeats_bit_for_bit(tiny: TinyModels) -> None:
    """The stream is the only randomness."""
    task = tiny.task("bert", _CLASSES)
    encoded = task.encode(tiny_examples(10))

    def tuned(seed: int) -> dict[str, bytes]:
        adapter = _adapter(tiny, "bert", _CLASSES)
        torch.manual_seed(seed)
        tune(adapter.model, adapter.parameters, task, encoded, free_tuning(), generator(0, "local"))
        return state_bytes(adapter.model)

    assert tuned(1) == tuned(2)


def test_max_steps_ends_within_an_epoch(tiny: TinyModels) -> None:
    """And is no promise where the data are fewer."""
    task = tiny.task("bert", _CLASSES)
    encoded = task.encode(tiny_examples(10))
    adapter = _adapter(tiny, "bert", _CLASSES)
    for max_steps, expected in ((2, 2), (100, 6), (None, 6)):
        tuning = free_tuning(epochs=2, max_steps=max_steps)
        _, steps = tune(
            adapter.model, adapter.parameters, task, encoded, tuning, generator(0, "local")
        )
        assert steps == expected


def test_two_learning_rates(tiny: TinyModels) -> None:
    """AdamW's first step moves every entry by its rate: LoRA by lr, the head by head_lr."""
    task = tiny.task("bert", _CLASSES)
    adapter = _adapter(tiny, "bert", _CLASSES)
    before = adapter.read()
    tuning = free_tuning(max_steps=1)
    encoded = task.encode(tiny_examples(8))
    tune(adapter.model, adapter.parameters, task, encoded, tuning, generator(0, "local"))
    for name, array in adapter.read().items():
        if ".lora_A." in name:  # B is zero, so A has no gradient yet
            assert array.tobytes() == before[name].tobytes()
            continue
        rate = tuning.lr if ".lora_B." in name else tuning.head_lr
        assert float(np.abs(array - before[name]).max()) == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize("family", ["bert", "llama", "vit"])
def test_average_of_one_plain_step_each_is_the_central_step(tiny: TinyModels, family: str) -> None:
    """tau = 1 and plain gradients: sum_k w_k (theta - lr g_k), w_k = n_k / n, is theta - lr g.

    g is the gradient over the concatenated batch, whose padding differs from each device's.
    """
    task_name = "image_classification" if family == "vit" else _CLASSES
    task = tiny.task(family, task_name)
    encoded = task.encode(tiny_examples(12))
    devices = [[0], [1, 2, 3], [4, 5], list(range(6, 12))]
    adapter = _adapter(tiny, family, task_name)
    rng = generator(0, "values")
    adapter.write(
        {n: rng.normal(0, 0.3, a.shape).astype(np.float32) for n, a in adapter.read().items()}
    )
    start, lr = adapter.read(), 0.5

    def step(rows: list[int]) -> NDArray[np.float64]:
        loss = task.loss(adapter.model, task.batch(encoded, rows))
        grads = torch.autograd.grad(loss, list(adapter.parameters.values()))
        moved = [start[n] - lr * g.double().numpy() for n, g in zip(start, grads, strict=True)]
        return np.concatenate([array.ravel() for array in moved])

    begin = np.concatenate([array.ravel() for array in start.values()]).astype(np.float64)
    central = step(list(range(12)))
    average = sum(len(rows) / 12 * step(rows) for rows in devices)
    length = np.linalg.norm(central - begin)
    assert length > 0.01
    assert np.linalg.norm(average - central) < 1e-5 * length
    unweighted = sum(step(rows) / len(devices) for rows in devices)
    assert np.linalg.norm(unweighted - central) > 0.01 * length


def test_who_watches_sees_the_gradient_of_the_loss_without_the_pull(tiny: TinyModels) -> None:
    """FedProx pulls hard; the second step's gradient is the loss's at the values of that step."""
    task = tiny.task("bert", _CLASSES)
    encoded = task.encode(tiny_examples(8))
    adapter, reference = _adapter(tiny, "bert", _CLASSES), _adapter(tiny, "bert", _CLASSES)
    start = adapter.read()
    seen: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def watch() -> None:
        gradients = {n: p.grad.clone() for n, p in adapter.parameters.items() if p.grad is not None}
        seen.append((adapter.read(), gradients))

    tuning = free_tuning(proximal_mu=1e4, max_steps=2)
    tune(adapter.model, adapter.parameters, task, encoded, tuning, generator(0, "x"), watch=watch)
    batches = list(local_batches(encoded, batch_size=4, epochs=1, rng=generator(0, "x")))
    assert len(seen) == 2
    for (values, gradients), indices in zip(seen, batches, strict=False):
        reference.write(values)
        loss = task.loss(reference.model, task.batch(encoded, indices))
        wanted = torch.autograd.grad(loss, list(reference.parameters.values()))
        for (name, gradient), exact in zip(gradients.items(), wanted, strict=True):
            torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-7)
            pull = 1e4 * np.abs(values[name] - start[name]).max()
            assert pull == 0 or pull > 10 * float(exact.abs().max())
    assert any((seen[1][0][name] != start[name]).any() for name in start)
