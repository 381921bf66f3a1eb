"""The section ``slurm``: what `ensq submit` asks SLURM for. It decides nothing that is trained."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ensq.config.base import NonNegativeInt, PositiveInt, Strict

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:+@-]{0,199}")  # also of several partitions: a,b
_CONSTRAINT = re.compile(r"[A-Za-z0-9_.,:+@&|*!()\[\]-]{1,200}")
_TIME = re.compile(r"\d{1,6}|(\d{1,4}-)?\d{1,4}(:\d{1,2}){0,2}")
_MEMORY = re.compile(r"\d{1,9}[KMGT]?", re.IGNORECASE)
_GPUS = re.compile(r"([A-Za-z0-9_.-]{1,60}:)?\d{1,3}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
# Directives that the script itself is built on; another value would break it.
_OURS = (
    *("array", "job-name", "output", "error", "open-mode", "chdir", "signal", "requeue"),
    *("no-requeue", "ntasks", "nodes", "parsable", "wrap", "comment", "export", "wait"),
)
_OURS_SHORT = {"-a": "array", "-J": "job-name", "-o": "output", "-e": "error", "-D": "chdir"} | {
    "-n": "ntasks",
    "-N": "nodes",
    "-W": "wait",
}


class SlurmConfig(Strict, frozen=True):
    """What `ensq submit` asks SLURM for; each worker is one element of an array of jobs."""

    partition: str | None = None  # null: SLURM's own, as in all of this section
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | int | None = None
    gpus: NonNegativeInt | str = 1  # of a worker; also as in a100:1
    cpus: PositiveInt | None = 4  # of a worker
    memory: str | None = None  # of an element of the array, as in 16G
    workers: PositiveInt | None = None  # at most; null: one for each open member
    workers_per_gpu: Annotated[int, Meta(ge=1, le=64)] = 1
    processes: PositiveInt = 1  # of a worker, each on a node of its own
    pack: PositiveInt | Literal["auto"] = "auto"  # members that a worker trains together
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()  # lines of shell
    environment: dict[str, str | int | float] = msgspec.field(default_factory=dict)
    command: str = "ensq"  # in a container, for example: apptainer exec --nv ensq.sif ensq
    options: tuple[str, ...] = ()  # more options of `ensq worker`, as in --margin=120
    scratch: str | None = None  # the folder for temporary files; the shell fills in variables
    requeue: bool = True
    signal: NonNegativeInt = 120  # seconds before the end; 0: none
    finalize: bool = True
    extra: tuple[str, ...] = ()  # more directives

    def __post_init__(self) -> None:
        for key in ("partition", "account", "qos"):
            _matches(key, getattr(self, key), _WORD, "one word, as sbatch takes it")
        _matches("constraint", self.constraint, _CONSTRAINT, "as sbatch takes it, without spaces")
        _matches("memory", self.memory, _MEMORY, "a number with K, M, G or T, as in 16G")
        self._check_time()
        if isinstance(self.gpus, str):
            _matches("gpus", self.gpus, _GPUS, "a number, or a type and a number as in a100:1")
        if self.workers_per_gpu > 1 and self.gpu_count != 1:
            raise ValueError(
                f"workers_per_gpu is for workers that share one GPU, and gpus is {self.gpus}"
            )
        if self.workers_per_gpu > 1 and self.processes > 1:
            raise ValueError(
                "workers_per_gpu is for workers that share one GPU, and processes for one worker "
                "that takes those of several nodes"
            )
        for name in self.environment:
            _matches("environment", name, _VARIABLE, "names of variables")
            if "PASSWORD" in name.upper():
                raise ValueError(
                    f"environment: {name} would stand in the script; use ~/.pgpass, or set it "
                    "where you call ensq submit: jobs get that environment"
                )
        if self.scratch is not None and re.search(r'["`\\]|\$\(', self.scratch):
            raise ValueError("scratch: the path of a folder; $NAME stands for a variable")
        for line in self.extra:
            _check_extra(line)
        if not self.command.strip():
            raise ValueError("command is empty; it is ensq if it is left out")

    def _check_time(self) -> None:
        if isinstance(self.time, int):
            # YAML reads 12:00:00 as a number to the base of 60, which SLURM would take as minutes.
            raise ValueError(
                f"time is the number {self.time} to YAML, also where hours:minutes:seconds were "
                'written; put it in quotes, as in "12:00:00" or "2-00:00:00"'
            )
        _matches("time", self.time, _TIME, 'as in "12:00:00", "2-00:00:00" or "90" (minutes)')

    @property
    def gpu_count(self) -> int:
        """GPUs of one worker."""
        return self.gpus if isinstance(self.gpus, int) else int(self.gpus.rpartition(":")[2])

    @property
    def seconds(self) -> int | None:
        """The time limit in seconds, if one is set."""
        return None if self.time is None else seconds_of(str(self.time))


def seconds_of(text: str) -> int:
    """Seconds of a limit as sbatch reads it: minutes[:seconds], h:m:s, days-h[:m[:s]]."""
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # days-hours, days-hours:minutes, days-hours:minutes:seconds
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    minutes, seconds = (*parts, 0)[:2]
    return minutes * 60 + seconds


def _matches(key: str, text: str | None, form: re.Pattern[str], meant: str) -> None:
    if text is not None and not form.fullmatch(text):
        raise ValueError(f"{key}: {text!r} can't be used: {meant}")


def _check_extra(line: str) -> None:
    """Refuse what is no directive, or one of those that the script is built on."""
    name = re.split(r"[=\s]", line, maxsplit=1)[0]
    if not re.fullmatch(r"--[a-z][a-z-]+|-[A-Za-z]", name):
        raise ValueError(f"extra: {line!r} is no option of sbatch; write as in --exclude=n01")
    if not line.isprintable() or "#" in line:
        raise ValueError(f"extra: {line!r} holds a character that ends a directive")
    ours = _OURS_SHORT.get(name) or name.removeprefix("--")
    if ours in _OURS:
        raise ValueError(f"extra: --{ours} is set by ensq; leave it out")
