"""No process outlives the sandbox, and none of others is touched."""

import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from fl_app.errors import RunError
from scripts.sandbox import Sandbox, end_processes, find_tagged, free_ports
from tests.process_fixtures import ENDLESS, is_gone, wait_until

ROOT = Path(__file__).resolve().parents[2]


def test_free_ports_are_different_and_free():
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


ORPHAN = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
print(child.pid, flush=True)
"""


def test_orphans_are_found_by_their_tag():
    with Sandbox() as sandbox:
        sandbox.start("parent", [sys.executable, "-c", ORPHAN])
        wait_until(lambda: sandbox.log_end("parent"))
        orphan = int(sandbox.log_end("parent"))
        with pytest.raises(RunError, match="parent ended with code 0"):
            wait_until(lambda: sandbox.check())
        assert not is_gone(orphan)
    assert is_gone(orphan)


def test_processes_that_ignore_the_request_to_end_are_killed():
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{stubborn}; {ENDLESS}"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = {psutil.Process(process.pid)}
        assert end_processes(lambda: found, grace_s=0.2) == 1
    assert process.returncode == -signal.SIGKILL


def test_other_processes_are_left_alone():
    with subprocess.Popen([sys.executable, "-c", ENDLESS]) as other:
        with Sandbox() as sandbox:
            sandbox.start("own", [sys.executable, "-c", ENDLESS])
        assert other.poll() is None
        other.kill()
    assert not find_tagged(lambda tag: tag == sandbox.tag)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_script_takes_everything_with_it(tmp_path, number):
    code = f"""
    import signal, sys
    from scripts.sandbox import Sandbox, interruptible
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interruptible(), Sandbox() as sandbox:
            sandbox.start("parent", [sys.executable, "-c", {ORPHAN!r}])
            while not sandbox.log_end("parent"):
                pass
            print(sandbox.log_end("parent"), flush=True)
            while True:
                pass
    except KeyboardInterrupt:
        sys.exit(130)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=ROOT
    ) as script:
        assert script.stdout is not None
        orphan = int(script.stdout.readline())
        script.send_signal(number)
        assert script.wait(timeout=30) == 130
    assert is_gone(orphan)
