"""What the trainers of several processes say to each other, and how: orders of the leading one.

The leading trainer makes every decision (what is trained, from where, how many steps, when to stop)
and says before each computation which one comes. The others do as it says, in that order, so that
all of them meet in the same exchanges between devices. A connection that breaks is the end of its
process, on either side: nobody waits for one that is gone.
"""

from __future__ import annotations

import os
import queue
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, NoReturn

import msgspec

from ensq.errors import EnsqError
from ensq.worker.meeting import Meeting, notice_silence
from ensq.worker.protocol import Message

Kind = Literal["mismatch", "data", "checkpoint", "exception", "memory", "disk"]
EXIT_ALONE = 4  # of a trainer that lost the others, or that leaves them to start anew
MAX_MESSAGE = 64 * 2**20  # bytes; states go beside the messages
_ANSWER = 5.0  # seconds for the rest of a message that has begun
CAUSE = 1.0  # seconds in which a process that is gone is seen: who met its absence is not to blame
_FAREWELL = 2.0  # seconds for the others to end first
_LENGTH = struct.Struct(">Q")


class Absent(EnsqError):
    """Not all processes came together."""


# What a follower says


class Join(Message, frozen=True):
    """First of all: who it is, and with what it computes."""

    token: str
    process: int  # 1 to P - 1
    host: str
    versions: dict[str, str]


class Done(Message, frozen=True):
    """Answer to an order that asks for one."""


class Trouble(Message, frozen=True):
    """It can't go on; ``kind`` as in ``MemberFailed``."""

    kind: Kind
    message: str


# What the leading trainer says


class Welcome(Message, frozen=True):
    """All are here: meet through JAX at this port of the leading process's host."""

    token: str
    port: int


class Log(Message, frozen=True):
    """The leading trainer's log of what comes now; a follower's lies beside it."""

    path: str


class Begin(Message, frozen=True):
    """Load the data and build the program; say ``Done``."""

    config: str
    run_folder: str
    data_path: str
    data_digest: str
    placement: str  # device or host: a follower's own memory does not decide


class Spread(Message, frozen=True):
    """The state of a pack; its bytes follow, leaf by leaf."""

    stage: int  # whose optimiser state it has
    leaves: tuple[tuple[str, tuple[int, ...]], ...]  # type and shape of each
    size: int  # bytes in all


class BeginStage(Message, frozen=True):
    epoch: int


class Compile(Message, frozen=True):
    """Say ``Done``: the slowest may take minutes, and no exchange must wait that long."""

    epoch: int


class Steps(Message, frozen=True):
    epoch: int
    start: int
    stop: int


class Validate(Message, frozen=True):
    pass


class KeepBest(Message, frozen=True):
    improved: tuple[bool, ...]  # by member


class Fetch(Message, frozen=True):
    """Help to bring these parts of the state together."""

    fields: tuple[str, ...]


Order = Log | Begin | Spread | BeginStage | Compile | Steps | Validate | KeepBest | Fetch

_encoder = msgspec.json.Encoder()
_joins = msgspec.json.Decoder(Join)
_answers = msgspec.json.Decoder(Done | Trouble)
_welcomes = msgspec.json.Decoder(Welcome)
_orders = msgspec.json.Decoder(Order)


def _send(connection: socket.socket, message: Message, payload: bytes = b"") -> None:
    text = _encoder.encode(message)
    connection.sendall(_LENGTH.pack(len(text)) + text)
    if payload:
        connection.sendall(payload)


def _exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes. Raises OSError if the connection ends before."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise ConnectionResetError("the other end is gone")
        view = view[count:]
    return bytes(data)


def _message(connection: socket.socket) -> bytes:
    """One message, undecoded. Raises OSError, or ValueError for what is none."""
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if size > MAX_MESSAGE:
        raise ValueError(f"a message of {size} bytes")
    return _exactly(connection, size)


class Company:
    """The leading trainer's connections to all others.

    ``on_trouble(kind, message)`` is called, from a thread, when a follower can't go on; the process
    ends then, as it does when a follower is gone.
    """

    def __init__(self, members: dict[int, tuple[socket.socket, str]]) -> None:
        """``members``: connection and host of each process that joined."""
        self._members = members
        self._here = set(members)
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._leaving = False
        self.on_trouble: Callable[[Kind, str], None] = lambda kind, message: None

    def welcome(self, meeting: Meeting, port: int) -> None:
        """Tell everyone where JAX's coordinator will be, and mind from now on who is gone."""
        for connection, _ in self._members.values():
            _send(connection, Welcome(token=meeting.token("leader"), port=port))
        for process in self._members:
            threading.Thread(
                target=self._hear, args=(process,), daemon=True, name=f"process {process}"
            ).start()

    def order(self, order: Order, payload: bytes = b"") -> None:
        """Say what comes next."""
        for connection, _ in self._members.values():
            _send(connection, order, payload)

    def wait_done(self) -> None:
        """Wait until each has carried out the last order, which asks for an answer."""
        for _ in self._members:
            self._done.get()

    def leave(self) -> None:
        """Send the others away, who end first."""
        self._leaving = True
        end = time.monotonic() + _FAREWELL
        for connection, _ in self._members.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        while self._here and time.monotonic() < end:
            time.sleep(0.02)

    def _hear(self, process: int) -> None:
        connection, host = self._members[process]
        try:
            while isinstance(answer := _answers.decode(_message(connection)), Done):
                self._done.put(process)
            self.on_trouble(answer.kind, f"process {process} on {host}: {answer.message}")
            _end(f"process {process} on {host} can't go on: {answer.message}")
        except (OSError, ValueError) as error:
            if not self._leaving:
                _end(f"process {process} on {host} is gone ({error}), and so is this training")
            self._here.discard(process)
        finally:
            connection.close()


