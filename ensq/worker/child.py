"""The supervisor's side of its trainer child: start it, talk to it, tell how it ended.

Nothing here blocks: commands that the child does not read yet wait in a buffer, events are taken
as they come. The child stands in a session of its own with stop signals held back, so that
Ctrl-C or SLURM's signal reaches the supervisor only, which then asks the child to save.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from ensq.errors import EnsqError
from ensq.worker.devices import trainer_settings
from ensq.worker.protocol import Command, Event, Quit, Ready, decode_event, encode
from ensq.worker.signals import stop_signals_blocked

MAX_LINE = 64 * 2**20  # bytes of one event; more is a child gone mad, not a long message
_TAIL_BYTES = 16384

_WHY = {
    signal.SIGKILL: "often the system's out-of-memory killer",
    signal.SIGSEGV: "a segmentation fault",
    signal.SIGBUS: "a full disk or memory-mapped file gone",
    signal.SIGILL: "an instruction that this processor lacks",
    signal.SIGABRT: "an assertion in native code",
}


class TrainerNotStarted(EnsqError):
    """The trainer ended before it could take any work: no fault of the members."""


class ProtocolError(EnsqError):
    """The child said something that is no event."""


def describe_end(returncode: int) -> str:
    """How a process ended, from its return code: a signal told apart from an exit code."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        number = signal.Signals(-returncode)
    except ValueError:  # real-time signals have no names
        return f"was killed by signal {-returncode}"
    why = f": {_WHY[number]}" if number in _WHY else ""
    return f"was killed by signal {-returncode} ({number.name}{why})"


def child_environment(environment: Mapping[str, str], *, share: int = 1) -> dict[str, str]:
    """Environment of the trainer, from the worker's; what the user has set stays.

    The database's URL may hold a password, and the trainer has no business with it. ``share``:
    see ``ensq.worker.devices.trainer_settings``.
    """
    child = {key: value for key, value in environment.items() if not key.startswith("ENSQ_DB")}
    child.pop("ENSQ_PARENT_FD", None)
    child.setdefault("PYTHONUNBUFFERED", "1")  # the last lines before a crash are the ones we need
    child.setdefault("PYTHONFAULTHANDLER", "1")  # a segmentation fault leaves its stack in the log
    return child | trainer_settings(environment, share=share)


class TrainerChild:
    """A running trainer process.

    ``read_fd`` is readable when events (or the end) have come; ``write_fd`` is to be watched for
    writing while ``wants_write``.
    """

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        environment: Mapping[str, str],
        headline: Sequence[str] = (),
        passes: Sequence[int] = (),
    ) -> None:
        """``passes``: file descriptors that it gets besides its own."""
        self.environment = dict(environment)
        self.begin_log(log_path, headline)
        self.ready: Ready | None = None
        self.ended = False  # no more events will come
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self.read_fd, events_fd = os.pipe2(os.O_CLOEXEC)
        try:
            with log_path.open("ab") as log, stop_signals_blocked():
                self._process = subprocess.Popen(
                    [*command, "--events-fd", str(events_fd)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(events_fd, *passes),
                    start_new_session=True,
                    env=self.environment,
                    bufsize=0,
                )
        except BaseException:
            os.close(self.read_fd)
            raise
        finally:
            # The child's copy must be the only one, or its end would not be seen.
            os.close(events_fd)
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self._stdin.fileno(), False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def write_fd(self) -> int:
        return self._stdin.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._outgoing)

    def begin_log(self, log_path: Path, headline: Sequence[str]) -> None:
        """Make a log with these first lines; what the child says comes after them.

        A child that is there goes on to it when it is told to train. Raises OSError.
        """
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            log.write("".join(f"{line}\n" for line in headline).encode())
            self._log_start = log.tell()
        self.log_path = log_path

    def send(self, command: Command) -> None:
        """Queue a command and write what the pipe takes; call ``flush`` for the rest."""
        self._outgoing += encode(command)
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes now. A child that is gone is noticed where events are read."""
        while self._outgoing:
            try:
                written = os.write(self._stdin.fileno(), self._outgoing)
            except BlockingIOError:
                return
            except (BrokenPipeError, ValueError):
                self._outgoing.clear()
                return
            del self._outgoing[:written]

    def read_events(self) -> Iterator[Event]:
        """The events that have come; sets ``ended`` at the end. Raise ProtocolError on rubbish."""
        # Asked before reading: what a child wrote before it died is then surely in the pipe, even
        # if something that it started holds the pipe open and no end of file ever comes.
        gone = self._process.poll() is not None
        while not self.ended and len(self._incoming) <= MAX_LINE:
            try:
                data = os.read(self.read_fd, 2**16)
            except BlockingIOError:
                self.ended = gone
                break
            self.ended = not data
            self._incoming += data
        *lines, rest = bytes(self._incoming).split(b"\n")
        self._incoming = bytearray(rest)
        for line in lines:
            yield self._decode(line)
        if len(rest) > MAX_LINE:
            raise ProtocolError(f"the trainer sent a line of more than {MAX_LINE} bytes")

    def _decode(self, line: bytes) -> Event:
        try:
            event = decode_event(line)
        except msgspec.MsgspecError as error:
            raise ProtocolError(
                f"the trainer sent what is no event ({error}): {line[:200]!r}"
            ) from error
        if isinstance(event, Ready):
            self.ready = event
        return event

    def quit(self, patience: float) -> None:
        """Ask it to end, wait ``patience`` seconds, then kill it.

        Its input stays open meanwhile: the end of input means to drop everything at once.
        """
        self.send(Quit())
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
        self._close()

    def kill(self) -> int:
        """Kill it and all that it started, at once; return its return code."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._close()
        return code

    def dump(self, patience: float) -> int:
        """Have a child that hangs write the stacks of its threads into its log, and kill it."""
        with suppress(ProcessLookupError):
            # faulthandler writes them at once, whatever Python waits for.
            self._process.send_signal(signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        return self.kill()

    def reap(self, patience: float) -> int:
        """Return code of a child whose events have ended; it is killed if it lingers."""
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return self.kill()
        self._close()
        return code

    def _close_input(self) -> None:
        with suppress(OSError):
            self._stdin.close()

    def _close(self) -> None:
        self.ended = True
        self._close_input()
        if self.read_fd >= 0:
            os.close(self.read_fd)
            self.read_fd = -1

    def last_lines(self, count: int = 12) -> list[str]:
        """The last lines that this child wrote into its log, without control characters."""
        try:
            with self.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - _TAIL_BYTES))
                text = log.read(_TAIL_BYTES).decode(errors="replace")
        except OSError:
            return []
        lines = ("".join(c if c.isprintable() else " " for c in line) for line in text.splitlines())
        return [line.strip() for line in lines if line.strip()][-count:]
