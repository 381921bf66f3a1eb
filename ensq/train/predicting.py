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
from ensq.train.export import model_of, without_reference_energies
from ensq.train.labelled import frames_of
from ensq.train.models import EnergyModel, Frames
from ensq.train.neighbours import Neighbours, build_neighbours, count_neighbours, is_periodic

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
            virial: jax.jit(partial(of_members, self.model, virial)) for virial in (False, True)
        }

    def precision(self) -> Any:
        """A context in which arrays have this predictor's precision."""
        return enable_x64(self.dtype == "float64")

    @property
    def n_members(self) -> int:
        return len(self.seeds)

    def constant(self, frames: data.Data) -> NDArray[Any]:
        """[T] reference energies of these frames, which every member adds."""
        return self.constant_of(frames.species, frames.mask)

    def constant_of(self, species: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
        """[T] the same of species and masks [T,N]."""
        shift = np.asarray(self.results[0].statistics["energy_shift"], np.float64)
        return np.asarray(np.where(mask, shift[species], 0.0).sum(axis=1))

    def asarray(self, values: NDArray[Any]) -> jax.Array:
        """On the device, in this predictor's precision; within ``precision()``."""
        return jnp.asarray(values, self.dtype)

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
        if self.model.priors is not None:
            check_open(frames)
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
                yield self._batch(part, index, bound, (width, periodic), virial)
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
            positions = near_origin(part.R, part.mask, part.cell)
            counts = count_neighbours(positions, part.mask, cutoff, part.cell, periodic=periodic)
            width = max(width, int(counts.max(initial=0)))
        return width, periodic

    def _batch(
        self,
        whole: data.Data,
        index: NDArray[Any],
        bound: int,
        layout: tuple[int, bool],
        virial: bool,
    ) -> Batch:
        part, count = whole.cut(bound), len(index)
        width, periodic = layout
        positions = near_origin(part.R, part.mask, part.cell)
        neighbours = build_neighbours(
            positions, part.mask, self.model.cutoff, part.cell, width=width, periodic=periodic
        )
        energies, found, virials = self.evaluate(
            positions, part.species, part.mask, neighbours, virial=virial
        )
        forces = np.zeros((self.n_members, count, whole.n_beads, 3))
        forces[:, :, :bound] = found[:, :count]
        return Batch(
            index,
            energies[:, :count] + self.constant(part)[:count],
            forces,
            None if virials is None else virials[:, :count],
        )

    def evaluate(
        self,
        positions: NDArray[Any],
        species: NDArray[Any],
        mask: NDArray[Any],
        neighbours: Neighbours,
        *,
        virial: bool = False,
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
        """Energies [M,b] without reference energies, forces [M,b,N,3], virials [M,b,3,3], float64.

        Each combination of shapes is compiled once. ``positions``: of ``near_origin``.
        """
        return self.run(self.laid_out(positions, species, mask, neighbours), virial=virial)

    def laid_out(
        self,
        positions: NDArray[Any],
        species: NDArray[Any],
        mask: NDArray[Any],
        neighbours: Neighbours,
    ) -> Frames:
        """The same frames on the device."""
        with self.precision():
            return frames_of(positions, species, mask, neighbours, self.dtype)

    def run(
        self, frames: Frames, *, virial: bool = False
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
        """What ``evaluate`` gives for frames on the device."""
        with self.precision():
            energy, force, stress = self._run[virial](self.params, frames)
            return (
                np.asarray(energy, np.float64),
                np.asarray(force, np.float64),
                np.asarray(stress, np.float64) if virial else None,
            )

    def programs(self) -> int:
        """How many have been compiled."""
        runs: list[Any] = list(self._run.values())
        return sum(one._cache_size() for one in runs)


def of_members(
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


def near_origin(
    positions: NDArray[Any], mask: NDArray[Any], cell: NDArray[Any] | None
) -> NDArray[np.float64]:
    """[T,N,3] the same frames near the origin, where float32 has its digits; no energy changes.

    Periodic directions are wrapped into the cell, bead by bead, and each frame is centred: a
    trajectory of a molecule that has drifted by 1e5 Angstrom would have none left.
    """
    real = mask.astype(bool)[..., None]
    moved = np.asarray(positions, np.float64)
    if cell is not None and is_periodic(cell):
        fractional = moved @ np.linalg.pinv(np.asarray(cell, np.float64))
        moved = moved - np.floor(fractional) @ cell
    centre = np.sum(moved, axis=1, where=real, keepdims=True) / real.sum(axis=1, keepdims=True)
    return np.where(real, moved - centre, 0.0)


def check_open(frames: data.Source) -> None:
    """Raise DataError, naming the frame, if one has a cell: priors run along an open chain."""
    every = np.arange(0 if frames.cell is None else frames.n_frames)
    for span in data.spans(3, len(every)):
        assert frames.cell is not None
        check_open_cell(frames.cell[every[span]], span.start)


def check_open_cell(cells: NDArray[Any], first: int) -> None:
    """The same of cells [t,3,3], the first of which is of the frame ``first``."""
    periodic = cells.any(axis=(1, 2))
    if periodic.any():
        raise DataError(
            f"frame {first + int(np.argmax(periodic))} has a periodic cell, and the priors of this "
            "model run along an open chain: give whole molecules, without a cell (or pbc false)"
        )


class _Renumbered:
    """Species of a converted set by the model's numbers, read when they are wanted."""

    def __init__(self, rows: Any, table: NDArray[np.int32]) -> None:
        self._rows, self._table = rows, table

    def __getitem__(self, frames: Any) -> NDArray[np.int32]:
        return self._table[self._rows[frames]]


def with_species(frames: data.Source, names: tuple[str, ...], source: str) -> data.Source:
    """The frames with their species as the model numbers them, told by their names.

    Args:
        frames: As they were read.
        names: The model's species.
        source: The file, for errors.

    Raises DataError, naming the frame and bead, for a species that the model was not trained on.
    """
    own = frames.species_names
    if own == names:
        return frames
    place = {name: number for number, name in enumerate(names)}
    known = np.array([name in place for name in own], bool)
    every = np.arange(frames.n_frames)
    for span in data.spans(frames.n_beads, 0 if known.all() else len(every)):
        species, mask = frames.species[every[span]], np.asarray(frames.mask[every[span]], bool)
        wrong = np.argwhere(mask & ~known[species])
        if wrong.size:
            frame, bead = wrong[0]
            raise DataError(
                f"{source}: frame {span.start + frame}, bead {bead} is of the species "
                f"{own[species[frame, bead]]}, which the model was not trained on; it knows "
                f"{', '.join(names)}"
            )
    table = np.array([place.get(name, 0) for name in own], np.int32)
    if isinstance(frames, data.Data):
        species = np.where(frames.mask, table[frames.species], 0).astype(np.int32)
        return replace(frames, species=species, species_names=names)
    renumbered: Any = _Renumbered(frames.species, table)
    return replace(frames, species=renumbered, species_names=names)


def _sizes(frames: data.Source) -> NDArray[np.int64]:
    every = np.arange(frames.n_frames)
    return np.concatenate(
        [frame_sizes(frames.mask[every[span]]) for span in data.spans(frames.n_beads, len(every))]
    )
