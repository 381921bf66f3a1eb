"""The loss of force matching, in its one definition:

    loss = gamma_F * mean over real components (F - F_ref)^2
         + gamma_U * mean over frames (U - U_ref)^2

The parts are put together by chemtrain's ``force_matching.init_loss_fn``; its own mean would run
over padded beads too, so the masked errors here take its place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax.numpy as jnp
import numpy as np
from chemtrain.learn import force_matching
from jax import Array
from jaxtyping import Float, Int

from ensq.config.structs import GammasConfig

Values = Array | np.ndarray  # the formula holds for both


class Errors(NamedTuple):
    """Errors per frame, from which every reported loss is computed.

    ``force``: sum over real components of (F - F_ref)^2; ``energy``: U - U_ref.
    """

    force: Float[Array, " B"]
    energy: Float[Array, " B"]


class Totals(NamedTuple):
    """What the means of a batch are taken over: its real beads and its frames."""

    beads: Float[Array, ""]
    frames: Float[Array, ""]


def masked_force_error(
    predicted: Float[Values, "B N 3"],
    target: Float[Values, "B N 3"],
    weights: Float[Values, "B N"],
    total: Float[Values, ""] | None = None,
) -> Float[Array, ""]:
    """Mean squared error over the components of beads with weight 1: the real ones of real frames.

    All others have weight 0. ``total`` is the sum of all weights where these are a part of them;
    the errors of the parts then add up to that of the whole.
    """
    squares = jnp.sum((predicted - target) ** 2, axis=-1)
    total = jnp.sum(weights) if total is None else total
    return jnp.sum(weights * squares) / (3 * jnp.maximum(total, 1))


def masked_energy_error(
    predicted: Float[Values, " B"],
    target: Float[Values, " B"],
    weights: Float[Values, " B"],
    total: Float[Values, ""] | None = None,
) -> Float[Array, ""]:
    """Mean squared error over the frames with weight 1; ``total`` as for forces."""
    total = jnp.sum(weights) if total is None else total
    return jnp.sum(weights * (predicted - target) ** 2) / jnp.maximum(total, 1)


def init_loss(
    gammas: GammasConfig, total: Totals | None = None
) -> Callable[[dict[str, Array], dict[str, Array]], Array]:
    """The loss of a batch, or what a part of one with these totals adds to it.

    It is called with predictions and targets. Predictions hold ``F`` [B,N,3] and ``U`` [B]; targets
    the same and the weights ``F_weight`` [B,N] and ``U_weight`` [B]. A part whose gamma is 0 must
    be left out of the targets.
    """
    weights = {key: value for key, value in (("F", gammas.F), ("U", gammas.U)) if value}
    beads, frames = (None, None) if total is None else total
    loss: Callable[..., Array] = force_matching.init_loss_fn(
        error_fns={
            "F": partial(masked_force_error, total=beads),
            "U": partial(masked_energy_error, total=frames),
        },
        individual=False,
        gammas=weights,
        weights_keys={"F": "F_weight", "U": "U_weight"},
    )
    return loss


def frame_errors(
    energy: Float[Array, " B"],
    force: Float[Array, "B N 3"],
    U: Float[Array, " B"],
    F: Float[Array, "B N 3"],
    mask: Float[Array, "B N"],
) -> Errors:
    """Errors of each frame: predictions against ``U`` and ``F``; ``mask`` is 1 for a real bead."""
    squares = jnp.sum((force - F) ** 2, axis=-1)
    return Errors(force=jnp.sum(mask * squares, axis=-1), energy=energy - U)


def species_errors(
    force: Float[Array, "B N 3"],
    F: Float[Array, "B N 3"],
    mask: Float[Array, "B N"],
    species: Int[Array, "B N"],
    n_species: int,
) -> Float[Array, "B {n_species}"]:
    """What each species adds to ``Errors.force``."""
    squares = mask * jnp.sum((force - F) ** 2, axis=-1)
    kind = species[..., None] == jnp.arange(n_species)
    return jnp.sum(jnp.where(kind, squares[..., None], 0.0), axis=-2)
