"""Processes that tests start, and what has become of them."""

import time
from collections.abc import Callable

import psutil

ENDLESS = "import time; time.sleep(600)"
"""A program that runs until somebody ends it."""


def wait_until(condition: Callable[[], object], *, timeout_s: float = 20.0) -> None:
    """Waits for a condition that other processes bring about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """A zombie counts as gone: nobody may be there to read its exit status."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
