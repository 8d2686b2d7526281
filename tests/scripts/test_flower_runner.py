"""The runner's verdict comes from the result file, and no process outlives the sandbox.

Flower itself is replaced by small programs here; the end-to-end tests use the real one.
"""

import json
import shlex
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.errors import RunError
from scripts.deploy_loopback import LoopbackFlower, count_online
from scripts.flower import LocalFlower, absolute_paths, path_override, read_verdict, toml_string
from scripts.run_main import choose_output_dir, report
from tests.process_fixtures import ENDLESS, is_gone

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable  # the fixture below changes the original


@pytest.fixture
def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts programs of our own where the sandbox looks for Flower's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    # The sandbox puts the folder of the running interpreter first.
    monkeypatch.setattr("scripts.sandbox.sys.executable", str(folder / "python"))

    def write(name: str, code: str) -> None:
        program = folder / name
        program.write_text(f"#!{PYTHON}\n{textwrap.dedent(code)}")
        program.chmod(0o755)

    return write


@pytest.mark.parametrize(
    ("content", "verdict", "reason"),
    [
        (None, "failed", "ended without"),
        ("{", "failed", "is not JSON"),
        ("[]", "failed", "holds no verdict"),
        ("{}", "failed", "holds no verdict"),
        ('{"verdict": "failed", "reason": "no survivor"}', "failed", "no survivor"),
        ('{"verdict": "OK"}', "failed", "no reason given"),
        ('{"verdict": "ok"}', "ok", ""),
    ],
)
def test_only_a_file_that_says_ok_is_ok(tmp_path, content, verdict, reason):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    found, why, _ = read_verdict(tmp_path)
    assert found == verdict
    assert reason in why
    assert bool(why) == (verdict != "ok")


