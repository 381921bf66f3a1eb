"""What must hold once the faults have stopped and every member has ended."""

from __future__ import annotations

import hashlib
import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from chaos_parts.place import BASE_SEED, Place, left_processes, wait_until
from chaos_parts.workers import Done, Workers, pid_of
from ensq.jobs import Attempt, Ensemble, Job, Outcome, State
from ensq.rundir import RunDir
from ensq.store import Policy, Store, checks

# Exit codes that a worker may have; 1: members failed for good, or a host that seemed bad; 69 is
# for a database that is away. Signals to leave kill one that has not come as far as to hear them.
CODES = {0, 1, 69, 75, -signal.SIGKILL}
EARLY = {-signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR1}
_LINGER = 20.0  # seconds after an outage in which a worker may be thought lost
_ARMED = {Outcome.CRASH: ("kill",), Outcome.LOST: ("kill", "EIO"), Outcome.BLOCKED: ("kill", "E")}
_ARRAYS = ("force_errors", "energy_errors", "species_errors", "components", "beads", "protein")
_MORE_ARRAYS = ("species_components", "validation_index")


class Check(NamedTuple):
    what: str
    problems: list[str]
    size: int  # things looked at


class Told(NamedTuple):
    """What the run of the soak test knows by itself."""

    workers: Workers
    outages: list[list[float]]
    held: set[int]
    damaged: list[str]
    sizes: dict[str, int]  # members of each ensemble, as enqueued


class Queue(NamedTuple):
    """All rows that are needed."""

    root: Path
    ensembles: list[Ensemble]
    jobs: list[Job]
    attempts: dict[int, list[Attempt]]
    losses: dict[int, list[tuple[Any, ...]]]
    drained: set[str]  # workers that were asked to leave

    @classmethod
    def read(cls, url: str) -> Queue:
        with Store.open(url, read_only=True) as store:
            ensembles = store.ensembles()
            jobs = [job for one in ensembles for job in store.jobs(one.id)]
            attempts = {job.id: store.attempts(job.id) for job in jobs}
            workers = store.workers({one.worker_id for rows in attempts.values() for one in rows})
            return cls(
                store.root,
                ensembles,
                jobs,
                attempts,
                {job.id: [_loss(row) for row in store.epochs(job.id)] for job in jobs},
                {name for name, worker in workers.items() if worker.drain},
            )

    def arrays(self, job: Job) -> dict[str, bytes]:
        """Every array of a member's result but the seconds that its epochs took."""
        from ensq.train.checkpoint import HISTORY_COLUMNS, flatten, read_result

        ensemble = next(one for one in self.ensembles if one.id == job.ensemble_id)
        file = RunDir.of(self.root, ensemble.run_path).inside(job.result_path or "")
        result = read_result(file.read_bytes())
        found = {name: getattr(result, name).tobytes() for name in _ARRAYS + _MORE_ARRAYS}
        found["history"] = result.history[:, : HISTORY_COLUMNS.index("seconds")].tobytes()
        found["numbers"] = repr((result.best_epoch, result.best_loss, result.final_loss)).encode()
        found["statistics"] = json.dumps(result.statistics, sort_keys=True).encode()
        return found | {f"params{key}": a.tobytes() for key, a in flatten(result.params).items()}


def _loss(row: Any) -> tuple[Any, ...]:
    return (row.epoch, row.train_loss, row.val_loss, row.learning_rate, row.val_rmse_force)


def all_checks(place: Place, calm: Place, told: Told) -> Iterator[Check]:
    """Everything but what the watcher saw."""
    queue, reference = Queue.read(place.url), Queue.read(calm.url)
    yield Check("the queue's own rules (ensq db check)", checks.check(place.url), len(queue.jobs))
    yield Check(
        "recorded files are whole (--files)", checks.check_files(place.url), len(queue.jobs)
    )
    yield _ended(queue, told)
    yield _each_once(queue)
    yield _same_bits(queue, reference)
    yield _causes(queue, told)
    yield _workers_ends(told)
    yield _nobody_left(place)
    yield _finalized(place, queue)


def _ended(queue: Queue, told: Told) -> Check:
    problems = [
        f"job {job.id} (seed {job.seed}) is {job.state}: {job.error}"
        for job in queue.jobs
        if job.state is not State.DONE
    ]
    for ensemble in queue.ensembles:
        seeds = sorted(job.seed for job in queue.jobs if job.ensemble_id == ensemble.id)
        wanted = told.sizes.get(ensemble.name, 0)
        if seeds != list(range(BASE_SEED, BASE_SEED + wanted)):
            problems.append(f"{ensemble.name}: seeds {seeds}, {wanted} were enqueued")
    return Check(
        "every member that was enqueued is there once, and done", problems, len(queue.jobs)
    )


def _each_once(queue: Queue) -> Check:
    problems = []
    for job in queue.jobs:
        rows = queue.attempts[job.id]
        numbers = [row.number for row in rows]
        done = [row.number for row in rows if row.outcome is Outcome.DONE]
        if numbers != [*range(1, len(numbers) + 1)] or done != numbers[-1:]:
            problems.append(f"job {job.id}: attempts {numbers}, of which done {done}")
        epochs = [row[0] for row in queue.losses[job.id]]
        if epochs != [*range(1, job.epochs + 1)]:
            problems.append(f"job {job.id}: losses of epochs {epochs}")
    what = "one accepted completion each, attempts in order, losses dense"
    return Check(what, problems, sum(map(len, queue.attempts.values())))


