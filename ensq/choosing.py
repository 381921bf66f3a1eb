"""The comparison of trained members by their results, for the metadata and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensq import alike, comparison, resampling, text
from ensq import config as configuration
from ensq.comparison import Comparison

if TYPE_CHECKING:
    from ensq.train.checkpoint import MemberResult

METHOD = (
    "differences to the lowest loss over the same frames; standard errors over blocks of frames, "
    "intervals by bootstrap-t over blocks; indistinguishable: with the probability level the truly "
    "best member is among these (model confidence set, range statistic); corrected_loss: the mean "
    "of all losses, and what the best of drawn blocks is below it over the blocks not drawn"
)


def comparison_of(
    results: Sequence[MemberResult],
    indices: Sequence[int],
    best: int,
    replica: NDArray[Any] | None,
) -> dict[str, Any] | None:
    """How far members are from the best and which may be the best, as the metadata tell it.

    Args:
        results: The members', all over the same validation frames.
        indices: Their places in the ensemble.
        best: Place among the results of the lowest loss.
        replica: [V] the validation frames' trajectories, if the data tell them.

    Returns None for a single member, or frames of a single block.
    """
    if len(results) < 2:
        return None
    proteins = results[0].protein
    block = resampling.blocks_of(
        len(proteins), index=results[0].validation_index, replica=replica, protein=proteins
    )
    sizes = np.bincount(block)
    if len(sizes) < 2:
        return None
    follows = resampling.follows(block, replica=replica, protein=proteins)
    found = _compared(results, block, best, follows)
    trajectories = None if replica is None else len({*zip(proteins, replica, strict=True)})
    seeds = [result.seed for result in results]
    return {
        "level": found.level,
        "draws": found.draws,
        "seed": found.seed,
        "blocks": {
            "number": found.blocks,
            "fewest_frames": int(sizes.min()),
            "most_frames": int(sizes.max()),
            "trajectories": trajectories,
            "pairs": sum(follows),
            "correlation": found.correlation,
            "loss_correlation": found.loss_correlation,
        },
        "best_seed": seeds[best],
        "corrected_loss": found.corrected_loss,
        "indistinguishable_seeds": [
            seed for seed, one in zip(seeds, found.members, strict=True) if one.indistinguishable
        ],
        "members": _members(found, indices, seeds),
        "method": METHOD,
    }


def _compared(
    results: Sequence[MemberResult], block: NDArray[Any], best: int, follows: Sequence[bool]
) -> Comparison:
    from ensq.train import statistics

    gammas = configuration.loads(results[0].config).training.gammas
    parts = [statistics.ratios(result, gammas) for result in results]
    errors = np.stack([errors for errors, _ in parts])
    return comparison.compare(errors, parts[0][1], block, best, follows=follows)


def _members(
    found: Comparison, indices: Sequence[int], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "seed": seed,
            "loss_error": one.loss_error,
            "difference": one.difference,
            "difference_error": one.difference_error,
            "interval": None if one.interval is None else list(one.interval),
            "probability_best": one.probability_best,
            "p_value": one.p_value,
            "indistinguishable": one.indistinguishable,
        }
        for index, seed, one in zip(indices, seeds, found.members, strict=True)
    ]


def statements(told: dict[str, Any]) -> list[str]:
    """Sentences on a comparison of ``comparison_of``: which members may be used."""
    best, level = told["best_seed"], f"{100 * told['level']:g} %"
    others = [seed for seed in told["indistinguishable_seeds"] if seed != best]
    if not others:
        found = [f"all others can be told apart from it at {level}"]
    elif len(others) == 1:
        found = [f"seed {others[0]} (=) can't be told apart from it at {level}: use either"]
    else:
        named = " and ".join(map(str, others)) if len(others) == 2 else text.ranges(others)
        found = [f"seeds {named} (=) can't be told apart from it at {level}: use any of them"]
    if any(one["interval"] is None for one in told["members"]):
        number = told["blocks"]["number"]
        found.append(f"{number} blocks of frames are too few to tell members apart")
    if (said := short_blocks(told)) is not None:
        found.append(said)
    return found


def short_blocks(told: dict[str, Any]) -> str | None:
    """That differences are still correlated from block to block; None if not, or not measured."""
    blocks = told.get("blocks", {})  # those of older versions have no correlation
    return alike.note(blocks.get("correlation"), blocks.get("pairs", 0))


def about_blocks(told: dict[str, Any]) -> str:
    """What the blocks of a comparison are."""
    blocks = told["blocks"]
    few, most, trajectories = (
        blocks[key] for key in ("fewest_frames", "most_frames", "trajectories")
    )
    frames = f"{few} frame{'s' if few > 1 else ''}" if few == most else f"{few}-{most} frames"
    of = {None: "in their order", 1: "of 1 trajectory"}.get(
        trajectories, f"of {trajectories} trajectories"
    )
    return f"{blocks['number']} blocks of {frames} {of}"
