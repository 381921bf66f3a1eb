"""SLURM: its commands, whether they are answered, and its clock."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping

from ensq.doctor.finding import Finding
from ensq.doctor.settings import check_partitions, check_settings, parse_settings
from ensq.doctor.slurmjob import check_job
from ensq.slurm import commands
from ensq.slurm.evidence import plain

_COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "sinfo", "sacct")
_NEEDED = ("sbatch", "srun", "squeue", "scontrol")  # by `ensq submit` and its jobs
_TIME = re.compile(r"Configuration data as of (\d+)")
_CLOCK = 10.0  # seconds; munge itself refuses 300


def check_slurm(
    grace: float, environment: Mapping[str, str] = os.environ, timeout: float = commands.TIMEOUT
) -> list[Finding]:
    """Never raises. ``grace``: seconds that a worker takes to save after a signal."""
    path = environment.get("PATH")
    there = [name for name in _COMMANDS if shutil.which(name, path=path)]
    if not there:
        return [
            Finding(key="slurm", state="note", seen="no SLURM commands here"),
            *check_job(environment, timeout),
        ]
    found = [_commands(there, environment, timeout), _controller(environment, timeout)]
    settings: dict[str, str] = {}
    if found[-1].state in ("ok", "note"):  # else each question would wait as long again
        begin = time.time()
        said = commands.output(("scontrol", "show", "config"), plain(environment), timeout)
        settings = parse_settings(said)
        found += [*check_settings(settings, grace), *_clock(said, begin, time.time())]
        said = commands.output(("scontrol", "show", "partition"), plain(environment), timeout)
        found += check_partitions(said, settings, grace)
        found.append(_accounting(environment, timeout))
    found.append(_munge(settings, found[1].state != "warning", environment, timeout))
    return [*found, *check_job(environment, timeout)]


def _commands(there: list[str], environment: Mapping[str, str], timeout: float) -> Finding:
    asked = next((name for name in ("sinfo", "scontrol", "squeue") if name in there), there[0])
    version = commands.output((asked, "--version"), plain(environment), timeout).strip()
    named = version.splitlines()[0][:60] if version else "SLURM of unknown version"
    missing = [name for name in _COMMANDS if name not in there]
    seen = f"{named}: {', '.join(there)}"
    if missing:
        seen += f"; not there: {', '.join(missing)}"
    if not set(missing) & set(_NEEDED):
        return Finding(key="slurm", state="ok", seen=seen)
    advice = "submit from a host that has them; in a container, bind them into it"
    return Finding(key="slurm", state="warning", seen=seen, advice=advice)


def _controller(environment: Mapping[str, str], timeout: float) -> Finding:
    """Whether slurmctld answers; a warning if not."""
    begin = time.monotonic()
    answer = commands.ask(("scontrol", "ping"), plain(environment), timeout)
    took = time.monotonic() - begin
    lines = [line.strip() for line in answer.out.splitlines() if line.startswith("Slurmctld(")]
    up = [line for line in lines if line.endswith(" is UP")]
    down = [line for line in lines if line not in up]
    if up:
        seen = f"{up[0]}, answers in {1000 * took:.0f} ms" + "".join(f"; {line}" for line in down)
        return Finding(key="controller", state="note" if down else "ok", seen=seen)
    if answer.timed_out:
        why = f"no answer to `scontrol ping` within {timeout:g} s"
    else:
        why = "; ".join(down) or answer.last_words or "`scontrol ping` says nothing"
    return Finding(
        key="controller",
        state="warning",
        seen=f"SLURM's controller: {why}",
        advice="workers that run go on without it; to submit, wait, or ask the administrators",
    )


def _clock(said: str, begin: float, end: float) -> list[Finding]:
    """The controller's clock against this host's, which told the times ``begin`` and ``end``."""
    match = _TIME.match(said)
    if match is None:
        return []
    told = int(match[1])  # cut to a second
    ahead = told + 1 - begin if told + 1 < begin else told - end if told > end else 0.0
    if abs(ahead) <= _CLOCK:
        seen = "the controller's clock agrees with this host's"
        return [Finding(key="slurm_clock", state="ok", seen=seen)]
    relation = "ahead of" if ahead > 0 else "behind"
    return [
        Finding(
            key="slurm_clock",
            state="warning",
            seen=f"the controller's clock is {abs(ahead):.0f} s {relation} this host's",
            advice="tell the administrators: a worker may stop too late for its time limit "
            "(ensq worker --margin), and from 300 s on munge refuses",
        )
    ]


def _accounting(environment: Mapping[str, str], timeout: float) -> Finding:
    command = ("sacct", "--noheader", "--allocations", "--format=JobID", "--starttime=now-1hours")
    answer = commands.ask(command, plain(environment), timeout)
    if answer.code == 0:
        return Finding(key="accounting", state="ok", seen="sacct answers")
    why = f"no answer within {timeout:g} s" if answer.timed_out else answer.last_words
    return Finding(
        key="accounting",
        state="note",
        seen=f"no accounting: sacct fails ({why or f'exit code {answer.code}'})",
        advice="nothing: `ensq status` knows less about jobs that ended",
    )


def _munge(
    settings: Mapping[str, str], answered: bool, environment: Mapping[str, str], timeout: float
) -> Finding:
    """By munge this host proves to SLURM who the user is."""
    kind = settings.get("AuthType", "auth/munge")
    if kind != "auth/munge":
        return Finding(key="munge", state="ok", seen=f"SLURM uses {kind}, not munge")
    path = environment.get("PATH")
    if not shutil.which("munge", path=path) or not shutil.which("unmunge", path=path):
        seen = "munge can't be tried: its commands are not here (as in most containers)"
        return Finding(key="munge", state="unknown", seen=seen)
    socket = re.search(r"socket=([^,\s]+)", settings.get("AuthInfo", ""))
    where = (f"--socket={socket[1]}",) if socket else ()
    made = commands.ask(("munge", "-n", *where), environment, timeout)
    read = made
    if made.code == 0:
        read = commands.ask(("unmunge", *where), environment, timeout, text=made.out)
    if read.code == 0:
        return Finding(key="munge", state="ok", seen="munge works")
    why = f"no answer within {timeout:g} s" if read.timed_out else _reason(read)
    if answered:
        seen = f"munge can't be tried, and SLURM answers all the same ({why})"
        return Finding(key="munge", state="note", seen=seen)
    return Finding(
        key="munge",
        state="warning",
        seen=f"munge does not work here: {why}",
        advice="SLURM's commands fail without it: use another node, and tell the administrators "
        "(munged)",
    )


def _reason(answer: commands.Answer) -> str:
    status = re.search(r"^STATUS:\s*(.+)$", answer.out, re.MULTILINE)
    return status[1].strip() if status else answer.last_words or f"exit code {answer.code}"
