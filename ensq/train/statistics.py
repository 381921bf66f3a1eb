"""Losses and root mean square errors of validation, in float64, from errors per frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensq import config as configuration
from ensq.config.structs import GammasConfig

if TYPE_CHECKING:
    from ensq.train.checkpoint import MemberResult


class Scores(NamedTuple):
    """One member's figures over a set of frames."""

    loss: float
    rmse_force: float | None  # per component
    rmse_energy: float | None  # per bead


def scores(
    force: NDArray[Any],
    energy: NDArray[Any],
    components: NDArray[Any],
    beads: NDArray[Any],
    gammas: GammasConfig,
) -> Scores:
    """Figures from the errors of V frames.

    Args:
        force: [V] sum of squared force errors over a frame's real components.
        energy: [V] U - U_ref.
        components: [V] real force components.
        beads: [V] real beads.
        gammas: Weights of the loss.
    """
    mse_force = float(force.sum() / components.sum())
    mse_energy = float(np.mean(energy**2))
    loss = (gammas.F * mse_force if gammas.F else 0.0) + (
        gammas.U * mse_energy if gammas.U else 0.0
    )
    return Scores(
        loss=loss,
        rmse_force=float(np.sqrt(mse_force)) if gammas.F else None,
        rmse_energy=float(np.sqrt(np.mean((energy / beads) ** 2))) if gammas.U else None,
    )


def scores_of(result: MemberResult) -> Scores:
    """Figures of a member over its whole validation set."""
    return scores(
        result.force_errors,
        result.energy_errors,
        result.components,
        result.beads,
        configuration.loads(result.config).training.gammas,
    )


def frame_losses(
    force: NDArray[Any], energy: NDArray[Any], components: NDArray[Any], gammas: GammasConfig
) -> NDArray[Any]:
    """[V] contributions whose plain mean is the loss: seeds are compared frame by frame."""
    share = force * (len(force) / components.sum())
    parts = (gammas.F * share if gammas.F else 0.0) + (gammas.U * energy**2 if gammas.U else 0.0)
    return np.asarray(parts, np.float64)


def ratios(result: MemberResult, gammas: GammasConfig) -> tuple[NDArray[Any], NDArray[Any]]:
    """The loss as a sum of ratios, which it is over any of the frames.

    Returns ``errors`` and ``weights`` [P, V]: of each part of the loss (forces, energies; those
    with a weight gamma) the squared errors of a frame times gamma, and its components or 1.
    """
    parts = []
    if gammas.F:
        parts.append((gammas.F * result.force_errors, result.components))
    if gammas.U:
        parts.append((gammas.U * result.energy_errors**2, np.ones(len(result.energy_errors))))
    errors, weights = zip(*parts, strict=True)
    return np.stack(errors).astype(np.float64), np.stack(weights).astype(np.float64)


def loss_error(result: MemberResult) -> float | None:
    """Standard error of a member's loss over its whole validation set; see ``error_of_ratios``."""
    return error_of_ratios(*ratios(result, configuration.loads(result.config).training.gammas))


def error_of_ratios(errors: NDArray[Any], weights: NDArray[Any]) -> float | None:
    """Standard error of a loss as ``ratios`` has it, frames taken as independent; None for one.

    That of the linear part, with V - 1 in place of V (Cochran, Sampling Techniques, 3rd ed., eq.
    6.13): that frames have different numbers of beads makes no loss uncertain. Frames of one
    trajectory are correlated, so that the true error is larger.
    """
    frames = errors.shape[1]
    if frames < 2:
        return None
    total = weights.sum(axis=1, keepdims=True)
    away = errors - errors.sum(axis=1, keepdims=True) / total * weights
    parts = (away / total).sum(axis=0)
    return float(np.sqrt(np.square(parts).sum() * frames / (frames - 1)))


def block_losses(losses: NDArray[Any], block: NDArray[Any]) -> NDArray[Any]:
    """[K] losses of blocks whose plain mean is the loss, whatever their sizes.

    Args:
        losses: [V] contributions of the frames, whose plain mean is the loss.
        block: [V] the block of each frame, from 0 without gaps.
    """
    sums = np.bincount(block, losses)
    return np.asarray(sums * (len(sums) / len(losses)))


def breakdown(result: MemberResult) -> dict[str, dict[str, dict[str, Any]]]:
    """Errors of a member by protein, and its force errors by species (residue type or element).

    In the run's unit of energy and Angstrom; names that occur nowhere in the validation set are
    left out.
    """
    gammas = configuration.loads(result.config).training.gammas
    proteins: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(result.protein_names):
        chosen = result.protein == number
        if chosen.any():
            found = scores(
                result.force_errors[chosen],
                result.energy_errors[chosen],
                result.components[chosen],
                result.beads[chosen],
                gammas,
            )
            proteins[name] = {
                "frames": int(chosen.sum()),
                "loss": found.loss,
                "force_rmse": found.rmse_force,
                "energy_rmse_per_bead": found.rmse_energy,
            }
    return {"proteins": proteins, "species": _by_species(result) if gammas.F else {}}


def _by_species(result: MemberResult) -> dict[str, dict[str, Any]]:
    squares = result.species_errors.sum(axis=0)
    components = result.species_components.sum(axis=0)
    return {
        name: {
            "components": int(components[place]),
            "force_rmse": float(np.sqrt(squares[place] / components[place])),
        }
        for place, name in enumerate(result.species_names)
        if components[place]
    }
