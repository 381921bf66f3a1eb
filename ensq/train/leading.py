"""A program on the devices of several processes: the leading trainer's, which tells the others.

The trainer that uses it knows nothing of them. Each method that computes on all devices says so
first; the followers, in ``ensq.train.follower``, call the same method of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax
import numpy as np
from numpy.typing import NDArray

from ensq.config import RunConfig
from ensq.train import channel
from ensq.train.batches import Batches
from ensq.train.dataset import Dataset
from ensq.train.objective import Params
from ensq.train.pack import Errors, Lanes, Program


class LeadingProgram(Program):
    """A program of all processes' devices.

    Only the state that was made last is known to the followers: what is passed as ``lanes`` must be
    that one.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, company: channel.Company) -> None:
        super().__init__(config, dataset, jax.devices())
        self._company = company
        self._told = False  # the followers do what is done now as part of another order

    @contextmanager
    def _together(self, order: channel.Order, payload: bytes = b"") -> Iterator[None]:
        if self._told:
            yield
            return
        self._company.order(order, payload)
        self._told = True
        try:
            yield
        finally:
            self._told = False

    def spread(self, lanes: Lanes) -> Lanes:
        if self._told:
            return super().spread(lanes)
        host = jax.tree_util.tree_map(np.asarray, lanes)
        with self._together(*packed(self, host)):
            return super().spread(host)

    def take(self, lanes: Lanes, kept: NDArray[Any]) -> Lanes:
        host = Lanes(*self.fetch(lanes, *Lanes._fields))
        return self.spread(jax.tree_util.tree_map(lambda leaf: leaf[kept], host))

    def begin_stage(self, lanes: Lanes, epoch: int) -> Lanes:
        with self._together(channel.BeginStage(epoch=epoch)):
            return super().begin_stage(lanes, epoch)

    def compile(self, lanes: Lanes, epoch: int, batches: Batches) -> Lanes:
        with self._together(channel.Compile(epoch=epoch)):
            lanes = super().compile(lanes, epoch, batches)
        self._company.wait_done()
        return lanes

    def run_steps(self, lanes: Lanes, epoch: int, batches: Batches, start: int, stop: int) -> Lanes:
        with self._together(channel.Steps(epoch=epoch, start=start, stop=stop)):
            return super().run_steps(lanes, epoch, batches, start, stop)

    def validate(self, params: Params) -> Errors:
        with self._together(channel.Validate()):
            return super().validate(params)

    def keep_best(self, lanes: Lanes, improved: NDArray[np.bool_]) -> Lanes:
        with self._together(channel.KeepBest(improved=tuple(map(bool, improved)))):
            return super().keep_best(lanes, improved)

    def fetch(self, lanes: Lanes, *fields: str) -> Sequence[Any]:
        with self._together(channel.Fetch(fields=fields)):
            return super().fetch(lanes, *fields)


def packed(program: Program, lanes: Lanes) -> tuple[channel.Spread, bytes]:
    """A state of host arrays as it is sent."""
    leaves, structure = jax.tree_util.tree_flatten(lanes)
    data = b"".join(leaf.tobytes() for leaf in leaves)
    order = channel.Spread(
        stage=program.structures().index(structure),
        leaves=tuple((leaf.dtype.name, leaf.shape) for leaf in leaves),
        size=len(data),
    )
    return order, data


def unpacked(program: Program, order: channel.Spread, data: bytes) -> Lanes:
    """The state that was sent."""
    leaves, at = [], 0
    for name, shape in order.leaves:
        kind = np.dtype(name)
        count = int(np.prod(shape, dtype=np.int64))
        leaves.append(np.frombuffer(data, kind, count, at).reshape(shape))
        at += count * kind.itemsize
    made: Lanes = jax.tree_util.tree_unflatten(program.structures()[order.stage], leaves)
    return made
