"""Layouts of a run: equal in size, nested, and uniform as before."""

import numpy as np
import pytest

from fl_app.allocation import Allocation
from fl_app.bench import prepare
from fl_app.config import load_config
from fl_app.errors import ConfigError, DeftError
from fl_app.layout.errors import LayoutError
from fl_app.layout.prefix import cut, is_within
from fl_app.layout.rules import PROFILES, profile
from fl_app.pricing import LayoutPrices
from fl_app.schema import DeviceConfig, LoraConfig
from fl_app.updates import num_reals
from fl_app.variants import REFERENCES, as_reference
from tests.allocation_fixtures import CASES, SPLIT, allocated, sent_bytes
from tests.federation_fixtures import CLASSES, Player, player, tiny_federation
from tests.fixtures_models import TinyModels

__all__ = ["player", "tiny_federation"]

RULES = ("linear_up", "linear_down", "u_shape")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", RULES)
def test_rules_compare_at_equal_parameters(
    tiny: TinyModels, case: tuple[str, str], rule: str
) -> None:
    """Oracle 1: no more than the uniform layout has, and exactly as many, for blocks are alike."""
    words = ("peft.targets=[all-linear]", f"peft.layout.rule={rule}")
    made, adapter, prices = allocated(tiny, *words, case=case)
    _, uniform, _ = allocated(tiny, words[0], case=case)
    assert num_reals(adapter.read()) == num_reals(uniform.read())
    assert sum(made.server.values()) == 4 * len(SPLIT.outer)
    assert len(set(made.server.values())) > 1
    found = prices.of(DeviceConfig())(list(made.server.values()))
    assert found.params == num_reals(adapter.read())
    assert found.uplink_bytes == sent_bytes(adapter.read())


def test_profiles_rise_and_fall_towards_the_loss(tiny: TinyModels) -> None:
    ranks = {rule: list(allocated(tiny, f"peft=lora_{rule}")[0].server.values()) for rule in RULES}
    assert ranks["linear_up"] == sorted(ranks["linear_up"])
    assert ranks["linear_down"] == sorted(ranks["linear_down"], reverse=True)
    # largest remainders favour the block nearest to the loss where quotas are equal
    assert ranks["linear_up"] == [2, 3, 5, 6]
    up = ranks["u_shape"]
    assert min(up[0], up[3]) > max(up[1], up[2])
    top, _, _ = allocated(tiny, "peft=lora_top_n", "peft.layout.num_tuned=2")
    assert top.server == {0: 0, 1: 0, 3: 8, 4: 8}


def test_uniform_is_what_it_was(tiny: TinyModels) -> None:
    made, adapter, _ = allocated(tiny)
    assert made == Allocation(server=dict.fromkeys(SPLIT.outer, 4))
    assert made.is_shared
    assert made.at(3, 7) == adapter.layout
    priced, _, _ = allocated(tiny, "peft.layout.params=100000", "peft.layout.max_rank=4")
    assert priced.server == made.server


@pytest.mark.parametrize("limit", [3000, 5555, 9999, 20000])
@pytest.mark.parametrize("rule", ["uniform", *RULES])
def test_as_many_units_as_the_byte_budget_carries_when_serialised(
    tiny: TinyModels, rule: str, limit: int
) -> None:
    """Oracle 1, against every number of units tried one by one."""
    words = (f"peft.layout.rule={rule}", f"peft.layout.uplink_bytes={limit}")
    made, adapter, _ = allocated(tiny, *words)
    assert sent_bytes(adapter.read()) <= limit
    adapter.resize(dict.fromkeys(SPLIT.outer, 16))
    whole, spread = adapter.read(), profile(PROFILES[rule](4), largest=16)
    carried = {
        units: sent_bytes(cut(whole, dict(zip(SPLIT.outer, sizes, strict=True)))) <= limit
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
    made, adapter, _ = allocated(tiny, *words)
    alone, _, _ = allocated(tiny, "peft=lora_linear_up")
    assert made.server == made.classes["strong"] == alone.server
    whole = adapter.read()
    parts = {name: cut(whole, layout) for name, layout in made.classes.items()}
    assert all(is_within(layout, made.server) for layout in made.classes.values())
    assert sent_bytes(parts["weak"]) <= 6000 < sent_bytes(whole)
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
    sizes = ("peft.rank=1", "peft.layout.max_rank=4")
    made, _, prices = allocated(tiny, *words, *sizes, gains=gains)
    return made, prices


def test_a_class_spends_its_limits_on_units_of_the_server(tiny: TinyModels) -> None:
    """No unit of the server's fits any more; by its own wishes it would have three of block 4."""
    _, _, prices = allocated(tiny)
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


def test_no_block_gets_more_than_twice_the_uniform_rank_by_gain(tiny: TinyModels) -> None:
    """Gains that would give block 0 all eight units; a cap that is asked for counts instead."""
    gains = {block: np.full(8, 1.0) for block in SPLIT.outer} | {0: np.full(8, 1e6)}
    words = ("peft=lora_cost_aware", "peft.rank=2")
    made, _, _ = allocated(tiny, *words, gains=gains)
    assert made.server[0] == 4
    assert sum(made.server.values()) == 2 * len(SPLIT.outer)
    made, _, _ = allocated(tiny, *words, "peft.layout.max_rank=8", gains=gains)
    assert list(made.server.values()) == [8, *[0] * (len(SPLIT.outer) - 1)]


def test_a_class_without_any_unit_is_refused_by_name(tiny: TinyModels) -> None:
    """Its seconds are too few to go back to block 0, where all units of the server's are."""
    _, _, prices = allocated(tiny)
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
    _, _, prices = allocated(tiny, classes)
    far = load_config(classes).federation.classes[1]
    deadline = prices.of(far)([2, 2, 2, 2]).round_s * (1 + 1e-9)
    made, _, _ = allocated(tiny, classes, f"peft.layout.round_s={deadline}")
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
        allocated(tiny, *words)


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
