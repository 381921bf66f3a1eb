"""``ensq show``: all that is known of one member."""

from __future__ import annotations

import textwrap
import time
from typing import TYPE_CHECKING, Any

import click

from ensq.cli.common import as_json, database, print_json, url_of
from ensq.cli.decisions import decision_json, decision_lines
from ensq.cli.slurm import identity, identity_json, wrapped

if TYPE_CHECKING:
    from ensq.jobs import Attempt, Ensemble, Job, WorkerInfo
    from ensq.store import Event, Store

_HEAD = ("try", "host", "began", "took", "epochs", "outcome")
_NOTES = ("fell_back", "adopted")


@click.command()
@click.argument("job", metavar="NAME/SEED|JOB")
@as_json
@database
def show(job: str, db: str | None, json_: bool) -> None:
    """Show one member: its attempts, why they ended, and the last lines of the log.

    A member is named by its ensemble and seed, as in chignolin/42, or by the number of its job.
    """
    from ensq.store import Store

    with Store.open(url_of(db), read_only=True) as store:
        view = _View(store, _find(store, job))
        if json_:
            print_json(view.as_json())
        else:
            for line in view.lines():
                click.echo(line)


def _find(store: Store, text: str) -> Job:
    """The member that is meant. Raises UsageError."""
    from ensq.errors import UsageError

    name, slash, seed = text.rpartition("/")
    try:
        number = int(seed)
    except ValueError:
        raise UsageError(
            f"{text!r} is no member: give ensemble and seed, as in chignolin/42, or the number of "
            "a job"
        ) from None
    return store.job_of(name, number) if slash else store.job(number)


def _ensemble(store: Store, job: Job) -> Ensemble:
    from ensq.errors import DatabaseError

    found = next((one for one in store.ensembles() if one.id == job.ensemble_id), None)
    if found is None:
        raise DatabaseError(f"job {job.id} is of no ensemble that is there; see `ensq db check`")
    return found


class _View:
    """One member and its history."""

    def __init__(self, store: Store, job: Job) -> None:
        self.job = job
        self.ensemble = _ensemble(store, job)
        self.attempts = store.attempts(job.id)
        self.workers = store.workers({attempt.worker_id for attempt in self.attempts})
        self.notes = [event for event in store.events_of(job.id) if event.kind.value in _NOTES]
        self.decisions = [d for d in store.decisions(job.ensemble_id) if d.job_id == job.id]
        self.run_folder = store.root / self.ensemble.run_path
        self.now = store.now()
        self.pack = [
            other
            for other in store.jobs(job.ensemble_id)
            if job.pack is not None and other.pack == job.pack and other.state == job.state
        ]

    def lines(self) -> list[str]:
        from ensq.progress import member_line, printable
        from ensq.text import table

        lines = _wrapped(printable(f"{self.ensemble.name}: {member_line(self.job)}"))
        lines += _wrapped(self._counts())
        lines += self._places()
        if self.attempts:
            rows = [self._row(attempt) for attempt in self.attempts]
            lines += ["", *table(_HEAD, rows, left=(1, 5))]
        lines += self._identities()
        lines += decision_lines(self.decisions)
        lines += self._reasons()
        lines += self._log()
        return lines

    def _counts(self) -> str:
        job = self.job
        counts = (
            f"job {job.id}: attempts {job.attempt}; failures {job.failures}, crashes "
            f"{job.crashes}, lost workers {job.losses}, interruptions {job.interruptions}"
        )
        wait = job.not_before - self.now
        if job.state.value == "queued" and wait > 0:
            counts += f"; pauses for {wait:.0f} s"
        if len(self.pack) > 1 and job.state.value == "running":
            counts += f"; one of {len(self.pack)} that train together"
        counts += "; exempt from early stopping" if job.exempt else ""
        return counts + ("; to be held" if job.wish == "hold" else "")

    def _places(self) -> list[str]:

        named = (("checkpoint", self.job.checkpoint), ("before it", self.job.previous_checkpoint))
        lines = [
            f"  {name}: epoch {place.epoch}, step {place.step}: {place.path}"
            for name, place in named
            if place is not None
        ]
        if self.job.result_path is not None:
            lines.append(f"  result: {self.job.result_path}")
        return [f"  in {self.run_folder}", *lines] if lines else lines

    def _row(self, attempt: Attempt) -> tuple[str, ...]:
        from ensq.progress import duration, printable

        worker: WorkerInfo | None = self.workers.get(attempt.worker_id)
        end = attempt.ended_at
        reached = self.job.epoch if attempt.end_epoch is None else attempt.end_epoch
        return (
            str(attempt.number),
            printable(worker.host if worker else "?"),
            _when(attempt.started_at),
            duration(max(0.0, (self.now if end is None else end) - attempt.started_at)),
            f"{attempt.start_epoch}-{reached}",
            "running" if attempt.outcome is None else str(attempt.outcome),
        )

    def _identities(self) -> list[str]:
        """Who the attempts' workers were in SLURM."""
        found = []
        for attempt in self.attempts:
            worker = self.workers.get(attempt.worker_id)
            text = identity(worker) if worker else None
            if text is not None:
                found += wrapped(f"attempt {attempt.number}: SLURM {text}")
        return ["", *found] if found else []

    def _reasons(self) -> list[str]:
        """Why attempts ended, and which files were not used or found."""
        from ensq.progress import printable

        said: list[tuple[float, str]] = [
            (attempt.ended_at or 0.0, f"attempt {attempt.number}: {attempt.reason}")
            for attempt in self.attempts
            if attempt.reason
        ]
        said += [(event.time, f"attempt {event.attempt}: {event.message}") for event in self.notes]
        wrapped = [line for _, text in sorted(said) for line in _wrapped(f"  {printable(text)}")]
        return ["", *wrapped] if said else []

    def _log(self) -> list[str]:
        """The last lines of the log of the last attempt that failed or crashed."""
        from ensq.progress import printable

        lines = []
        failed = [attempt for attempt in self.attempts if attempt.log_tail]
        if failed:
            tail = failed[-1].log_tail or ""
            lines = ["", f"last lines of attempt {failed[-1].number}:"]
            lines += [f"  | {printable(line)}" for line in tail.splitlines()]
        logs = [attempt.log_path for attempt in self.attempts if attempt.log_path]
        if logs:
            lines += ["", printable(f"log: {self.run_folder / logs[-1]}")]
        return lines

    def as_json(self) -> dict[str, Any]:
        from dataclasses import asdict

        return {
            "ensemble": self.ensemble.name,
            "run_folder": str(self.run_folder),
            "job": asdict(self.job),
            "attempts": [
                asdict(attempt)
                | {
                    "host": self._host(attempt),
                    "slurm": identity_json(self.workers.get(attempt.worker_id)),
                }
                for attempt in self.attempts
            ],
            "notes": [_event(event) for event in self.notes],
            "decisions": [decision_json(decision) for decision in self.decisions],
        }

    def _host(self, attempt: Attempt) -> str | None:
        worker = self.workers.get(attempt.worker_id)
        return worker.host if worker else None


def _when(seconds: float) -> str:
    try:
        return time.strftime("%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # no time of this world
        return "?"


def _wrapped(text: str) -> list[str]:
    """Lines of 80 columns; paths stay whole, so that they can be copied."""
    return textwrap.wrap(
        text, 80, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _event(event: Event) -> dict[str, Any]:
    return {
        "time": event.time,
        "kind": str(event.kind),
        "attempt": event.attempt,
        "message": event.message,
    }
