"""As many units as this round's rate carries until the deadline, best first.

A device's layout of the round is a prefix of the server's units in the order of their scores, so a
slow device tunes what a fast one tunes, and less of it. All devices of the round have equal shares
of the band; what a device that cannot send a single unit leaves over is not dealt out again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fl_app.layout.budgets import Budgets, PriceOf
from fl_app.layout.choose import choose
from fl_app.layout.errors import LayoutError
from fl_app.layout.prefix import Layout, cut
from fl_app.layout_wire import SCORE_BYTES
from fl_app.resources.price import Price
from fl_app.updates import Update
from fl_app.wire import Reply
from strategies.schedule import Radiolinks, RoundPlan, Turn
from strategies.scoring import OrderedUnits


class ChannelLayouts(OrderedUnits):
    """The server's units in the order of their scores: the run's ``Layouts`` and its ``Scoring``.

    Args:
        server: the server's layout, which stays.
        price_of: what a layout costs a device, but for the seconds of its uplink.
        deadline_s: seconds of a round.
        is_a_sent: whether A travels.
    """

    is_shared = False

    def __init__(
        self, server: Layout, price_of: PriceOf, deadline_s: float, *, is_a_sent: bool
    ) -> None:
        super().__init__(server, is_a_sent=is_a_sent)
        self._price_of, self._deadline_s = price_of, deadline_s

    def is_wanted(self, server_round: int) -> bool:
        """Always: the next round's order is that of the latest scores."""
        return True

    def settle(self, server_round: int, adapter: Update, replies: Sequence[Reply]) -> Update:
        """See ``Scoring.settle``; nothing is cut."""
        self._held.learn(replies)
        return self._held.sort(adapter)

    def finish(self, adapter: Update) -> Update:
        """Returns the adapter: the server's layout is within its budget in every round."""
        return adapter

    def affordable(self, uplink_s: Callable[[Layout], float]) -> tuple[Layout, Price] | None:
        """Returns the largest layout that meets the deadline, with its price; None for none.

        Args:
            uplink_s: seconds of a device's uplink for a layout.
        """
        scores = self._held.scores

        def layout(sizes: Sequence[int]) -> Layout:
            return {block: int(size) for block, size in zip(scores, sizes, strict=True)}

        def price_of(sizes: Sequence[int]) -> Price:
            price, spent = self._price_of(sizes), uplink_s(layout(sizes))
            round_s = price.downlink_s + price.compute_s + spent
            return replace(price, uplink_s=spent, round_s=round_s)

        try:
            sizes = choose(
                "channel_aware",
                price_of=price_of,
                budgets=Budgets(round_s=self._deadline_s),
                num_blocks=len(scores),
                largest=max(self.server.values()),
                scores=list(scores.values()),
            ).tolist()
        except LayoutError:
            return None
        return layout(sizes), price_of(sizes)


class ChannelScheduler:
    """Plans rounds by rate.

    Args:
        layouts: the server's units.
        links: what the uplink carries.
        payload_bits: bits of an update that holds these parameters, side information included.
    """

    is_shared = False

    def __init__(
        self,
        layouts: ChannelLayouts,
        *,
        links: Radiolinks,
        payload_bits: Callable[[Update], int],
    ) -> None:
        self._layouts, self._links, self._payload_bits = layouts, links, payload_bits

    def plan(self, server_round: int, devices: Sequence[int], tuned: Update) -> RoundPlan:
        """See ``Scheduler``; who can afford nothing has no layout."""
        uplinks, band = self._links(server_round, devices)
        share = band / len(devices)
        rates = uplinks.coded_bps(np.full(len(devices), share))
        layouts: dict[int, Layout] = {}
        turns = []
        for device, rate in zip(devices, rates.tolist(), strict=True):

            def uplink_s(layout: Layout, rate: float = rate) -> float:
                bits = self._payload_bits(cut(tuned, layout))
                bits += 8 * SCORE_BYTES * sum(layout.values())
                return bits / rate if rate > 0.0 else np.inf

            found = self._layouts.affordable(uplink_s)
            if found is None:
                continue
            layouts[device], price = found
            turns.append(
                Turn(
                    device=device,
                    blocks=tuple(block for block, rank in layouts[device].items() if rank),
                    bandwidth_hz=share,
                    compute_s=price.compute_s,
                    uplink_s=price.uplink_s,
                )
            )
        return RoundPlan(layouts=layouts, turns=turns)
