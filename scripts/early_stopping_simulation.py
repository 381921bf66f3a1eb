#!/usr/bin/env python3
"""How often the rules of early stopping act by chance, and how often on a member that is worse.

    python scripts/early_stopping_simulation.py [--runs N] [--check docs/early_stopping.md]

Prints the tables of docs/early_stopping.md; ``--check`` compares them with those of that file. The
rules are those that workers follow (``ensq.early``); what they look at is drawn here.

The model. A run has n members, E epochs and V validation frames in one trajectory. The loss of
member m in frame t at epoch e is

    L[m, e, t] = f(e) (1 + w_m + a s[m, e]) (1 + c x[t] + b y[m, e, t])

with f the mean course, w_m how much worse the member is, s its fluctuation over epochs, x what is
hard about a frame for all, and y what a member does better or worse in single frames. x and y are
normal and correlated over frames (AR(1), time tau frames); s and y over epochs, too. In the last
table alone y is drawn frame by frame; else its means over blocks are drawn, which are independent.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ensq import alike, early
from ensq.config.early import EarlyStoppingConfig
from ensq.early.rules import level_of
from ensq.early.student import upper_tail
from ensq.resampling import blocks_of

Array = NDArray[np.float64]
EPOCHS, FRAMES = 150, 640
SIZES = (3, 5, 8, 16)


@dataclass(frozen=True, kw_only=True)
class World:
    """What is drawn. Relative to the loss; times in frames or epochs."""

    name: str
    seed_noise: float  # a: of a member's loss from epoch to epoch
    epoch_time: float  # of s and y
    frame_time: float  # of x and y
    hardness: float  # c
    own: float  # b


INDEPENDENT = World(
    name="independent", seed_noise=0.0, epoch_time=0.0, frame_time=0.0, hardness=0.14, own=0.02
)
# As trainings of configs/chignolin.yaml: the noise of the labels, which all members share, is most
# of the loss, and losses of members differ by 0.2 %.
TIGHT = World(
    name="tight", seed_noise=0.002, epoch_time=10.0, frame_time=5.0, hardness=0.14, own=0.008
)
# Labels without noise: what members do of their own is much of the loss.
LOOSE = World(
    name="loose", seed_noise=0.02, epoch_time=10.0, frame_time=5.0, hardness=0.5, own=0.08
)


def ar1(rng: np.random.Generator, shape: tuple[int, ...], time: float) -> Array:
    """Normal numbers, correlated along the first axis over ``time``; their variance is 1."""
    noise = rng.normal(size=shape)
    if time <= 0:
        return noise
    keep = float(np.exp(-1.0 / time))
    new = float(np.sqrt(1.0 - keep**2))
    for step in range(1, shape[0]):
        noise[step] = keep * noise[step - 1] + new * noise[step]
    return noise


@functools.cache
def _spread(frame_time: float) -> float:
    """The standard deviation of the mean of a block of correlated frames."""
    frames = FRAMES // int(blocks_of(FRAMES).max() + 1)
    lags = np.arange(1, frames)
    alike = np.exp(-lags / frame_time) if frame_time > 0 else np.zeros(len(lags))
    return float(np.sqrt((1 + 2 * np.sum((1 - lags / frames) * alike)) / frames))


def blocks_in(rng: np.random.Generator, world: World, worse: Sequence[float]) -> Array:
    """[n, E, K] losses by blocks of frames, drawn."""
    n, block = len(worse), blocks_of(FRAMES)
    mean = np.zeros((FRAMES, int(block.max()) + 1))
    mean[np.arange(FRAMES), block] = 1.0
    mean /= mean.sum(axis=0)
    hard = ar1(rng, (FRAMES,), world.frame_time) @ mean
    # Means of blocks are all that rules see: what a member does of its own is drawn as such.
    spread = _spread(world.frame_time)
    own = ar1(rng, (EPOCHS, n, mean.shape[1]), world.epoch_time).swapaxes(0, 1) * spread
    fluctuation = ar1(rng, (EPOCHS, n), world.epoch_time).T
    course = 1.0 + 4.0 * np.exp(-np.arange(EPOCHS) / 30.0)
    level = course * (1.0 + np.asarray(worse)[:, None] + world.seed_noise * fluctuation)
    return np.asarray(level[:, :, None] * (1.0 + world.hardness * hard + world.own * own))


def stopped(losses: Array, rule: EarlyStoppingConfig) -> dict[int, int]:
    """The members that a rule would stop (mode: report), and at which epoch."""
    n, epochs, _ = losses.shape
    means = losses.mean(axis=2)
    row = [0] * n
    found: dict[int, int] = {}
    for epoch in range(rule.min_epochs, epochs + 1):
        at = dict(enumerate(map(float, means[:, epoch - 1])))
        holds = _holds(rule, at, losses[:, epoch - 1], level_of(epoch, n, rule))
        for member in range(n):
            row[member] = row[member] + 1 if holds(member) else 0
            if row[member] >= rule.patience:
                found.setdefault(member, epoch)
    return found


def _holds(
    rule: EarlyStoppingConfig, at: dict[int, float], blocks: Array, level: float
) -> Callable[[int], bool]:
    def sigma(member: int) -> bool:
        return early.sigma_at(at, member, rule.sigma).holds

    def paired(member: int) -> bool:
        found = early.paired_at(at, member, lambda one: blocks[one].tolist(), rule.margin, level)
        return found is not None and found.holds

    return sigma if rule.rule == "sigma" else paired


def shares(world: World, worse: Sequence[float], runs: int) -> list[tuple[float, float]]:
    """For each rule the share of runs in which a member that is not worse is stopped, and in which
    the last member is."""
    wrong, right = np.zeros(len(RULES)), np.zeros(len(RULES))
    for number in range(runs):
        losses = blocks_in(np.random.default_rng([number, len(worse)]), world, worse)
        for place, (_, rule) in enumerate(RULES):
            found = stopped(losses, rule)
            wrong[place] += any(worse[member] <= 0 for member in found)
            right[place] += len(worse) - 1 in found
    return list(zip(wrong / runs, right / runs, strict=True))


DEFAULT = EarlyStoppingConfig()
AT_ONCE = {"min_epochs": 1, "patience": 1}
RULES: list[tuple[str, EarlyStoppingConfig]] = [
    ("`sigma: 2`", msgspec.structs.replace(DEFAULT, rule="sigma")),
    ("`sigma: 2`, at once", msgspec.structs.replace(DEFAULT, rule="sigma", **AT_ONCE)),
    ("`sigma: 3`", msgspec.structs.replace(DEFAULT, rule="sigma", sigma=3.0)),
    ("`paired`", DEFAULT),
    ("`paired`, at once", msgspec.structs.replace(DEFAULT, **AT_ONCE)),
    ("`paired`, `margin: 0.05`", msgspec.structs.replace(DEFAULT, margin=0.05)),
    ("`paired`, `margin: 0`", msgspec.structs.replace(DEFAULT, margin=0.0)),
]


def by_chance(runs: int) -> list[str]:
    """How often anybody is stopped where all members are equal."""
    lines = ["| rule | world | n = 3 | 5 | 8 | 16 |", "|---|---|---|---|---|---|"]
    for world in (INDEPENDENT, TIGHT, LOOSE):
        found = [shares(world, [0.0] * n, runs) for n in SIZES]
        for (name, _), *row in zip(RULES, *found, strict=True):
            cells = " | ".join(_percent(wrong) for wrong, _ in row)
            lines.append(f"| {name} | {world.name} | {cells} |")
    return lines


def by_right(runs: int) -> list[str]:
    """How often a member that is worse is stopped, one of n = 5, and how often another is."""
    lines = ["| rule | world | 1 % worse | 2 % | 5 % | 10 % | others, at 5 % |"]
    lines.append("|---|---|---|---|---|---|---|")
    for world in (TIGHT, LOOSE):
        found = [shares(world, [0.0] * 4 + [w], runs) for w in (0.01, 0.02, 0.05, 0.1)]
        for (name, _), *row in zip(RULES, *found, strict=True):
            cells = [_percent(right) for _, right in row] + [_percent(row[2][0])]
            lines.append(f"| {name} | {world.name} | {' | '.join(cells)} |")
    return lines


def with_short_blocks(runs: int) -> list[str]:
    """How often anybody of five equal members is stopped in the first look, ``margin: 0``, where
    what a member does of its own is alike over so many frames; blocks have 20."""
    lines = ["| alike over | `paired` | without widening | said to be alike |", "|---|---|---|---|"]
    level = level_of(1, 5, msgspec.structs.replace(DEFAULT, **AT_ONCE))
    for frame_time in (0.0, 2.0, 5.0, 10.0, 20.0, 40.0):
        rng = np.random.default_rng(int(frame_time))
        found = np.array([_first_look(rng, frame_time, level) for _ in range(20 * runs)])
        cells = " | ".join(f"{100 * share:.1f} %" for share in found.mean(axis=0))
        lines.append(f"| {frame_time:.0f} frames | {cells} |")
    return lines


def _first_look(rng: np.random.Generator, frame_time: float, level: float) -> list[bool]:
    """Whether anybody is stopped; is so without widening; and whether the worst one's blocks are
    alike by ``ensq.alike``."""
    frames = ar1(rng, (FRAMES, 5), frame_time).T
    length = FRAMES // (int(blocks_of(FRAMES).max()) + 1)
    blocks = 1.0 + 0.02 * frames.reshape(5, -1, length).mean(axis=-1)
    losses = {member: float(row.mean()) for member, row in enumerate(blocks)}
    found = [
        early.paired_at(losses, member, lambda one: blocks[one].tolist(), 0.0, level)
        for member in losses
    ]
    tests = [one for one in found if one is not None and one.t is not None]
    plain = [
        upper_tail(one.t * alike.widening(one.correlation or 0.0), one.blocks - 1)
        for one in tests
        if one.t is not None
    ]
    worst = min(tests, key=lambda one: one.p)
    said = alike.note(worst.correlation, worst.blocks - 1) is not None
    return [any(one.holds for one in tests), any(p < level for p in plain), said]


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def main() -> int:
    """Print the tables, or compare them with a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--check", type=Path)
    arguments = parser.parse_args()
    lines = [*by_chance(arguments.runs), "", *by_right(arguments.runs)]
    lines += ["", *with_short_blocks(arguments.runs)]
    if arguments.check is None:
        print("\n".join(lines))
        return 0
    missing = [line for line in lines if line and line not in arguments.check.read_text()]
    print("\n".join(f"not in {arguments.check}: {line}" for line in missing), end="")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
