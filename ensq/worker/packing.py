"""``--pack auto``: how many members train together, and which ones join the first.

The worker claims one member alone. Its trainer says what it computes on: a CPU has nothing to gain
from a pack (one thread does all of it, and several workers serve the cores better). On an
accelerator the best size is known of an earlier probe, or the trainer measures it now, while the
member waits. Then others at the same place are claimed beside it, and all train as one pack.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ensq.jobs import Claim, Job, Probe, ProbeKey, ProbeRow
from ensq.progress import printable
from ensq.rundir import sha256
from ensq.store import Store
from ensq.worker import protocol as say
from ensq.worker.options import WorkerOptions

T = TypeVar("T")
_GIB = 2**30
# What the cost of a step depends on, besides the model and the data.
_OF_TRAINING = ("batch_per_device", "micro_batch", "precision", "gammas", "ema_decay")


class Reach(Protocol):
    """Does something with the queue, and waits while it is away; see ``patience``."""

    def __call__(self, what: Callable[[], T]) -> T: ...


class Joining:
    """What the queue knows of a first member, and of those that may join it."""

    def __init__(
        self,
        *,
        store: Store,
        reach: Reach,
        job: Job,
        worker_id: str,
        options: WorkerOptions,
        room: int,
        log_path: str,
        may_probe: bool = True,
    ) -> None:
        """``room``: how many may join at most; ``log_path``: of the claim."""
        self._store, self._reach = store, reach
        self._ensemble_id = job.ensemble_id
        self._claim = Claim(job_id=job.id, attempt=job.attempt, owner=worker_id)
        self._lease = options.lease_seconds
        self._room = room
        self._log_path = log_path
        self.worker_id = worker_id
        self.may_probe = may_probe

    def could_join(self) -> int:
        """How many members may join now."""
        return min(self._room, self._reach(lambda: self._store.could_join(self._claim)))

    def members(self) -> int:
        """How many members the ensemble has."""
        return len(self._reach(lambda: self._store.jobs(self._ensemble_id)))

    def probe(self, key: ProbeKey) -> Probe | None:
        return self._reach(lambda: self._store.probe(key))

    def remember(self, probe: Probe) -> None:
        self._reach(lambda: self._store.remember_probe(probe))

    def join(self, most: int) -> list[Job]:
        """Claim members to train with the first one."""
        limit = min(most, self._room)
        if limit < 1:
            return []
        return self._reach(
            lambda: self._store.claim(
                self.worker_id,
                limit=limit,
                lease_seconds=self._lease,
                log_path=self._log_path,
                beside=self._claim,
            )
        )


class Packing:
    """From the trainer's ``Ready`` to its ``Train``, for one claim."""

    def __init__(
        self,
        joining: Joining,
        log: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._joining = joining
        self._command: say.Train | None = None
        self._log = log
        self._monotonic = monotonic
        self._began = 0.0
        self._device = self._versions = ""
        self._key: ProbeKey | None = None
        self._most = 1
        self.joined: list[Job] = []
        self.probing = False  # the trainer measures
        self.seconds = 0.0  # that it took to measure

    def begin(self, command: say.Train) -> None:
        """``command``: what the trainer would be told of the first member alone."""
        self._command = command

    def heard(self, event: say.Ready | say.Prepared | say.Probed) -> say.Prepare | say.Probe | None:
        """What the trainer is told next; None once the pack is complete: see ``joined``."""
        match event:
            case say.Ready():
                return self._ready(event)
            case say.Prepared():
                return self._prepared(event)
            case say.Probed():
                self._probed(event)
                return None

    def _ready(self, event: say.Ready) -> say.Prepare | None:
        """The trainer is there."""
        command = self._command
        assert command is not None
        if event.platform == "cpu" or self._joining.could_join() == 0:
            return None
        memory = "" if event.memory is None else f", {event.memory / _GIB:.0f} GiB"
        self._device = f"{event.device}{memory}"
        self._versions = ", ".join(
            f"{name} {text}" for name, text in sorted(event.versions.items())
        )
        return say.Prepare(
            config=command.config,
            run_folder=command.run_folder,
            data_path=command.data_path,
            data_digest=command.data_digest,
            log=command.log,
        )

    def _prepared(self, event: say.Prepared) -> say.Probe | None:
        """Data and program are there; so is their shape."""
        if event.shape is None or self._command is None:
            return None  # the training will fail, and say why
        self._key = ProbeKey(
            model=model_digest(self._command.config),
            shape=event.shape,
            device=self._device,
            versions=self._versions,
        )
        self._most = max(1, self._joining.members())
        known = self._joining.probe(self._key)
        # One that ended since there were no more members tells nothing of larger packs.
        if known is not None and (known.size < known.most or known.most >= self._most):
            self._log(f"packs of {known.size}, as {printable(known.worker)} has measured")
            self._join(known.size)
            return None
        if not self._joining.may_probe:
            return None
        self.probing, self._began = True, self._monotonic()
        return say.Probe(most=self._most)

    def _probed(self, event: say.Probed) -> None:
        """The trainer has measured."""
        self.probing = False
        self.seconds = self._monotonic() - self._began
        if event.error is not None:
            self._log(f"no size of packs was found: {printable(event.error)}")
            return
        size = max(1, min(event.size, self._most))
        rows = tuple(
            ProbeRow(members=row.members, seconds=row.seconds, bytes=row.bytes)
            for row in event.rows
        )
        assert self._key is not None
        probe = Probe(
            key=self._key, size=size, most=self._most, rows=rows, worker=self._joining.worker_id
        )
        self._joining.remember(probe)
        self._log(f"packs of {size}; measured: {rows_in_words(rows)}")
        self._join(size)

    def _join(self, size: int) -> None:
        if size > 1:
            self.joined = self._joining.join(size - 1)
        if self.joined:
            seeds = ", ".join(f"{job.seed} (attempt {job.attempt})" for job in self.joined)
            self._log(f"claimed to train with it: seed {seeds}")


def rows_in_words(rows: tuple[ProbeRow, ...]) -> str:
    """Milliseconds per step and member of each size."""
    return ", ".join(f"{row.members}: {1e3 * row.seconds:.3g} ms" for row in rows)


def model_digest(config: str) -> str:
    """SHA-256 over the parts of a configuration (as JSON) that decide what a step costs."""
    full: dict[str, Any] = json.loads(config)
    training = full.get("training", {})
    part = {
        "model": full.get("model"),
        "training": {name: training.get(name) for name in _OF_TRAINING},
        "optimizers": [stage.get("optimizer") for stage in training.get("stages", [])],
    }
    return sha256(json.dumps(part, sort_keys=True).encode())
