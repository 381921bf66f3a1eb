"""One question to SLURM about many jobs, as a child process that a loop looks after.

squeue tells of this user's jobs; sacct, where there is accounting, of those that squeue no longer
knows. What they print is not trusted: each field ends with a word that is made up for the question,
so that no job's name can pass for another row, and what is not as it should be is left out.
"""

from __future__ import annotations

import os
import re
import resource
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from ensq.slurm import commands

PREFIX = "ensq-"  # what names of jobs that `ensq submit` sends begin with

_MOST_BYTES = 2**21  # of an answer that are kept: some ten thousand jobs
_MOST_OTHERS = 300  # jobs that are kept beside those asked for
_MOST_ASKED = 200  # jobs that sacct is asked about at a time: it reads a database
_KILL_AFTER = 2.0  # seconds after the time is up
_DAYS = 7  # that sacct looks back

_SQUEUE = (
    *("JobArrayID", "JobID", "RestartCnt", "UserID", "Cluster", "State", "Reason", "NodeList"),
    *("SubmitTime", "Name"),
)
_SACCT = ("JobID", "JobIDRaw", "UID", "Cluster", "State", "NodeList", "Submit", "JobName")

_LABEL = re.compile(r"\d{1,12}(?:_\d{1,9})?")
_HETEROGENEOUS = re.compile(r"\d{1,12}\+\d{1,6}")
_ID = re.compile(r"\d{1,12}")
_STATE = re.compile(r"[A-Z][A-Z_]{1,23}")
_NOTHING = frozenset(("", "None", "(null)", "N/A", "None assigned", "Unknown"))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What SLURM says of one run of a job."""

    label: str  # 123 or 120_3
    job_id: str
    restarts: int
    cluster: str | None
    state: str
    reason: str | None
    node: str | None
    submitted_at: float | None
    name: str


def parse_squeue(text: str, word: str, uid: int, labels: Collection[str]) -> list[Row]:
    """The jobs of user ``uid`` in what squeue printed, as far as they are of interest.

    ``word`` ended the fields; ``labels`` are jobs of interest, as are all that are named ensq-….
    """
    found = []
    for label, job_id, restarts, user, *more, name in _rows(text, word, len(_SQUEUE)):
        # Few of a user's jobs may be ensq's: what is left out costs no time.
        ours = label in labels or job_id in labels or name.startswith(PREFIX)
        if ours and user == str(uid):
            row = _row(label, job_id, restarts, *more, name)
            if row is not None:
                found.append(row)
    return found


def parse_sacct(text: str, word: str, uid: int) -> list[Row]:
    """The jobs in what sacct printed; its rows of one job are its runs, the first one first."""
    runs: dict[str, int] = {}
    found = []
    for label, job_id, user, cluster, state, node, submitted, name in _rows(
        text, word, len(_SACCT)
    ):
        if user != str(uid):
            continue
        # "CANCELLED by 1000"
        ended = state.split(" ")[0]
        run = runs.get(label, 0)
        runs[label] = run + 1
        row = _row(label, job_id, str(run), cluster, ended, "", node, submitted, name)
        if row is not None:
            found.append(row)
    return found


def _rows(text: str, word: str, count: int) -> Iterator[list[str]]:
    fields = text.split(word)
    for start in range(0, len(fields) - count, count):
        row = fields[start : start + count]
        row[0] = row[0].removeprefix("\n")
        yield row


def _row(*fields: str) -> Row | None:
    """The row, or None if a field is not what it should be."""
    label, job_id, restarts, cluster, state, reason, node, submitted, name = fields
    if _HETEROGENEOUS.fullmatch(label):
        label = job_id  # a component calls itself by its own number
    sound = _LABEL.fullmatch(label) and _ID.fullmatch(job_id) and _STATE.fullmatch(state)
    if not sound or not re.fullmatch(r"\d{1,6}", restarts):
        return None
    return Row(
        label=label,
        job_id=job_id,
        restarts=int(restarts),
        cluster=_text(cluster, 64),
        state=state,
        reason=_text(reason, 120),
        node=_text(node, 120),
        submitted_at=float(submitted) if re.fullmatch(r"\d{1,12}", submitted) else None,
        name=_text(name, 120) or "",
    )


def _text(text: str, most: int) -> str | None:
    """Text of a width that can be shown, without what drives a terminal."""
    if text in _NOTHING:
        return None
    shown = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _squeue(uid: int, word: str) -> list[str]:
    # Elements of arrays one by one: drawn together, the restarts of each are lost.
    fields = ",".join(f"{name}:{word}" for name in _SQUEUE)
    return ["squeue", "--noheader", "--all", "--array", f"--user={uid}", "-O", fields]


def _sacct(labels: Sequence[str], word: str) -> list[str]:
    return [
        *("sacct", "--noheader", "--parsable", "--allocations", "--duplicates"),
        *(f"--starttime=now-{_DAYS}days", f"--delimiter={word}"),
        *(f"--jobs={','.join(labels)}", f"--format={','.join(_SACCT)}"),
    ]


def plain(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which SLURM's commands print what we read, about this cluster."""
    ours = ("SQUEUE_", "SACCT_", "SLURM_CLUSTERS", "SLURM_BITSTR_LEN")
    kept = {name: text for name, text in environment.items() if not name.startswith(ours)}
    return kept | {"SLURM_TIME_FORMAT": "%s", "LC_ALL": "C.UTF-8"}


