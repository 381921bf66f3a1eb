"""``ensq status``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ensq.cli.common import as_json, database, db_hint, only_ensemble, print_json, url_of
from ensq.cli.decisions import decision_json
from ensq.cli.slurm import SlurmView, ask_once, wrapped

if TYPE_CHECKING:
    from ensq.jobs import Decision, Ensemble, Job, WorkerInfo
    from ensq.store import Standing, Store

MANY = 200  # members, above which they are not listed one by one unasked
LINES = 40  # ensembles that are listed then
_VERDICTS = {
    "stop": "stopped",
    "stopping": "to be stopped",
    "late": "decided too late, trained to the end",
    "resumed": "stopped, then resumed by a person",
    "would stop": "would be stopped (mode: report)",
    "kept": "kept, since too few would be left",
}


@click.command()
@click.argument("name", required=False)
@as_json
@database
def status(name: str | None, db: str | None, json_: bool) -> None:
    """Show every ensemble, or the ensemble NAME, member by member.

    With more than 200 members in the database, and without NAME, a line for each ensemble.
    """
    from ensq.store import Store

    with Store.open(url_of(db), read_only=True) as store:
        if name is None and not json_:
            standings = store.standings()
            if sum(standing.members for standing in standings) > MANY:
                for line in overview(standings, db_hint(db)):
                    click.echo(line)
                return
        chosen = store.ensembles() if name is None else [only_ensemble(store, name)]
        if any(_is_open(store.jobs(ensemble.id)) for ensemble in chosen):
            ask_once(url_of(db))
        views = [_View(store, ensemble) for ensemble in chosen]
        if json_:
            print_json({"ensembles": [view.as_json() for view in views]})
            return
        if not views:
            click.echo(f"nothing is queued in {store.where}")
            click.echo("next: `ensq enqueue config.yaml`")
        for view in views:
            for line in view.lines(db_hint(db)):
                click.echo(line)


def overview(standings: Sequence[Standing], hint: str) -> list[str]:
    """A line for each ensemble: those that are not ended first, and the newest of the others."""
    from ensq.jobs import TERMINAL

    under_way: list[Standing] = []
    ended: list[Standing] = []
    for one in standings:
        is_ended = all(tally.state in TERMINAL for tally in one.tallies)
        (ended if is_ended else under_way).append(one)
    shown = [*under_way, *reversed(ended)][:LINES]
    lines = [_in_a_line(standing) for standing in shown]
    if hidden := len(standings) - len(shown):
        members = sum(one.members for one in standings)
        lines.append(f"and {hidden:,} more ensembles; {members:,} members in all")
    return [*lines, f"next: `ensq status NAME{hint}` shows the members of one"]


def _in_a_line(standing: Standing) -> str:
    from ensq.jobs import State
    from ensq.progress import loss, printable

    counts = {tally.state: tally.members for tally in standing.tallies}
    states = ", ".join(f"{counts[state]:,} {state}" for state in State if state in counts)
    counted = [tally for tally in standing.tallies if tally.state is not State.CANCELLED]
    wanted = sum(tally.epochs for tally in counted)
    share = f", {100 * sum(t.epoch for t in counted) // wanted} % of the epochs" if wanted else ""
    best = [tally.best_loss for tally in counted if tally.best_loss is not None]
    lowest = f", best {loss(min(best))}" if best else ""
    return f"{printable(standing.name)}: {states or 'no members'}{share}{lowest}"


def _is_open(jobs: Sequence[Job]) -> bool:
    from ensq.jobs import TERMINAL

    return any(job.state not in TERMINAL for job in jobs)


class _View:
    """One ensemble as it stands."""

    def __init__(self, store: Store, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.jobs = store.jobs(ensemble.id)
        self.now = store.now()
        self.workers = store.workers({job.owner for job in self.jobs if job.owner})
        self.gone = {id_ for id_, worker in self.workers.items() if store.is_gone(worker)}
        self.fallbacks = store.fallbacks(ensemble.id)
        self.decisions = store.decisions(ensemble.id)
        self.slurm = SlurmView(store.slurm_said(), self.now, self.workers.values())
        self.open = _is_open(self.jobs)

    def lines(self, hint: str) -> list[str]:
        """Summary, table of members, their workers, errors, and what to type next."""
        from ensq.progress import MEMBER_HEAD, member_cells, printable, summary_line
        from ensq.text import table

        rows = [member_cells(job) for job in self.jobs]
        lines = [summary_line(self.ensemble.name, self.jobs), *table(MEMBER_HEAD, rows, left=(1,))]
        for worker in self.workers.values():
            lines += self._worker_lines(worker)
        if self.open:  # else nobody asks SLURM any more, and what it said is old
            lines += self.slurm.waiting(self.ensemble.name)
        for job in self.jobs:
            if job.error:
                lines.append(f"  seed {job.seed}: {printable(job.error)}")
                lines.append(f"    `ensq show {self.ensemble.name}/{job.seed}{hint}` says more")
            elif note := self._waits(job):
                lines.append(f"  seed {job.seed}: {note}")
        lines += self._decided(hint)
        seeds = {job.id: job.seed for job in self.jobs}
        for event in self.fallbacks:
            lines.append(
                printable(f"  seed {seeds[event.job_id or 0]}, attempt {event.attempt}: ")
                + printable(event.message)
            )
        return [*lines, f"next: {self._next_step(hint)}"]

    def _decided(self, hint: str) -> list[str]:
        """That rules of early stopping held, where `ensq show` says more."""
        from ensq.text import ranges

        jobs = {job.id: job for job in self.jobs}
        found: dict[str, set[int]] = {}
        for decision in self.decisions:
            if (job := jobs.get(decision.job_id)) is not None:
                found.setdefault(_became(decision, job), set()).add(job.seed)
        ended = found.get("stop", set()) | found.get("stopping", set())
        for verdict in ("kept", "would stop"):  # what was so before is no news
            found[verdict] = found.get(verdict, set()) - ended
        lines = []
        for verdict, title in _VERDICTS.items():
            if chosen := sorted(found.get(verdict, ())):
                several = f"seed{'' if len(chosen) == 1 else 's'} {ranges(chosen)}"
                lines += wrapped(f"early stopping: {title}: {several}")
        if lines:
            example = f"{self.ensemble.name}/{min(set().union(*found.values()))}"
            lines.append(f"    `ensq show {example}{hint}` says more")
        return lines

    def _waits(self, job: Job) -> str | None:
        """Why a member that is not failed is not simply queued or running."""
        from ensq.jobs import State
        from ensq.progress import duration

        if job.wish == "hold":
            return "will be held as soon as its worker has saved it"
        pause = job.not_before - self.now
        if job.state is State.QUEUED and pause > 0:
            tries = f"failures {job.failures}, crashes {job.crashes}, lost workers {job.losses}"
            return f"pauses for {duration(pause)} more ({tries})"
        return None

    def _next_step(self, hint: str) -> str:
        if self.workers and self.gone == set(self.workers):
            return f"its workers are gone; `ensq worker{hint}` goes on from their checkpoints"
        return next_step(self.ensemble, self.jobs, hint)

    def _worker_lines(self, worker: WorkerInfo) -> list[str]:
        """Who trains which seeds, where, and how long ago it gave a sign of life."""
        from ensq.progress import duration
        from ensq.text import ranges

        held = [job for job in self.jobs if job.owner == worker.id]
        seeds = ("seed " if len(held) == 1 else "seeds ") + ranges([job.seed for job in held])
        job = f", SLURM job {worker.slurm_job}" if worker.slurm_job else ""
        seen = duration(max(0.0, self.now - worker.last_seen))
        state = "gone" if worker.id in self.gone else f"seen {seen} ago"
        state += "; asked to leave" if worker.drain else ""
        lines = wrapped(f"{seeds} on {worker.host}, process {worker.pid}{job}; {state}")
        said = self.slurm.of_worker(worker)
        return lines if said is None else [*lines, *wrapped(f"SLURM says: {said}", "    ")]

    def _worker(self, job: Job) -> WorkerInfo | None:
        return self.workers.get(job.owner) if job.owner else None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.ensemble.name,
            "config_digest": self.ensemble.config_digest,
            "data_digest": self.ensemble.data_digest,
            "run_folder": self.ensemble.run_path,
            "slurm_waiting": self.slurm.waiting_json(self.ensemble.name) if self.open else [],
            "members": [self._member_json(job) for job in self.jobs],
            "decisions": [decision_json(decision) for decision in self.decisions],
            "fallbacks": [
                {"job": event.job_id, "attempt": event.attempt, "message": event.message}
                for event in self.fallbacks
            ],
        }

    def _member_json(self, job: Job) -> dict[str, Any]:
        from ensq.progress import time_left

        worker = self._worker(job)
        return {
            "index": job.index,
            "seed": job.seed,
            "state": str(job.state),
            "early": job.early,
            "exempt": job.exempt,
            "epoch": job.epoch,
            "epochs": job.epochs,
            "train_loss": job.train_loss,
            "val_loss": job.val_loss,
            "best_loss": job.best_loss,
            "best_epoch": job.best_epoch,
            "seconds_per_epoch": job.seconds_per_epoch,
            "seconds_left": time_left(job),
            "attempt": job.attempt,
            "failures": job.failures,
            "crashes": job.crashes,
            "losses": job.losses,
            "interruptions": job.interruptions,
            "job": job.id,
            "not_before": job.not_before or None,
            "wish": job.wish,
            "error": job.error,
            "worker": None
            if worker is None
            else {
                "id": worker.id,
                "host": worker.host,
                "pid": worker.pid,
                "slurm_job": worker.slurm_job,
                "slurm": self.slurm.of_worker_json(worker),
                "device": worker.device,
                "gone": worker.id in self.gone,
                "draining": worker.drain,
                "seconds_since_seen": max(0.0, self.now - worker.last_seen),
            },
        }


def _became(decision: Decision, job: Job) -> str:
    """What has become of a decision since."""
    from ensq.jobs import State, Verdict

    if decision.verdict is not Verdict.STOPPED:
        return decision.verdict.value
    if job.exempt:
        return "resumed"
    if job.state is not State.DONE:
        return "stopping"
    return "late" if job.early is None else "stop"


def next_step(ensemble: Ensemble, jobs: Sequence[Job], hint: str) -> str:
    """What a person would type now."""
    from ensq.jobs import State

    states = {job.state for job in jobs}
    if State.RUNNING in states:
        return f"in training; look again with `ensq status {ensemble.name}{hint}`"
    if State.QUEUED in states:
        return f"`ensq worker{hint}` here, or `srun ensq worker{hint}` in a SLURM job"
    if State.HELD in states:
        return f"`ensq release {ensemble.name}{hint}` to queue the held members again"
    if State.FAILED in states:
        return (
            f"`ensq retry {ensemble.name}{hint}`, or `ensq finalize {ensemble.name}{hint} "
            "--allow-missing`"
        )
    if State.DONE in states:
        return f"`ensq finalize {ensemble.name}{hint}`"
    return f"`ensq retry {ensemble.name}{hint}` to queue the cancelled members again"
