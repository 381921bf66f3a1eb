"""Where the soak test runs: a folder with data and configuration, a database, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

BASE_SEED = 42
MARK = "ENSQ_CHAOS_PLACE"  # in the environment of every process that is started here
DATA, CONFIG = "tiny.npz", "soak.yaml"

# 360 small frames in steps of one: an epoch takes some 0.05 s, and has many steps to die in.
SETTINGS = """
model_context: soak
data: {path: tiny.npz, max_buckets: 1}
model:
  cutoff: 4.0
  allegro: {n_channels: 8, mlp_n_hidden: 32, n_radial_basis: 4, max_ell: 1}
ensemble: {enabled: true, n_models: 1, base_seed: 42}
training:
  stages: [{optimizer: adam, epochs: EPOCHS}]
  val_fraction: 0.25
  batch_per_device: 1
  gammas: {F: 1.0, U: 0.1}
optimizer:
  adam: {lr: 1.0e-3}
"""

# Holds SQLite's write lock: nobody else can write, as when a file server hangs.
_HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


class Place:
    """A folder with everything that one run of ensq needs, and its SQLite database."""

    outage_name = "a process holds SQLite's lock"

    def __init__(self, folder: Path, *, epochs: int, repeats: int = 12) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / CONFIG
        self.config.write_text(SETTINGS.replace("EPOCHS", str(epochs)))
        np.savez(folder / DATA, **_frames(repeats))
        self.url = str(folder / "ensq.db")
        self._holders: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ENSQ_")}
        kept.setdefault("JAX_PLATFORMS", "cpu")
        # One cache for all ensembles: most starts are then those of a real, second run.
        kept.setdefault("JAX_COMPILATION_CACHE_DIR", str(self.folder.parent / "compiled"))
        return {**kept, "ENSQ_DB": self.url, MARK: str(self.folder)}

    def start(
        self, *arguments: str, log: IO[bytes], faults: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command of ensq."""
        return subprocess.Popen(
            [sys.executable, "-m", "ensq.cli", *arguments],
            cwd=self.folder,
            env=self.environment | ({"ENSQ_FAULTS": faults} if faults else {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def ensq(self, *arguments: str, timeout: float = 300) -> str:
        """Run a command of ensq to its end; raise RuntimeError if it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "ensq.cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode != 0:
            raise RuntimeError(f"ensq {' '.join(arguments)}: {done.returncode}: {done.stderr}")
        return done.stdout

    def begin_outage(self, seconds: float) -> None:
        """Take the database away; it comes back by ``end_outage``, which is called that later."""
        command = [sys.executable, "-c", _HOLD, self.url, str(seconds)]
        self._holders.append(subprocess.Popen(command, env=self.environment))

    def end_outage(self) -> None:
        for holder in self._holders:
            if holder.poll() is None:
                holder.kill()
            holder.wait()
        self._holders.clear()

    def cut_connections(self) -> int | None:
        """Cut all connections to the database's server, if it has one; how many there were."""
        return None

    def close(self) -> None:
        self.end_outage()


class ServerPlace(Place):
    """The same with a PostgreSQL server of its own."""

    outage_name = "PostgreSQL stopped"

    def __init__(self, folder: Path, *, epochs: int) -> None:
        import pg_tools

        if pg_tools.binaries() is None:
            raise SystemExit("PostgreSQL is not installed (Debian, Ubuntu: apt install postgresql)")
        super().__init__(folder, epochs=epochs)
        self._server = pg_tools.Server()
        # This process looks at the database, too; the URL itself holds no password.
        os.environ["PGPASSWORD"] = self._server.password
        os.environ["ENSQ_ROOT"] = str(folder)
        self.url = self._server.new_database(schema=True)
        self._stops = 0
        self._up = True

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "ENSQ_ROOT": str(self.folder)}

    def begin_outage(self, seconds: float) -> None:
        self._stops += 1
        if self._up:
            self._server.stop("immediate" if self._stops % 2 else "fast")
        self._up = False

    def end_outage(self) -> None:
        if not self._up:
            self._server.start()
        self._up = True

    def cut_connections(self) -> int | None:
        return self._server.kill_connections() if self._up else None

    def close(self) -> None:
        self._server.close()


@contextmanager
def opened(kind: str, folder: Path, *, epochs: int) -> Iterator[Place]:
    place = (Place if kind == "sqlite" else ServerPlace)(folder, epochs=epochs)
    try:
        yield place
    finally:
        place.close()


def left_processes(place: Place) -> list[int]:
    """Living processes that were started for this place; only where their environment tells so."""
    mark = f"{MARK}={place.folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0") and _state(entry) not in "ZX":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def children(pid: int) -> list[int]:
    """The living child processes of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def _state(entry: Path) -> str:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0]


def wait_until(condition: Any, seconds: float) -> bool:
    """Wait until it holds; False if it does not within that time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _frames(repeats: int) -> dict[str, Any]:
    """The tests' tiny data, repeated with a little noise, since copies would not validate."""
    import train_tools

    arrays = train_tools.tiny_arrays()
    for key in ("R", "F", "U", "mask"):
        arrays[key] = np.repeat(arrays[key], repeats, axis=0)
    noise = np.random.default_rng(1).normal(scale=0.02, size=arrays["R"].shape)
    arrays["R"] = (arrays["R"] + noise).astype(np.float32)
    return arrays
