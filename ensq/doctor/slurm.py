"""SLURM's commands and those of its settings that matter to workers."""

from __future__ import annotations

import re
import shutil

from ensq.doctor.finding import Finding
from ensq.slurm import commands, deadline, task_from_environment

_COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "sinfo", "sacct")
_TOLD = ("JobRequeue", "RequeueExit", "PreemptMode", "MinJobAge", "MaxArraySize")


def parse_settings(text: str) -> dict[str, str]:
    """The lines ``Name = value`` of ``scontrol show config``."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, sign, value in pairs if sign}


def parse_partitions(text: str) -> list[dict[str, str]]:
    """The words ``Name=value`` of ``scontrol show partition``, a table for each partition."""
    return [
        dict(re.findall(r"(?<!\S)(\w+)=(\S*)", block))
        for block in re.split(r"\n\s*\n", text)
        if "PartitionName=" in block
    ]


def check_slurm(grace: float, timeout: float = commands.TIMEOUT) -> list[Finding]:
    """Never raises. ``grace``: seconds that a worker takes to save after a signal."""
    there = [name for name in _COMMANDS if shutil.which(name)]
    if not there:
        return [Finding(key="slurm", state="note", seen="no SLURM commands here")]
    missing = ", ".join(name for name in _COMMANDS if name not in there)
    seen = "SLURM: " + ", ".join(there) + (f"; not there: {missing}" if missing else "")
    found = [Finding(key="slurm", state="ok", seen=seen)]
    text = commands.output(("scontrol", "show", "config"), timeout=timeout)
    settings = parse_settings(text)
    if "KillWait" not in settings:
        advice = "workers still run, and know less; try `scontrol ping`"
        seen = "scontrol does not tell SLURM's settings"
        found.append(Finding(key="settings", state="warning", seen=seen, advice=advice))
    else:
        found += [_kill_wait(settings["KillWait"], grace), _settings(settings)]
    text = commands.output(("scontrol", "show", "partition"), timeout=timeout)
    found += map(_partition, parse_partitions(text))
    return [*found, *_job(timeout)]


def _kill_wait(value: str, grace: float) -> Finding:
    number = re.match(r"\d+", value)
    if number is not None and int(number[0]) < grace:
        seen = f"KillWait is {value}: less than the {grace:g} s a worker may take to save"
        advice = "ask for a signal before the end: sbatch --signal=USR1@120"
        return Finding(key="kill_wait", state="warning", seen=seen, advice=advice)
    return Finding(key="kill_wait", state="ok", seen=f"KillWait {value}")


def _settings(settings: dict[str, str]) -> Finding:
    seen = ", ".join(f"{name} {settings[name]}" for name in _TOLD if name in settings)
    if settings.get("JobRequeue") == "0":
        advice = "add --requeue to sbatch, so that jobs come back after pre-emption"
        return Finding(key="settings", state="warning", seen=seen, advice=advice)
    return Finding(key="settings", state="ok", seen=seen)


def _partition(partition: dict[str, str]) -> Finding:
    names = ("MaxTime", "DefaultTime", "GraceTime", "PreemptMode", "State")
    seen = ", ".join(f"{name} {partition[name]}" for name in names if name in partition)
    name = partition["PartitionName"]
    return Finding(key="partition", state="note", seen=f"partition {name}: {seen}")


def _job(timeout: float) -> list[Finding]:
    task = task_from_environment()
    if task is None:
        return []
    end = deadline(timeout=timeout)
    seen = f"job {task.label}, run {task.restarts + 1}; its end is "
    known = "not known" if end is None else "known"
    return [Finding(key="job", state="note" if end is None else "ok", seen=seen + known)]
