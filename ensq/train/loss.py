"""The loss of force matching, in its one definition:

    loss = gamma_F * mean over real components (F - F_ref)^2
         + gamma_U * mean over frames (U - U_ref)^2

The parts are put together by chemtrain's ``force_matching.init_loss_fn``; its own mean would run
over padded beads too, so the masked errors here take its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax_md_mod  # noqa: F401  (chemtrain and jax_md need it imported before them)
from chemtrain.learn import force_matching

from ensq.config.structs import GammasConfig


class Errors(NamedTuple):
    """Errors per frame, from which every reported loss is computed.

    ``force`` [B]: sum over real components of (F - F_ref)^2; ``energy`` [B]: U - U_ref.
    """

    force: jax.Array
    energy: jax.Array


def masked_force_error(predicted: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean squared error over the components of beads with weight 1.

    Args:
        predicted: [B,N,3].
        target: [B,N,3].
        weights: [B,N], 1 for a real bead of a real frame, else 0.
    """
    squares = jnp.sum((predicted - target) ** 2, axis=-1)
    return jnp.sum(weights * squares) / (3 * jnp.maximum(jnp.sum(weights), 1))


def masked_energy_error(predicted: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean squared error over the frames with weight 1; all arguments [B]."""
    return jnp.sum(weights * (predicted - target) ** 2) / jnp.maximum(jnp.sum(weights), 1)


def init_loss(
    gammas: GammasConfig,
) -> Callable[[dict[str, jax.Array], dict[str, jax.Array]], jax.Array]:
    """The loss of a batch: ``loss(predictions, targets)``.

    Predictions hold ``F`` [B,N,3] and ``U`` [B]; targets the same and the weights ``F_weight``
    [B,N] and ``U_weight`` [B]. A part whose gamma is 0 must be left out of the targets.
    """
    weights = {key: value for key, value in (("F", gammas.F), ("U", gammas.U)) if value}
    loss: Callable[..., jax.Array] = force_matching.init_loss_fn(
        error_fns={"F": masked_force_error, "U": masked_energy_error},
        individual=False,
        gammas=weights,
        weights_keys={"F": "F_weight", "U": "U_weight"},
    )
    return loss


def frame_errors(
    energy: jax.Array, force: jax.Array, U: jax.Array, F: jax.Array, mask: jax.Array
) -> Errors:
    """Errors of each frame.

    Args:
        energy: [B] predicted, against ``U`` [B].
        force: [B,N,3] predicted, against ``F`` [B,N,3].
        mask: [B,N], 1 for a real bead.
    """
    squares = jnp.sum((force - F) ** 2, axis=-1)
    return Errors(force=jnp.sum(mask * squares, axis=-1), energy=energy - U)
