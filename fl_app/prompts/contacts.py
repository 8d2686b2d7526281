"""Who meets whom in a round, for how long, and at what rate.

Devices are placed anew in every round, for rounds lie far apart beside the time a contact lasts,
and then walk straight ahead. A contact ends where two of them are ``range_m`` apart.
"""

import math
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from fl_app.prompts.gossip import RATE
from fl_app.prompts.transfer import Link
from fl_app.resources.links import Link as RadioLink
from fl_app.resources.links import d2d_path_loss_db
from fl_app.schema import ContactConfig
from fl_app.seeding import generator
from fl_app.wireless.units import dbm_to_watt

CONTACT = "contact_s"
"""Edge attribute: seconds until the two are out of reach, possibly infinite."""
_LEAST_M = 1.0


class Contacts:
    """Draws contacts.

    Args:
        num_devices: devices 0 to num_devices - 1, >= 1.
        settings: area, motion and radio.
        seed: the run's seed.
    """

    def __init__(self, num_devices: int, settings: ContactConfig, *, seed: int) -> None:
        self._num_devices, self._settings, self._seed = num_devices, settings, seed
        self._graphs: dict[int, nx.Graph] = {}

    def at(self, server_round: int) -> nx.Graph:
        """Returns a round's contacts: nodes are devices, edges have ``RATE`` and ``CONTACT``."""
        if server_round not in self._graphs:
            self._graphs[server_round] = self._draw(server_round)
        return self._graphs[server_round]

    def neighbours(self, server_round: int, device: int) -> list[int]:
        """Returns whom a device meets in a round, ascending."""
        return sorted(self.at(server_round).neighbors(device))

    def link(self, server_round: int, one: int, other: int) -> Link:
        """Returns the link of two devices that meet."""
        facts = self.at(server_round).edges[one, other]
        return Link(facts[RATE], facts[CONTACT])

    def joules(self, seconds: float) -> float:
        """Returns what a sender radiates in that time."""
        return dbm_to_watt(self._settings.tx_power_dbm) * seconds

    def _draw(self, server_round: int) -> nx.Graph:
        rng, settings = generator(self._seed, "contacts", server_round), self._settings
        places = rng.uniform(0.0, settings.area_m, (self._num_devices, 2))
        headings = rng.uniform(0.0, 2.0 * np.pi, self._num_devices)
        speeds = settings.speed_m_s * np.stack([np.cos(headings), np.sin(headings)], axis=1)
        graph: nx.Graph = nx.Graph()
        graph.add_nodes_from(range(self._num_devices))
        for i in range(self._num_devices):
            for j in range(i):
                gap, motion = places[i] - places[j], speeds[i] - speeds[j]
                if (distance_m := float(np.linalg.norm(gap))) <= settings.range_m:
                    facts: dict[str, Any] = {
                        RATE: self._rate_bps(distance_m),
                        CONTACT: seconds_within(gap, motion, settings.range_m),
                    }
                    graph.add_edge(i, j, **facts)
        return graph

    def _rate_bps(self, distance_m: float) -> float:
        return RadioLink(
            bandwidth_hz=self._settings.bandwidth_hz,
            tx_power_w=dbm_to_watt(self._settings.tx_power_dbm),
            loss_db=d2d_path_loss_db(max(distance_m, _LEAST_M)),
            noise_figure_db=self._settings.noise_figure_db,
        ).rate_bps


def seconds_within(gap: NDArray[np.float64], motion: NDArray[np.float64], range_m: float) -> float:
    """Returns the t >= 0 at which |gap + t motion| = range_m, infinite without motion.

    Args:
        gap: [2] in m, at most ``range_m`` long.
        motion: [2] in m/s, of one device relative to the other.
        range_m: reach in m.
    """
    square = float(motion @ motion)
    if square == 0.0:
        return math.inf
    along = float(gap @ motion)
    room = range_m**2 - float(gap @ gap)
    return max((math.sqrt(along**2 + square * max(room, 0.0)) - along) / square, 0.0)
