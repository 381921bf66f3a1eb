"""Test runs of several processes: a core for each, and an account of which tests ran.

scripts/test runs the suite in parts, some of them side by side. Each part notes the tests that it
ran; `python tests/parallel.py THERE RAN` compares that with all that there are.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

CORES = sorted(os.sched_getaffinity(0))  # of the whole run
"""Those that a test may use which needs several; its own process may be bound to one of them."""


def pin() -> None:
    """Bind a worker of pytest-xdist to one core, as long as there is one for each.

    What trains in one worker then takes no time from tests in another that count seconds.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # One that replaces a dead one gets the next number.
    if worker.isdecimal() and workers <= len(CORES):
        os.sched_setaffinity(0, {CORES[int(worker) % workers]})


class Account:
    """A plugin of pytest that appends to a file the id of every test that ran, skipped or not.

    With --collect-only: of every test that there is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.config.getoption("collectonly"):
            self._note(*(item.nodeid for item in session.items))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._note(nodeid)

    def _note(self, *ids: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{each}\n" for each in ids)


def compare(there: list[str], ran: list[str]) -> list[str]:
    """What is wrong, a line each: tests that did not run, that ran more than once, strange ones."""
    counts = Counter(ran)
    return [
        *(f"did not run: {each}" for each in there if each not in counts),
        *(f"ran {times} times: {each}" for each, times in counts.items() if times > 1),
        *(f"ran, but is not one of the tests: {each}" for each in sorted(counts.keys() - {*there})),
    ]


def main(there: Path, ran: Path) -> int:
    lines = there.read_text("utf-8").splitlines(), ran.read_text("utf-8").splitlines()
    wrong = compare(*lines)
    for line in wrong[:20]:
        print(line)
    if len(wrong) > 20:
        print(f"and {len(wrong) - 20} more")
    print(f"{len(lines[0])} tests, {len(set(lines[1]))} of them ran")
    return 1 if wrong or not lines[0] else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
