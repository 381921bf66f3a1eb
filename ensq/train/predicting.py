"""Energies and forces of all members of an ensemble at once: one compiled program, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ensq.train.compat import enable_x64  # before chemtrain and jax_md

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ensq import config as configuration
from ensq import data
from ensq.errors import DataError, MismatchError
from ensq.train.buckets import choose_bounds, frame_sizes, members_of
from ensq.train.checkpoint import MemberResult
from ensq.train.export import model_of, reference_energies, without_reference_energies
from ensq.train.labelled import frames_of
from ensq.train.models import EnergyModel, Frames
from ensq.train.neighbours import build_neighbours, count_neighbours, is_periodic

EDGES_AT_ONCE = 400_000  # of all members of a batch: bounds the memory to some 100 MB
MOST_FRAMES = 256
GROUPS = 4


@dataclass(frozen=True)
class Batch:
    """Predictions for some frames, padded to the places of the whole set."""

    index: NDArray[Any]  # [b] which frames
    energies: NDArray[Any]  # [M,b] float64, reference energies included
    forces: NDArray[Any]  # [M,b,N,3] 0 on padding
    virials: NDArray[Any] | None  # [M,b,3,3], minus the derivative by a strain


class Predictor:
    """The members of one ensemble, their parameters stacked on a leading axis [M].

    Everything is in the run's unit of energy and Angstrom. ``dtype`` is float32, the precision of
    exported models, or float64.
    """

    def __init__(self, results: Sequence[MemberResult], dtype: str = "float32") -> None:
        """Raises MismatchError if the members are not of one model."""
        if not results:
            raise ValueError("no members to predict with")
        first = results[0]
        for other in results[1:]:
            if (other.config, other.statistics) != (first.config, first.statistics):
                raise MismatchError(
                    f"seeds {first.seed} and {other.seed} are not members of one ensemble: their "
                    "configurations or data differ"
                )
        self.results = tuple(results)
        self.seeds = tuple(result.seed for result in results)
        self.config = configuration.loads(first.config)
        self.dtype = dtype
        # Reference energies are added in float64 afterwards: beside them small ones lose digits.
        self.model: EnergyModel = model_of(without_reference_energies(first))
        with self.precision():
            self.params: Any = jax.tree_util.tree_map(
                lambda *leaves: jnp.stack([jnp.asarray(leaf, dtype) for leaf in leaves]),
                *(result.params for result in results),
            )
        self._run = {
            virial: jax.jit(partial(_of_members, self.model, virial)) for virial in (False, True)
        }

    def precision(self) -> Any:
        """A context in which arrays have this predictor's precision."""
        return enable_x64(self.dtype == "float64")

    @property
    def n_members(self) -> int:
        return len(self.seeds)

    def constant(self, frames: data.Data) -> NDArray[Any]:
        """[T] reference energies of these frames, which every member adds."""
        return reference_energies(self.results[0], frames)

    def batches(
        self,
        frames: data.Source,
        *,
        virial: bool = False,
        batch: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[Batch]:
        """Predictions for all frames, in an order that groups frames of similar sizes.

        Args:
            frames: With the model's species (``with_species``).
            virial: Whether virials are wanted.
            batch: Frames at once; None: as memory allows.
            progress: Told how many frames are done, and of how many.

        Raises DataError if the model needs open boundaries and the frames have none.
        """
        if self.model.priors is not None and is_periodic(_cells(frames)):
            data.check_open(frames, "the frames")
        sizes = _sizes(frames)
        bounds = choose_bounds(sizes, sizes, groups=GROUPS, fewest=16)
        done = 0
        for bound, members in zip(bounds, members_of(sizes, bounds), strict=True):
            width, periodic = self._width(frames, members, bound)
            edges = max(1, bound * width * self.n_members)
            at_once = batch or int(np.clip(EDGES_AT_ONCE // edges, 1, MOST_FRAMES))
            at_once = min(at_once, len(members))
            for start in range(0, len(members), max(1, at_once)):
                index = members[start : start + at_once]
                # the last batch is filled with its last frame: one shape, one program
                filled = np.concatenate([index, np.repeat(index[-1:], at_once - len(index))])
                part = frames.take(filled)
                yield self._batch(
                    part, index, bound, (width, periodic), virial, int(frames.mask.shape[1])
                )
                done += len(index)
                progress(done, len(sizes))

    def _width(self, frames: data.Source, members: Any, bound: int) -> tuple[int, bool]:
        """The most neighbours of a bead, and whether some frame is periodic."""
        width, periodic = 1, False
        cutoff = self.model.cutoff
        spans = [members[span] for span in data.spans(bound, len(members))]
        for chosen in spans:
            periodic |= is_periodic(None if frames.cell is None else frames.cell[chosen])
        for chosen in spans:
            part = frames.take(chosen).cut(bound)
            counts = count_neighbours(part.R, part.mask, cutoff, part.cell, periodic=periodic)
            width = max(width, int(counts.max(initial=0)))
        return width, periodic

    def _batch(
        self,
        whole: data.Data,
        index: NDArray[Any],
        bound: int,
        layout: tuple[int, bool],
        virial: bool,
        places: int,
    ) -> Batch:
        part, count = whole.cut(bound), len(index)
        width, periodic = layout
        neighbours = build_neighbours(
            part.R, part.mask, self.model.cutoff, part.cell, width=width, periodic=periodic
        )
        with self.precision():
            batch = frames_of(part.R, part.species, part.mask, neighbours, self.dtype)
            energy, force, stress = self._run[virial](self.params, batch)
            energies = np.asarray(energy, np.float64)[:, :count]
            found = np.asarray(force, np.float64)[:, :count]
        forces = np.zeros((*found.shape[:2], places, 3))
        forces[:, :, :bound] = found
        constant = self.constant(part)[:count]
        virials = np.asarray(stress, np.float64)[:, :count] if virial else None
        return Batch(index, energies + constant, forces, virials)


def _of_members(
    model: EnergyModel, virial: bool, params: Any, frames: Frames
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Energies [M,b], forces [M,b,N,3] and virials [M,b,3,3] of stacked parameters."""
    one = _with_virial if virial else _without_virial
    found: tuple[jax.Array, jax.Array, jax.Array | None] = jax.vmap(
        partial(one, model), in_axes=(0, None)
    )(params, frames)
    return found


def _without_virial(model: EnergyModel, params: Any, frames: Frames) -> tuple[Any, Any, None]:
    return *model.energy_and_forces(params, frames), None


def _with_virial(model: EnergyModel, params: Any, frames: Frames) -> tuple[Any, Any, Any]:
    """The virial is -dE/de for positions and images strained by 1 + e: sum_i r_i F_i^T where
    boundaries are open."""

    def total(positions: jax.Array, strain: jax.Array) -> tuple[jax.Array, jax.Array]:
        moved = positions + positions @ strain
        offset = frames.offset
        if offset is not None:
            offset = offset + jnp.einsum("bnmx,bxy->bnmy", offset, strain)
        energy = model.per_bead_energy(params, frames._replace(R=moved, offset=offset)).sum(axis=1)
        return energy.sum(), energy

    none = jnp.zeros((frames.R.shape[0], 3, 3), frames.R.dtype)
    (by_position, by_strain), energy = jax.grad(total, argnums=(0, 1), has_aux=True)(frames.R, none)
    force = jnp.where(frames.mask[..., None] > 0, -by_position, 0.0)
    return energy, force, -by_strain


def with_species(frames: data.Source, names: tuple[str, ...], source: str) -> data.Source:
    """The frames with their species as the model numbers them, told by their names.

    Args:
        frames: As they were read.
        names: The model's species.
        source: The file, for errors.

    Raises DataError for a species that the model was not trained on.
    """
    if frames.species_names == names:
        return frames
    every = np.arange(frames.n_frames)
    species, mask = frames.species[every], frames.mask[every]
    place = {name: number for number, name in enumerate(names)}
    own = frames.species_names
    unknown = [own[k] for k in np.unique(species[mask]) if own[k] not in place]
    if unknown:
        raise DataError(
            f"{source}: has beads of the species {', '.join(unknown[:5])}, which the model was not "
            f"trained on; it knows {', '.join(names)}"
        )
    table = np.array([place.get(name, 0) for name in own], np.int32)
    return replace(
        frames, species=np.where(mask, table[species], 0).astype(np.int32), species_names=names
    )


def _sizes(frames: data.Source) -> NDArray[np.int64]:
    every = np.arange(frames.n_frames)
    return np.concatenate(
        [frame_sizes(frames.mask[every[span]]) for span in data.spans(frames.n_beads, len(every))]
    )


def _cells(frames: data.Source) -> Any:
    return None if frames.cell is None else frames.cell[np.arange(frames.n_frames)]
