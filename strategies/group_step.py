"""The server's step in every group of devices that was heard."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fl_app import wire
from fl_app.errors import RunError
from fl_app.updates import Update
from strategies.combine import Apply
from strategies.groups import Groups
from strategies.uplink import Received

Step = Callable[[int, Sequence[wire.Reply], Received, Apply], tuple[Update, dict[str, float]]]
"""(group, its answers, what was received of them, its rule) to its next adapter and figures."""


@dataclass(frozen=True)
class Stepped:
    """What a round made of the groups' adapters.

    Attributes:
        adapters: by group; those of groups that moved.
        figures: for the round's metrics.
        refused: devices of groups too small for the server's rule.
    """

    adapters: dict[int, Update]
    figures: dict[str, float]
    refused: list[int]


def step_groups(
    groups: Groups,
    server_round: int,
    accepted: Sequence[wire.Reply],
    received: Received,
    step: Step,
) -> Stepped:
    """Moves the adapter of every group that was heard.

    Args:
        groups: who tunes which adapter, and by which rule.
        server_round: the round.
        accepted: the answers that count, by device.
        received: what the uplink made of their updates.
        step: makes a group's next adapter.

    Raises:
        RunError: too few for the server's rule in every group.
    """
    adapters, figures, failed = dict[int, Update](), dict[str, float](), dict[int, RunError]()
    places_of = groups.rows([reply.device for reply in accepted], len(received.rows))
    for group, places in places_of.items():
        own = [reply for reply in accepted if groups.of[reply.device] == group]
        heard = replace(received, rows=received.rows[places], weights=received.weights[places])
        apply = partial(groups.rules[group].apply, groups.rule_round(server_round))
        try:
            adapters[group], told = step(group, own, heard, apply)
        except RunError as error:
            failed[group] = error
        else:
            figures |= groups.named(group, told)
    if not adapters:
        raise next(iter(failed.values()))
    refused = [reply.device for reply in accepted if groups.of[reply.device] in failed]
    return Stepped(adapters, figures, refused)
