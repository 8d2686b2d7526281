"""Contacts against stepping through time, and rates against the closed form written out again."""

import math

import networkx as nx
import numpy as np
import pytest

from fl_app.prompts.contacts import CONTACT, Contacts, seconds_within
from fl_app.prompts.gossip import RATE, d2d_rate_bps
from fl_app.schema import ContactConfig
from fl_app.seeding import generator


def test_a_contact_lasts_until_the_two_are_out_of_reach() -> None:
    rng, tick = generator(0, "test"), 0.001
    for _ in range(20):
        gap = rng.uniform(-4.0, 4.0, 2)
        motion = rng.uniform(-2.0, 2.0, 2)
        times = np.arange(0.0, 100.0, tick)
        apart = np.linalg.norm(gap + times[:, None] * motion, axis=1)
        stepped = times[np.argmax(apart > 6.0)]
        assert seconds_within(gap, motion, 6.0) == pytest.approx(stepped, abs=2 * tick)
    assert seconds_within(gap, np.zeros(2), 6.0) == math.inf


def test_contacts_are_those_within_reach_at_shannons_rate() -> None:
    """A reach as long as the diagonal lets everybody meet; a shorter one is a part of that."""
    wide = Contacts(12, ContactConfig(area_m=100.0, range_m=142.0, noise_figure_db=5.0), seed=3)
    near = Contacts(12, ContactConfig(area_m=100.0, range_m=40.0), seed=3)
    for number in (1, 2):
        graph, part = wide.at(number), near.at(number)
        assert nx.is_isomorphic(nx.Graph(graph), nx.complete_graph(12))
        limit = d2d_rate_bps(40.0)
        fast = {e for e, rate in nx.get_edge_attributes(graph, RATE).items() if rate >= limit}
        assert set(part.edges) == fast
        assert 0 < len(fast) < len(graph.edges)
        for one, other in part.edges:
            assert near.link(number, one, other) == near.link(number, other, one)
            assert part.edges[one, other][CONTACT] < graph.edges[one, other][CONTACT]
            assert other in near.neighbours(number, one)


def test_rounds_and_seeds_differ_and_repeat() -> None:
    drawn = {
        (seed, number): frozenset(
            nx.get_edge_attributes(Contacts(6, ContactConfig(), seed=seed).at(number), RATE).items()
        )
        for seed in (0, 1)
        for number in (1, 2)
        for _ in range(2)
    }
    assert len(set(drawn.values())) == 4
    again = Contacts(6, ContactConfig(), seed=0).at(2)
    assert frozenset(nx.get_edge_attributes(again, RATE).items()) == drawn[0, 2]


def test_energy_is_power_times_time() -> None:
    contacts = Contacts(2, ContactConfig(tx_power_dbm=20.0), seed=0)
    assert contacts.joules(3.0) == pytest.approx(0.3)
