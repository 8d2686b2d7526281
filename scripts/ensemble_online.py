"""Members that join and leave while queries are answered: ``python -m scripts.ensemble_online``.

Members of one task (tuned by ``scripts.ensemble_members`` and shared with ``ensemble_triple``) come
and go by a seeded timetable; hostile ones answer for the wrong class. Every query is answered by
those present, weighted by Hedge with sleeping experts (log loss, eta = 1); then its label arrives.
The largest regret over members must stay under ln N after every query. Writes ``online.json`` and
``online.png``. Needs DEFT_ASSETS (or ``--assets DIR``).
"""

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.prompts.batched import log_probabilities, tensors_of
from fl_app.prompts.hedge import SleepingHedge, bounded_log_loss
from fl_app.seeding import generator
from scripts.ensemble_members import TASKS, Prepared, prepared, setting_of, tuned_members
from scripts.ensemble_picture import draw_online

Row = dict[str, Any]


def timetable(num_members: int, num_queries: int, seed: int) -> NDArray[np.bool_]:
    """Draws who is present when.

    A third of the members is there from the start, the others join later; every member leaves and
    comes back with stays and absences of random length, means a quarter and an eighth of the run.

    Args:
        num_members: N >= 1.
        num_queries: T >= 1.
        seed: of the draw.

    Returns:
        [T, N]; somebody is present at every query.
    """
    present = np.zeros((num_queries, num_members), np.bool_)
    for j in range(num_members):
        rng = generator(seed, "timetable", j)
        early = j < max(1, num_members // 3)
        now = 0 if early else int(rng.integers(1, max(2, num_queries // 2)))
        while now < num_queries:
            stay = 1 + int(rng.exponential(num_queries / 4))
            present[now : now + stay, j] = True
            now += stay + 1 + int(rng.exponential(num_queries / 8))
    nobody = ~present.any(1)
    present[nobody, 0] = True
    return present


def play(losses: NDArray[np.float64], present: NDArray[np.bool_], eta: float = 1.0) -> Row:
    """Answers all queries.

    Args:
        losses: [T, N] log loss in nats of every member at every query.
        present: [T, N], at least one member at every query.
        eta: of Hedge, in (0, 1].

    Returns:
        By query: ``regret`` (the largest over members), ``bound``, ``uniform`` (the largest regret
        of the unweighted mean), ``mixture_loss`` and ``weights`` of all members (0 where absent).
    """
    hedge = SleepingHedge(eta)
    num_queries, num_members = losses.shape
    plain = np.zeros(num_members)
    curves: Row = {name: [] for name in ("regret", "bound", "uniform", "mixture_loss", "weights")}
    for now in range(num_queries):
        here = [str(j) for j in np.flatnonzero(present[now])]
        for name in here:
            hedge.join(name)
        weights = hedge.weights(here)
        own = {name: float(losses[now, int(name)]) for name in here}
        mixed = -math.log(math.fsum(weights[name] * math.exp(-own[name]) for name in here))
        mean = -math.log(math.fsum(math.exp(-loss) for loss in own.values()) / len(own))
        hedge.update(own, mixed)
        plain[present[now]] += mean - losses[now, present[now]]
        curves["regret"].append(max(hedge.regret().values()))
        curves["bound"].append(hedge.bound())
        curves["uniform"].append(float(plain[[int(name) for name in hedge.members]].max()))
        curves["mixture_loss"].append(mixed)
        curves["weights"].append([weights.get(str(j), 0.0) for j in range(num_members)])
    return curves


def answers(
    held: Prepared, members: Sequence[Any], num_queries: int, seed: int, flipped: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Lets all members answer a stream of test rows.

    Args:
        held: the task; a classification.
        members: prompts with heads.
        num_queries: T; beyond the test rows they begin again, in another order.
        seed: of the order.
        flipped: hostile members: their probabilities are those of the next class.

    Returns:
        (losses [T, N] floored as the service has it, whether each answer was right [T, N]).
    """
    bench = held.bench
    said, labels = [], []
    order = np.argsort(bench.test.lengths, kind="stable")
    with torch.inference_mode():
        for start in range(0, len(order), 8):
            batch = bench.task.batch(bench.test, [int(i) for i in order[start : start + 8]])
            tensors = [tensors_of(member) for member in members]
            log_probs, own = log_probabilities(bench.full.bare_model, tensors, batch)
            said.append(log_probs.permute(1, 0, 2))
            labels.append(own)
    table, right = torch.cat(said).double().numpy(), torch.cat(labels).numpy()
    for j in flipped:
        table[:, j] = np.roll(table[:, j], 1, axis=-1)
    rng = generator(seed, "queries")
    stream = np.concatenate(
        [rng.permutation(len(right)) for _ in range(-(-num_queries // len(right)))]
    )[:num_queries]
    chosen = table[stream[:, None], np.arange(table.shape[1])[None], right[stream][:, None]]
    num_classes = table.shape[-1]
    losses = np.vectorize(lambda value: bounded_log_loss(float(value), num_classes))(chosen)
    hits = table[stream].argmax(-1) == right[stream][:, None]
    return losses, hits


def stays(present: NDArray[np.bool_]) -> list[list[list[int]]]:
    """Returns, per member, [first query, query after the last] of every stay."""
    found = []
    for column in present.T:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], column.astype(np.int8), [0]])))
        found.append(edges.reshape(-1, 2).tolist())
    return found


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--assets", default=os.environ.get("DEFT_ASSETS", ""), metavar="DIR")
    parser.add_argument("--task", default="sst2", choices=[t for t in TASKS if t != "t0"])
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--members", type=int, default=9)
    parser.add_argument("--hostile", type=int, default=2, help="the last ones answer wrongly")
    parser.add_argument("--steps", type=int, default=200, help="of every member")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-rows", type=int, default=800)
    parser.add_argument("--output", type=Path, default=Path("outputs/triple"))
    parser.add_argument("overrides", nargs="*", help="more, as those of the members' own run")
    return parser.parse_intermixed_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Runs one stream; the exit code is 1 where the bound was broken."""
    chosen = parse(words)
    if not chosen.assets or not Path(chosen.assets).is_dir():
        print("skipped: set DEFT_ASSETS or --assets to a folder with data and models")
        return 0
    if not 0 <= chosen.hostile < chosen.members:
        print(f"--hostile={chosen.hostile} must be 0 to {chosen.members - 1}, below --members")
        return 2
    torch.set_num_threads(1)
    setting = setting_of(
        chosen.task,
        assets=Path(chosen.assets),
        seed=chosen.seed,
        num_members=chosen.members,
        steps=chosen.steps,
        more=(f"data.limit_test={chosen.test_rows}", *chosen.overrides),
    )
    held = prepared(setting)
    members = tuned_members(setting, held, chosen.output / "members")
    hostile = list(range(chosen.members - chosen.hostile, chosen.members))
    losses, hits = answers(held, members, chosen.queries, chosen.seed, hostile)
    present = timetable(chosen.members, chosen.queries, chosen.seed)
    curves = play(losses, present)
    slack = np.array(curves["bound"]) - np.array(curves["regret"])
    content = {
        "task": chosen.task,
        "queries": chosen.queries,
        "members": chosen.members,
        "hostile": hostile,
        "joins": sum(len(one) for one in stays(present)),
        "leaves": sum(last < chosen.queries for one in stays(present) for _, last in one),
        "largest_regret": max(curves["regret"]),
        "last_bound": curves["bound"][-1],
        "least_slack": float(slack.min()),
        "holds": bool((slack >= -1e-9).all()),
        "member_accuracy": hits.mean(0).tolist(),
        "stays": stays(present),
        **curves,
    }
    chosen.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, allow_nan=False) + "\n"
    (chosen.output / "online.json").write_text(text, encoding="utf-8")
    draw_online(content, chosen.output / "online.png")
    print(
        f"{chosen.queries} queries, {content['joins']} joins, {content['leaves']} leaves: largest "
        f"regret {content['largest_regret']:.3f} nats, bound {content['last_bound']:.3f}, "
        f"{'holds' if content['holds'] else 'BROKEN'} after every query"
    )
    return 0 if content["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
