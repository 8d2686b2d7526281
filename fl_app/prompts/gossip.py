"""Prompts that spread from device to device over contacts that come and go.

In every round each device tells its neighbours what it holds and asks for what it lacks, each
prompt from one neighbour only: the one with the fastest link. So nobody receives a prompt twice and
nothing echoes. What does not fit into a contact is not begun.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from fl_app.prompts.errors import PromptError
from fl_app.wireless.cell import THERMAL_NOISE_DBM_HZ
from fl_app.wireless.units import db_to_linear, dbm_to_watt

RATE = "rate_bps"
"""Edge attribute: bit/s in the direction of the edge, in both for an undirected graph."""


@dataclass(frozen=True)
class Transfer:
    """One prompt that went over one link."""

    round: int
    sender: int
    receiver: int
    name: str
    num_bytes: int


@dataclass
class Spread:
    """Who held what.

    Attributes:
        holdings: after each round, names by device; entry 0 is the start.
        transfers: all that was sent.
    """

    holdings: list[dict[int, frozenset[str]]]
    transfers: list[Transfer] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Bytes sent from device to device."""
        return sum(transfer.num_bytes for transfer in self.transfers)


def gossip(
    contacts: Iterable[nx.Graph],
    start: Mapping[int, Iterable[str]],
    sizes: Mapping[str, int],
    *,
    contact_s: float,
) -> Spread:
    """Lets prompts spread.

    Args:
        contacts: one graph for each round, directed where links are asymmetric; nodes are devices,
            edges hold ``RATE``. Devices that are missing from a graph are out of reach.
        start: names of the prompts each device holds at first.
        sizes: bytes of each prompt.
        contact_s: seconds of contact on each link in a round; short prompts are asked for first,
            then by name.

    Raises:
        PromptError: ``unknown-prompt``, a prompt has no size; ``bad-link``, an edge without rate.
    """
    held = {device: frozenset(names) for device, names in start.items()}
    if strange := sorted(set().union(*held.values()) - set(sizes)):
        raise PromptError("unknown-prompt", f"no size for {strange[:3]}")
    spread = Spread([dict(held)])
    for number, graph in enumerate(contacts, start=1):
        links = _links(graph)
        arrived = []
        for receiver in sorted(held):
            wanted: dict[int, list[str]] = {}
            senders = sorted(
                (-rate, sender)
                for (sender, to), rate in links.items()
                if to == receiver and sender in held
            )
            near = frozenset[str]().union(*(held[sender] for _, sender in senders))
            for name in sorted(near - held[receiver], key=lambda n: (sizes[n], n)):
                for rate, sender in senders:
                    used = sum(sizes[other] for other in wanted.get(sender, []))
                    if name in held[sender] and 8 * (used + sizes[name]) <= -rate * contact_s:
                        wanted.setdefault(sender, []).append(name)
                        arrived.append(Transfer(number, sender, receiver, name, sizes[name]))
                        break
        for transfer in arrived:  # only now: what comes in this round is passed on in the next
            held[transfer.receiver] |= {transfer.name}
        spread.transfers += arrived
        spread.holdings.append(dict(held))
    return spread


def d2d_rate_bps(
    distance_m: float,
    *,
    bandwidth_hz: float = 1e6,
    power_dbm: float = 23.0,
    noise_figure_db: float = 5.0,
) -> float:
    """Returns the Shannon rate between two devices.

    Path loss 148 + 40 log10(d / km) dB; neither fading, shadowing nor interference.

    Args:
        distance_m: > 0.
        bandwidth_hz: > 0.
        power_dbm: transmit power.
        noise_figure_db: of the receiver, over thermal noise of -174 dBm/Hz.
    """
    loss_db = 148.0 + 40.0 * np.log10(distance_m / 1000.0)
    noise_dbm = THERMAL_NOISE_DBM_HZ + 10.0 * np.log10(bandwidth_hz) + noise_figure_db
    snr = dbm_to_watt(power_dbm) * db_to_linear(-float(loss_db)) / dbm_to_watt(float(noise_dbm))
    return float(bandwidth_hz * np.log2(1.0 + snr))


def contact_graph(places_m: NDArray[np.float64], *, range_m: float) -> nx.Graph:
    """Returns who can hear whom, with rates.

    Args:
        places_m: [num_devices, 2] in m.
        range_m: farther apart there is no contact; nearer than 1 m counts as 1 m.
    """
    graph: nx.Graph = nx.Graph()
    graph.add_nodes_from(range(len(places_m)))
    for i in range(len(places_m)):
        for j in range(i):
            distance_m = float(np.linalg.norm(places_m[i] - places_m[j]))
            if distance_m <= range_m:
                graph.add_edge(i, j, **{RATE: d2d_rate_bps(max(distance_m, 1.0))})
    return graph


def _links(graph: nx.Graph) -> dict[tuple[int, int], float]:
    links: dict[tuple[int, int], float] = {}
    for one, other, facts in graph.edges(data=True):
        if RATE not in facts or not facts[RATE] >= 0:
            raise PromptError("bad-link", f"edge {one}-{other} needs {RATE} >= 0, has {facts}")
        links[one, other] = float(facts[RATE])
        if not graph.is_directed():
            links[other, one] = float(facts[RATE])
    return links
