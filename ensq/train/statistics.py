"""Losses and root mean square errors of validation, in float64, from errors per frame."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensq.config.structs import GammasConfig


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


def frame_losses(
    force: NDArray[Any], energy: NDArray[Any], components: NDArray[Any], gammas: GammasConfig
) -> NDArray[Any]:
    """[V] contributions whose plain mean is the loss: seeds are compared frame by frame."""
    share = force * (len(force) / components.sum())
    parts = (gammas.F * share if gammas.F else 0.0) + (gammas.U * energy**2 if gammas.U else 0.0)
    return np.asarray(parts, np.float64)
