"""Those of SLURM's settings that matter to workers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ensq.doctor.finding import Finding
from ensq.slurm import parse_time_left

_USUAL_KILL_WAIT = 30  # seconds, where nobody has changed it
_SHORT = 3600.0  # seconds of a time limit
_MOST_WORKERS = 1000  # that `ensq submit` puts into an array
_TOLD = ("RequeueExit", "PreemptType", "PreemptMode")
_NEVER = ("OFF", "GANG", "SUSPEND", "SUSPEND,GANG", "GANG,SUSPEND")  # the job stays


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


def check_settings(settings: Mapping[str, str], grace: float) -> list[Finding]:
    """``grace``: seconds that a worker takes to save after a signal."""
    if "KillWait" not in settings:
        return [
            Finding(
                key="settings",
                state="warning",
                seen="scontrol does not tell SLURM's settings",
                advice="workers still run, and know less; try `scontrol show config`",
            )
        ]
    told = ", ".join(
        f"{name} {settings[name]}" for name in _TOLD if settings.get(name, "(null)") != "(null)"
    )
    return [
        _kill_wait(settings["KillWait"], grace),
        _requeue(settings.get("JobRequeue")),
        *_arrays(settings.get("MaxArraySize", "")),
        Finding(key="settings", state="ok", seen=told or "SLURM's settings are told"),
    ]


def _seconds(value: str) -> int | None:
    match = re.match(r"\d+", value)
    return int(match[0]) if match else None


def _kill_wait(value: str, grace: float) -> Finding:
    seconds = _seconds(value)
    if seconds is None or seconds >= max(grace, _USUAL_KILL_WAIT):
        return Finding(key="kill_wait", state="ok", seen=f"KillWait {value}")
    return Finding(
        key="kill_wait",
        state="warning",
        seen=f"KillWait is {value}: less than the {grace:g} s a worker may take to save"
        if seconds < grace
        else f"KillWait is {value}: hardly more than the {grace:g} s a worker may take to save",
        advice="ask for a signal before the end: sbatch --signal=USR1@120 (`ensq submit` does)",
    )


def _requeue(value: str | None) -> Finding:
    if value != "0":
        return Finding(key="requeue", state="ok", seen=f"JobRequeue {value or 'not told'}")
    return Finding(
        key="requeue",
        state="note",
        seen="JobRequeue is 0: jobs are not requeued unless they ask for it",
        advice="with `ensq submit`, nothing: its jobs ask, and submit a successor where they are "
        "refused; in a script of your own add --requeue",
    )


def _arrays(value: str) -> list[Finding]:
    if not value.isdecimal():
        return []
    most = int(value)  # the largest index is one less
    if most < 2:
        return [
            Finding(
                key="arrays",
                state="warning",
                seen=f"MaxArraySize is {value}: no job arrays here",
                advice="set slurm.workers to 1, and submit several times",
            )
        ]
    if most < _MOST_WORKERS:
        advice = f"set slurm.workers to {most} at most"
        seen = f"MaxArraySize is {value}: an array has {most} workers at most"
        return [Finding(key="arrays", state="note", seen=seen, advice=advice)]
    return [Finding(key="arrays", state="ok", seen=f"MaxArraySize {value}")]


def check_partitions(text: str, settings: Mapping[str, str], grace: float) -> list[Finding]:
    """A finding for each partition. ``text`` is what ``scontrol show partition`` prints."""
    return [_partition(one, settings, grace) for one in parse_partitions(text)]


def _partition(partition: Mapping[str, str], settings: Mapping[str, str], grace: float) -> Finding:
    names = ("State", "MaxTime", "DefaultTime", "PreemptMode", "GraceTime")
    default = " (default)" if partition.get("Default") == "YES" else ""
    seen = f"partition {partition['PartitionName']}{default}: " + ", ".join(
        f"{name} {partition[name]}" for name in names if name in partition
    )
    advice = [
        *_of_state(partition),
        *_of_times(partition),
        *_of_preemption(partition, settings, grace),
    ]
    return Finding(
        key="partition",
        state="warning" if advice else "ok",
        seen=seen,
        advice="; ".join(advice),
    )


def _of_state(partition: Mapping[str, str]) -> list[str]:
    state = partition.get("State", "UP")
    return [] if state == "UP" else [f"it starts no jobs ({state}): name another (slurm.partition)"]


def _limit(text: str | None) -> float:
    """Seconds; infinity where there is no limit, or none that can be read."""
    left = parse_time_left(text or "")
    return math.inf if left is None else left


def _of_times(partition: Mapping[str, str]) -> list[str]:
    if _limit(partition.get("MaxTime")) < _SHORT:
        return [
            "with so short a limit a member must write a checkpoint in time: "
            "training.checkpoint_freq 1, and a smaller --margin for `ensq worker` (60 s)"
        ]
    if _limit(partition.get("DefaultTime")) < _SHORT:
        return [f"name slurm.time: without it jobs end after {partition['DefaultTime']}"]
    return []


def _of_preemption(
    partition: Mapping[str, str], settings: Mapping[str, str], grace: float
) -> list[str]:
    """A partition's jobs are pre-empted by those of others, where SLURM does that at all."""
    mode = partition.get("PreemptMode", "OFF")
    if settings.get("PreemptType", "preempt/none") == "preempt/none" or mode in _NEVER:
        return []
    advice = []
    if mode == "CANCEL":
        advice.append("pre-empted jobs do not come back: run `ensq submit` again")
    notice = (_seconds(partition.get("GraceTime", "0")) or 0) + (
        _seconds(settings.get("KillWait", "")) or 0
    )
    if notice < grace:
        advice.append(
            f"pre-emption leaves {notice} s to save, and a worker may take {grace:g} s: "
            "what was trained since the last checkpoint may be trained again"
        )
    return advice
