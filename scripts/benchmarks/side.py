"""One side of a pair as a process of its own, and the handle on it.

A side holds compiled programs and does as much of its work as it is told, so that two sides can
take turns for short times. Each has the environment in which it is used, a crash or a hang of one
takes nothing else along, and the process that measures never loads JAX.

Run as ``python -m benchmarks.side``; commands and answers are lines of JSON.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.run import python

END = 20.0  # seconds for a process to end by itself


class SideError(RuntimeError):
    """A side failed, or took longer than there was time."""


class Side:
    """A running side; ``close`` ends its process."""

    def __init__(
        self, kind: str, environment: Mapping[str, str], log: Path, deadline: float, **spec: Any
    ) -> None:
        self.kind, self.log, self.deadline = kind, log, deadline
        self._rest = b""
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [python(), "-m", "benchmarks.side"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=dict(environment),
                # as a worker's trainer: Linux shares a busy machine between sessions
                start_new_session=True,
            )
        try:
            self.about = self.ask("begin", kind=kind, **spec)
        except BaseException:
            self.close()
            raise

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something and wait for the answer. Raises SideError."""
        assert self._process.stdin is not None
        line = json.dumps({"op": op, **arguments}).encode() + b"\n"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SideError(f"{self.kind} has ended: {self._last_words()}") from None
        answer: dict[str, Any] = json.loads(self._line(op))
        if "error" in answer:
            raise SideError(f"{self.kind}, {op}: {answer['error']}")
        return answer

    def seconds(self, op: str, **arguments: Any) -> float:
        """The wall time of something."""
        return float(self.ask(op, **arguments)["seconds"])

    def _line(self, op: str) -> bytes:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            left = self.deadline - time.monotonic()
            wait = None if left == float("inf") else max(0.0, left)
            if not select.select([pipe], [], [], wait)[0]:
                raise SideError(f"{self.kind}, {op}: no time left for this row")
            data = os.read(pipe, 65536)
            if not data:
                self._process.wait()
                raise SideError(
                    f"{self.kind}, {op}: ended with {self._process.returncode}: "
                    f"{self._last_words()}"
                )
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def close(self) -> None:
        """End it: by itself if there is time, for it may hold a GPU's memory."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):  # it may be gone, with something left to write to it
            self._process.stdin.close()
        if time.monotonic() < self.deadline:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class Meter:
    """Something that a side does ``count`` times when it is called; the seconds of one time."""

    def __init__(self, side: Side, op: str, count: int, **arguments: Any) -> None:
        self.side, self.op, self.count, self.arguments = side, op, count, arguments
        self.wall: list[float] = []
        self.cpu: list[float] = []  # processor time of all its threads

    def __call__(self) -> float:
        answer = self.side.ask(self.op, count=self.count, **self.arguments)
        self.wall.append(answer["seconds"] / self.count)
        self.cpu.append(answer["cpu_seconds"] / self.count)
        return self.wall[-1]

    @property
    def cpu_seconds(self) -> float:
        return statistics.median(self.cpu)


def _serve() -> None:
    """The process: answers on what was its standard output, which libraries print to."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    side: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        op = command.pop("op")
        try:
            if op == "begin":
                side, answer = _begin(**command)
            else:
                used = time.process_time()
                answer = getattr(side, op)(**command)
                # other load on the machine changes this little
                answer["cpu_seconds"] = time.process_time() - used
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _begin(kind: str, **spec: Any) -> tuple[Any, dict[str, Any]]:
    if kind == "ensq":
        from benchmarks.members import Members as Kind
    elif kind == "chemtrain":
        from benchmarks.forcematching import Singles as Kind
    else:
        raise ValueError(f"no side {kind!r}")
    side = Kind(**spec)
    import jax

    from ensq.train import environment

    return side, {
        "device": environment.device(),
        "kind": jax.default_backend(),
        "versions": environment.versions(),
        **side.about,
    }


if __name__ == "__main__":
    _serve()