def _same_bits(queue: Queue, reference: Queue) -> Check:
    """Parameters, errors and losses are those of the undisturbed run."""
    wanted = {job.seed: (reference.arrays(job), job.id) for job in reference.jobs}
    problems, count = [], 0
    for job in queue.jobs:
        if job.state is not State.DONE:
            continue
        expected, other = wanted[job.seed]
        found = queue.arrays(job)
        count += len(found)
        wrong = [name for name in expected if found.get(name) != expected[name]]
        if wrong or found.keys() != expected.keys():
            problems.append(f"job {job.id} (seed {job.seed}): other bits in {', '.join(wrong)}")
        if queue.losses[job.id] != reference.losses[other]:
            problems.append(f"job {job.id} (seed {job.seed}): other losses in the database")
    seeds = sorted(wanted)
    if len(seeds) > 1 and wanted[seeds[0]][0] == wanted[seeds[1]][0]:
        problems.append("two seeds of the undisturbed run do not differ: this shows nothing")
    return Check("arrays bit-identical to an undisturbed run", problems, count)


# -- causes ------------------------------------------------------------------------------------


def _causes(queue: Queue, told: Told) -> Check:
    """Whatever was counted against a job was done by us, to the worker that held it."""
    problems, ends, crashes = [], 0, Counter[int]()
    for job in queue.jobs:
        for attempt in queue.attempts[job.id]:
            done = told.workers.ledger.get(pid_of(attempt.worker_id))
            ends += attempt.outcome is not Outcome.DONE
            if attempt.outcome is Outcome.CRASH:
                crashes[pid_of(attempt.worker_id)] += 1
            drained = attempt.worker_id in queue.drained
            if done is None or not _explained(job, attempt, done, told, drained):
                problems.append(
                    f"job {job.id}, attempt {attempt.number} of {attempt.worker_id} ended as "
                    f"{attempt.outcome} ({attempt.reason}), and nothing was done that explains it"
                )
    for pid, count in crashes.items():
        done = told.workers.ledger[pid]
        if count > sum(done.trainer.values()) and not _armed(done, Outcome.CRASH):
            problems.append(f"worker {pid}: {count} crashes, signals {dict(done.trainer)}")
    problems += _bounded(queue)
    return Check("each attempt that did not finish was ended by an injected fault", problems, ends)


def _explained(job: Job, attempt: Attempt, done: Done, told: Told, drained: bool) -> bool:
    match attempt.outcome:
        case Outcome.DONE | Outcome.CANCELLED:
            return True
        case Outcome.CRASH:
            return bool(done.trainer) or _armed(done, Outcome.CRASH)
        case Outcome.LOST:
            if done.killed or done.stopped or _armed(done, Outcome.LOST):
                return True
            return _near(attempt, told.outages)
        case Outcome.INTERRUPTED:
            return done.asked or drained or job.id in told.held
        case Outcome.BLOCKED:
            # No trainer started, or the disk gave errors.
            return bool(done.trainer) or _armed(done, Outcome.BLOCKED)
        case _:
            return False  # nobody injected a failure


def _armed(done: Done, outcome: Outcome) -> bool:
    return done.armed is not None and done.armed.startswith(_ARMED[outcome])


def _near(attempt: Attempt, times: list[list[float]]) -> bool:
    ended = attempt.ended_at or 0.0
    return any(begin - 1.0 <= ended <= end + _LINGER for begin, end in times)


def _bounded(queue: Queue) -> list[str]:
    budget = Policy()
    return [
        f"job {job.id}: {job.failures} failures, {job.strikes} strikes, {job.stalls} stalls"
        for job in queue.jobs
        if job.failures or job.strikes >= budget.strikes or job.stalls >= budget.stalls
    ]


def _workers_ends(told: Told) -> Check:
    problems = []
    for pid, done in told.workers.ledger.items():
        early = done.asked and done.code in EARLY
        if done.code not in CODES and not early:
            problems.append(f"worker {pid} ended with exit code {done.code}: {done.log}")
        text = done.log.read_text(errors="replace")
        for sign in ("Traceback", "this is a fault of ensq", "unexpected "):
            if sign in text and not early:
                problems.append(f"{done.log}: {sign.strip()}")
    what = "workers ended as they should, without tracebacks"
    return Check(what, problems, len(told.workers.ledger))


def _nobody_left(place: Place) -> Check:
    """A trainer whose worker is gone ends by itself."""
    wait_until(lambda: not left_processes(place), 15.0)
    left = left_processes(place)
    return Check("no process is left", [f"process {pid} still runs" for pid in left], 1)


def _finalized(place: Place, queue: Queue) -> Check:
    """Twice, into two folders and a third time into one of them: the same bytes."""
    whole = [
        one
        for one in queue.ensembles
        if all(job.state is State.DONE for job in queue.jobs if job.ensemble_id == one.id)
    ]
    if not whole:
        return Check("finalize", ["no ensemble is whole"], 0)
    name, told, problems = whole[0].name, [], []
    try:
        for folder in ("first", "second", "second"):
            place.ensq("finalize", name, "--export-dir", folder)
            told.append(_digests(place.folder / folder))
    except RuntimeError as error:
        problems.append(str(error))
    if any(digests != told[0] for digests in told):
        problems.append(f"{name}: other bytes the second time: {told}")
    files = len(told[0]) if told else 0
    return Check("finalize twice gives the same bytes", problems, files)


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
