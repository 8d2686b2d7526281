"""Gradient download of every kind of model: decoders, encoder-decoders, images."""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fl_app.bench import prepare
from fl_app.config import load_config
from fl_app.errors import ConfigError, DeftError, ModelError
from fl_app.material import load_material
from fl_app.measures import measure_plug_in
from tests.federation_fixtures import (
    Player,
    TinyFederation,
    fedavg64,
    player,
    tiny_federation,
)
from tests.fixtures_models import WORDS, TinyModels, tiny_examples
from tests.gradient_fixtures import GRADIENT, STEPS, VARIANTS, WHOLE, play, relative
from tests.oracles.adamw import tuned
from tests.oracles.central_gradient import adapter_gradient

__all__ = ["player", "tiny_federation"]

NUM_ROWS = 48


@dataclass(frozen=True)
class OtherFederation(TinyFederation):
    """The tiny federation with another model and its data."""

    task: str = "causal_lm"

    def _plain(self) -> list[str]:
        return [*super()._plain(), f"model.task={self.task}", "federation.num_devices=3"]


def _texts(folder: Path) -> None:
    for name, seed in (("train", 0), ("test", 1)):
        rows = tiny_examples(NUM_ROWS, seed)
        with (folder / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["prompt", "completion"])
            pairs = zip(rows.column("prompt"), rows.column("completion"), strict=True)
            table.writerows([(str(prompt), str(completion)) for prompt, completion in pairs])


def _images(folder: Path) -> None:
    for name, seed in (("train", 0), ("test", 1)):
        rows = tiny_examples(NUM_ROWS, seed)
        np.savez(
            folder / f"{name}.npz",
            image=np.asarray(rows.column("image")),
            label=np.asarray(rows.column("label")),
        )


@pytest.fixture(scope="module")
def other(
    tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Player]:
    """Returns a player of a family's federation."""
    made: dict[tuple[str, str], Player] = {}

    def of(family: str, task: str) -> Player:
        if (family, task) not in made:
            folder = tmp_path_factory.mktemp(family)
            (_images if family == "vit" else _texts)(folder)
            federation = OtherFederation(tiny.path(family, task), folder, task)
            made[family, task] = Player(federation, folder / "warm")
        return made[family, task]

    return of


CASES = [
    *(
        (family, "causal_lm", variant)
        for family in ("gpt2", "llama", "t5")
        for variant in ("prompt", "cut", "lora")
        if (family, variant) != ("t5", "cut")  # below
    ),
    ("vit", "image_classification", "cut"),
    ("vit", "image_classification", "lora"),
]


@pytest.mark.parametrize("labels", ["private", "server"])
@pytest.mark.parametrize(("family", "task", "variant"), CASES)
def test_one_round_is_that_of_the_whole_model(
    other: Callable[[str, str], Player], family: str, task: str, variant: str, labels: str
) -> None:
    """Two AdamW steps; only the order of float32 sums differs."""
    them = other(family, task)
    short = (*STEPS, "strategy.num_rounds=1", "finetune.max_steps=2")
    words = (*GRADIENT, *VARIANTS[variant], *short, f"strategy.labels={labels}")
    there = play(them, *words)
    whole = them.play(*WHOLE[variant], *short)
    assert there.devices(1) == whole.devices(1) == [0, 1, 2]
    assert relative(there.adapter, whole.outcome.adapter, whole.start) < 1e-4
    measured = measure_plug_in(there.bench, there.adapter, there.bench.test)
    again = measure_plug_in(whole.bench, whole.outcome.adapter, whole.bench.test)
    assert measured == pytest.approx(again, rel=1e-4)


@pytest.mark.parametrize("labels", ["private", "server"])
def test_a_cut_encoder_is_tuned_and_its_decoder_is_not(
    other: Callable[[str, str], Player], labels: str
) -> None:
    """One AdamW step by the book on each device, from autograd on the whole model; then the mean.

    Emulator download would tune the first blocks of both stacks, so it is no oracle here.
    """
    them = other("t5", "causal_lm")
    words = (*GRADIENT, *VARIANTS["cut"], *STEPS, f"strategy.labels={labels}")
    one_batch = ("strategy.num_rounds=1", "finetune.max_steps=1", "finetune.batch_size=64")
    played = play(them, *words, *one_batch)
    bench, start = played.bench, played.start
    places = [re.match(r"base_model\.model\.encoder\.block\.(\d)\.", name) for name in start]
    assert {place[1] for place in places if place} == {"0", "1"}
    assert all(places)
    material = load_material(bench.config)
    steps, sizes = [], []
    for device in range(3):
        encoded = bench.task.encode(material.of_device(device))
        bench.full.write(start)
        gradient = adapter_gradient(
            bench.full, bench.task.loss, bench.task.batch(encoded, range(len(encoded)))
        )
        for parameter in bench.full.parameters.values():
            parameter.grad = None
        after, _ = tuned(
            start,
            lambda _now, _step, g=gradient: {n: v.double().numpy() for n, v in g.items()},  # type: ignore[misc]
            dict.fromkeys(start, 0.01),
            num_steps=1,
            eps=1e-3,
            weight_decay=0.0,
            clip_norm=1.0,
            proximal_mu=0.0,
        )
        steps.append({n: after[n] - start[n] for n in start})
        sizes.append(len(encoded))
    wanted = fedavg64(start, steps, sizes)  # type: ignore[arg-type]
    assert relative(played.adapter, wanted, start) < 1e-5


