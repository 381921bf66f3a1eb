"""What is minimised: the loss of one member on a batch, or on a part of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from ensq.config.structs import GammasConfig
from ensq.train import loss as losses
from ensq.train.batches import in_batches
from ensq.train.labelled import Labelled
from ensq.train.models import EnergyModel

Params = Any  # a nested dict of arrays
PRIOR_BATCH = 256  # frames that the priors alone look at together: they need little memory


class Objective:
    """The loss of a configuration for a model.

    Args:
        gammas: Weights of the parts of the loss.
        shares: For each group of frames the factor of its force term; see ``shares_of``.
        model: The model that is trained.
    """

    def __init__(
        self, gammas: GammasConfig, shares: Sequence[float], model: EnergyModel, dtype: Any
    ) -> None:
        self.model = model
        self._gammas, self._dtype = gammas, dtype
        self._weighted = [msgspec.structs.replace(gammas, F=gammas.F * share) for share in shares]

    def batch_loss(
        self,
        params: Params,
        batch: Labelled,
        weight: jax.Array,
        group: int = 0,
        *,
        total: losses.Totals | None = None,
        model: EnergyModel | None = None,
    ) -> jax.Array:
        """The loss of one member on one batch; ``weight`` [B] is 0 for frames that fill up.

        With ``total``, the weights of a whole batch of which these frames are a part, it is what
        this part adds to the loss of the whole.
        """
        model = model or self.model
        if self._gammas.F:
            energy, force = model.energy_and_forces(params, batch.frames)
        else:
            energy = model.per_bead_energy(params, batch.frames).sum(axis=-1)
            force = jnp.zeros_like(batch.F)
        predictions = {"F": force, "U": energy}
        targets: dict[str, jax.Array] = {
            "F_weight": batch.frames.mask * weight[:, None],
            "U_weight": weight,
        }
        if self._gammas.F:
            targets["F"] = batch.F
        if self._gammas.U:
            targets["U"] = batch.U
        return losses.init_loss(self._weighted[group], total)(predictions, targets)

    def prior_loss(self, params: Params, training: tuple[Labelled, ...]) -> jax.Array:
        """The loss of the priors alone over all training frames."""
        alone = dataclasses.replace(self.model, network=None, train_priors=True)
        total = jnp.zeros((), self._dtype)
        for group, part in enumerate(training):

            def of_batch(
                place: tuple[jax.Array, jax.Array], part: Labelled = part, group: int = group
            ) -> jax.Array:
                batch = jax.tree_util.tree_map(lambda leaf: leaf[place[0]], part)
                loss = self.batch_loss(params, batch, place[1], group, model=alone)
                return loss * jnp.sum(place[1])

            walk = in_batches(np.arange(part.n_frames), min(PRIOR_BATCH, part.n_frames))
            weight = jnp.asarray(walk.weight, self._dtype)
            # computed again for the gradient: memory does not grow with the number of frames
            again = jax.remat(of_batch)  # type: ignore[attr-defined]
            total += jnp.sum(jax.lax.map(again, (walk.index, weight)))
        return total / sum(part.n_frames for part in training)


def shares_of(real: tuple[float, ...], frames: tuple[int, ...]) -> list[float]:
    """For each group its real components per frame against those of the whole set.

    The mean over the components of a batch, times this, weighs every component of the set alike,
    whichever group it is in. 1 where there is one group.
    """
    if len(real) == 1:
        return [1.0]
    overall = sum(real) / sum(frames)
    return [beads / count / overall for beads, count in zip(real, frames, strict=True)]
