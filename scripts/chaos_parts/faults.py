"""The kinds of faults of the soak test. Each does one thing now, and undoes it later if need be."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from chaos_parts.place import Place, wait_until
from chaos_parts.watch import Watcher
from chaos_parts.workers import LEASE, Worker, Workers
from ensq.jobs import Job, State
from ensq.rundir import RESULT_NAME, place_of

WORKER_POINTS = ("begin.before", "commit.before", "commit.after")
TRAINER_POINTS = (
    *("trainer.imported", "trainer.ready", "trainer.compiled", "trainer.step"),
    *("trainer.validated", "trainer.checkpointed", "trainer.told", "trainer.result"),
    *("write.begin", "write.written", "write.flushed", "write.renamed", "write.done"),
)
_ONCE = {"trainer.imported", "trainer.ready", "trainer.compiled", "trainer.result"}
# Longer than a worker waits for another's lock, so that it meets a database that is away.
_OUTAGE = (11.0, 16.0)


@dataclass
class Chaos:
    """What a fault can get at."""

    place: Place
    workers: Workers
    watcher: Watcher
    rng: random.Random
    later: Callable[[float, Callable[[], None]], None]  # do something after so many seconds
    person: Callable[..., None]  # start a command of ensq, as a person would
    held: set[int] = field(default_factory=set)  # jobs that were held
    to_damage: list[bool] = field(default_factory=list)  # whether to tear; at most one waits
    damaged: list[str] = field(default_factory=list)
    outage: bool = False


Fault = Callable[[Chaos], str | None]  # says what it did; None: there was nothing to do it to


def worker_signal(number: int, *, twice: bool, chaos: Chaos) -> str | None:
    """SIGKILL, or a wish to leave."""
    worker = chaos.workers.choose()
    if worker is None:
        return None
    done = chaos.workers.ledger[worker.pid]
    done.killed |= number == signal.SIGKILL
    done.asked |= number != signal.SIGKILL
    chaos.workers.send(worker, number)
    if twice:
        chaos.later(chaos.rng.uniform(0.0, 0.3), partial(chaos.workers.send, worker, number))
    return f"to {worker.pid}" + (", twice" if twice else "")


def trainer_signal(number: int, chaos: Chaos) -> str | None:
    worker = chaos.workers.choose()
    if worker is None or not chaos.workers.signal_trainers(worker, number):
        return None
    return f"to the trainer of {worker.pid}"


def freeze(*, trainer: bool, worker: bool, chaos: Chaos) -> str | None:
    """SIGSTOP, and SIGCONT when the lease is over: a zombie comes back."""
    chosen = chaos.workers.choose()
    if chosen is None or (trainer and not chosen.trainers):
        return None
    seconds = LEASE + chaos.rng.uniform(1.0, 5.0) if worker else chaos.rng.uniform(1.0, 4.0)
    pids = (chosen.trainers if trainer else []) + ([chosen.pid] if worker else [])
    chosen.frozen = True
    chaos.workers.ledger[chosen.pid].stopped |= worker
    _signal_all(pids, signal.SIGSTOP)
    chaos.later(seconds, partial(_thaw, chosen, pids))
    return f"{chosen.pid} for {seconds:.1f} s"


def _thaw(worker: Worker, pids: list[int]) -> None:
    _signal_all(pids, signal.SIGCONT)
    worker.frozen = False


def _signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def crash_point(chaos: Chaos) -> str | None:
    """The next worker, or its trainer, kills itself at a named point."""
    point = chaos.rng.choice(WORKER_POINTS + TRAINER_POINTS)
    hit = 1 if point in _ONCE else chaos.rng.randint(1, 40)
    return _arm(chaos, f"kill at {point}", {"point": point, "do": "kill", "hit": hit})


def bad_disk(chaos: Chaos) -> str | None:
    """File operations of the next worker's trainer fail now and then."""
    name = chaos.rng.choice(("ENOSPC", "EIO", "EDQUOT"))
    rule = {"point": "write.*", "do": "error", "errno": name, **_now_and_then(chaos, 0.03)}
    return _arm(chaos, f"{name} at writes", rule)


def bad_file_system(chaos: Chaos) -> str | None:
    """The database's file can't be reached now and then."""
    point = chaos.rng.choice(WORKER_POINTS)
    rule = {"point": point, "do": "error", "errno": "EIO", **_now_and_then(chaos, 0.15)}
    return _arm(chaos, f"EIO at {point}", rule)


def slow_disk(chaos: Chaos) -> str | None:
    seconds = chaos.rng.choice((0.001, 0.005, 0.05))
    rule = {"point": "*", "do": "delay", "seconds": seconds, **_now_and_then(chaos, 0.3)}
    return _arm(chaos, f"delays of {1000 * seconds:g} ms", rule)


def _now_and_then(chaos: Chaos, probability: float) -> dict[str, Any]:
    return {"probability": probability, "seed": chaos.rng.randrange(10**6)}


def _arm(chaos: Chaos, name: str, rule: dict[str, Any]) -> str | None:
    if chaos.workers.arms:
        return None
    chaos.workers.arms.append(lambda: (name, rule))
    hit = f" (pass {rule['hit']})" if "hit" in rule else ""
    worker = chaos.workers.choose()
    if worker is not None:  # makes room for the one that is armed
        chaos.workers.ledger[worker.pid].asked = True
        chaos.workers.send(worker, signal.SIGTERM)
    return name + hit


def damage(*, tear: bool, chaos: Chaos) -> str | None:
    """The newest file of a member that is not done is torn, or one of its bits turns over."""
    if chaos.to_damage:
        return None
    chaos.to_damage.append(tear)
    return damage_now(chaos) or "as soon as a member has a checkpoint"