@pytest.mark.parametrize(("family", "variant"), [("gpt2", "prompt"), ("t5", "lora")])
def test_a_shared_gradient_weighs_devices_by_their_predicted_tokens(
    other: Callable[[str, str], Player], family: str, variant: str
) -> None:
    """Three devices' one large batch is one device's: the loss is a mean over tokens, not texts."""
    them = other(family, "causal_lm")
    one_batch = ("strategy.num_rounds=1", "finetune.max_steps=1", "finetune.batch_size=64")
    words = (*GRADIENT, *VARIANTS[variant], *STEPS, *one_batch)
    shared = play(them, *words, "strategy.shared_gradient=true")
    alone = play(them, *words, "federation.num_devices=1")
    assert relative(shared.adapter, alone.adapter, alone.start) < 1e-5
    apart = play(them, *words)
    assert relative(apart.adapter, alone.adapter, alone.start) > 1e-3


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (("strategy.variant=prompt", "peft=lora"), ConfigError, "peft=prompt"),
        (("strategy.variant=cut", "peft=prompt"), ConfigError, "variant=cut.*peft=lora"),
        (("strategy.variant=lora", "peft=head"), ConfigError, "variant=lora.*peft=lora"),
        (("strategy.variant=cut", "strategy.cut=0"), ConfigError, r"strategy\.cut=0.*>= 1"),
        (("strategy.variant=cut", "strategy.cut=5"), ModelError, r"strategy\.cut=5"),
        (("strategy.variant=cut", "strategy.cut=9"), ModelError, r"strategy\.cut=9"),
        (
            ("strategy.variant=lora", "strategy.left=3", "strategy.right=3"),
            ModelError,
            r"strategy\.left=3.*strategy\.right=3",
        ),
        (
            ("strategy.variant=lora", "strategy.left=0", "strategy.right=0"),
            ConfigError,
            r"strategy\.right.*strategy\.left",
        ),
        (
            ("strategy.variant=cut", "strategy.shared_gradient=true"),
            ConfigError,
            r"shared_gradient.*variant prompt or lora",
        ),
        (
            ("strategy.variant=lora", "connection.block=4"),
            ConfigError,
            r"connection\.block=0",
        ),
        (
            ("strategy.variant=prompt", "peft=prompt", "peft.num_tokens=21"),
            ModelError,
            r"num_tokens=21.*max_length=12.*32 positions",
        ),
        (("strategy.variant=whole",), ConfigError, r"strategy\.variant.*prompt, cut, lora"),
        (("strategy.stream.host=0.0.0.0",), ConfigError, r"stream\.advertised_host"),
        (("strategy.features=int4",), ConfigError, r"strategy\.features.*int8"),
        (("strategy.max_in_flight=0",), ConfigError, r"max_in_flight.*>= 1"),
    ],
)
def test_what_does_not_fit_is_named(
    player: Player, words: tuple[str, ...], error: type[DeftError], says: str
) -> None:
    fitting = () if any(word.startswith("peft=") for word in words) else ("peft=lora",)
    lora = [w for w in player.tiny._plain() if not w.startswith(("peft", "strategy.emulator"))]
    overrides = " ".join([*lora, "strategy=gradient_download", *fitting, *words])
    with pytest.raises(error, match=says):
        prepare(load_config(overrides))


@pytest.mark.parametrize(
    ("family", "task", "says"),
    [
        ("vit", "image_classification", "peft=prompt.*vit.*peft=lora"),
        ("t5", "sequence_classification", "peft=prompt.*t5.*peft=lora"),
    ],
)
def test_models_without_room_for_a_prompt_are_named(
    other: Callable[[str, str], Player], family: str, task: str, says: str
) -> None:
    them = other(family, task)
    words = [w for w in them.tiny._plain() if not w.startswith(("peft", "strategy.emulator"))]
    if family == "t5":
        words += ["data.text_column=prompt", "data.label_column=completion"]
    with pytest.raises(ModelError, match=says):
        prepare(load_config(" ".join([*words, "strategy=gradient_download"])))


def test_words_of_the_tiny_data_are_in_the_vocabulary() -> None:
    assert set(" ".join(map(str, tiny_examples(NUM_ROWS).column("prompt"))).split()) <= set(WORDS)
