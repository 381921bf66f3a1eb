"""The workers of the soak test, and a ledger of what was done to each."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_parts.place import Place, children

LEASE = 5.0
_AGAIN = (0.2, 1.5)  # seconds until a worker that ended is started again


@dataclass
class Done:
    """What was done to one worker, by its process id, for the questions afterwards."""

    log: Path
    armed: str | None = None  # the fault that it was born with
    killed: bool = False  # the worker itself
    stopped: bool = False  # by SIGSTOP, it or its host
    asked: bool = False  # by a signal to leave
    trainer: Counter[int] = field(default_factory=Counter)  # signals to its trainers
    code: int | None = None


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    log: Path
    leave_at: float | None  # when an armed worker is asked to leave
    frozen: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def trainers(self) -> list[int]:
        return children(self.pid)


class Workers:
    """Keeps so many workers running."""

    def __init__(self, place: Place, count: int, rng: random.Random) -> None:
        self.place, self.count, self._rng = place, count, rng
        self.living: list[Worker] = []
        self.ledger: dict[int, Done] = {}
        self.codes: Counter[int] = Counter()
        self.arms: list[Callable[[], tuple[str, dict[str, Any]]]] = []  # for the next starts
        self._due: list[float] = [0.0] * count
        self._started = 0
        self.folder = place.folder / "workers"
        self.folder.mkdir(exist_ok=True)

    def tick(self, *, restart: bool = True) -> None:
        """See who ended; start others in their place."""
        now = time.monotonic()
        for worker in list(self.living):
            if worker.leave_at is not None and now >= worker.leave_at:
                worker.leave_at = None
                self.send(worker, signal.SIGTERM)
                self.ledger[worker.pid].asked = True
            code = worker.process.poll()
            if code is not None:
                self.living.remove(worker)
                self.ledger[worker.pid].code = code
                self.codes[code] += 1
                self._due.append(now + self._rng.uniform(*_AGAIN))
        while restart and self._due and min(self._due) <= now and len(self.living) < self.count:
            self._due.remove(min(self._due))
            self._start()

    def _start(self) -> None:
        self._started += 1
        log = self.folder / f"{self._started:04d}.log"
        name, faults = self.arms.pop(0)() if self.arms else (None, None)
        with log.open("wb") as file:
            process = self.place.start(
                *("worker", "--drain", "--lease", str(LEASE)),
                log=file,
                faults=json.dumps([faults]) if faults else None,
            )
        leave_at = time.monotonic() + self._rng.uniform(12, 25) if faults else None
        self.living.append(Worker(process, log, leave_at))
        self.ledger[process.pid] = Done(log, armed=name)

    def send(self, worker: Worker, number: int) -> None:
        with suppress(ProcessLookupError):
            worker.process.send_signal(number)

    def signal_trainers(self, worker: Worker, number: int) -> int:
        """Signal the worker's trainers; how many there were."""
        sent = 0
        for pid in worker.trainers:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                sent += 1
        if number not in (signal.SIGSTOP, signal.SIGCONT):
            self.ledger[worker.pid].trainer[number] += sent
        return sent

    def of(self, owner: str | None) -> Worker | None:
        """The living worker of that id, which holds its process id."""
        if owner is None:
            return None
        pid = pid_of(owner)
        return next((worker for worker in self.living if worker.pid == pid), None)

    def choose(self) -> Worker | None:
        """Any one that runs."""
        running = [worker for worker in self.living if not worker.frozen]
        return self._rng.choice(running) if running else None

    def thaw_all(self) -> None:
        for worker in self.living:
            for pid in [worker.pid, *worker.trainers]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            worker.frozen = False

    def close(self) -> None:
        """End what is left, by force."""
        for worker in self.living:
            for pid in [*worker.trainers, worker.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            worker.process.wait()


def pid_of(worker_id: str) -> int:
    return int(worker_id.rsplit("-", 2)[1])
