"""Runs the app in a private Flower and takes its verdict from ``result.json``.

``flwr run`` alone starts a SuperLink that outlives it, lends every later run the environment and
working directory of whoever came first, and exits 0 although the run failed. Here each run gets
its own Flower in a sandbox, and counts as successful only if the app says so in its result file.

``python -m scripts.flower stop`` ends what a plain ``flwr run`` or a killed script left behind.
"""

import argparse
import json
import re
import shlex
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from typing_extensions import override

from scripts.sandbox import Sandbox, free_ports, stop_leftovers

ROOT = Path(__file__).resolve().parent.parent
RESULT_FILE = "result.json"

Echo = Callable[[str], None]


def say(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one run.

    Attributes:
        verdict: "ok" or "failed", as the result file says; "failed" without such a file.
        reason: Why it failed; empty when it did not.
        run_id: Flower's identifier of the run; None when Flower did not accept it.
        output_dir: The folder the run was told to write to.
        seconds: Wall time from submitting the run to its last line of output.
        text: Everything ``flwr run`` printed.
        result: Content of the result file; None without one.
    """

    verdict: str
    reason: str
    run_id: str | None
    output_dir: Path
    seconds: float
    text: str
    result: Mapping[str, Any] | None

    @property
    def is_ok(self) -> bool:
        """Whether the run's own verdict is "ok"."""
        return self.verdict == "ok"

    def write_json(self, path: Path) -> None:
        """Writes everything but the printed text to a file."""
        record = {
            "verdict": self.verdict,
            "reason": self.reason,
            "run_id": self.run_id,
            "output_dir": str(self.output_dir),
            "seconds": round(self.seconds, 2),
            "result": self.result,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n")


def read_verdict(output_dir: Path) -> tuple[str, str, Mapping[str, Any] | None]:
    """Returns verdict, reason and content of a run's result file.

    Anything but a readable file that says "ok" is a failure: a missing file means that the app
    did not come to its end, whatever Flower reports.
    """
    path = output_dir / RESULT_FILE
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        return "failed", f"the run ended without {path}", None
    except ValueError as error:
        return "failed", f"{path} is not JSON: {error}", None
    if not isinstance(result, dict) or "verdict" not in result:
        return "failed", f"{path} holds no verdict", None
    if result["verdict"] != "ok":
        return "failed", str(result.get("reason", "no reason given")), result
    return "ok", "", result


def path_override(key: str, path: Path) -> str:
    """Returns ``key=path``, the path absolute and quoted where Hydra's grammar needs it."""
    text = str(path.expanduser().absolute())
    if re.fullmatch(r"[\w./+~-]+", text):
        return f"{key}={text}"
    return f"{key}='" + text.replace("'", r"\'") + "'"


def toml_string(text: str) -> str:
    """Returns the text as a TOML basic string: a JSON one, with the one escape JSON leaves out."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def absolute_paths(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides with relative ``*.path`` and ``*.dir`` values made absolute.

    The app runs in another working directory than the one the caller means.
    """
    made = []
    for word in overrides:
        key, _, value = word.partition("=")
        is_path = key.rpartition(".")[2] in {"path", "dir"} and value not in {"", "null"}
        if is_path and value[0] not in "'\"":
            made.append(path_override(key, Path(value)))
        else:
            made.append(word)
    return made


class Flower(ABC):
    """One Flower of our own, alive inside a ``with`` block, that runs the app as often as asked.

    Variants say how Flower is started and which arguments its command line needs.
    """

    superlink: str  # name of the connection in Flower's configuration

    def __init__(self, *, app: Path = ROOT, echo: Echo = say) -> None:
        """Stores what to run and who hears the output.

        Args:
            app: Folder of the app.
            echo: Receives every line of output as it comes.
        """
        self.app = app.absolute()
        self.echo = echo

    def __enter__(self) -> Self:
        """Makes the sandbox and starts what must run before the app does."""
        with ExitStack() as stack:
            self.sandbox = stack.enter_context(Sandbox())
            self.prepare()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends every process by process id and removes the sandbox."""
        self._stack.close()

    @abstractmethod
    def prepare(self) -> None:
        """Starts what must run before the app does."""

    @abstractmethod
    def arguments(self) -> list[str]:
        """Returns more arguments for ``flwr run``."""

    def environment(self) -> dict[str, str]:
        """Returns the environment of Flower's command line."""
        return self.sandbox.environment("cli")

    def run(
        self, overrides: Sequence[str], *, output_dir: Path, timeout_s: float | None = None
    ) -> Outcome:
        """Runs the app once with ``flwr run --stream`` and waits for its end.

        Args:
            overrides: Hydra overrides, one each; relative paths start at the caller's folder.
            output_dir: Where the run writes; given to it as the last override.
            timeout_s: Seconds after which the run counts as failed; None waits for ever.

        Returns:
            The outcome; a failed run is an outcome, not an exception.
        """
        output_dir = output_dir.absolute()
        output_dir.mkdir(parents=True, exist_ok=True)
        # The verdict of an earlier run into the same folder must not pass for this one's.
        (output_dir / RESULT_FILE).unlink(missing_ok=True)
        # A file, because the value of an argument could not hold both kinds of quotes.
        run_config = self.sandbox.home("cli") / "run-config.toml"
        joined = shlex.join([*absolute_paths(overrides), path_override("output.dir", output_dir)])
        run_config.write_text(f"overrides = {toml_string(joined)}\n", encoding="utf-8")
        command = ["flwr", "run", str(self.app), self.superlink, "--stream"]
        command += ["--run-config", str(run_config), *self.arguments()]

        started = time.monotonic()
        text, is_late = self._stream(command, timeout_s)
        seconds = time.monotonic() - started
        verdict, reason, result = read_verdict(output_dir)
        run_id = re.search(r"Successfully started run (\d+)", text)
        if is_late:
            verdict, reason = "failed", f"no end after {timeout_s} s"
        elif run_id is None:
            verdict, reason = "failed", "Flower did not accept the run; its output says why"
        return Outcome(
            verdict=verdict,
            reason=reason,
            run_id=run_id and run_id.group(1),
            output_dir=output_dir,
            seconds=seconds,
            text=text,
            result=result,
        )

    def _stream(self, command: Sequence[str], timeout_s: float | None) -> tuple[str, bool]:
        lines = []
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            process.kill()

        process = subprocess.Popen(  # noqa: S603 - Flower's own command line
            command,
            # Ray's workers import from the folder Flower was started in before they look into the
            # app bundle: a checkout there would replace the code that was submitted.
            cwd=self.sandbox.root,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        timer = threading.Timer(timeout_s or 0.0, give_up)
        if timeout_s is not None:
            timer.start()
        with process:
            try:
                for line in process.stdout or ():
                    lines.append(line)
                    self.echo(line.rstrip("\n"))
                process.wait()
            finally:
                timer.cancel()
                process.kill()  # nothing once it has ended
        return "".join(lines), is_late.is_set()


class LocalFlower(Flower):
    """Flower's own simulation on this machine: a SuperLink, and Ray with one actor per core."""

    superlink = "local"

    def __init__(self, *, num_supernodes: int, app: Path = ROOT, echo: Echo = say) -> None:
        """Stores the size of the federation.

        Args:
            num_supernodes: Simulated devices, >= 1.
            app: Folder of the app.
            echo: Receives every line of output as it comes.
        """
        super().__init__(app=app, echo=echo)
        self.num_supernodes = num_supernodes

    @override
    def prepare(self) -> None:
        """Reserves the ports; ``flwr run`` starts the SuperLink itself."""
        self.ports = [str(port) for port in free_ports(2)]

    @override
    def arguments(self) -> list[str]:
        """Returns the size of the federation."""
        size = f"num-supernodes={self.num_supernodes} client-resources-num-cpus=1"
        return ["--federation-config", size]

    @override
    def environment(self) -> dict[str, str]:
        """Returns the environment with the SuperLink's ports."""
        http, control = self.ports
        return super().environment() | {
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http,
            "FLWR_LOCAL_CONTROL_API_PORT": control,
        }


def main() -> None:
    """Ends what a plain ``flwr run`` or a killed script left behind."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("action", choices=["stop"])
    parser.parse_args()
    say(f"ended {stop_leftovers()} processes")


if __name__ == "__main__":
    main()
