"""Runs the main job on a real SuperLink and real SuperNodes on this machine's loopback address.

The app is the one the simulation runs, unchanged: only the overrides say that it is deployed.
``python -m scripts.deploy_loopback [OVERRIDE ...] --nodes 3`` starts everything, runs the job,
prints a transcript with times, ends everything by process id, and exits 0 only if the run's own
verdict is "ok".
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from fl_app.config import load_config
from fl_app.errors import DeftError, RunError
from scripts.flower import ROOT, Echo, Flower, absolute_paths, say
from scripts.run_main import INTERRUPTED, choose_output_dir, report
from scripts.sandbox import free_ports, interruptible

CONNECTION = """\
[superlink]
default = "loopback"

[superlink.loopback]
address = "{address}"
insecure = true
"""


class LoopbackFlower(Flower):
    """A SuperLink and its SuperNodes, every one a process of its own with its own home."""

    superlink = "loopback"

    def __init__(
        self, *, num_nodes: int, app: Path = ROOT, echo: Echo = say, start_timeout_s: float = 120.0
    ) -> None:
        """Stores the size of the federation.

        Args:
            num_nodes: SuperNodes, >= 1; node i holds partition i of ``num_nodes``.
            app: Folder of the app.
            echo: Receives every line of output as it comes.
            start_timeout_s: Seconds within which the SuperLink must answer, and then again
                within which all SuperNodes must be online.
        """
        super().__init__(app=app, echo=echo)
        self.num_nodes = num_nodes
        self.start_timeout_s = start_timeout_s

    @override
    def prepare(self) -> None:
        """Starts the SuperLink and the SuperNodes and waits until all are online.

        Raises:
            RunError: One of them ended or is not there in time; the text holds the end of its log.
        """
        port, *node_ports = (str(port) for port in free_ports(1 + self.num_nodes))
        address = f"127.0.0.1:{port}"
        (self.sandbox.home("cli") / "config.toml").write_text(CONNECTION.format(address=address))
        # The dependencies are installed where Flower is: installing them per run could only fail.
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", port]
        self.sandbox.start("superlink", [*command, "--disable-runtime-dependency-installation"])
        self.echo(f"SuperLink started on {address}")
        for index, node_port in enumerate(node_ports):
            name = f"supernode-{index}"
            cache = self.sandbox.home(name) / "cache"
            facts = f"partition-id={index} num-partitions={self.num_nodes} cache-dir='{cache}'"
            command = ["flower-supernode", "--insecure", "--superlink", address]
            self.sandbox.start(name, [*command, "--port", node_port, "--node-config", facts])
            self.echo(f"SuperNode {index} started")
        self._wait_online()

    @override
    def arguments(self) -> list[str]:
        """Returns nothing: a real federation has the nodes it has."""
        return []

    def _wait_online(self) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        seen, complaint = -1, ""
        while time.monotonic() < deadline:
            self.sandbox.check()
            listing = subprocess.run(  # noqa: S603 - Flower's own command line
                ["flwr", "supernode", "ls", self.superlink, "--format", "json"],  # noqa: S607
                cwd=self.sandbox.root,
                env=self.environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            online, complaint = count_online(listing.stdout), listing.stdout + listing.stderr
            if online != seen:
                self.echo(f"{online} of {self.num_nodes} SuperNodes online")
                seen = online
            if online >= self.num_nodes:
                return
            time.sleep(0.5)
        logs = "\n".join(self.sandbox.log_end(f"supernode-{i}") for i in range(self.num_nodes))
        raise RunError(
            f"only {max(seen, 0)} of {self.num_nodes} SuperNodes came online within "
            f"{self.start_timeout_s:g} s; Flower said:\n{complaint}\nthe SuperNodes' logs:\n{logs}"
        )


def count_online(listing: str) -> int:
    """Returns how many nodes Flower's JSON listing reports online; 0 if it is no listing."""
    try:
        answer = json.loads(listing)
    except ValueError:  # the SuperLink does not answer yet
        return 0
    return sum(node["status"] == "online" for node in answer.get("nodes", []))


def stopwatch(echo: Echo = say) -> Echo:
    """Returns a function that echoes each line after the seconds since now."""
    started = time.monotonic()
    return lambda line: echo(f"[{time.monotonic() - started:7.1f} s] {line}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the main job on the loopback deployment and returns its exit code."""
    parser = argparse.ArgumentParser(description="Run the main job on a loopback deployment.")
    parser.add_argument("overrides", nargs="*", help="for example peft.rank=4 seed=1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome there as well")
    parser.add_argument("--nodes", type=int, default=3, help="SuperNodes")
    options = parser.parse_intermixed_args(arguments)
    echo = stopwatch()
    fixed = ["federation=edge", f"federation.num_devices={options.nodes}"]
    overrides = [*fixed, *options.overrides]
    try:
        # Composed here as well: a mistyped override ends at once, not after Flower has started.
        load_config(shlex.join(absolute_paths(overrides)))
        with interruptible(), LoopbackFlower(num_nodes=options.nodes, echo=echo) as flower:
            output_dir = choose_output_dir(options.overrides)
            outcome = flower.run(overrides, output_dir=output_dir)
            if not outcome.is_ok:
                for index in range(options.nodes):
                    echo(f"the log of SuperNode {index} ends:")
                    echo(flower.sandbox.log_end(f"supernode-{index}"))
        echo("every process was ended")
    except KeyboardInterrupt:
        print("interrupted; every process was ended", file=sys.stderr)
        return INTERRUPTED
    except DeftError as error:
        print(f"the deployment failed: {error}", file=sys.stderr)
        return 1
    return report(outcome, options.json)


if __name__ == "__main__":
    sys.exit(main())
