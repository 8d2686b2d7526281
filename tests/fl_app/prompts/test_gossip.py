"""Spreading against breadth-first search, its bytes against the formula."""

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.prompts.errors import PromptError
from fl_app.prompts.gossip import RATE, contact_graph, d2d_rate_bps, gossip
from fl_app.seeding import generator


def _graph(num: int, share: float, seed: int, *, directed: bool = False) -> nx.Graph:
    graph = nx.gnp_random_graph(num, share, seed=seed, directed=directed)
    nx.set_edge_attributes(graph, 1e6, RATE)
    return graph


@given(st.integers(1, 9), st.floats(0.1, 1.0), st.integers(0, 999), st.booleans())
@settings(max_examples=80, deadline=None)
def test_after_t_rounds_all_within_t_hops_know(
    num: int, share: float, seed: int, directed: bool
) -> None:
    """Every device starts with its own prompt; distances by networkx. Nothing is sent twice."""
    graph, rounds = _graph(num, share, seed, directed=directed), 4
    start = {device: [f"p{device}"] for device in range(num)}
    sizes = {f"p{device}": 100 + device for device in range(num)}
    spread = gossip([graph] * rounds, start, sizes, contact_s=1e3)
    hops = dict(nx.all_pairs_shortest_path_length(graph))
    for t, held in enumerate(spread.holdings):
        for device in range(num):
            wanted = {f"p{s}" for s in range(num) if hops[s].get(device, math.inf) <= t}
            assert held[device] == wanted
    received = [(transfer.receiver, transfer.name) for transfer in spread.transfers]
    assert len(set(received)) == len(received)
    grown = [(d, n) for d in range(num) for n in spread.holdings[-1][d] - spread.holdings[0][d]]
    assert sorted(received) == sorted(grown)
    assert spread.num_bytes == sum(sizes[name] for _, name in grown)


def test_a_connected_network_is_full_within_its_diameter() -> None:
    graph = nx.path_graph(6)
    nx.set_edge_attributes(graph, 1e6, RATE)
    spread = gossip(
        [graph] * 5, {d: ["a"] if d == 0 else [] for d in range(6)}, {"a": 9}, contact_s=1.0
    )
    full = [all("a" in names for names in held.values()) for held in spread.holdings]
    assert full == [False] * nx.diameter(graph) + [True]
    assert [(t.round, t.sender, t.receiver) for t in spread.transfers] == [
        (i + 1, i, i + 1) for i in range(5)
    ]


@given(st.integers(2, 7), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_contacts_that_change_are_followed_in_time(num: int, seed: int) -> None:
    """Oracle: push the set of those who know through the graphs one by one."""
    graphs = [_graph(num, 0.3, seed + t) for t in range(5)]
    spread = gossip(
        graphs, {d: ["a"] if d == 0 else [] for d in range(num)}, {"a": 1}, contact_s=1.0
    )
    know = {0}
    for graph, held in zip(graphs, spread.holdings[1:], strict=True):
        know = know | {n for device in know for n in graph.neighbors(device)}
        assert {device for device in range(num) if held[device]} == know


def test_a_short_contact_carries_whole_prompts_only() -> None:
    """80 bits: the 4-byte and the 5-byte prompt fit together, the 8-byte one must wait."""
    graph = nx.Graph()
    graph.add_edge(0, 1, **{RATE: 80.0})
    sizes = {"long": 8, "short": 4, "middle": 5}
    spread = gossip([graph] * 3, {0: sizes, 1: []}, sizes, contact_s=1.0)
    assert spread.holdings[1][1] == {"short", "middle"}
    assert spread.holdings[2][1] == set(sizes)
    assert spread.num_bytes == 17
    never = gossip([graph], {0: ["huge"], 1: []}, {"huge": 11}, contact_s=1.0)
    assert never.transfers == []


def test_the_fastest_neighbour_is_asked_and_links_may_be_one_way() -> None:
    graph = nx.DiGraph()
    graph.add_edge(0, 2, **{RATE: 100.0})
    graph.add_edge(1, 2, **{RATE: 900.0})
    graph.add_edge(1, 0, **{RATE: 0.0})
    spread = gossip([graph] * 2, {0: [], 1: ["a"], 2: []}, {"a": 10}, contact_s=1.0)
    assert [(t.sender, t.receiver) for t in spread.transfers] == [(1, 2)]


def test_rates_fall_with_distance_as_shannon_says() -> None:
    """SNR by hand: 23 dBm - (148 + 40 log10 0.1) dB over -174 + 60 + 5 dBm."""
    snr_db = 23 - (148 - 40) + 109
    assert d2d_rate_bps(100.0) == pytest.approx(1e6 * math.log2(1 + 10 ** (snr_db / 10)))
    places = generator(0, "places").random((12, 2)) * 300
    graph = contact_graph(places, range_m=120.0)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    near = {(i, j) for i in range(12) for j in range(i + 1, 12) if apart[i, j] <= 120}
    assert {tuple(sorted(edge)) for edge in graph.edges} == near
    assert 0 < len(near) < 66
    for i, j in near:
        assert graph.edges[i, j][RATE] == pytest.approx(d2d_rate_bps(float(apart[i, j])))


def test_what_is_wrong_with_a_network_is_named() -> None:
    with pytest.raises(PromptError, match="bad-link"):
        gossip([nx.path_graph(2)], {0: [], 1: []}, {}, contact_s=1.0)
    with pytest.raises(PromptError, match="unknown-prompt"):
        gossip([], {0: ["a"]}, {}, contact_s=1.0)
