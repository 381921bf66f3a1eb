"""One worker that is several processes of a SLURM step: `srun -n P ensq worker --processes P`.

Task 0 is the worker: it claims, supervises and records, and its trainer leads. The others follow:
they open no database and write no result; each has a trainer that computes what the leading one
says, and another one for each that task 0 starts. They end when task 0 is gone.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ensq import slurm
from ensq.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError
from ensq.store.target import Target
from ensq.worker.child import child_environment, describe_end
from ensq.worker.headline import headline
from ensq.worker.meeting import Meeting, connect, meeting_file, open_meeting, read_meeting
from ensq.worker.options import WorkerOptions
from ensq.worker.signals import StopSignals, stop_signals_blocked
from ensq.worker.supervisor import run_worker

FOLLOWER = (sys.executable, "-m", "ensq.train.follower")
_PATIENCE = 120.0  # seconds for task 0 to show up, and for its file to be seen on this node
_UNREACHABLE = 30.0  # seconds after which task 0's host, which did not refuse, counts as gone
_AGAIN = 0.5  # seconds between tries


def run_processes(options: WorkerOptions, processes: int) -> int:
    """Be one of the processes of a worker; return the exit code, of a follower 0 or 75.

    A follower returns 75 if task 0 did not show up. Main thread only, as ``run_worker``.

    Raises UsageError unless this is a task of a SLURM step of that many, and what ``run_worker``
    raises.
    """
    task, number = _place(processes, os.environ)
    path = meeting_file(Target.parse(options.url).root, task)
    if number > 0:
        with StopSignals(for_good=True) as signals:
            return Follower(options, path, number, signals).run()
    with open_meeting(path, processes) as listener:
        handle = listener.fileno()
        trainer = (*options.trainer, "--meeting", str(path), "--listener", str(handle))
        return run_worker(replace(options, trainer=trainer, passes=(handle,)))


def _place(processes: int, environment: Mapping[str, str]) -> tuple[slurm.SlurmTask, int]:
    """This process's task, and its number in the step."""
    task = slurm.task_from_environment(environment)
    count = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or ""
    if task is None or not (task.proc_id or "").isdecimal():
        raise UsageError(
            f"--processes {processes} is for tasks of a SLURM step: start it by "
            f"`srun --ntasks={processes} ensq worker --processes {processes}` in a job"
        )
    if count != str(processes):
        raise UsageError(
            f"--processes {processes}, but this step has {count or 'an unknown number of'} tasks: "
            f"`srun --ntasks={processes}` and --processes must say the same"
        )
    return task, int(task.proc_id or "")


class Follower:
    """A task other than the first: sees to it that there is a trainer that follows."""

    def __init__(
        self, options: WorkerOptions, path: Path, number: int, signals: StopSignals
    ) -> None:
        """``signals`` reach all tasks of a step; it is task 0 that decides what comes of them."""
        self._options, self._path, self._number = options, path, number
        self._signals = signals

    def run(self) -> int:
        environment = child_environment(os.environ, share=self._options.share)
        for line in headline(environment, f"process {self._number}, which follows task 0"):
            self._log(line)
        meeting = self._find()
        if meeting is None:
            return EXIT_INTERRUPTED
        self._log(f"follows task 0 on {meeting.hosts[0]}")
        while (connection := self._connect(meeting)) is not None:
            with connection:
                code = self._serve(connection, environment)
            self._log(f"the trainer that followed {describe_end(code)}")
            time.sleep(_AGAIN)  # task 0, if it is ending, takes as long to close its port
        self._log("task 0 is gone, and so is this process")
        return EXIT_OK

    def _log(self, text: str) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._options.log(f"{now} process {self._number}: {text}")

    def _find(self) -> Meeting | None:
        """Wait for task 0's file; None if it did not come."""
        end = time.monotonic() + _PATIENCE
        while (found := read_meeting(self._path)) is None or not _listens(found):
            if self._signals.name is not None or time.monotonic() > end:
                why = self._signals.name or f"it did not within {_PATIENCE:.0f} s"
                self._log(f"task 0 was to say in {self._path} where it listens: {why}")
                return None
            time.sleep(_AGAIN)
        return found

    def _connect(self, meeting: Meeting) -> socket.socket | None:
        """A connection to task 0; None once it is gone."""
        end = time.monotonic() + _UNREACHABLE
        while True:
            try:
                return connect(meeting)
            except ConnectionRefusedError:
                return None
            except OSError as error:
                if time.monotonic() > end:
                    self._log(f"task 0 can't be reached: {error}")
                    return None
            time.sleep(_AGAIN)

    def _serve(self, connection: socket.socket, environment: Mapping[str, str]) -> int:
        """Run a trainer that follows through this connection; its return code.

        It stands in a session of its own, as the leading one does, and ends when its input closes.
        """
        handle = connection.fileno()
        arguments = ("--meeting", self._path, "--process", self._number, "--connection", handle)
        with stop_signals_blocked():
            process = subprocess.Popen(
                [*FOLLOWER, *map(str, arguments)],
                stdin=subprocess.PIPE,
                pass_fds=(handle,),
                start_new_session=True,
                env=dict(environment),
            )
        connection.close()  # the trainer's copy is the only one, so that its end is seen
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.kill()
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()


def _listens(meeting: Meeting) -> bool:
    """Whether task 0 is there; a file may be left of one that was killed."""
    try:
        connect(meeting).close()
    except OSError:
        return False
    return True
