"""Arrays of workers into SLURM's queue: how many are needed, and a script that stays to be read."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ensq.config.slurm import SlurmConfig
from ensq.errors import EnsqError, UsageError
from ensq.jobs import Job, State
from ensq.rundir import RunDir, write_atomic
from ensq.slurm import commands
from ensq.slurm.script import JobPlan, sbatch_text
from ensq.store.evidence import job_name
from ensq.store.target import Target

_OPEN = (State.QUEUED, State.RUNNING)
_MOST_WORKERS = 1000  # SLURM's MaxArraySize is 1001 where nobody has changed it
_SBATCH_SECONDS = 60.0
_SUBMITTED = re.compile(r"(\d+)(?:;(\S+))?")  # with clusters that know each other: id;cluster
_BAD_FOLDER = re.compile(r'["\\\x00-\x1f\x7f]')


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is to be submitted, or was."""

    ensemble: str
    open_members: int
    here_already: int | None  # workers of this ensemble that SLURM knows; None: it does not say
    workers: int  # elements of the array; 0: none are needed
    script: Path
    text: str
    output: str
    job: str | None = None
    cluster: str | None = None


def plan(
    *,
    ensemble: str,
    run: RunDir,
    target: Target,
    settings: SlurmConfig,
    workers: int,
    folder: Path | None = None,
) -> JobPlan:
    """The plan of an array; its script's name comes from all that stands in it.

    Raises UsageError for folders whose names no directive of sbatch can hold.
    """
    folder = folder or Path.cwd()
    place = run.path.resolve() / "slurm"
    for path in (folder, place):
        if _BAD_FOLDER.search(str(path)):
            raise UsageError(f"{str(path)!r}: sbatch can't take such a name; rename the folder")
    made = JobPlan(
        ensemble=ensemble,
        job_name=job_name(ensemble),
        comment=comment(target),
        workers=workers,
        script="",
        output=f"{place}/".replace("%", "%%") + "%A_%a.out",
        folder=str(folder),
        database=None if target.has_password else target.text,
        root=None if target.path is not None else str(target.root),
        bin_folder=str(Path(sys.executable).parent) if settings.command == "ensq" else None,
        seconds=settings.seconds,
        gpus=str(settings.gpus),
        time=None if settings.time is None else str(settings.time),
        environment={name: str(text) for name, text in settings.environment.items()},
        **{name: getattr(settings, name) for name in _AS_THEY_ARE},
    )
    digest = hashlib.sha256(sbatch_text(made).encode()).hexdigest()[:10]
    return replace(made, script=str(place / f"workers-{digest}.sh"))


_AS_THEY_ARE = (
    *("partition", "account", "qos", "constraint", "cpus", "memory", "workers_per_gpu", "pack"),
    "processes",
    *("modules", "setup", "command", "options", "scratch", "requeue", "signal", "finalize"),
    "extra",
)


def comment(target: Target) -> str:
    """By what jobs of one database are known among those of others; it tells nothing else."""
    return "ensq-" + hashlib.sha256(target.where.encode()).hexdigest()[:12]


def members_open(jobs: Sequence[Job]) -> int:
    """Members that a worker could take now or later: not those that are held."""
    return sum(job.state in _OPEN for job in jobs)


def workers_needed(open_members: int, settings: SlurmConfig, here_already: int) -> int:
    """Elements of an array that find something to do, beside those that are there already."""
    # How many train together with `auto` shows on the device; workers that then find nothing to
    # claim leave at once.
    pack = 1 if settings.pack == "auto" else settings.pack
    each = pack * settings.workers_per_gpu
    wanted = math.ceil(open_members / each)
    if settings.workers is not None:
        wanted = min(wanted, settings.workers)
    return max(0, min(wanted - here_already, _MOST_WORKERS))


def count_here(ensemble: str, target: Target, environment: Mapping[str, str]) -> int | None:
    """Workers for this ensemble and database that wait or run; None if squeue does not say."""
    plain = {name: text for name, text in environment.items() if not name.startswith("SQUEUE_")}
    # With its heading, which tells "no jobs" from no answer.
    said = commands.output(
        [
            *("squeue", "--all", "--array", f"--user={os.getuid()}"),
            *(f"--name={job_name(ensemble)}", "--format=%i|%k"),
        ],
        plain,
    )
    if not said:
        return None
    wanted = comment(target)
    return sum(line.rpartition("|")[2].strip() == wanted for line in said.splitlines()[1:])


def write(submission: Submission) -> None:
    """Write the script, which is also what a job submits again. Raises DiskError."""
    write_atomic(submission.script, submission.text.encode())


def submit(
    submission: Submission, target: Target, environment: Mapping[str, str] = os.environ
) -> Submission:
    """Hand the script to sbatch, once.

    Raises EnsqError with what sbatch says; if it does not answer, it may have submitted.
    """
    if shutil.which("sbatch", path=environment.get("PATH")) is None:
        raise EnsqError(
            f"sbatch is not found; call it where SLURM is: sbatch {submission.script} (a login "
            "node; ensq submit --dry-run prints the script)"
        )
    theirs = {**environment, "ENSQ_DB": target.text}
    # An array for workers, even if this runs inside a job.
    theirs = {name: text for name, text in theirs.items() if not _of_a_job(name)}
    answer = commands.ask(["sbatch", "--parsable", str(submission.script)], theirs, _SBATCH_SECONDS)
    if answer.timed_out:
        raise EnsqError(
            f"sbatch did not answer within {_SBATCH_SECONDS:g} s; it may have submitted "
            f"{submission.script} all the same: look with squeue --me before you try again"
        )
    if answer.code is None:
        raise EnsqError(f"sbatch can't be started: {answer.errors}")
    said = "; ".join(
        line.removeprefix("sbatch: ").removeprefix("error: ") for line in answer.errors.splitlines()
    )
    found = _SUBMITTED.fullmatch(answer.out.strip())
    if answer.code != 0 or found is None:
        raise EnsqError(
            f"sbatch refused {submission.script}: {said or answer.out.strip() or 'no reason'}; "
            "nothing was submitted, the members stay queued. Correct the section slurm of the "
            "configuration, or give another value as an option"
        )
    return replace(submission, job=found[1], cluster=found[2])


def _of_a_job(name: str) -> bool:
    ours = ("SLURM_CONF", "SLURM_CLUSTERS")
    return name.startswith(("SLURM_", "SBATCH_ARRAY")) and name not in ours