def test_relative_paths_become_absolute_and_other_values_stay(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given_overrides = ["data.path=a/b", "model.path=/m", "peft.rank=4", "data.path=null", "seed=1"]
    expected = [f"data.path={tmp_path}/a/b", "model.path=/m", "peft.rank=4", "data.path=null"]
    assert absolute_paths(given_overrides) == [*expected, "seed=1"]


def test_paths_outside_the_plain_alphabet_are_quoted_for_hydra():
    assert path_override("data.path", Path("/a b/c,d")) == "data.path='/a b/c,d'"
    assert path_override("data.path", Path("/it's")) == r"data.path='/it\'s'"


FAKE_FLWR = """
    import json, os, subprocess, sys, tomllib
    from pathlib import Path

    # Detached like Flower's SuperLink, so that it outlives this program.
    daemon = subprocess.Popen(
        [{python!r}, "-c", "import time; time.sleep(600)"],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    print("daemon", daemon.pid)
    print("Successfully started run 17")
    config = Path(sys.argv[sys.argv.index("--run-config") + 1])
    overrides = tomllib.loads(config.read_text())["overrides"]
    print("overrides", overrides)
    print("arguments", sys.argv[1:4], os.getcwd() == str(Path(os.environ["FLWR_HOME"]).parent))
    {ending}
"""


def fake_flwr(ending: str) -> str:
    """A stand-in for ``flwr`` that leaves a daemon behind and always exits 0."""
    return FAKE_FLWR.format(python=PYTHON, ending=ending)


WRITE_OK = (
    """Path(overrides.split("output.dir=")[-1], "result.json").write_text('{"verdict": "ok"}')"""
)


def daemon_of(text: str) -> int:
    """Reads the daemon's process id from what the stand-in printed."""
    return int(text.split("daemon ")[1].split()[0])


def test_a_run_is_streamed_judged_by_its_file_and_leaves_nothing(fake_program, tmp_path):
    fake_program("flwr", fake_flwr(WRITE_OK))
    heard: list[str] = []
    with LocalFlower(num_supernodes=2, app=tmp_path, echo=heard.append) as flower:
        root = flower.sandbox.root
        outcome = flower.run(["seed=1", "data.text_column=a b"], output_dir=tmp_path / "out")
        assert not is_gone(daemon_of(outcome.text))
    assert outcome.is_ok
    assert outcome.run_id == "17"
    assert "\n".join(heard) + "\n" == outcome.text
    assert f"overrides seed=1 'data.text_column=a b' output.dir={tmp_path / 'out'}" in heard
    assert f"arguments ['run', '{tmp_path}', 'local'] True" in heard
    assert is_gone(daemon_of(outcome.text))
    assert not root.exists()


def test_exit_code_zero_without_a_result_is_a_failure(fake_program, tmp_path):
    fake_program("flwr", fake_flwr(""))
    # A result of an earlier run into the same folder must not be taken for this one's.
    (tmp_path / "result.json").write_text('{"verdict": "ok"}')
    with LocalFlower(num_supernodes=2, echo=lambda _: None) as flower:
        outcome = flower.run([], output_dir=tmp_path)
    assert not outcome.is_ok
    assert "ended without" in outcome.reason
    assert is_gone(daemon_of(outcome.text))


def test_a_run_flower_refuses_is_a_failure(fake_program, tmp_path):
    fake_program("flwr", "print('no such app')")
    with LocalFlower(num_supernodes=2, echo=lambda _: None) as flower:
        outcome = flower.run([], output_dir=tmp_path)
    assert outcome.run_id is None
    assert "did not accept" in outcome.reason


def test_a_run_that_does_not_end_in_time_is_a_failure(fake_program, tmp_path):
    fake_program("flwr", fake_flwr("sys.stdout.flush(); import time; time.sleep(600)"))
    with LocalFlower(num_supernodes=2, echo=lambda _: None) as flower:
        outcome = flower.run([], output_dir=tmp_path, timeout_s=1.0)
    assert not outcome.is_ok
    assert "1.0 s" in outcome.reason


def test_the_report_is_the_exit_code_and_the_file(fake_program, tmp_path):
    fake_program("flwr", fake_flwr(WRITE_OK))
    with LocalFlower(num_supernodes=2, echo=lambda _: None) as flower:
        good = flower.run([], output_dir=tmp_path / "good")
        fake_program("flwr", fake_flwr(""))
        bad = flower.run([], output_dir=tmp_path / "bad")
    assert report(good, tmp_path / "new" / "good.json") == 0
    assert report(bad, tmp_path / "bad.json") == 1
    written = json.loads((tmp_path / "new" / "good.json").read_text())
    assert written["verdict"] == "ok"
    assert written["result"] == {"verdict": "ok"}
    assert json.loads((tmp_path / "bad.json").read_text())["result"] is None


def test_a_node_that_cannot_start_ends_the_deployment_with_its_log(fake_program):
    fake_program("flower-superlink", ENDLESS)
    fake_program("flower-supernode", "import sys; sys.exit('no such key')")
    fake_program("flwr", "print('{}')")
    with (
        pytest.raises(RunError, match=r"(?s)supernode-\d ended with code 1.*no such key"),
        LoopbackFlower(num_nodes=2, echo=lambda _: None),
    ):
        pytest.fail("the deployment cannot have come up")


def test_nodes_that_stay_away_end_the_deployment(fake_program):
    fake_program("flower-superlink", ENDLESS)
    fake_program("flower-supernode", f"print('knocking', flush=True); {ENDLESS}")
    fake_program("flwr", """print('{"nodes": [{"status": "online"}, {"status": "offline"}]}')""")
    with (
        pytest.raises(RunError, match=r"(?s)only 1 of 2 SuperNodes came online.*knocking"),
        LoopbackFlower(num_nodes=2, echo=lambda _: None, start_timeout_s=1.5),
    ):
        pytest.fail("the deployment cannot have come up")


def test_a_listing_that_is_no_json_counts_no_node():
    assert count_online("Error: connection refused") == 0
    assert count_online('{"success": false}') == 0
    assert count_online('{"nodes": [{"status": "online"}, {"status": "registered"}]}') == 1


def test_latest_points_to_the_newest_run(tmp_path):
    outputs = tmp_path / "outputs"
    first = choose_output_dir(["seed=1"], outputs)
    second = choose_output_dir([], outputs)
    assert first != second
    assert (outputs / "latest").resolve() == second
    chosen = choose_output_dir(["output.dir=elsewhere", f"output.dir={tmp_path}/mine"], outputs)
    assert chosen == tmp_path / "mine"
    assert (outputs / "latest").resolve() == chosen
    assert sorted(path.name for path in outputs.iterdir()) == sorted(
        [first.name, second.name, "latest"]
    )


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_overrides_survive_the_way_to_the_app(overrides):
    # The way `Flower.run` takes: shell quoting, then a string in a TOML file.
    text = f"overrides = {toml_string(shlex.join(overrides))}\n"
    assert shlex.split(tomllib.loads(text)["overrides"]) == overrides
