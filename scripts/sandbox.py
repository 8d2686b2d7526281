"""A temporary place to start Flower in, and the certainty that nothing of it is left behind.

Flower's and Ray's processes start others, change their parents and hide their names. What all of
them share is an inherited environment variable, the sandbox's tag; with it and with the process
tree each one is found and ended by its process id.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import psutil

from fl_app.errors import RunError

TAG = "DEFT_SANDBOX"  # the environment variable; its value is "<owner's process id>-<random>"


def find_tagged(matches: Callable[[str], bool]) -> set[psutil.Process]:
    """Returns the running processes whose sandbox tag matches."""
    found = set()
    for process in psutil.process_iter():
        # Gone meanwhile, or of another user: not ours in either case.
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if matches(process.environ().get(TAG, "")):
                found.add(process)
    return found


def end_processes(find: Callable[[], set[psutil.Process]], *, grace_s: float = 5.0) -> int:
    """Ends the processes ``find`` returns and all their descendants, by process id.

    Args:
        find: Called again before every attempt, so that processes started meanwhile are met too.
        grace_s: Seconds between asking a process to end and killing it, >= 0.

    Returns:
        Number of processes met.

    Raises:
        RunError: Some are still there after being killed.
    """
    known: set[psutil.Process] = set()
    alive: list[psutil.Process] = []
    for end in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
        # Descendants first seen here stay known: Ray's workers hide their environment later on.
        for process in find() | known:
            known.add(process)
            with suppress(psutil.NoSuchProcess):
                known.update(process.children(recursive=True))
        alive = [process for process in known if _is_alive(process)]
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                end(process)
        deadline = time.monotonic() + grace_s
        while alive and time.monotonic() < deadline:
            time.sleep(0.05)
            alive = [process for process in alive if _is_alive(process)]
    if alive:
        raise RunError(f"processes {[process.pid for process in alive]} do not end; kill them")
    return len(known)


def _is_alive(process: psutil.Process) -> bool:
    # A zombie holds nothing any more; it waits only for its parent to read its exit status.
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def stop_leftovers() -> int:
    """Ends what a plain ``flwr run`` or a killed script left behind; returns how many processes."""
    port = os.environ.get("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "39091")

    def find() -> set[psutil.Process]:
        orphans = find_tagged(
            lambda tag: bool(tag) and not psutil.pid_exists(int(tag.split("-")[0]))
        )
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                command = process.cmdline()
                is_superlink = any(Path(word).name == "flower-superlink" for word in command[:2])
                if (
                    is_superlink
                    and "--simulation" in command
                    and f"--port {port}" in " ".join(command)
                ):
                    orphans.add(process)
        return orphans

    return end_processes(find)


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes a termination request end the block like Ctrl-C, so that it still cleans up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    with ExitStack() as stack:
        # Only the main thread receives signals, and only it may say what they do.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.signal(number, signal.SIG_IGN))
        yield


def free_ports(number: int) -> list[int]:
    """Returns ``number`` different TCP ports that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Sandbox:
    """A temporary folder and the processes started in it; leaving it ends both."""

    def __enter__(self) -> Self:
        """Makes the folder."""
        self.root = Path(tempfile.mkdtemp(prefix="deft-"))
        self.tag = f"{os.getpid()}-{uuid.uuid4().hex}"
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        """Ends every process by process id and removes the folder."""
        with _uninterrupted():
            end_processes(lambda: find_tagged(lambda tag: tag == self.tag))
            for process in self._started.values():
                process.wait()
            shutil.rmtree(self.root, ignore_errors=True)

    def home(self, name: str) -> Path:
        """Returns the ``FLWR_HOME`` of the named process; made when missing."""
        home = self.root / name
        home.mkdir(exist_ok=True)
        return home

    def environment(self, name: str) -> dict[str, str]:
        """Returns the environment of the named process: quiet, tagged, with its own home."""
        # A foreign Ray cluster must not be joined; without byte code Flower starts twice as slowly.
        unwanted = {"RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE"}
        environment = {key: value for key, value in os.environ.items() if key not in unwanted}
        environment |= {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONUNBUFFERED": "1",
            "FLWR_HOME": str(self.home(name)),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            TAG: self.tag,
        }
        if len(str(self.root)) <= 40:  # Ray puts sockets there, whose paths may have 104 characters
            environment["RAY_TMPDIR"] = str(self.root)
        return environment

    def start(self, name: str, command: Sequence[str]) -> None:
        """Starts a named program in the background; its output goes to its log."""
        with self.log(name).open("wb") as log:
            self._started[name] = subprocess.Popen(  # noqa: S603 - our own programs
                command,
                cwd=self.root,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C must reach them through `__exit__` only, in order.
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """Returns the log file of the named program."""
        return self.root / f"{name}.log"

    def log_end(self, name: str, *, num_lines: int = 20) -> str:
        """Returns the last lines the named program printed."""
        lines = self.log(name).read_text(errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])

    def check(self) -> None:
        """Raises RunError with the end of its log if a started program has ended."""
        for name, process in self._started.items():
            if process.poll() is not None:
                raise RunError(
                    f"{name} ended with code {process.returncode}; its log ends:\n"
                    f"{self.log_end(name)}"
                )
