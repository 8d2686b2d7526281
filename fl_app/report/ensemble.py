"""What the report says of a prompt ensemble: members alone, and all together."""

from collections.abc import Sequence
from itertools import groupby

from fl_app.report.text import format_difference, format_score
from fl_app.result import RunResult


def format_devices(devices: Sequence[int]) -> str:
    """Returns device numbers with runs of three and more as "first-last"."""
    words: list[str] = []
    for _, run in groupby(enumerate(devices), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        is_long = len(numbers) > 2
        words += [f"{numbers[0]}-{numbers[-1]}"] if is_long else map(str, numbers)
    return ", ".join(words)


def ensemble_table(result: RunResult) -> tuple[list[str], list[list[str]]] | None:
    """Returns heads and rows: every member, their mean and best, the ensemble; None without one."""
    if (ensemble := result.ensemble) is None:
        return None
    metric, weights = result.metric, ensemble["weights"]
    rows = [
        [
            f"member {member['index']} of devices {format_devices(member['devices'])}, "
            f"round {member['round']}",
            f"{weight:.3f}",
            format_score(metric, member["measure"]),
            "",
        ]
        for member, weight in zip(ensemble["members"], weights, strict=True)
    ]
    mean = ensemble["member_mean"]
    for words, key in (("mean member", "member_mean"), ("best member", "member_best")):
        value = ensemble[key]
        gain = "" if key == "member_mean" else format_difference(metric, mean, value)
        rows.append([words, "", format_score(metric, value), gain])
    for index, reason in ensemble["left_out"].items():
        rows.append([f"member {index} has no say: {reason}", "", "", ""])
    if not ensemble["screened_on"]:
        rows.append(["members were not screened: data.public_fraction=0", "", "", ""])
    if (decoded := ensemble.get("decoded")) and decoded["rows"]:
        words = f"completions right to the letter, of {decoded['rows']}: vote (mean member)"
        shares = f"{100 * decoded['ensemble']:.1f} % ({100 * decoded['member_mean']:.1f} %)"
        rows.append([words, "", shares, ""])
    whole = ensemble["ensemble"]
    rows.append(
        [
            f"ensemble of {len(weights)}, {ensemble['combiner'].replace('_', ' ')}",
            "",
            format_score(metric, whole),
            format_difference(metric, mean, whole),
        ]
    )
    return ["", "weight", metric.name, "better than the mean member by"], rows
