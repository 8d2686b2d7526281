"""Members for the ensemble scripts: prompts tuned in one place, apart in seed and order of rows.

As in Lester et al. 2021 (arXiv:2104.08691), section 6: one frozen model, one task, prompts that
differ in their starting values and in the order of the training rows, each tuned alone (on a CPU a
batched pass is no faster). Tuned members are kept on disk, so an interrupted run goes on.
"""

import dataclasses
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_app import updates
from fl_app.bench import Bench, prepare
from fl_app.config import load_config
from fl_app.errors import DeftError
from fl_app.finetune import tune
from fl_app.material import load_material
from fl_app.prompts.errors import PromptError
from fl_app.prompts.fit import Fit, fit_of
from fl_app.prompts.member import Card, Member, member_of
from fl_app.prompts.packing import pack, unpack
from fl_app.seeding import generator
from fl_app.settings import local_tuning
from fl_app.tasks import Encoded
from fl_app.updates import Update

_MINILM = (
    "model=local",
    "model.path={assets}/models/minilm-l6",
    "model.pooler=standardised",
    "model.max_length=64",
    "finetune.batch_size=16",
    "finetune.lr=5e-3",
    "finetune.head_lr=5e-3",
)
TASKS: dict[str, tuple[str, ...]] = {
    "sst2": (*_MINILM, "data=local", "data.path={assets}/sst2"),
    "trec": (*_MINILM, "data=local", "data.path={assets}/trec"),
    "agnews": (*_MINILM, "data=local", "data.path={assets}/agnews"),
    "t0": (
        "model=local",
        "model.path={assets}/models/decoder12",
        "model.task=causal_lm",
        "model.max_length=192",
        "data=local",
        "data.path={assets}/t0_tasks",
        "finetune.batch_size=8",
        "finetune.lr=3e-2",
    ),
}
"""Overrides of every task; ``{assets}`` is the folder of models and data."""
_WHOLE = (
    "peft=prompt",
    "prompt=ensemble_mean",
    "strategy.emulator.left=0",
    "strategy.emulator.middle=-1",
    "strategy.emulator.right=1",
    "strategy.emulator.distil.steps=0",
    "data.partition.kind=iid",
    "data.public_fraction=0.1",
    "finetune.logit_adjustment=0",
)
"""The full model in one place; public rows are held out for weights and attention."""


@dataclass(frozen=True)
class Setting:
    """One task with one seed.

    Attributes:
        task: its name in the results.
        seed: draws splits, starting values and orders.
        num_members: how many members are tuned, >= 1.
        steps: of each member, >= 1.
        overrides: of the model and the data.
    """

    task: str
    seed: int
    num_members: int
    steps: int
    overrides: tuple[str, ...]

    def words(self) -> str:
        """Returns the run's overrides in one string."""
        num = f"prompt.num_members={self.num_members}"
        devices = f"federation.num_devices={self.num_members}"
        return shlex.join([*_WHOLE, num, devices, *self.overrides, f"seed={self.seed}"])


@dataclass(frozen=True)
class Prepared:
    """A task with its rows.

    Attributes:
        bench: model, task and test rows.
        train: rows members are tuned on.
        public: rows nobody is tuned on.
        starts: starting values of every member.
        fit: what the model takes.
    """

    bench: Bench
    train: Encoded
    public: Encoded
    starts: list[Update]
    fit: Fit


def setting_of(
    task: str, *, assets: Path, seed: int, num_members: int, steps: int, more: Sequence[str] = ()
) -> Setting:
    """Returns the setting of a known task.

    Args:
        task: a key of ``TASKS``.
        assets: folder with models and data.
        seed: the seed.
        num_members: members to tune.
        steps: steps of each.
        more: further overrides.
    """
    words = tuple(word.format(assets=assets) for word in TASKS[task])
    return Setting(task, seed, num_members, steps, (*words, *more))


def prepared(setting: Setting) -> Prepared:
    """Loads model and data.

    Raises:
        DeftError: something is missing or does not fit.
    """
    config = load_config(setting.words())
    material = load_material(config)
    bench = prepare(config, material)
    if bench.ensemble is None:
        raise PromptError("missing", "the overrides must leave prompt=ensemble_mean")
    return Prepared(
        bench=bench,
        train=bench.task.encode(material.train),
        public=bench.task.encode(material.public),
        starts=updates.split(bench.ensemble.start(), setting.num_members),
        fit=fit_of(bench.backbone, max_length=config.model.max_length),
    )


def tuned_members(setting: Setting, held: Prepared, folder: Path) -> list[Member]:
    """Returns the members, tuned now or read from an earlier, equal run.

    Args:
        setting: the task and the seed.
        held: what ``prepared`` returns for it.
        folder: where members are kept; one file each.
    """
    place = folder / f"{setting.task}-seed{setting.seed}-steps{setting.steps}"
    place.mkdir(parents=True, exist_ok=True)
    # members of other overrides must not be taken for these; the number of members is no matter
    words = dataclasses.replace(setting, num_members=9).words()
    note = place / "setting.json"
    known = json.loads(note.read_text()) if note.exists() else words
    if known != words:
        raise PromptError(
            "other-members", f"{place} holds members of other overrides; choose another --output"
        )
    note.write_text(json.dumps(words))
    return [_member(setting, held, j, place / f"{j}.prompt") for j in range(setting.num_members)]


def _member(setting: Setting, held: Prepared, j: int, path: Path) -> Member:
    if path.exists():
        try:
            member = unpack(path.read_bytes(), max_bytes=2**28)
            held.fit.require(member)
        except DeftError:
            path.unlink()  # a half file, or one of another model: tuned again
        else:
            return member
    began, full = time.monotonic(), held.bench.full
    full.write(held.starts[j])
    settings = local_tuning(held.bench.config.finetune)
    rows, size = len(held.train), settings.batch_size
    epochs = -(-setting.steps * size // max(rows, 1)) + 1
    tune(
        full.model,
        full.parameters,
        held.bench.task,
        held.train,
        dataclasses.replace(settings, max_steps=setting.steps, epochs=epochs),
        generator(setting.seed, "member-rows", j),
    )
    card = Card(held.fit.model_hash, held.fit.tokenizer_hash, j, setting.task, setting.steps)
    member = member_of(full.read(), card)
    beside = path.with_suffix(".part")
    beside.write_bytes(pack(member))
    beside.replace(path)
    print(
        f"{setting.task} seed {setting.seed}: member {j} tuned in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return member
