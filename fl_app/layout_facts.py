"""What ``result.json`` says of a run's layouts."""

from typing import Any

from fl_app.allocation import Allocation
from fl_app.layout.prefix import Layout, cut
from fl_app.schema import Config, SizedConfig
from fl_app.updates import Update, num_reals


def facts_of(
    allocation: Allocation, config: Config, adapter: Update, num_blocks: int
) -> dict[str, Any] | None:
    """Returns what ``result.json`` says of layouts; None without sizes.

    Args:
        allocation: the run's layouts.
        config: the run's configuration.
        adapter: of the full model, in the server's layout.
        num_blocks: of the full model.
    """
    match config.peft:
        case SizedConfig() as peft:
            pass
        case _:
            return None

    def facts(layout: Layout) -> dict[str, Any]:
        ranks = [layout.get(block, 0) for block in range(num_blocks)]
        return {"ranks": ranks, "params": num_reals(cut(adapter, layout))}

    server = facts(allocation.server)
    classes = {
        name: {
            **facts(layout),
            "devices": [device for device, own in allocation.class_of.items() if own == name],
        }
        for name, layout in allocation.classes.items()
    }
    return {
        "size": peft.size_name,
        "rule": peft.layout.rule,
        "combine": peft.combine if classes or peft.combine == "stack" else None,
        "server": server["ranks"],
        "params": server["params"],
        "classes": classes,
    }
