"""Where the processes of one training find each other: a file that names a port, and a secret.

Task 0 of the step listens from its first moment to its last and never answers itself: its
trainers, one after another, do, through the same port. A connection that no trainer has taken up
yet waits in the kernel, and breaks when task 0 is gone, however it went. So a follower need ask
nobody whether task 0 still lives, and nobody has to tell it.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from ensq.rundir import disk_errors, write_atomic
from ensq.slurm import SlurmTask

_CONNECT = 5.0  # seconds for one address
# A host that is cut off says nothing: after so many seconds it counts as gone.
_IDLE, _INTERVAL, _PROBES = 10, 5, 4
_SILENCE = 1000 * (_IDLE + _INTERVAL * _PROBES)  # milliseconds
_NOWHERE = ("192.0.2.1", 9)  # an address of no host (RFC 5737); nothing is sent to it


class Meeting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file says; only its owner can read it."""

    hosts: tuple[str, ...]  # names and addresses of task 0's host, to be tried in turn
    port: int
    secret: str  # tells the processes of this step from all others that may know the port
    processes: int

    def token(self, role: Literal["leader", "follower"]) -> str:
        """What shows that one was meant to be here."""
        return hashlib.sha256(f"{self.secret} {role}".encode()).hexdigest()


def meeting_file(root: Path, task: SlurmTask) -> Path:
    """The file of a step; ``root`` is the folder that run folders lie in. A step that was requeued
    has the number of its restarts in the name, so that it can't read what the one before wrote."""
    parts = (task.cluster or "cluster", task.job_id, task.step_id or "0", str(task.restarts))
    return root / f".ensq-step-{'-'.join(parts).replace('/', '_')}"


@contextmanager
def open_meeting(path: Path, processes: int) -> Iterator[socket.socket]:
    """Listen, and tell of it in the file, until the end of the block. Raises DiskError, OSError."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    backlog = processes + 64  # those of processes that were killed wait there, too
    with socket.create_server(
        ("", 0), family=family, backlog=backlog, dualstack_ipv6=both
    ) as listener:
        found = Meeting(
            hosts=_own_hosts(),
            port=listener.getsockname()[1],
            secret=secrets.token_hex(16),
            processes=processes,
        )
        write_atomic(path, msgspec.json.encode(found), private=True)
        try:
            yield listener
        finally:
            with suppress(OSError):
                path.unlink()


def _own_hosts() -> tuple[str, ...]:
    """What this host may be reached by: its name, its addresses, that of the route outside."""
    name = socket.gethostname()
    addresses: list[str] = []
    with suppress(OSError):
        addresses += [str(one[4][0]) for one in socket.getaddrinfo(name, None)]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_NOWHERE)
        addresses.append(probe.getsockname()[0])
    outside = [one for one in addresses if not one.startswith("127.") and one != "::1"]
    return tuple(dict.fromkeys([name, *(outside or ["127.0.0.1"])]))


def read_meeting(path: Path) -> Meeting | None:
    """What the file says; None if there is none that is whole. Raises DiskError, OSError."""
    try:
        with disk_errors(path, "read"):
            return msgspec.json.decode(path.read_bytes(), type=Meeting)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def connect(meeting: Meeting) -> socket.socket:
    """A connection to task 0. Raises ConnectionRefusedError if nobody listens there any more, or
    another OSError if it can't be reached."""
    errors: list[OSError] = []
    for host in meeting.hosts:
        try:
            made = socket.create_connection((host, meeting.port), timeout=_CONNECT)
        except OSError as error:
            errors.append(error)
            continue
        made.settimeout(None)
        notice_silence(made)
        return made
    refused = (one for one in errors if isinstance(one, ConnectionRefusedError))
    raise next(refused, errors[-1])


def notice_silence(connection: socket.socket) -> None:
    """Have a connection break when the host at its other end is gone without a word."""
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ):
        connection.setsockopt(level, option, value)
