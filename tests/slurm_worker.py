"""`ensq worker` as it is, but with the fake trainer: see fake_trainer.py.

What it says goes to a file in the working folder as well: of a job that SLURM has given up, srun
passes nothing on any more.
With ENSQ_TEST_DEAF it hears no SIGTERM, like one that hangs in a system call; with
ENSQ_TEST_UNFENCED nothing protects a member from a worker that it no longer belongs to.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

from worker_tools import TRAINER

from ensq.cli import main
from ensq.worker import supervisor
from ensq.worker.options import WorkerOptions

run_worker = supervisor.run_worker


def run(options: WorkerOptions) -> int:
    with Path(f"worker-{socket.gethostname()}-{os.getpid()}.said").open("a", buffering=1) as file:

        def log(text: str) -> None:
            print(text, file=file)
            options.log(text)

        return run_worker(replace(options, trainer=TRAINER, poll_seconds=0.5, log=log))


def unfence() -> None:
    from ensq.schema import jobs
    from ensq.store import Renewal, Store, fences

    fences.held = lambda claim: jobs.c.id == claim.job_id
    Store.renew = lambda store, held, *rest, **more: Renewal(held, frozenset(), False)  # type: ignore[method-assign]


if __name__ == "__main__":
    supervisor.run_worker = run
    if os.environ.get("ENSQ_TEST_DEAF"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if os.environ.get("ENSQ_TEST_UNFENCED"):
        unfence()
    sys.argv[0] = "ensq"
    main()
