"""`ensq worker` as it is, but with the fake trainer: see fake_trainer.py.

With ENSQ_TEST_UNFENCED nothing protects a member from a worker that it no longer belongs to.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from worker_tools import TRAINER

from ensq.cli import main
from ensq.worker import supervisor
from ensq.worker.options import WorkerOptions

run_worker = supervisor.run_worker


def run(options: WorkerOptions) -> int:
    return run_worker(replace(options, trainer=TRAINER, poll_seconds=0.5))


def unfence() -> None:
    from ensq.schema import jobs
    from ensq.store import Renewal, Store, fences

    fences.held = lambda claim: jobs.c.id == claim.job_id
    Store.renew = lambda store, held, *rest, **more: Renewal(held, frozenset(), False)  # type: ignore[method-assign]


if __name__ == "__main__":
    supervisor.run_worker = run
    if os.environ.get("ENSQ_TEST_UNFENCED"):
        unfence()
    sys.argv[0] = "ensq"
    main()
