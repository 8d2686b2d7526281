"""Layouts of a run: priced as they are sent, equal in size, nested, and uniform as before."""

import shlex
from typing import Any

import numpy as np
import pytest

from fl_app import updates
from fl_app.allocation import Allocation, allocate
from fl_app.bench import prepare
from fl_app.config import load_config
from fl_app.errors import ConfigError, DeftError
from fl_app.fomo.adapter import Adapter
from fl_app.fomo.emulator import Split
from fl_app.layout.errors import LayoutError
from fl_app.layout.prefix import cut, is_within
from fl_app.layout.rules import PROFILES, profile
from fl_app.pricing import LayoutPrices
from fl_app.records import to_blob
from fl_app.schema import DeviceConfig, LoraConfig
from fl_app.settings import adapter_for
from fl_app.updates import Update, blob_bytes, num_reals
from fl_app.variants import REFERENCES, as_reference
from tests.federation_fixtures import CLASSES, Player, player, tiny_federation
from tests.fixtures_models import DEPTH, LABELS, TinyModels

__all__ = ["player", "tiny_federation"]

SPLIT = Split(2, 1, 2, DEPTH)
RULES = ("linear_up", "linear_down", "u_shape")
CASES = [
    ("bert", "sequence_classification"),
    ("gpt2", "causal_lm"),
    ("t5", "causal_lm"),
    ("llama", "sequence_classification"),
    ("vit", "image_classification"),
]


def _made(
    tiny: TinyModels, *words: str, case: tuple[str, str] = CASES[0], gains: Any = None
) -> tuple[Allocation, Adapter, LayoutPrices]:
    plain = ["model=local", "model.path=x", f"model.task={case[1]}", "peft.rank=4"]
    config = load_config(shlex.join([*plain, "model.max_length=16", *words]))
    backbone = tiny.load(*case)
    adapter = adapter_for(config, backbone.model, blocks=range(DEPTH), tuned=SPLIT.outer)
    peft = config.peft
    assert type(peft) is LoraConfig
    shape: dict[str, Any] = {"num_labels": 0 if case[1] == "causal_lm" else len(LABELS)}
    shape["split"] = SPLIT
    made = allocate(config, backbone.model.config, adapter=adapter, gains=gains, **shape)
    shapes = {name: tuple(p.shape) for name, p in adapter.parameters.items()}
    prices = LayoutPrices(config, peft, backbone.model.config, shapes=shapes, **shape)
    adapter.resize(made.server)
    return made, adapter, prices


def _bytes(adapter: Update) -> int:
    return len(to_blob(adapter))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", RULES)
def test_rules_compare_at_equal_parameters(
    tiny: TinyModels, case: tuple[str, str], rule: str
) -> None:
    """Oracle 1: no more than the uniform layout has, and exactly as many, for blocks are alike."""
    words = ("peft.targets=[all-linear]", f"peft.layout.rule={rule}")
    made, adapter, prices = _made(tiny, *words, case=case)
    _, uniform, _ = _made(tiny, words[0], case=case)
    assert num_reals(adapter.read()) == num_reals(uniform.read())
    assert sum(made.server.values()) == 4 * len(SPLIT.outer)
    assert len(set(made.server.values())) > 1
    found = prices.of(DeviceConfig())(list(made.server.values()))
    assert found.params == num_reals(adapter.read())
    assert found.uplink_bytes == _bytes(adapter.read())


@pytest.mark.parametrize("aggregation", ["freeze-a", "factors"])
@pytest.mark.parametrize("channel", ["ideal", "digital", "aircomp"])
def test_what_is_broadcast_is_priced_as_it_is_sent(
    tiny: TinyModels, channel: str, aggregation: str
) -> None:
    """A serialised adapter, whatever channel the updates take; and seconds go by its bytes."""
    words = ("peft=lora_linear_up", f"channel={channel}", f"peft.aggregation={aggregation}")
    made, adapter, prices = _made(tiny, *words)
    near, far = (DeviceConfig(distance_m=distance) for distance in (100, 2000))
    price = prices.of(near)(list(made.server.values()))
    assert price.downlink_bytes == _bytes(adapter.read())
    small = prices.of(near)([0, 0, 0, 1])
    ratio = price.downlink_bytes / small.downlink_bytes
    assert price.downlink_s == pytest.approx(ratio * small.downlink_s, rel=1e-12)
    assert prices.of(far)([0, 0, 0, 1]).downlink_s > small.downlink_s


