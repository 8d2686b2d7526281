"""The service as a process of its own, asked over real HTTP; bad input of every kind."""

import dataclasses
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from fl_app.fomo.frozen import Frozen, save_frozen
from fl_app.prompts.batched import log_probabilities, tensors_of
from fl_app.prompts.ensemble import combine
from fl_app.prompts.errors import PromptError
from fl_app.prompts.member import Member
from fl_app.prompts.packing import pack
from fl_app.prompts.pool import MODEL_FILE, Pool
from scripts import serve_ensemble
from scripts.serve_ensemble import build_parser, make_service
from tests.fixtures_models import LABELS, MAX_LENGTH, TinyModels
from tests.prompt_fixtures import CLASSES, easy_rows, fit_for, tuned_member

_ROOT = Path(__file__).parents[2]
_OCTETS = {"content-type": "application/octet-stream"}
_JSON = {"content-type": "application/json"}
_HALF = b'{"id": 1, "label": "\\ud800"}'


@dataclasses.dataclass
class Served:
    """A running service and what it was started with."""

    url: str
    folder: Path
    members: list[Member]
    process: "subprocess.Popen[str]"

    def post(self, path: str, **content: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=30.0, trust_env=False, **content)

    def state(self) -> Any:
        return httpx.get(self.url + "/state", timeout=30.0, trust_env=False).json()


