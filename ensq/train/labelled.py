"""Frames with their neighbours and labels, as the model and the loss take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ensq import data
from ensq.train.models import Frames
from ensq.train.neighbours import Neighbours


class Labelled(NamedTuple):
    """Frames [T] with their labels; energies are without the reference energies."""

    frames: Frames
    F: jax.Array  # [T,N,3]
    U: jax.Array  # [T]

    @property
    def n_frames(self) -> int:
        return int(self.U.shape[0])


def label(
    part: data.Data,
    neighbours: Neighbours,
    shift: NDArray[Any] | None,
    dtype: Any,
    asarray: Callable[..., Any] = jnp.asarray,
) -> Labelled:
    """Frames and labels in the precision of the training.

    ``shift`` [S]: reference energies, None where there are no energies; ``asarray``:
    ``np.asarray`` leaves all on the host.
    """
    energies = np.zeros(part.n_frames) if part.U is None or shift is None else part.U.copy()
    if shift is not None:
        energies -= np.where(part.mask, shift[part.species], 0.0).sum(axis=1)
    forces = np.zeros_like(part.R) if part.F is None else part.F
    return Labelled(
        frames=frames_of(part.R, part.species, part.mask, neighbours, dtype, asarray),
        F=asarray(forces, dtype),
        U=asarray(energies, dtype),
    )


def frames_of(
    positions: NDArray[Any],
    species: NDArray[Any],
    mask: NDArray[Any],
    neighbours: Neighbours,
    dtype: Any,
    asarray: Callable[..., Any] = jnp.asarray,
) -> Frames:
    """Frames for the device from host arrays [T,N,…] and their neighbour layout."""
    offset = neighbours.offset
    return Frames(
        R=asarray(positions, dtype),
        species=asarray(species, np.int32),
        mask=asarray(mask, dtype),
        nbr=asarray(neighbours.index),
        rev=asarray(neighbours.reverse),
        nbr_mask=asarray(neighbours.mask, dtype),
        offset=None if offset is None else asarray(offset, dtype),
    )
