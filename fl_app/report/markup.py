"""Small builders of markup; every text that passes through them is escaped."""

import base64
from collections.abc import Sequence
from html import escape

_ALT = {
    "ladder.png": "Bar chart of the figures in the table above",
    "curves.png": "Line chart of the metric after every round, beside the reference runs",
    "ensemble.png": "Bar chart of every member of the ensemble alone, and of all together",
    "traffic.png": "Stacked bars of the bytes sent in every round",
    "schedule.png": "Gantt chart of the last round: devices down, computing and uplink across",
    "ranks.png": "Heat map of LoRA ranks: server and device classes down, blocks across",
    "devices.png": "Grid of rounds and devices: who took part, who was dropped and why",
}


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int],
    main: int | None = None,
) -> str:
    """Returns a table; escapes every cell.

    Args:
        heads: column names.
        rows: cells.
        numbers: columns that are set flush right.
        main: the row to stress, if any.
    """
    kinds = [' class="number"' if column in numbers else "" for column in range(len(heads))]
    lines = ["".join(f"<th{k}>{escape(h)}</th>" for k, h in zip(kinds, heads, strict=True))]
    lines += [
        "".join(f"<td{k}>{escape(c)}</td>" for k, c in zip(kinds, r, strict=True)) for r in rows
    ]
    stress = [
        ' class="main"' if main is not None and i == main + 1 else "" for i in range(len(lines))
    ]
    body = "\n".join(f"<tr{s}>{line}</tr>" for s, line in zip(stress, lines, strict=True))
    return f'<div class="wide"><table>\n{body}\n</table></div>'


def details(title: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Returns a collapsible table of names and values; escapes both. Empty without pairs."""
    if not pairs:
        return ""
    rows = "\n".join(
        f'<tr><td><code>{escape(name)}</code></td><td class="value">{escape(value)}</td></tr>'
        for name, value in pairs
    )
    return (
        f"<details><summary>{escape(title)}</summary>"
        f'<div class="wide"><table>\n{rows}\n</table></div></details>'
    )


def image(name: str, content: bytes) -> str:
    """Returns a figure with the plot embedded."""
    data = base64.b64encode(content).decode("ascii")
    alt = escape(_ALT.get(name, name))
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"></figure>'
