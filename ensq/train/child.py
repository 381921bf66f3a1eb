"""The trainer process: hears commands on its standard input, trains packs, tells events.

It holds JAX; the supervisor, its parent, holds the queue. When the input closes, the supervisor is
gone, and the process ends at once: what it still could write is of no attempt any more.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import queue
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ensq import config as configuration
from ensq import faults
from ensq.errors import CheckpointError, ConfigError, DataError, DiskError, EnsqError, MismatchError
from ensq.rundir import DISK_ERRORS, RunDir
from ensq.train import channel
from ensq.train.channel import Company, Kind
from ensq.worker import protocol

if TYPE_CHECKING:
    from ensq.config import RunConfig
    from ensq.train.dataset import Dataset
    from ensq.train.pack import Program

EXIT_ORPHANED = 3
_Work = protocol.Train | protocol.Prepare | protocol.Probe | protocol.Quit


class Line:
    """Both ends of the conversation with the supervisor."""

    def __init__(self, events_fd: int) -> None:
        self._events_fd = events_fd
        self._sending = threading.Lock()  # two threads speak: a message must stay in one piece
        self._commands: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._dropped: frozenset[int] = frozenset()
        self._finishing: dict[int, str] = {}
        threading.Thread(target=self._listen, daemon=True, name="commands").start()

    def _listen(self) -> None:
        for line in sys.stdin.buffer:
            try:
                command = protocol.decode_command(line)
            except ValueError:
                traceback.print_exc()
                break  # a trainer that is deaf to its supervisor must not go on
            if isinstance(command, protocol.Stop):
                self._stop.set()
            elif isinstance(command, protocol.Drop):
                self._dropped = self._dropped | set(command.job_ids)
            elif isinstance(command, protocol.Finish):
                stopped = dict.fromkeys(command.job_ids, command.rule)
                self._finishing = self._finishing | stopped
            else:
                self._commands.put(command)
        os._exit(EXIT_ORPHANED)

    def next(self) -> _Work:
        """Wait for work."""
        return self._commands.get()

    def begin(self) -> None:
        """Forget what was said about the pack before."""
        self._dropped = frozenset()
        self._finishing = {}

    def stop_wanted(self) -> bool:
        return self._stop.is_set()

    def dropped(self) -> frozenset[int]:
        return self._dropped

    def finishing(self) -> Mapping[int, str]:
        return self._finishing

    def send(self, message: protocol.Message) -> None:
        data = protocol.encode(message)
        with self._sending:
            while data:
                data = data[os.write(self._events_fd, data) :]


class Workshop:
    """Keeps the last program, so that the next members of an ensemble need no compilation."""

    def __init__(self, line: Line, company: Company | None = None) -> None:
        """``company``: other processes that train with this one."""
        self._line = line
        self._company = company
        self._members: tuple[protocol.MemberTask, ...] = ()  # in training
        if company is not None:
            company.on_trouble = self._fail
        self._key: tuple[str, str] | None = None
        self._trainer: object | None = None

    def train(self, command: protocol.Train) -> None:
        """Train one pack; an exception fails its members, not the process."""
        from ensq.train.trainer import Trainer

        kind: Kind | None = None
        self._members = command.members
        try:
            if self._company is not None and command.log:
                self._company.order(channel.Log(path=command.log))
            trainer = self._trainer_for(command)
            assert isinstance(trainer, Trainer)
            trainer.train(command.members, self._line, command.plateau)
        except Exception as error:
            with suppress(OSError):  # the log may lie on the very disk that is full
                traceback.print_exc()
            kind, message = kind_of(error), " ".join(str(error).split())[:500]
            message = message or type(error).__name__
        if kind is None:
            return
        if self._company is not None:
            # Where another process is gone, that is the reason; it ends this one, too.
            time.sleep(channel.CAUSE)
            self._fail(kind, message)
            # The others may be in an exchange that this one has left: all begin anew.
            os._exit(channel.EXIT_ALONE)
        if kind in ("memory", "exception"):
            self._drop()  # now that no traceback holds its arrays any more
        self._fail(kind, message)

    def _fail(self, kind: Kind, message: str) -> None:
        for member in self._members:
            self._line.send(protocol.MemberFailed(job_id=member.job_id, kind=kind, message=message))

    def prepare(self, command: protocol.Prepare) -> None:
        """Build what the next pack is trained with; what goes wrong here will do so there."""
        from ensq.train.probe import shape_of
        from ensq.train.trainer import Trainer

        shape = None
        try:
            trainer = self._trainer_for(command)
            assert isinstance(trainer, Trainer)
            shape = shape_of(trainer.program.dataset)
        except Exception:
            with suppress(OSError):
                traceback.print_exc()
        self._line.send(protocol.Prepared(shape=shape))

    def probe(self, command: protocol.Probe) -> None:
        """Measure packs of the program that was prepared."""
        from ensq.train import environment, probe
        from ensq.train.trainer import Trainer

        size, error = 1, None
        rows: tuple[protocol.Measured, ...] = ()
        try:
            assert isinstance(self._trainer, Trainer)
            measuring = probe.Measuring(self._trainer.program, self._say)
            size, rows = probe.search(
                measuring.measure,
                most=command.most,
                limit=environment.memory()[1],
            )
        except Exception as why:
            with suppress(OSError):
                traceback.print_exc()
            error = " ".join(f"{type(why).__name__}: {why}".split())[:500]
        if error is not None:
            self._drop()
        self._line.send(protocol.Probed(size=size, rows=rows, error=error))

    def _say(self, text: str) -> None:
        self._line.send(protocol.Phase(text=text))

    def _drop(self) -> None:
        """Forget the program and give its memory back: who knows what state it is in."""
        import jax

        self._key = self._trainer = None
        gc.collect()
        jax.clear_caches()

    def _trainer_for(self, command: protocol.Train | protocol.Prepare) -> object:
        from ensq.train.trainer import Trainer

        key = (command.config, command.data_digest)
        if key != self._key:
            self._key = self._trainer = None  # before the next one needs its memory
            config = configuration.loads(command.config)
            program = self._program(config, load(config, command, self._say), command)
            self._trainer = Trainer(program, config, command.data_digest)
            self._key = key
        return self._trainer

    def _program(
        self, config: RunConfig, dataset: Dataset, command: protocol.Train | protocol.Prepare
    ) -> Program:
        from ensq.train.pack import Program

        if self._company is None:
            return Program(config, dataset)
        from ensq.train.leading import LeadingProgram

        self._company.order(
            channel.Begin(
                config=command.config,
                run_folder=command.run_folder,
                data_path=command.data_path,
                data_digest=command.data_digest,
                placement="device" if dataset.hosted is None else "host",
            )
        )
        self._company.wait_done()
        return LeadingProgram(config, dataset, self._company)


def load(
    config: RunConfig,
    order: protocol.Train | protocol.Prepare | channel.Begin,
    say: Callable[[str], None],
) -> Dataset:
    """Set JAX up for a configuration, and prepare its data. Raises what ``prepare`` does."""
    from ensq.train import environment
    from ensq.train.dataset import prepare

    folder = Path(order.run_folder)
    environment.set_precision(config.training.precision)
    environment.use_compile_cache(RunDir(folder).compile_cache)
    return prepare(Path(order.data_path), order.data_digest, config, say, folder)


def kind_of(error: Exception) -> Kind:
    """How the supervisor should see an exception."""
    if isinstance(error, MismatchError):
        return "mismatch"
    from ensq.train.environment import is_out_of_memory

    # A library or a reader of ours may have wrapped what the system said.
    causes = [error, error.__cause__]
    if any(is_out_of_memory(one) for one in causes):
        return "memory"
    if any(isinstance(one, DiskError) or _is_the_disk(one) for one in causes):
        return "disk"
    if isinstance(error, DataError | ConfigError):
        return "data"
    return "checkpoint" if isinstance(error, CheckpointError) else "exception"


def _is_the_disk(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def turn_to_log(path: str) -> None:
    """Send output, that of native code and of crashes too, to this file; its first lines."""
    from ensq.train import environment

    with suppress(OSError):  # the file before is as good
        sys.stdout.flush()
        sys.stderr.flush()
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            os.dup2(log, 1)
            os.dup2(log, 2)
        finally:
            os.close(log)
    with suppress(OSError):
        print(environment.devices_in_words(), flush=True)
        versions = environment.versions().items()
        print(", ".join(f"{name} {text}" for name, text in versions), flush=True)


def leave_traces() -> None:
    """On a fatal signal, SIGABRT among them, write the stacks of all threads; leave no core file.

    The supervisor aborts a trainer that hangs, to see where. A core file is as large as the
    memory, and would fill the folder of a run on every crash.
    """
    faulthandler.enable(all_threads=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def gathered(meeting: Path | None, listener: int) -> Company | None:
    """The other processes that train with this one, once they are there; None if it is alone."""
    if meeting is None:
        return None
    from ensq.train.gathering import lead

    try:
        return lead(meeting, listener)
    except Exception as error:
        if not isinstance(error, EnsqError):
            traceback.print_exc()
        print(f"the processes did not come together: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--meeting", type=Path)  # where other processes find this one …
    parser.add_argument("--listener", type=int)  # … and the socket at which they do
    return parser.parse_args()


def main() -> NoReturn:
    """Serve commands until told to quit or until the supervisor is gone."""
    leave_traces()
    arguments = _arguments()
    line = Line(arguments.events_fd)
    from ensq.train import environment

    faults.point("trainer.imported")
    company = gathered(arguments.meeting, arguments.listener)
    line.send(
        protocol.Ready(
            pid=os.getpid(),
            device=environment.device(),
            platform=environment.platform(),
            memory=environment.memory()[1],
            versions=environment.versions(),
        )
    )
    faults.point("trainer.ready")
    workshop = Workshop(line, company)
    while not isinstance(command := line.next(), protocol.Quit):
        if not isinstance(command, protocol.Probe) and command.log:
            turn_to_log(command.log)
        match command:
            case protocol.Train():
                line.begin()
                workshop.train(command)
                line.send(protocol.TrainEnded())
            case protocol.Prepare():
                workshop.prepare(command)
            case protocol.Probe():
                workshop.probe(command)
    if company is not None:
        company.leave()
    # The thread that reads the input can't be woken, and Python's own way out trips over it.
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