@pytest.mark.parametrize("channel", ["ideal", "digital", "aircomp"])
def test_factors_in_turn_are_priced_by_the_larger_half(tiny: TinyModels, channel: str) -> None:
    """B is sent in odd rounds and A in even ones; both are broadcast in every round."""
    words = ("peft=lora_linear_up", "peft.targets=[all-linear]", f"channel={channel}")
    made, adapter, prices = _made(tiny, *words, "peft.aggregation=alternate")
    parameters = adapter.read()
    halves = [updates.travelling(parameters, "alternate", number) for number in (1, 2)]
    assert 0 < num_reals(halves[0]) != num_reals(parameters)
    sent = {
        "ideal": max(map(_bytes, halves)),
        "digital": max(map(num_reals, halves)),  # 8 bits a real
        "aircomp": 4 * max(map(num_reals, halves)),
    }[channel]
    device = DeviceConfig()
    price = prices.of(device)(list(made.server.values()))
    assert price.uplink_bytes == sent
    assert price.downlink_bytes == _bytes(parameters)
    assert price.params == num_reals(parameters)
    whole = _made(tiny, *words, "peft.aggregation=factors")[2].of(device)
    both = whole(list(made.server.values()))
    per_byte = both.uplink_s / both.uplink_bytes
    assert price.uplink_s == pytest.approx(sent * per_byte, rel=1e-9)
    parts = price.uplink_s + price.compute_s + price.downlink_s
    assert price.round_s == pytest.approx(parts, rel=1e-9)


def test_profiles_rise_and_fall_towards_the_loss(tiny: TinyModels) -> None:
    ranks = {rule: list(_made(tiny, f"peft=lora_{rule}")[0].server.values()) for rule in RULES}
    assert ranks["linear_up"] == sorted(ranks["linear_up"])
    assert ranks["linear_down"] == sorted(ranks["linear_down"], reverse=True)
    # largest remainders favour the block nearest to the loss where quotas are equal
    assert ranks["linear_up"] == [2, 3, 5, 6]
    up = ranks["u_shape"]
    assert min(up[0], up[3]) > max(up[1], up[2])
    top, _, _ = _made(tiny, "peft=lora_top_n", "peft.layout.num_tuned=2")
    assert top.server == {0: 0, 1: 0, 3: 8, 4: 8}


def test_uniform_is_what_it_was(tiny: TinyModels) -> None:
    made, adapter, _ = _made(tiny)
    assert made == Allocation(server=dict.fromkeys(SPLIT.outer, 4))
    assert made.is_shared
    assert made.at(3, 7) == adapter.layout
    priced, _, _ = _made(tiny, "peft.layout.params=100000", "peft.layout.max_rank=4")
    assert priced.server == made.server


@pytest.mark.parametrize("limit", [3000, 5555, 9999, 20000])
@pytest.mark.parametrize("rule", ["uniform", *RULES])
def test_as_many_units_as_the_byte_budget_carries_when_serialised(
    tiny: TinyModels, rule: str, limit: int
) -> None:
    """Oracle 1, against every number of units tried one by one."""
    words = (f"peft.layout.rule={rule}", f"peft.layout.uplink_bytes={limit}")
    made, adapter, _ = _made(tiny, *words)
    assert _bytes(adapter.read()) <= limit
    adapter.resize(dict.fromkeys(SPLIT.outer, 16))
    whole, spread = adapter.read(), profile(PROFILES[rule](4), largest=16)
    carried = {
        units: _bytes(cut(whole, dict(zip(SPLIT.outer, sizes, strict=True)))) <= limit
        for units in range(1, 65)
        for sizes in [[int(size) for size in spread.sizes(units)]]
    }
    assert carried[sum(made.server.values())]
    assert sum(made.server.values()) == sum(carried.values())


