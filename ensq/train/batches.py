"""The order in which training frames are visited: the same for every member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Batches(NamedTuple):
    """The order of one epoch: the same for every member. A batch is of one group of frames."""

    group: NDArray[np.int32]  # [S] group that each batch is taken from
    index: NDArray[np.int32]  # type: ignore[assignment]  # [S, B] its frames; not tuple.index
    weight: NDArray[np.float32]  # [S, B], 0 for places that fill the last batch of a group

    @property
    def frames(self) -> NDArray[Any]:
        """[S] frames in each batch."""
        return self.weight.sum(axis=1)


def batches_of_epoch(sizes: Sequence[int], batch: int, seed: int, epoch: int) -> Batches:
    """Every training frame once, shuffled by data seed and epoch.

    ``sizes``: frames in each group. The last batch of a group is filled up; the batches of several
    groups are shuffled.
    """
    rng = np.random.default_rng([seed, 2, epoch])
    parts = [
        in_batches(rng.permutation(size).astype(np.int32), batch, group)
        for group, size in enumerate(sizes)
    ]
    if len(parts) == 1:
        return parts[0]
    joined = Batches(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    order = rng.permutation(len(joined.group))
    return Batches(*(array[order] for array in joined))


def in_batches(order: NDArray[Any], size: int, group: int = 0) -> Batches:
    """These frames in batches of ``size``; the last one is filled with frame 0 at weight 0."""
    steps = -(-len(order) // size)
    index = np.zeros(steps * size, np.int32)
    weight = np.zeros(steps * size, np.float32)
    index[: len(order)], weight[: len(order)] = order, 1
    return Batches(
        np.full(steps, group, np.int32), index.reshape(steps, size), weight.reshape(steps, size)
    )
