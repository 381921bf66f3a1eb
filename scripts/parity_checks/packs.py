"""The same members trained in packs of different sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ensq.train.checkpoint import MemberResult
from ensq.train.pack import Program
from parity_checks import members


class Spread(NamedTuple):
    """Largest relative differences of training and validation losses over the members."""

    first: float  # after the first epoch
    last: float  # after the last


def spreads(
    program: Program, seeds: Sequence[int], folder: Path, packs: Sequence[int]
) -> dict[int, Spread]:
    """Packs of each size against packs of one."""
    alone = members.train(program, seeds, folder, 1)
    return {pack: spread(members.train(program, seeds, folder, pack), alone) for pack in packs}


def spread(one: Mapping[int, MemberResult], two: Mapping[int, MemberResult]) -> Spread:
    """Differences between the same members, trained twice."""
    apart = np.asarray(
        [
            np.abs(one[seed].history[:, :2] / two[seed].history[:, :2] - 1).max(axis=1)
            for seed in two
        ]
    ).max(axis=0)
    return Spread(float(apart[0]), float(apart[-1]))