def _end(text: str) -> NoReturn:
    """End this process: it may be in an exchange that will never be answered."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
    os._exit(EXIT_ALONE)


def gather(
    listener: socket.socket, meeting: Meeting, versions: dict[str, str], patience: float
) -> Company:
    """Wait for all followers. Raises Absent if they don't come, or compute with something else."""
    end = time.monotonic() + patience
    joined: dict[socket.socket, Join] = {}
    strangers: set[socket.socket] = set()  # that have said nothing yet
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        try:
            while True:
                missing = set(range(1, meeting.processes)) - {j.process for j in joined.values()}
                left = max(0.0, end - time.monotonic())
                # When all are here, a last look: one may have died since.
                found = [key.fileobj for key, _ in selector.select(left if missing else 0)]
                if not found and not missing:
                    break
                if not left:
                    names = ", ".join(map(str, sorted(missing)))
                    raise Absent(f"no word of process {names} within {patience:.0f} s")
                for one in found:
                    assert isinstance(one, socket.socket)
                    if one is listener:
                        _accept(listener, selector, strangers)
                    else:
                        _hear_newcomer(one, selector, meeting, versions, joined)
                    strangers -= joined.keys()
        except BaseException:
            strangers |= joined.keys()
            raise
        finally:
            for one in strangers:
                one.close()
    for one in joined:
        one.settimeout(None)
    return Company({join.process: (one, join.host) for one, join in joined.items()})


def _accept(
    listener: socket.socket, selector: selectors.BaseSelector, strangers: set[socket.socket]
) -> None:
    with suppress(OSError):  # it has gone meanwhile
        made, _ = listener.accept()
        notice_silence(made)
        made.settimeout(_ANSWER)
        selector.register(made, selectors.EVENT_READ)
        strangers.add(made)


def _hear_newcomer(
    connection: socket.socket,
    selector: selectors.BaseSelector,
    meeting: Meeting,
    versions: dict[str, str],
    joined: dict[socket.socket, Join],
) -> None:
    """Let one join that was meant to; who has joined says nothing more unless it is gone."""
    join = None if joined.pop(connection, None) else _joined(connection, meeting)
    if join is None or any(join.process == other.process for other in joined.values()):
        selector.unregister(connection)
        connection.close()
        return
    if join.versions != versions:
        raise Absent(_differences(join, versions))
    joined[connection] = join


def _joined(connection: socket.socket, meeting: Meeting) -> Join | None:
    """What a newcomer says; None if it isn't one of this step's processes."""
    try:
        join = _joins.decode(_message(connection))
    except (OSError, ValueError):
        return None
    expected = join.token == meeting.token("follower")
    return join if expected and 0 < join.process < meeting.processes else None


def _differences(join: Join, versions: dict[str, str]) -> str:
    different = [
        f"{name} {join.versions.get(name, 'none')} instead of {text}"
        for name, text in versions.items()
        if join.versions.get(name) != text
    ]
    return (
        f"process {join.process} on {join.host} has {', '.join(different)}: all processes need the "
        "same environment"
    )


class Lead:
    """A follower's connection to the leading trainer."""

    def __init__(self, connection: socket.socket, meeting: Meeting) -> None:
        self._connection, self._meeting = connection, meeting
        self._orders: queue.SimpleQueue[tuple[Order, bytes]] = queue.SimpleQueue()
        self._welcome: queue.SimpleQueue[Welcome] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True, name="orders").start()

    def join(self, process: int, versions: dict[str, str]) -> str:
        """Say who this is, and wait until all are here. The address of JAX's coordinator."""
        token, host = self._meeting.token("follower"), socket.gethostname()
        _send(self._connection, Join(token=token, process=process, host=host, versions=versions))
        welcome, address = self._welcome.get(), self._connection.getpeername()[0]
        return f"[{address}]:{welcome.port}" if ":" in address else f"{address}:{welcome.port}"

    def next(self) -> tuple[Order, bytes]:
        return self._orders.get()

    def done(self) -> None:
        _send(self._connection, Done())

    def trouble(self, kind: Kind, message: str) -> None:
        _send(self._connection, Trouble(kind=kind, message=message))

    def _listen(self) -> None:
        """From the first moment, so that the end of the leading trainer is seen at once."""
        try:
            welcome = _welcomes.decode(_message(self._connection))
            if welcome.token != self._meeting.token("leader"):
                raise ValueError("a stranger answered at task 0's port")
            self._welcome.put(welcome)
            while True:
                order = _orders.decode(_message(self._connection))
                size = order.size if isinstance(order, Spread) else 0
                self._orders.put((order, _exactly(self._connection, size)))
        except (OSError, ValueError) as error:
            _end(f"the leading trainer is gone: {error}")
        finally:
            self._connection.close()
