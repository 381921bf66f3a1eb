"""Several workers on this machine, as ``ensq run`` starts them: one core each, stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ensq.errors import (
    EXIT_DATABASE,
    EXIT_INTERRUPTED,
    EXIT_JOBS_FAILED,
    EXIT_MISMATCH,
    EXIT_OK,
    DatabaseError,
)
from ensq.worker.devices import gpus_to_use
from ensq.worker.options import PARENT_FD
from ensq.worker.signals import StopSignals
from ensq.worker.stopping import Stopping

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_POLL = 0.1  # seconds between looks at the workers


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """Workers to start. Times are in seconds."""

    command: Sequence[str]  # of one worker; the database goes by the environment, not by this
    workers: int
    log_folder: Path  # each worker's lines: local-<n>.log
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    pin: bool = True  # one core for each worker
    grace: float = 45.0  # for the workers to end after a stop; longer than their own
    interval: float = 1.0  # between calls of ``tick``
    tick: Callable[[], None] = lambda: None  # draws the progress


@dataclass(frozen=True, kw_only=True)
class LocalResult:
    """How the workers ended."""

    exit_code: int
    codes: tuple[int, ...]  # of each worker; negative: the signal that killed it
    logs: tuple[Path, ...]


def cores_to_use() -> list[int]:
    """The cores that this process may use, one of each physical core first.

    As many as its affinity allows and, in a container, its share of processor time is worth.
    """
    allowed = sorted(os.sched_getaffinity(0))
    rank = {core: _place_among_siblings(core) for core in allowed}
    ordered = sorted(allowed, key=lambda core: (rank[core], core))
    return ordered[: _quota(len(ordered))]


def _place_among_siblings(core: int) -> int:
    """0 for the first thread of a physical core, 1 for the second …"""
    try:
        text = Path(_SIBLINGS.format(core)).read_text()
    except OSError:
        return 0
    siblings: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        siblings += range(int(first), int(last or first) + 1)
    return sorted(siblings).index(core) if core in siblings else 0


def _quota(cores: int) -> int:
    """How many whole cores the control group grants, at least 1 and at most ``cores``."""
    try:
        quota, period = _CPU_MAX.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no limit is written as "max"
        return cores


def number_of_workers(open_members: int, *, pack: int = 1) -> int:
    """As many workers as serve: one per GPU, else one per core, but no more than there are packs
    to train."""
    places = len(gpus_to_use()) or len(cores_to_use())
    return max(1, min(places, -(-open_members // pack)))


def aggregate(codes: Sequence[int], *, interrupted: bool = False) -> int:
    """One exit code for all workers.

    A worker that ended with 0 or 1 saw every member ended (they drain), so one that was killed,
    or lost its database, was made up for by the others.
    """
    if EXIT_MISMATCH in codes:
        return EXIT_MISMATCH
    if interrupted and EXIT_INTERRUPTED in codes:
        return EXIT_INTERRUPTED
    drained = [code for code in codes if code in (EXIT_OK, EXIT_JOBS_FAILED)]
    if drained:
        return max(drained)
    if EXIT_DATABASE in codes:
        return EXIT_DATABASE
    if EXIT_INTERRUPTED in codes or any(code < 0 for code in codes):
        return EXIT_INTERRUPTED
    return max(codes, default=EXIT_OK)


def run_local(options: LocalOptions) -> LocalResult:
    """Start the workers, draw progress until they have ended, pass a stop signal on.

    Main thread only. A second signal changes nothing; workers that don't end within ``grace``
    are killed. If this process is killed, the workers notice and stop by themselves.
    Raises OSError where a worker can't be started; those that were started are stopped.
    """
    options.log_folder.mkdir(parents=True, exist_ok=True)
    logs = tuple(options.log_folder / f"local-{n + 1}.log" for n in range(options.workers))
    gpus = gpus_to_use(options.environment)
    cores = cores_to_use()
    workers: list[subprocess.Popen[bytes]] = []
    # Nobody writes into this pipe: its end tells the workers that this process is gone.
    watched, held_open = os.pipe2(os.O_CLOEXEC)
    try:
        with StopSignals() as signals:
            interrupted = False  # becomes true only when the workers have had their grace
            try:
                for number, log in enumerate(logs):
                    pin = options.pin and not gpus  # a GPU's worker may use any core
                    core = cores[number % len(cores)] if pin else None
                    gpu = gpus[number % len(gpus)] if gpus else None
                    workers.append(_start(options, log, core, gpu, watched))
                interrupted = _watch(options, workers, signals)
            finally:
                _end(workers, 0.0 if interrupted else options.grace)
    finally:
        os.close(watched)
        os.close(held_open)
    codes = tuple(worker.returncode for worker in workers)
    return LocalResult(exit_code=aggregate(codes, interrupted=interrupted), codes=codes, logs=logs)


def _start(
    options: LocalOptions, log: Path, core: int | None, gpu: str | None, watched: int
) -> subprocess.Popen[bytes]:
    device = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    # A session of its own: Ctrl-C in the terminal comes here only, and is passed on once.
    with log.open("ab") as file, _pinned(core):
        return subprocess.Popen(
            list(options.command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**options.environment, **device, PARENT_FD: str(watched)},
            pass_fds=(watched,),
            start_new_session=True,
        )


@contextmanager
def _pinned(core: int | None) -> Iterator[None]:
    """Processes started inside run on this core only; they inherit it from this thread."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _watch(
    options: LocalOptions, workers: Sequence[subprocess.Popen[bytes]], signals: StopSignals
) -> bool:
    """Wait for the workers; True if a stop signal was passed on to them."""
    stopping = Stopping(signals, deadline=None, margin=0.0, parent_fd=None)
    kill_at: float | None = None
    tick_at = time.monotonic()
    while any(worker.poll() is None for worker in workers):
        if signals.received is not None and kill_at is None:
            kill_at = time.monotonic() + options.grace
            # Always this one: SIGINT would give a traceback in a worker that only just starts.
            _signal(workers, signal.SIGTERM)
        if kill_at is not None and time.monotonic() >= kill_at:
            break
        if time.monotonic() >= tick_at:
            _draw(options)
            tick_at = time.monotonic() + options.interval
        stopping.wait(_POLL)
    _draw(options)
    return kill_at is not None


def _draw(options: LocalOptions) -> None:
    # A busy database spoils one picture; it must not stop the training.
    with suppress(DatabaseError):
        options.tick()


def _signal(workers: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for worker in workers:
        with suppress(ProcessLookupError):
            worker.send_signal(number)


def _end(workers: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Nothing is left running, whatever happened. Their trainers end when they do."""
    _signal(workers, signal.SIGTERM)
    until = time.monotonic() + grace
    for worker in workers:
        try:
            worker.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
