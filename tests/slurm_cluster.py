"""A real SLURM cluster of the tests' own: four nodes with two fake GPUs each, on this machine.

It ends with the tests, however they end: a keeper, a process of its own, takes the cluster down as
soon as the pipe to it closes. See scripts/slurm_cluster.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts" / "slurm_cluster"
NODES = ("n1", "n2", "n3", "n4")
MARK = "ENSQ_TEST_CLUSTER"  # in the environment of all that runs in a job
KILL_WAIT = 6  # seconds from SIGTERM to SIGKILL; also for a trainer on a machine that is busy
GRACE = 8
DOWN_AFTER = 6  # seconds of silence, about, after which a node is called down
_SBIN = "/usr/sbin:/sbin"
_DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
_KEEP = 'read -r _; "$1/down.sh" "$2" && rm -rf "$2"'
_ENDED = frozenset(
    ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
)


def missing() -> list[str]:
    """What of SLURM is not installed."""
    path = f"{os.environ.get('PATH', '')}:{_SBIN}"
    return [name for name in _DAEMONS if shutil.which(name, path=path) is None]


def require() -> None:
    """Skip the test where there is no SLURM, or fail it with CI=true."""
    if missing():
        text = "SLURM is not installed (Debian, Ubuntu: apt install slurm-wlm munge)"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)


@dataclass(frozen=True)
class Job:
    """A job, or an element of an array, as scontrol shows it."""

    label: str  # 12, or 11_0
    job_id: str
    state: str
    reason: str
    restarts: int
    node: str
    exit_code: str  # 0:15: code and signal

    @classmethod
    def parse(cls, line: str) -> Job:
        fields = dict(part.partition("=")[::2] for part in line.split())
        array, index = fields.get("ArrayJobId"), fields.get("ArrayTaskId")
        return cls(
            label=f"{array}_{index}" if array else fields["JobId"],
            job_id=fields["JobId"],
            state=fields["JobState"],
            reason=fields["Reason"],
            restarts=int(fields["Restarts"]),
            node=fields.get("NodeList", "(null)").replace("(null)", ""),
            exit_code=fields["ExitCode"],
        )

    @property
    def ended(self) -> bool:
        return self.state in _ENDED


class Cluster:
    """A running cluster."""

    def __init__(self, nodes: int = len(NODES), gpus: int = 2) -> None:
        """Skips or fails the test where there is no SLURM."""
        require()
        self.nodes = NODES[:nodes]
        # Short, for the paths of sockets.
        self.base = Path(tempfile.mkdtemp(prefix="ensq-slurm-", dir="/tmp"))
        # First, so that nothing stays if this process is killed while the cluster starts.
        self._keeper = subprocess.Popen(
            ["bash", "-c", _KEEP, "keeper", str(SCRIPTS), str(self.base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
        knobs = {
            "LAB_KILLWAIT": str(KILL_WAIT),
            "LAB_GRACE": str(GRACE),
            "LAB_SLURMDTIMEOUT": str(DOWN_AFTER),
        }
        try:
            self._script("up.sh", self.base, nodes, gpus, **knobs)
        except BaseException:
            self.close()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """For SLURM's commands, and by them for jobs: nothing of ensq or of another SLURM."""
        strange = ("ENSQ_", "SLURM", "SBATCH_", "SQUEUE_", "CUDA_")
        kept = {name: text for name, text in os.environ.items() if not name.startswith(strange)}
        return kept | {
            "PATH": f"{kept.get('PATH', '')}:{_SBIN}",
            "SLURM_CONF": str(self.base / "etc/slurm.conf"),
            MARK: str(self.base),
        }

    def close(self) -> None:
        """Take it down by way of the keeper."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        assert self._keeper.wait(timeout=60) == 0, "the cluster could not be taken down"

    # Jobs

    def run(self, *command: object, timeout: float = 30, **environment: str) -> str:
        """What a command of SLURM prints; it must succeed."""
        done = subprocess.run(
            [*map(str, command)],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: Path, *options: str, **environment: str) -> str:
        """Submit a batch script, in its folder; the job's id."""
        where = f"--chdir={script.parent}"
        return self.run("sbatch", "--parsable", where, *options, script, **environment).strip()

    def jobs(self, job_id: str | None = None) -> list[Job]:
        """Every job and element of an array that SLURM knows; those that ended, too."""
        text = self.run("scontrol", "-o", "show", "job", *([job_id] if job_id else []))
        return [Job.parse(line) for line in text.splitlines() if line.startswith("JobId=")]

    def job(self, job_id: str) -> Job:
        """A job that is no array, or one element of one."""
        (found,) = self.jobs(job_id)
        return found

    def wait(
        self,
        job_id: str,
        what: Callable[[Job], bool] | Collection[str],
        seconds: float = 60,
    ) -> list[Job]:
        """Wait until every element of a job is as wanted, or in one of some states."""
        is_so = what if callable(what) else (lambda job: job.state in what)
        found: list[Job] = []

        def all_are_so() -> bool:
            nonlocal found
            found = self.jobs(job_id)
            return all(map(is_so, found))

        try:
            until(all_are_so, f"job {job_id}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}") from None
        return found

    def wait_ended(self, job_id: str, seconds: float = 90) -> list[Job]:
        """Wait until a job has ended for good: one that is requeued passes through such states."""
        while True:
            found = self.wait(job_id, lambda job: job.ended, seconds)
            time.sleep(0.5)
            if self.jobs(job_id) == found and not self.run("squeue", "-h", "-j", job_id):
                return found

    def cancel(self, *job_ids: str) -> None:
        self.run("scancel", *job_ids)

    # Nodes

    def node(self, operation: str, name: str, *command: str) -> str:
        """start, kill, kill-slurmd, freeze, thaw, pids or exec of a node: see node.sh."""
        return self._script("node.sh", self.base, operation, name, *command)

    def node_state(self, name: str) -> str:
        """idle, mixed, down*, …"""
        return self.run("sinfo", "-h", "-N", "-p", "main", "-n", name, "-o", "%T").strip()

    def wait_node(self, name: str, states: Collection[str], seconds: float = 40) -> None:
        until(lambda: self.node_state(name) in states, f"{name} to be {states}", seconds)

    def processes(self, name: str | None = None) -> list[int]:
        """Processes of jobs, of all nodes or of one: all that are not the cluster's own."""
        mine = set(marked(self.base))
        if name is None:
            return sorted(mine)
        return sorted(mine & {int(pid) for pid in self.node("pids", name).split()})

    def stop_controller(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop slurmctld. By SIGKILL it forgets what it did in the last seconds."""
        pid = int((self.base / "run/slurmctld.pid").read_text())
        os.kill(pid, number)
        until(lambda: not Path(f"/proc/{pid}").exists(), "the end of slurmctld", 20)

    def start_controller(self) -> None:
        self.run("slurmctld", "-f", self.base / "etc/slurm.conf")
        until(self._ping, "slurmctld to answer", 20)

    def _ping(self) -> bool:
        done = subprocess.run(
            ["scontrol", "ping"], env=self.environment, capture_output=True, text=True, timeout=30
        )
        return "is UP" in done.stdout

    def restore(self) -> None:
        """After a test: no jobs, every node idle."""
        for name in self.nodes:
            self.node("thaw", name)
        if not self._ping():
            self.start_controller()
        self._end_jobs()
        for name in self.nodes:
            if not self._has_slurmd(name):
                self.node("start", name)
        try:
            until(self._all_up, "all nodes to be up", 40)
        except AssertionError as error:
            states = self.run("sinfo", "-N", "-p", "main", "-o", "%N %T %E")
            log = (self.base / "log/slurmctld.log").read_text()
            raise AssertionError(f"{error}:\n{states}{log[-3000:]}") from None

    def _end_jobs(self) -> None:
        for options in ([], ["--signal=KILL"]):
            left = {job.job_id for job in self.jobs() if not job.ended}
            if left:  # one of them may have ended
                command = ["scancel", "--quiet", *options, *left]
                subprocess.run(command, env=self.environment, timeout=30, capture_output=True)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.run("squeue", "-h"), "the end of all jobs", 40)

    def _has_slurmd(self, name: str) -> bool:
        for pid in self.node("pids", name).split():
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"slurmd\0"):
                    return True
        return False

    def _all_up(self) -> bool:
        # Some may be called "mixed" without a job: that is worked out again only if a node changes.
        states = {name: self.node_state(name) for name in self.nodes}
        for name, state in states.items():
            if state.startswith(("down", "drain")) and not state.endswith("*"):
                self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")
        return set(states.values()) <= {"idle", "mixed", "allocated"}

    def _script(self, name: str, *arguments: object, **knobs: str) -> str:
        log = self.base / "scripts.log"
        with log.open("ab") as errors:  # of the daemons' output nothing may hold a pipe open
            done = subprocess.run(
                [str(SCRIPTS / name), *map(str, arguments)],
                env=os.environ | knobs,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                timeout=120,
            )
        assert done.returncode == 0, f"{name} {arguments}: {log.read_text()[-2000:]}"
        return done.stdout


def until(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Wait until something is so; ``what`` it is, for the failure."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.2)


def marked(base: Path) -> list[int]:
    """Living processes that come from a job of the cluster under ``base``."""
    mark = f"{MARK}={base}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            inherited = (entry / "environ").read_bytes().split(b"\0")
            if mark in inherited and state not in "ZX" and not _is_slurms(entry):
                found.append(int(entry.name))
    return sorted(found)


def _is_slurms(entry: Path) -> bool:
    """Whether it is SLURM's own: a daemon that was started here, or a question to one."""
    name = (entry / "comm").read_text().strip()
    return name.startswith(("slurm", "squeue", "scontrol", "sinfo")) and name != "slurm_script"


def first_line(texts: Sequence[str], word: str) -> str:
    """The first line with a word in it."""
    return next(line for text in texts for line in text.splitlines() if word in line)
