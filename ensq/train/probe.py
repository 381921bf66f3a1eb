"""How many members a device trains together at best: measured, size after size.

A step of several members takes hardly longer than that of one until the device is full; from then
on more members only make checkpoints rarer. So sizes are doubled as long as that pays.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import jax

from ensq.train import environment
from ensq.train.batches import Batches, batches_of_epoch
from ensq.train.dataset import Dataset
from ensq.train.pack import Lanes, Program, stack
from ensq.worker.protocol import Measured

LEAST_GAIN = 0.1  # of the seconds per member-step, below which a larger pack does not pay
MEMORY_SHARE = 0.85  # of the device's memory that a pack may be expected to take
_SECONDS = 0.3  # of a measurement
_REPEATS = 3  # measurements, of which the fastest counts


def shape_of(dataset: Dataset) -> str:
    """Frames, beads and neighbours of each group, for training and for validation."""
    kept = dataset.hosted
    if kept is None:
        resident = (dataset.training, dataset.validation)
        shapes = [[part.frames.nbr.shape for part in parts] for parts in resident]
        where = ""
    else:
        fed = (kept.training, kept.validation)
        shapes = [[(part.n_frames, part.beads, part.width) for part in parts] for parts in fed]
        where = "; fed from the host"
    return "; ".join(" + ".join(" x ".join(map(str, s)) for s in parts) for parts in shapes) + where


def search(
    measure: Callable[[int], Measured | None],
    *,
    most: int,
    limit: int | None,
) -> tuple[int, tuple[Measured, ...]]:
    """The best size of a pack, and what was measured.

    Args:
        measure: Measures a pack of that size; None if there is no memory for it.
        most: The largest size to try.
        limit: Bytes of the device's memory; None if unknown.
    """
    rows: list[Measured] = []
    best = size = 1
    while (row := measure(size)) is not None:
        rows.append(row)
        if len(rows) > 1 and row.seconds > (1 - LEAST_GAIN) * rows[-2].seconds:
            break
        best, size = size, min(2 * size, most)
        if best >= most or not fits(rows, size, limit):
            break
    return best, tuple(rows)


def fits(rows: Sequence[Measured], size: int, limit: int | None) -> bool:
    """Whether a pack of that size is expected to fit: memory grows by what the last members took.

    After one size all its memory counts as its member's, which is more than that.
    """
    last = rows[-1]
    if limit is None or last.bytes is None:
        return True
    before = rows[-2] if len(rows) > 1 else None
    growth = last.bytes / last.members
    if before is not None and before.bytes is not None:
        growth = (last.bytes - before.bytes) / (last.members - before.members)
    return last.bytes + growth * (size - last.members) <= MEMORY_SHARE * limit


class Measuring:
    """Times packs of a program; nothing of it is written anywhere."""

    def __init__(self, program: Program, say: Callable[[str], None]) -> None:
        self._program = program
        self._say = say
        self._batches = batches_of_epoch(
            program.dataset.sizes, program.batch, program.config.data.seed, 0
        )
        if program.config.training.pretrain_prior and not program.priors_fitted:
            program.fit_priors(say)

    def measure(self, members: int) -> Measured | None:
        """Compile and time a pack of that size; None if there is no memory for it."""
        self._say(f"how many members train together at best: compiling {members}")
        try:
            seconds = self._time(members)
        except Exception as error:
            if not environment.is_out_of_memory(error):
                raise
            self._say(f"there is no memory for {members} members")
            seconds = None
        gc.collect()  # now that no traceback holds arrays any more
        if seconds is None:
            return None
        peak, _ = environment.memory()
        row = Measured(members=members, seconds=seconds / members, bytes=peak)
        self._say(_in_words(row))
        return row

    def _time(self, members: int) -> float:
        """Seconds of a step."""
        program = self._program
        lanes = program.spread(stack([program.new_member(seed) for seed in range(members)]))
        lanes = program.begin_stage(lanes, 0)
        lanes, _ = self._run(lanes, 0)  # compiles
        lanes, _ = self._run(lanes, 1)  # the first call is slower than those that follow
        lanes, seconds = self._run(lanes, 1)
        steps = max(1, min(program.steps_per_epoch, int(_SECONDS / max(seconds, 1e-6))))
        times = []
        for _ in range(_REPEATS):
            lanes, seconds = self._run(lanes, steps)
            times.append(seconds / steps)
        return min(times)

    def _run(self, lanes: Lanes, steps: int) -> tuple[Lanes, float]:
        began = time.perf_counter()
        batches: Batches = self._batches
        lanes = self._program.run_steps(lanes, 0, batches, 0, steps)
        jax.block_until_ready(lanes.alive)
        return lanes, time.perf_counter() - began


def _in_words(row: Measured) -> str:
    text = f"{row.members} together: {1e3 * row.seconds:.3g} ms per step and member"
    return text if row.bytes is None else f"{text}, {row.bytes / 2**30:.2f} GiB at the peak"
