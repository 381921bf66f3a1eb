"""What every row is measured with: options, time left, and the machine in words."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ensq", "jax", "jaxlib", "chemtrain", "jax-md", "optax", "numpy", "sqlalchemy")


@dataclass(kw_only=True)
class Run:
    """Options of a benchmark, for one row after another."""

    config: Path  # the ensemble that rows (a) to (c), (e) and (g) train
    folder: Path  # for files while it runs; on the disk that is meant
    short: bool = False
    repeats: int | None = None  # rounds; None: as many as each row thinks right
    members: int = 8  # of the ensemble of row (a)
    packs: tuple[int, ...] | None = None  # sizes of row (b); None: as fits the device
    functions: tuple[str, ...] = ()  # kinds of energy function of row (c); (): as fits the form
    jobs: int = 100_000  # in the database of row (f)
    command: str = ""
    sets: tuple[str, ...] = ()  # settings that replace those of the configuration
    deadline: float = float("inf")  # of the row under way, by ``time.monotonic``
    say: Callable[[str], None] = lambda text: None
    sides: dict[str, Any] = field(default_factory=dict)  # that are kept for later parts, by kind

    def left(self) -> float:
        """Seconds that the row under way still has."""
        return self.deadline - time.monotonic()

    def rounds(self, usual: int, short: int) -> int:
        return self.repeats or (short if self.short else usual)

    def place(self, name: str) -> Path:
        """A fresh folder."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def environment(self) -> dict[str, str]:
        """Of processes that are measured: this checkout's modules, and nothing set for ensq."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ENSQ_")}
        # A cache of the user's own would take the compilation out of a cold start.
        kept.pop("JAX_COMPILATION_CACHE_DIR", None)
        return kept | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "scripts")))}


def measured(
    rounds: int, run: Run, one: Callable[[int], tuple[float, float]]
) -> list[tuple[float, float]]:
    """Rounds (ensq's seconds, the other's), until there are enough or no time for another one.

    ``one`` measures both sides of a round; odd rounds should begin with the other side, so that a
    machine that grows slower favours none.
    """
    found: list[tuple[float, float]] = []
    longest = 0.0
    for number in range(rounds):
        if found and run.left() < longest:
            run.say(f"  {number} of {rounds} rounds: the time for this row is over")
            break
        began = time.monotonic()
        found.append(one(number))
        longest = max(longest, time.monotonic() - began)
    return found


def in_turns(number: int, own: Callable[[], float], other: Callable[[], float]) -> tuple[Any, Any]:
    """Both, ensq's first in even rounds."""
    if number % 2 == 0:
        first = own()
        return first, other()
    second = other()
    return own(), second


def machine() -> str:
    """Processor and cores in words."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    from ensq import __version__

    return found | {"ensq": __version__}


def python() -> str:
    return sys.executable