@pytest.fixture(scope="module")
def served(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    members = [tuned_member(tiny, seed) for seed in range(3)]
    fit = dataclasses.replace(fit_for(tiny.load("bert", CLASSES)), max_tokens=100)
    pool = Pool(fit, capacity=4)
    for member in members[:2]:
        pool.admit(member)
    pool.save(folder / "pool")
    rows = easy_rows(60, seed=50).columns
    table = "\n".join(f"{t}\t{label}" for t, label in zip(rows["text"], rows["label"], strict=True))
    (folder / "probe.tsv").write_text(f"text\tlabel\n{table}\n", encoding="utf-8")
    words = [sys.executable, "-m", "scripts.serve_ensemble", "--port", "0", "--threads", "1"]
    words += ["--model", str(tiny.path("bert", CLASSES)), "--labels", ",".join(LABELS)]
    words += ["--pool", str(folder / "pool"), "--probe", str(folder / "probe.tsv")]
    words += ["--max-length", str(MAX_LENGTH), "--capacity", "4"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
    assert process.stdout is not None
    yield Served(process.stdout.readline().strip(), folder, members, process)
    process.kill()
    process.wait()
    process.stdout.close()


def _asked(tiny: TinyModels, members: list[Member], weights: list[float], text: str) -> list[float]:
    """The mixture by the library in this process."""
    task = tiny.task("bert", CLASSES)
    examples = easy_rows(1)
    encoded = task.encode(type(examples)({"text": [text], "label": [LABELS[0]]}))
    with torch.inference_mode():
        log_probs, _ = log_probabilities(
            tiny.load("bert", CLASSES).model,
            [tensors_of(member) for member in members],
            task.batch(encoded, [0]),
        )
    mixed = combine("mean", log_probs, torch.tensor(weights)).log_probs[0]
    return [float(p) for p in mixed.exp()]


def test_a_day_of_the_service(served: Served, tiny: TinyModels) -> None:
    """Answers, feedback, a newcomer while running, and the state that shows it all."""
    text = "w12 w15 w11"
    first = served.post("/query", json={"texts": [text, "w25 w21"]})
    assert first.status_code == 200
    answers = first.json()["answers"]
    assert [answer["num_members"] for answer in answers] == [2, 2]
    wanted = _asked(tiny, served.members[:2], [0.5, 0.5], text)
    assert list(answers[0]["probabilities"].values()) == pytest.approx(wanted, rel=1e-4)
    assert answers[0]["label"] == LABELS[int(np.argmax(wanted))]

    told = served.post("/feedback", json={"id": answers[0]["id"], "label": LABELS[1]})
    weights = told.json()["weights"]
    each = [_asked(tiny, [member], [1.0], text)[1] for member in served.members[:2]]
    # one round of Hedge with eta = 1: weights are the likelihoods (the floor of 1e-4 aside)
    hashes = [member.content_hash for member in served.members]
    assert weights[hashes[0]] == pytest.approx(each[0] / sum(each), rel=1e-2)
    again = served.post("/feedback", json={"id": answers[0]["id"], "label": LABELS[1]})
    assert (again.status_code, again.json()["error"]["reason"]) == (409, "feedback-given")

    joined = served.post("/prompts", content=pack(served.members[2]), headers=_OCTETS)
    assert joined.status_code == 201
    assert joined.json() == {"content_hash": hashes[2], "replaced": None}
    assert served.post("/query", json={"texts": [text]}).json()["answers"][0]["num_members"] == 3
    state = served.state()
    shown = {member["content_hash"]: member for member in state["members"]}
    assert set(shown) == set(hashes)
    assert sum(member["weight"] for member in shown.values()) == pytest.approx(1)
    assert max(member["regret"] for member in shown.values()) <= state["regret_bound"]
    assert (state["num_queries"], state["num_feedback"]) == (3, 1)
    assert 0 < state["latency_s"]["median"] <= state["latency_s"]["p95"] < 30
    assert (served.folder / "pool" / f"{hashes[2]}.safetensors").exists()


def _poison(served: Served, tiny: TinyModels) -> dict[str, tuple[Member, str]]:
    good = served.members[0]
    rng = np.random.default_rng(0)
    broken = good.prompt.copy()
    broken[0, 0] = np.nan
    drawn = {n: rng.normal(0, 1, a.shape).astype(np.float32) for n, a in good.arrays().items()}
    random = drawn.pop("base_model.prompt_embeddings")
    return {
        "nan": (Member(broken, good.card, good.head), "not-finite"),
        "huge": (Member(good.prompt * 1e6, good.card, good.head), "huge-norm"),
        "random": (Member(random, good.card, drawn), "knows-nothing"),
        "flipped labels": (tuned_member(tiny, 9, flipped=True), "knows-nothing"),
        "again": (good, "duplicate"),
        "other model": (
            Member(good.prompt, dataclasses.replace(good.card, model_hash="0" * 64), good.head),
            "wrong-model",
        ),
    }


def test_poison_is_refused_over_http(served: Served, tiny: TinyModels) -> None:
    before = len(served.state()["members"])
    for name, (member, reason) in _poison(served, tiny).items():
        got = served.post("/prompts", content=pack(member), headers=_OCTETS)
        status = 409 if reason == "duplicate" else 422
        assert (got.status_code, got.json()["error"]["reason"]) == (status, reason), name
    assert len(served.state()["members"]) == before


@pytest.mark.parametrize(
    ("path", "content", "status", "reason"),
    [
        ("/query", {"content": b"{", "headers": _JSON}, 400, "bad-json"),
        ("/query", {"content": b"[" * 90_000, "headers": _JSON}, 400, "bad-json"),
        ("/query", {"content": b"\xff\xfe", "headers": _JSON}, 400, "bad-json"),
        ("/query", {"content": b"x", "headers": _OCTETS}, 415, "wrong-content-type"),
        ("/query", {"content": b""}, 415, "wrong-content-type"),
        ("/query", {"json": ["texts"]}, 422, "bad-field"),
        ("/query", {"json": {}}, 422, "bad-field"),
        ("/query", {"json": {"texts": ["a"], "more": 1}}, 422, "bad-field"),
        ("/query", {"json": {"texts": "a"}}, 422, "bad-field"),
        ("/query", {"json": {"texts": []}}, 422, "bad-field"),
        ("/query", {"json": {"texts": ["a"] * 65}}, 422, "bad-field"),
        ("/query", {"json": {"texts": ["  "]}}, 422, "bad-field"),
        ("/query", {"json": {"texts": [3]}}, 422, "bad-field"),
        ("/query", {"json": {"texts": ["a" * 20_001]}}, 422, "bad-field"),
        ("/query", {"content": b'{"texts": ["\\ud800"]}', "headers": _JSON}, 422, "bad-field"),
        ("/query", {"json": {"texts": ["a" * 2**21]}}, 413, "too-large"),
        ("/feedback", {"json": {"id": 10**9, "label": "hot"}}, 404, "unknown-query"),
        ("/feedback", {"json": {"id": 1, "label": "wet"}}, 422, "unknown-label"),
        ("/feedback", {"content": _HALF, "headers": _JSON}, 422, "unknown-label"),
        ("/feedback", {"json": {"id": "1", "label": "hot"}}, 422, "bad-field"),
        ("/feedback", {"json": {"id": True, "label": "hot"}}, 422, "bad-field"),
        ("/feedback", {"json": {"id": 1}}, 422, "bad-field"),
        ("/prompts", {"content": b"", "headers": _OCTETS}, 422, "unknown-format"),
        ("/prompts", {"content": b"nonsense" * 9, "headers": _OCTETS}, 422, "unknown-format"),
        ("/prompts", {"json": {}}, 415, "wrong-content-type"),
        ("/nowhere", {"json": {}}, 404, "not-found"),
        ("/state", {"json": {}}, 405, "method-not-allowed"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_clear_answer(
    served: Served, path: str, content: dict[str, Any], status: int, reason: str
) -> None:
    got = served.post(path, **content)
    error = got.json()["error"]
    assert (got.status_code, error["reason"]) == (status, reason)
    assert len(error["detail"]) > 10
    assert served.process.poll() is None


def test_a_damaged_prompt_is_refused(served: Served) -> None:
    blob = bytearray(pack(served.members[0]))
    blob[-1] ^= 1
    got = served.post("/prompts", content=bytes(blob), headers=_OCTETS)
    assert (got.status_code, got.json()["error"]["reason"]) == (422, "damaged")


def test_weights_survive_a_restart(served: Served) -> None:
    """The last test of the module: it stops the service as an operator would."""
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=30) in (0, -signal.SIGINT)
    assert "losses" in (served.folder / "pool" / "hedge.json").read_text(encoding="utf-8")


def _ends(tiny: TinyModels, *more: str) -> str:
    """What a service says that cannot start."""
    words = [sys.executable, "-m", "scripts.serve_ensemble", "--labels", "a,b"]
    words += ["--model", str(tiny.path("bert", CLASSES)), "--max-length", "12", *more]
    done = subprocess.run(words, capture_output=True, text=True, cwd=_ROOT, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


def test_wrong_options_end_at_once(tiny: TinyModels) -> None:
    assert "'best' must be one of weighted, vote" in _ends(tiny, "--combiner", "best")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port={port} cannot be listened on" in _ends(tiny, "--port", port)


@pytest.mark.parametrize(
    ("more", "named"),
    [(("--threads", "0"), "--threads=0"), (("--max-length", "0"), "--max-length=0")],
)
def test_numbers_out_of_range_are_named(
    tiny: TinyModels, more: tuple[str, ...], named: str
) -> None:
    words = ["--model", str(tiny.path("bert", CLASSES)), "--labels", "a,b", *more]
    with pytest.raises(PromptError, match=named):
        make_service(build_parser().parse_args(words))


@pytest.mark.parametrize(
    ("run", "option", "expected"), [(7, None, 7), (7, 9, 9), (None, None, 128), (None, 9, 9)]
)
def test_texts_are_cut_where_the_run_cut_them(
    tiny: TinyModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: int | None,
    option: int | None,
    expected: int,
) -> None:
    asked = []

    def fit(_backbone: Any, *, max_length: int) -> Any:
        asked.append(max_length)
        raise PromptError("asked", "enough")

    monkeypatch.setattr(serve_ensemble, "fit_of", fit)
    save_frozen(Frozen({}, (), ("a", "b"), run), tmp_path / MODEL_FILE)
    words = ["--model", str(tiny.path("bert", CLASSES)), "--pool", str(tmp_path)]
    words += [] if option is None else ["--max-length", str(option)]
    with pytest.raises(PromptError, match="asked"):
        make_service(build_parser().parse_args(words))
    assert asked == [expected]


@pytest.mark.parametrize("labels", ["a,,a", "a", "a, ", "a,b,a"])
def test_classes_that_are_none_are_refused_by_name(tiny: TinyModels, labels: str) -> None:
    words = ["--model", str(tiny.path("bert", "sequence_classification")), "--labels", labels]
    with pytest.raises(PromptError, match="wrong-labels"):
        make_service(build_parser().parse_args(words))


def _left_by_a_run(tiny: TinyModels, folder: Path, labels: tuple[str, ...]) -> list[str]:
    save_frozen(Frozen({}, (), labels), folder / MODEL_FILE)
    model = tiny.path("bert", "sequence_classification")
    return ["--model", str(model), "--pool", str(folder), "--max-length", "12"]


def test_the_pool_of_a_language_model_is_not_served(tiny: TinyModels, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="language model"):
        make_service(build_parser().parse_args(_left_by_a_run(tiny, tmp_path, ())))


@pytest.mark.parametrize("more", [(), ("--labels", "a, b,c")])
def test_a_class_may_have_a_comma_in_its_name(
    tiny: TinyModels, tmp_path: Path, more: tuple[str, ...]
) -> None:
    words = _left_by_a_run(tiny, tmp_path, ("a, b", "c"))
    service = make_service(build_parser().parse_args([*words, *more]))
    assert service.state()["labels"] == ["a, b", "c"]
