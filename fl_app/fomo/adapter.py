"""The adapter: what is tuned in chosen blocks or in front of them, plus the task head, by name.

This module says where layers go and names all parameters as PEFT names them in a saved adapter.
The names are those of the *full* model on server and device alike, so an adapter tuned on an
emulator plugs in as is.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from fl_app.errors import ModelError
from fl_app.fomo.blocks import block_of, family_of, renumber, stack_paths
from fl_app.fomo.bottleneck import Bottlenecks, BottleneckSpec
from fl_app.fomo.deep_prompt import DeepPrompts, DeepPromptSpec
from fl_app.fomo.lora import LoraLayers, LoraSpec, a_drawn
from fl_app.fomo.lora_insert import insert_lora
from fl_app.fomo.own_format import save_own
from fl_app.fomo.parameters import write_parameters
from fl_app.fomo.soft_prompt import PROMPT_NAME, PromptedModel, PromptSpec
from fl_app.fomo.unit_layers import UnitLayers
from fl_app.layout.prefix import Layout, unit_axis
from fl_app.updates import Update, own_name

__all__ = ["Adapter", "AdapterSpec", "LoraSpec", "is_head"]

AdapterSpec = LoraSpec | BottleneckSpec | DeepPromptSpec | PromptSpec
"""What an adapter adds to a model, its head aside."""

_PEFT_LEAD = "base_model.model."


def is_head(name: str) -> bool:
    """Tells whether a tunable parameter belongs to the task head, by its canonical name.

    Heads have a learning rate of their own; all else shares the other one.
    """
    return unit_axis(name) is None and own_name(name) != PROMPT_NAME


class Adapter:
    """The tunable parameters of one model, by their names in the full model.

    Args:
        model: a frozen full model or emulator; PEFT wraps it in place.
        blocks: indices, in the full model, of the model's blocks in order.
        tuned_blocks: indices, in the full model, of the blocks that get layers.
        heads: names of head modules tuned in full.
        spec: the layers or the soft prompt; None tunes the head alone.
        seed: seeds the prompt, or a bottleneck's D and LoRA's A, drawn uniformly as PEFT does:
            U(-1/sqrt(d_in), 1/sqrt(d_in)).
        carried: names of frozen modules that are not as in the checkpoint; they are saved along, so
            that the adapter gives the same outputs on the untouched model.
        later_blocks: like ``blocks``, for the stacks after the first; None if they have the same.
        later_tuned: like ``tuned_blocks``, likewise.

    Raises:
        ModelError: nothing would be tuned, no map has one of the target names, or the model takes
            no soft prompt.
    """

    def __init__(
        self,
        model: Any,
        *,
        blocks: Sequence[int],
        tuned_blocks: Sequence[int],
        heads: Sequence[str],
        spec: AdapterSpec | None,
        seed: int,
        carried: Sequence[str] = (),
        later_blocks: Sequence[int] | None = None,
        later_tuned: Sequence[int] | None = None,
    ) -> None:
        self._stacks = stack_paths(model)
        later = blocks if later_blocks is None else later_blocks
        self._to_full = {stack: dict(enumerate(later)) for stack in self._stacks}
        self._to_full[self._stacks[0]] = dict(enumerate(blocks))
        others = tuned_blocks if later_tuned is None else later_tuned
        tuned = {stack: set(others) for stack in self._stacks}
        tuned[self._stacks[0]] = set(tuned_blocks)
        self.model: Any
        self._lora: LoraLayers | None = None
        self._units: UnitLayers | None = None
        match spec:
            case LoraSpec():
                self.model = insert_lora(
                    model,
                    spec,
                    blocks=sorted(set().union(*tuned.values())),
                    is_tuned=partial(self._is_tuned, tuned=tuned),
                    saved=(*heads, *carried),
                )
                self._units = self._lora = LoraLayers(self._lora_layers(), spec, seed)
            case BottleneckSpec():
                self.model = _Tuned(model, heads)
                width = int(model.config.hidden_size)
                self._units = Bottlenecks(self._tuned_blocks(tuned), width, spec, seed)
            case DeepPromptSpec():
                self.model = _Tuned(model, heads)
                within = f".{family_of(model.config).self_attention}"
                attentions = self._tuned_blocks(tuned, within)
                self._units = DeepPrompts(model, attentions, spec, seed)
            case PromptSpec():
                self.model = PromptedModel(model, spec, seed=seed, heads=heads, carried=carried)
            case None:
                self.model = _Tuned(model, heads)
        self._spec, self._heads, self._carried = spec, tuple(heads), tuple(carried)
        for module in carried:
            self.model.base_model.model.get_submodule(module).requires_grad_(False)
        for name, parameter in self.model.named_parameters():
            if ".lora_A." in name:
                drawn = a_drawn(seed, self._canonical(name), tuple(parameter.shape))
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(drawn))
                parameter.requires_grad_(getattr(spec, "train_a", False))
        self._tuned = self._tunable()
        if not self._tuned:
            raise ModelError(
                "nothing to tune: peft=head needs a task with a head, choose peft=lora"
            )

    def _tunable(self) -> dict[str, nn.Parameter]:
        named = self.model.named_parameters()
        found = {self._canonical(name): p for name, p in named if p.requires_grad}
        return dict(sorted(found.items()))

    def _lora_layers(self) -> Iterator[tuple[str, str, Any]]:
        for name, module in self.model.named_modules():
            if hasattr(module, "lora_A"):
                yield name.removeprefix(_PEFT_LEAD), self._canonical(name), module

    def _tuned_blocks(
        self, tuned: dict[str, set[int]], within: str = ""
    ) -> Iterator[tuple[str, nn.Module]]:
        for stack, blocks in tuned.items():
            for place, number in self._to_full[stack].items():
                if number in blocks:
                    path = f"{stack}.{place}{within}"
                    yield self._canonical(path), self.bare_model.get_submodule(path)

    def _is_tuned(self, name: str, tuned: dict[str, set[int]]) -> bool:
        place = block_of(name, self._stacks)
        return place is not None and self._to_full[place[0]][place[1]] in tuned[place[0]]

    def _canonical(self, name: str) -> str:
        if name == PROMPT_NAME:
            return name
        plain = name.removeprefix(_PEFT_LEAD)
        plain = plain.replace(".modules_to_save.default", "").replace(".default", "")
        if ".original_module" in plain:
            return name
        for stack, to_full in self._to_full.items():
            plain = renumber(plain, (stack,), to_full)
        return _PEFT_LEAD + plain

    @property
    def bare_model(self) -> Any:
        """The ``transformers`` model inside the wrapping, with its layers as PEFT changed them."""
        return self.model.base_model.model

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The tunable parameters by canonical name, sorted."""
        return dict(self._tuned)

    @property
    def frozen_maps(self) -> dict[str, nn.Parameter]:
        """The frozen weights that LoRA adapts, by canonical name of the map; {} without LoRA."""
        return {} if self._lora is None else self._lora.frozen_maps

    @property
    def layout(self) -> dict[int, int]:
        """Size of every block that can have one, by index in the full model; {} for no kind."""
        return {} if self._units is None else self._units.layout

    @property
    def sends_whole_units(self) -> bool:
        """Whether there are units of which all is tuned; not so for LoRA whose A is frozen."""
        return self._units is not None and self._units.sends_whole_units

    def probed(self) -> AbstractContextManager[dict[str, nn.Parameter]]:
        """Gives the maps whose gradient says what a unit could gain; see ``UnitLayers.probed``.

        Raises:
            ModelError: there are no units.
        """
        if self._units is None:
            raise ModelError("this adapter has no units that could gain anything; set peft=lora")
        return self._units.probed()

    def resize(self, layout: Layout, units: Mapping[int, Sequence[int]] | None = None) -> None:
        """Cuts or extends the layers in place; see ``UnitLayers.resize``.

        Args:
            layout: size >= 0 of each of the blocks in ``self.layout``; empty for a head or a soft
                prompt.
            units: rows of a frozen A, by block; None for the first ones.

        Raises:
            ModelError: other blocks, a negative size, or units that do not fit.
        """
        if self._units is not None:
            self._units.resize(layout, units)
            self._tuned = self._tunable()
        elif layout:
            raise ModelError(
                f"layout {dict(layout)}: this adapter has no LoRA nor other layers; leave it empty"
            )

    def merge(self, stack: Update) -> None:
        """Adds (alpha / rank) B A to the frozen weights of the maps that a stack has factors of.

        Args:
            stack: A [any rank, d_in] and B [d_out, the same] by canonical name.

        Raises:
            ModelError: shapes do not fit; no weight has changed.
        """
        if self._lora is not None:
            self._lora.merge(stack)

    def read(self) -> Update:
        """Returns a float32 copy of the tunable parameters."""
        return {name: p.detach().numpy().copy() for name, p in self._tuned.items()}

    def write(self, arrays: Update) -> None:
        """Sets the tunable parameters.

        Raises:
            ModelError: names or shapes differ from this adapter's.
        """
        write_parameters(self._tuned, arrays)

    def layout_hash(self) -> str:
        """Returns the SHA-256 of names, shapes and dtypes: equal on devices that fit together."""
        layout = [(name, list(p.shape), "float32") for name, p in self._tuned.items()]
        return hashlib.sha256(json.dumps(layout).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Saves LoRA and soft prompts in Hugging Face PEFT format, for its ``from_pretrained``.

        What PEFT does not know is saved for ``fl_app.fomo.load_adapter``.

        Raises:
            ModelError: only a head was tuned, which is no PEFT adapter.
        """
        match self._spec:
            case None:
                raise ModelError("peft=head tunes no PEFT adapter; there is nothing to save")
            case BottleneckSpec() | DeepPromptSpec() as spec:
                save_own(
                    folder,
                    spec,
                    layout=self.layout,
                    tuned=self._tuned,
                    model=self.bare_model,
                    heads=self._heads,
                    carried=self._carried,
                )
                return
        self.model.save_pretrained(folder)
        # PEFT writes its set of names in random order; equal adapters shall be equal files.
        path = folder / "adapter_config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content.get("target_modules", []).sort()
        content |= {} if self._lora is None else self._lora.patterns()
        path.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


class _Tuned(nn.Module):
    """A model whose head is tuned, and what was put into it, named like PEFT's wrapping."""

    def __init__(self, model: Any, heads: Sequence[str]) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model
        self.config = model.config
        for head in heads:
            model.get_submodule(head).requires_grad_(True)  # in place; no PEFT layer is needed

    @override
    def forward(self, **inputs: Any) -> Any:
        """Runs the model."""
        model: Any = self.base_model.model
        return model(**inputs)
