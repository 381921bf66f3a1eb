"""A trainer process that follows another one, on another node: it computes what that one says.

It writes nothing but its log. When the leading trainer is gone, or its own parent, it ends.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from ensq.train.channel import CAUSE, EXIT_ALONE, Lead
from ensq.train.child import kind_of, leave_traces
from ensq.worker.meeting import Meeting, read_meeting

_HEARD = 10.0  # seconds for the leading trainer to hear of trouble, and end


def _end_with_parent() -> None:
    """Wait for the end of the standard input."""
    while os.read(0, 512):
        pass
    os._exit(EXIT_ALONE)


def follow(lead: Lead, meeting: Meeting, process: int) -> NoReturn:
    """Follow until something fails, which is raised."""
    from ensq.train import environment
    from ensq.train.gathering import meet

    meet(lead.join(process, environment.versions()), meeting.processes, process)
    from ensq.train.following import Follower

    follower = Follower(lead, process)
    while True:
        follower.obey()


def main() -> NoReturn:
    """Follow until the leading trainer is gone."""
    leave_traces()
    parser = argparse.ArgumentParser()
    parser.add_argument("--meeting", type=Path, required=True)
    parser.add_argument("--process", type=int, required=True)
    parser.add_argument("--connection", type=int, required=True)
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()
    meeting = read_meeting(arguments.meeting)
    if meeting is None:
        os._exit(EXIT_ALONE)
    lead = Lead(socket.socket(fileno=arguments.connection), meeting)
    try:
        follow(lead, meeting, arguments.process)
    except Exception as error:
        with suppress(OSError):  # the log may lie on a disk that is full
            traceback.print_exc()
        time.sleep(CAUSE)
        text = " ".join(str(error).split())[:500] or type(error).__name__
        with suppress(OSError):
            lead.trouble(kind_of(error), text)
        time.sleep(_HEARD)
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(EXIT_ALONE)


if __name__ == "__main__":
    main()