class _Child:
    """A command whose output goes into a file: it can neither block us nor be blocked by us."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> None:
        """Raises OSError if there is no such command."""
        found = shutil.which(command[0], path=environment.get("PATH"))
        if found is None:
            raise FileNotFoundError(command[0])
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        try:
            self._process = subprocess.Popen(
                [*_guard(environment, timeout), found, *command[1:]],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=self._file,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a group of its own: ours to kill, out of signals' way
            )
        except BaseException:
            self._file.close()
            raise
        # Against a flood; what was written before is read.
        with suppress(OSError, ValueError):
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (_MOST_BYTES, _MOST_BYTES))

    def result(self) -> tuple[bool, str] | None:
        """Whether it succeeded, and what it printed; None while it runs."""
        code = self._process.poll()
        full = os.fstat(self._file.fileno()).st_size >= _MOST_BYTES
        if code is None and not full:
            return None
        self._file.seek(0)
        return code == 0 or full, self._file.read(_MOST_BYTES).decode(errors="replace")

    def close(self) -> None:
        """Kill it, with all that it started."""
        # Its number may be another's once it was waited for, but a group lives as long as a
        # member of it does, and a number that is in use as a group's is not given out.
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._file.close()


def _guard(environment: Mapping[str, str], timeout: float) -> list[str]:
    """Have it ended even if nobody looks after it any more."""
    found = shutil.which("timeout", path=environment.get("PATH"))
    return [found, "-k", f"{_KILL_AFTER:g}", f"{timeout:g}"] if found else []


class Question:
    """Asks squeue, then sacct. ``poll`` until there is an answer, and ``close`` in any case."""

    def __init__(
        self,
        runs: Iterable[tuple[str, int | None]],
        environment: Mapping[str, str] = os.environ,
        *,
        accounting: bool = True,
        timeout: float = commands.TIMEOUT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``runs`` to know of (label, restarts); jobs named ensq-… are told as well. Never raises.

        A run that was requeued since is one that squeue no longer knows.
        """
        self._runs = [run for run in runs if _LABEL.fullmatch(run[0])]
        self._labels = {label for label, _ in self._runs}
        self._environment = plain(environment)
        self._timeout, self._monotonic = timeout, monotonic
        self._uid = os.getuid()
        self._word = f"~{secrets.token_hex(8)}~"
        self.rows: list[Row] = []  # as far as the answer goes
        self.has_accounting = accounting  # False once sacct is known not to answer
        self.answered = False  # whether squeue did; without that nothing is known
        self._asks_sacct = False
        self._child: _Child | None = None
        self._began = monotonic()
        self._start(_squeue(self._uid, self._word))

    def poll(self) -> list[Row] | None:
        """The answer, as far as there is one; None while it is waited for. Never waits itself."""
        if self._child is None:
            return self.rows
        result = self._child.result()
        if result is None and self._monotonic() - self._began <= self._timeout:
            return None
        self.close()
        succeeded, text = result or (False, "")
        if self._asks_sacct:
            self.has_accounting = succeeded
            self._add(parse_sacct(text, self._word, self._uid) if succeeded else [])
        elif succeeded:
            self.answered = True
            self._add(parse_squeue(text, self._word, self._uid, self._labels))
            unknown = self._unknown()
            if unknown and self.has_accounting:
                self._asks_sacct = True
                self._start(_sacct(unknown, self._word))
                self.has_accounting = self._child is not None
        return self.rows if self._child is None else None

    def close(self) -> None:
        """End a question that is under way."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _start(self, command: Sequence[str]) -> None:
        self._began = self._monotonic()
        with suppress(OSError, ValueError):
            self._child = _Child(command, self._environment, self._timeout)

    def _unknown(self) -> list[str]:
        """Jobs of which squeue did not tell the run that is asked for."""
        told: set[tuple[str, int | None]] = {(row.label, row.restarts) for row in self.rows}
        told |= {(row.label, None) for row in self.rows}
        return sorted({run[0] for run in self._runs if run not in told})[:_MOST_ASKED]

    def _add(self, rows: Sequence[Row]) -> None:
        """Keep rows that were asked for, those of workers first; squeue's before sacct's."""
        told = {(row.label, row.restarts) for row in self.rows}
        rows = [row for row in rows if (row.label, row.restarts) not in told]
        asked = [row for row in rows if row.label in self._labels]
        others = [
            row for row in rows if row.label not in self._labels and row.name.startswith(PREFIX)
        ]
        self.rows = [*self.rows, *asked, *others[:_MOST_OTHERS]]
