"""Cores of products: against the SVD of whole products, with Flower's own rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app import updates
from fl_app.layout.prefix import cut, pad
from fl_app.local_grid import LocalGrid
from fl_app.updates import Update
from strategies.combine import Combine, Flexible, Gathered, Whole, held_by
from strategies.lora_space import CoreSpace, ProductSpace
from strategies.rules import ISOMETRIC, RULES, ServerRule
from strategies.uplink import Received
from tests.federation_fixtures import Player, player, tiny_federation

__all__ = ["player", "tiny_federation"]

D_IN, D_OUT, RANK = 23, 17, 4
A, B, HEAD = "layer.0.q.lora_A.weight", "layer.0.q.lora_B.weight", "classifier.weight"
BOUND = 128 * float(np.finfo(np.float32).eps)
OPTIONS = {"krum": {"num_malicious_nodes": 1}, "multikrum": {"num_nodes_to_select": 2}}
cases = settings(derandomize=True, deadline=None, max_examples=10)


@pytest.fixture(autouse=True, scope="module")
def flower_process() -> None:
    """Flower's messages need the identity its own processes have."""
    LocalGrid(lambda *_: None, num_nodes=1, run_config={})._folder.cleanup()  # type: ignore[arg-type]


def _adapter(rng: np.random.Generator) -> Update:
    return {
        HEAD: rng.normal(size=(2, 3)).astype(np.float32),
        A: rng.normal(size=(RANK, D_IN)).astype(np.float32),
        B: rng.normal(size=(D_OUT, RANK)).astype(np.float32),
    }


def _gathered(rng: np.random.Generator, ranks: list[int]) -> Gathered:
    server = _adapter(rng)
    parts = [cut(server, {0: rank}) for rank in ranks]
    changes = [
        {name: rng.normal(0, 0.5, array.shape).astype(np.float32) for name, array in part.items()}
        for part in parts
    ]
    weights = rng.integers(1, 9, len(ranks)).astype(np.float64)
    heard = np.ones(len(ranks), dtype=np.bool_)
    rows = updates.stack([pad(change, server) for change in changes])
    return Gathered(
        adapter=server,
        tuned=server,
        received=Received(rows=rows, weights=weights, is_heard=heard),
        presence=held_by([{0: rank} for rank in ranks], server),
        weights=weights,
    )


def _product(adapter: Update) -> np.ndarray:
    return adapter[B].astype(np.float64) @ adapter[A].astype(np.float64)


@pytest.mark.parametrize("combine", [Flexible(), Whole()])
@pytest.mark.parametrize("name", sorted(ISOMETRIC))
@cases
@given(ranks=st.lists(st.integers(0, RANK), min_size=5, max_size=7), seed=st.integers(0, 99))
def test_cores_give_what_whole_products_give(
    name: str, combine: Combine, ranks: list[int], seed: int
) -> None:
    """The rank of all factors together is above and below the size of the map."""
    gathered = _gathered(np.random.default_rng(seed), ranks)
    rule = ServerRule(name, OPTIONS.get(name, {}))

    def combined(space: ProductSpace) -> tuple[Update, dict[str, float]]:
        return combine.next_adapter(
            gathered, space, lambda rows, weights: rule.apply(1, rows, weights)
        )

    (dense, lost), (core, lost_core) = (
        combined(ProductSpace(RANK, has_cores=has_cores)) for has_cores in (False, True)
    )
    assert {key: value.shape for key, value in core.items()} == {
        key: value.shape for key, value in dense.items()
    }
    bound = BOUND * np.linalg.norm(_product(dense), 2)
    assert np.abs(_product(core) - _product(dense)).max() <= bound
    assert np.array_equal(core[HEAD], dense[HEAD])
    assert lost_core == pytest.approx(lost, abs=BOUND)
    for rank in range(1, RANK):  # what a device of this rank is sent
        parts = [_product(cut(each, {0: rank})) for each in (core, dense)]
        values = np.linalg.svd(_product(dense), compute_uv=False)
        gap = max(values[rank - 1] - values[rank], 1e-9)
        assert np.abs(parts[0] - parts[1]).max() <= bound * max(1.0, values[0] / gap)


def test_a_core_has_the_lengths_and_angles_of_its_product() -> None:
    rng = np.random.default_rng(1)
    rows = [_adapter(rng) for _ in range(3)]
    space = ProductSpace(RANK, has_cores=True).around(rows)
    assert isinstance(space, CoreSpace)
    cores = [space.enter(row)["layer.0.q.lora_product"] for row in rows]
    assert cores[0].shape == (3 * RANK, 3 * RANK)
    assert cores[0].dtype == np.float32
    for left, one in zip(rows, cores, strict=True):
        for right, two in zip(rows, cores, strict=True):
            whole = float((_product(left) * _product(right)).sum())
            size = np.linalg.norm(_product(left)) * np.linalg.norm(_product(right))
            assert abs(float((one * two).sum()) - whole) <= BOUND * size


def test_other_rules_see_whole_products() -> None:
    """A median of entries, or moments of entries, are not those of another basis."""
    assert ISOMETRIC < set(RULES)
    rows = [_adapter(np.random.default_rng(seed)) for seed in range(3)]
    space = ProductSpace(RANK)
    assert space.around(rows) is space


@pytest.mark.parametrize(("rule", "is_small"), [("fedavg", True), ("fedmedian", False)])
def test_a_federation_takes_cores_where_it_may(
    player: Player, monkeypatch: pytest.MonkeyPatch, rule: str, is_small: bool
) -> None:
    made: list[CoreSpace] = []
    original = CoreSpace.__init__

    def noted(self: CoreSpace, *arguments: object) -> None:
        made.append(self)
        original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(CoreSpace, "__init__", noted)
    words = ("peft.aggregation=exact", "strategy.num_rounds=1")
    player.play(*words, f"strategy.server_rule.name={rule}")
    assert bool(made) == is_small