def test_classes_are_nested_and_keep_their_limits(tiny: TinyModels) -> None:
    words = [
        "peft=lora_linear_up",
        "federation.classes=[{name:weak,share:1,uplink_bytes:6000},"
        "{name:middling,share:2,params:1500,device:jetson},{name:strong,share:1,device:laptop}]",
        "federation.num_devices=8",
    ]
    made, adapter, _ = _made(tiny, *words)
    alone, _, _ = _made(tiny, "peft=lora_linear_up")
    assert made.server == made.classes["strong"] == alone.server
    whole = adapter.read()
    parts = {name: cut(whole, layout) for name, layout in made.classes.items()}
    assert all(is_within(layout, made.server) for layout in made.classes.values())
    assert _bytes(parts["weak"]) <= 6000 < _bytes(whole)
    assert num_reals(parts["middling"]) <= 1500 < num_reals(whole)
    assert sorted(made.class_of) == list(range(8))
    counts = [list(made.class_of.values()).count(name) for name in ("weak", "middling", "strong")]
    assert counts == [2, 4, 2]
    assert not made.is_shared
    assert made.at(1, 3) == made.classes[made.class_of[3]]
    with pytest.raises(ConfigError, match=r"device 8 .*partition"):
        made.at(1, 8)


GAINS = {0: [100, 99, 98, 9], 1: [1], 3: [1], 4: [97, 96, 95, 94]}
"""By parameters three units of block 0 and one of block 4; by seconds block 4 comes first."""


def _by_gain(
    tiny: TinyModels, limits: dict[str, float], given: dict[int, list[int]] = GAINS
) -> tuple[Allocation, LayoutPrices]:
    weak = ",".join(f"{name}:{limit}" for name, limit in limits.items())
    words = ("peft=lora_cost_aware", f"federation.classes=[{{name:weak,share:1,{weak}}}]")
    gains = {block: np.array(row, dtype=float) for block, row in given.items()}
    made, _, prices = _made(tiny, *words, "peft.rank=1", gains=gains)
    return made, prices


def test_a_class_spends_its_limits_on_units_of_the_server(tiny: TinyModels) -> None:
    """No unit of the server's fits any more; by its own wishes it would have three of block 4."""
    _, _, prices = _made(tiny)
    most, three = (prices.of(DeviceConfig())(sizes) for sizes in ([3, 0, 0, 1], [0, 0, 0, 3]))
    limits = {"params": float(three.params), "step_s": 1.01 * most.step_s}
    made, prices = _by_gain(tiny, {"params": three.params, "step_s": limits["step_s"]})
    assert list(made.server.values()) == [3, 0, 0, 1]
    held = list(made.classes["weak"].values())
    price = prices.of(DeviceConfig())
    assert is_within(made.classes["weak"], made.server)
    assert all(getattr(price(held), name) <= limit for name, limit in limits.items())
    for place, size in enumerate(made.server.values()):
        more = [one + (index == place) for index, one in enumerate(held)]
        over = any(getattr(price(more), name) > limit for name, limit in limits.items())
        assert over or more[place] > size


def test_a_class_without_any_unit_is_refused_by_name(tiny: TinyModels) -> None:
    """Its seconds are too few to go back to block 0, where all units of the server's are."""
    _, _, prices = _made(tiny)
    price = prices.of(DeviceConfig())
    step_s = (price([0, 0, 0, 1]).step_s + price([1, 0, 0, 0]).step_s) / 2
    gains = {**GAINS, 0: [100, 99, 98, 97], 4: [4, 3, 2, 1]}
    with pytest.raises(LayoutError, match=r"federation\.classes\.weak: .*step_s"):
        _by_gain(tiny, {"step_s": step_s}, gains)