def damage_now(chaos: Chaos) -> str | None:
    """Damage what waits for it, if there is a file to damage."""
    jobs = [job for job in chaos.watcher.jobs.values() if job.checkpoint and job.state in _OPEN]
    if not jobs or not chaos.to_damage:
        return None
    job = chaos.rng.choice(sorted(jobs, key=lambda job: job.id))
    worker = chaos.workers.of(job.owner)
    if job.state is State.RUNNING:  # its trainer would write the next one before this is read
        if worker is None or not worker.trainers or worker.frozen:
            return None
        chaos.workers.signal_trainers(worker, signal.SIGKILL)
        if not wait_until(lambda: not worker.trainers, 2.0):
            return None
    chaos.watcher.look()
    job = chaos.watcher.jobs[job.id]
    file = newest_file(chaos.watcher.run_folder(job), job) if job.state in _OPEN else None
    # The result of a member that is about to be acknowledged is not ours to break.
    if file is None or (file.name == RESULT_NAME and job.state is not State.QUEUED):
        return None
    _break(file, chaos.to_damage.pop(), chaos.rng)
    chaos.damaged.append(str(file))
    return f"{file.relative_to(chaos.place.folder)}, job {job.id} was {job.state}"


_OPEN = (State.QUEUED, State.RUNNING)


def newest_file(run: Path, job: Job) -> Path | None:
    """The file that the next attempt would use first."""
    found = []
    for file in run.glob(f"seed-{job.seed}/attempt-*/*.safetensors"):
        number = int(file.parent.name.removeprefix("attempt-"))
        last = (10**9, 0) if file.name == RESULT_NAME else (0, 0)
        found.append((place_of(file.name) or last, number, file))
    return max(found)[2] if found else None


def _break(file: Path, tear: bool, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if tear:
        del content[rng.randrange(len(content)) :]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def outage(chaos: Chaos) -> str | None:
    if chaos.outage:
        return None
    seconds = chaos.rng.uniform(*_OUTAGE)
    chaos.outage = True
    chaos.watcher.outage_began()
    chaos.place.begin_outage(seconds)
    chaos.later(seconds, partial(end_outage, chaos))
    return f"{chaos.place.outage_name} for {seconds:.0f} s"


def end_outage(chaos: Chaos) -> None:
    chaos.place.end_outage()
    if chaos.outage:
        chaos.watcher.outage_ended()
    chaos.outage = False


def cut(chaos: Chaos) -> str | None:
    count = chaos.place.cut_connections()
    return None if count is None else f"{count} connections"


def hold(chaos: Chaos) -> str | None:
    job = _any_open(chaos)
    if job is None:
        return None
    target = (chaos.watcher.name_of(job), "--seed", str(job.seed))
    chaos.held.add(job.id)
    chaos.person("hold", *target)
    chaos.later(chaos.rng.uniform(3.0, 8.0), partial(chaos.person, "release", *target))
    return f"job {job.id}, and release"


def cancel(chaos: Chaos) -> str | None:
    job = _any_open(chaos)
    if job is None:
        return None
    target = (chaos.watcher.name_of(job), "--seed", str(job.seed))
    chaos.person("cancel", *target)
    chaos.later(chaos.rng.uniform(1.5, 6.0), partial(chaos.person, "retry", *target))
    return f"job {job.id}, and retry"


def drain(chaos: Chaos) -> str | None:
    chaos.person("drain")
    return "all workers"


def _any_open(chaos: Chaos) -> Job | None:
    jobs = [job for job in chaos.watcher.jobs.values() if job.state in _OPEN]
    return chaos.rng.choice(sorted(jobs, key=lambda job: job.id)) if jobs else None


def _worker(number: int, twice: bool = False) -> Fault:
    return lambda chaos: worker_signal(number, twice=twice, chaos=chaos)


def _freeze(trainer: bool, worker: bool) -> Fault:
    return lambda chaos: freeze(trainer=trainer, worker=worker, chaos=chaos)


# Name, how often beside the others, and what it does.
KINDS: dict[str, tuple[float, Fault]] = {
    "worker SIGKILL": (4, _worker(signal.SIGKILL)),
    "trainer SIGKILL": (3, lambda chaos: trainer_signal(signal.SIGKILL, chaos)),
    "trainer SIGSEGV": (1.5, lambda chaos: trainer_signal(signal.SIGSEGV, chaos)),
    "trainer SIGABRT": (1.5, lambda chaos: trainer_signal(signal.SIGABRT, chaos)),
    "worker stopped past its lease": (2, _freeze(False, True)),
    "worker and trainer stopped past the lease": (2, _freeze(True, True)),
    "trainer stopped for a while": (1, _freeze(True, False)),
    "worker SIGTERM": (1, _worker(signal.SIGTERM)),
    "worker SIGTERM, twice": (1, _worker(signal.SIGTERM, True)),
    "worker SIGINT": (1, _worker(signal.SIGINT)),
    "worker SIGUSR1": (1, _worker(signal.SIGUSR1)),
    "crash at a named point": (6, crash_point),
    "errors of the disk": (1, bad_disk),
    "errors at the database's file": (1, bad_file_system),
    "slow disk": (1, slow_disk),
    "newest file torn": (2, lambda chaos: damage(tear=True, chaos=chaos)),
    "newest file with a bit flipped": (2, lambda chaos: damage(tear=False, chaos=chaos)),
    "database away": (1.5, outage),
    "connections cut": (2, cut),
    "hold and release": (1, hold),
    "cancel and retry": (1, cancel),
    "drain": (0.7, drain),
}