def test_a_slow_link_costs_ranks(tiny: TinyModels) -> None:
    """Two classes with one deadline, which lets the farther one send half of the units."""
    classes = (
        "federation.classes=[{name:near,share:1,distance_m:100},{name:far,share:1,distance_m:2000}]"
    )
    _, _, prices = _made(tiny, classes)
    far = load_config(classes).federation.classes[1]
    deadline = prices.of(far)([2, 2, 2, 2]).round_s * (1 + 1e-9)
    made, _, _ = _made(tiny, classes, f"peft.layout.round_s={deadline}")
    assert made.classes["far"] == dict.fromkeys(SPLIT.outer, 2)
    assert made.classes["near"] == made.server == dict.fromkeys(SPLIT.outer, 4)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["peft.layout.rule=list", "peft.layout.ranks=[1,2]"], "peft.layout.ranks=.*4 ranks"),
        (
            ["peft.layout.rule=list", "peft.layout.ranks=[1,2,3,4]", "peft.layout.params=9"],
            "peft.layout.ranks=.*params",
        ),
        (["peft.layout.uplink_bytes=10"], "uplink_bytes=10"),
        (["peft.layout.round_s=1", "finetune.max_steps=null"], "round_s=1.*finetune.max_steps"),
        (["federation.classes=[{name:a,share:1,memory_bytes:10}]"], "memory_bytes=10"),
        (["peft=lora_top_n", "peft.layout.num_tuned=5"], "top 5 of 4"),
    ],
)
def test_what_cannot_be_is_refused(tiny: TinyModels, words: list[str], names: str) -> None:
    with pytest.raises(DeftError, match=names):
        _made(tiny, *words)


@pytest.mark.parametrize(
    "words",
    [
        "federation.classes=[{name:a,share:1},{name:a,share:1}]",
        "federation.classes=[{name:a}]",
        "federation.classes=[{name:a,share:1,devices:[0]}]",
        "federation.num_devices=3 federation.classes=[{name:a,devices:[0,1]}]",
        "federation.num_devices=2 federation.classes=[{name:a,devices:[0]},{name:b,share:1}]",
        "federation.classes=[{name:a,share:1,device:fridge}]",
        "federation.classes=[{name:a,share:1,bandwidth_hz:0}]",
        "federation.classes=[{name:a,share:1,round_s:-1}]",
        "peft.layout.ranks=[1]",
        "peft.layout.rule=list peft.layout.ranks=[0,0]",
        "peft.layout.rule=top_n",
        "peft.layout.num_tuned=2",
        "peft.layout.max_rank=0",
        "peft=lora_channel_aware channel=digital peft.layout.memory_bytes=10",
        "peft=lora_channel_aware channel=digital peft.layout.step_s=1",
        "peft=lora_channel_aware channel=digital peft.layout.uplink_bytes=10",
        "peft.layout.device.tx_power_dbm=inf",
    ],
)
def test_options_out_of_range_are_refused_by_name(words: str) -> None:
    with pytest.raises(ConfigError, match=r"classes|peft\.layout"):
        load_config(words)


@pytest.mark.parametrize("shapes", [{}, {"a": (2, 3)}, {"b.é": (1,), "a": (0, 4), "c": (7, 5, 3)}])
def test_bytes_of_a_blob_are_known_from_its_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    assert blob_bytes(shapes) == len(to_blob(arrays))


def test_a_comparison_run_has_the_layouts_of_its_run(player: Player) -> None:
    """Priced on the run's emulator: on the full model the limit would leave a single unit."""
    classes = "federation.classes=[{name:a,share:1},{name:b,share:1,params:120}]"
    bench, start = player.bench(player.tiny.overrides())
    peft = bench.config.peft
    assert type(peft) is LoraConfig
    prices = LayoutPrices(
        bench.config,
        peft,
        bench.backbone.model.config,
        num_labels=len(CLASSES),
        split=bench.piece.split,
        shapes={name: array.shape for name, array in start.items()},
    )
    limit = prices.of(DeviceConfig())([2, 2]).step_s * 1.01
    words = (classes, f"peft.layout.step_s={limit}")
    run = load_config(player.tiny.overrides(*words))
    own = prepare(run)
    assert own.allocation.classes["a"] == own.allocation.server == {0: 2, 4: 2}
    alone = prepare(as_reference(run, "federated_full"))
    assert alone.allocation.classes["a"] == {0: 0, 4: 1}
    for name in REFERENCES:
        compared = prepare(as_reference(run, name), like=run)
        if name == "frozen":
            assert compared.allocation == Allocation(server={})
            continue
        assert compared.allocation.server == compared.full.layout == own.full.layout
        same = compared.allocation.classes == own.allocation.classes
        assert same == (name == "federated_full")
