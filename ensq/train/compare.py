"""The proof of an export: its file, run with and without ghosts, against the trained model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ensq.data import Data
from ensq.errors import ExportError
from ensq.train.domains import Floats, Ints, System, periodic_system, split_domain, whole_system
from ensq.train.module import LoadedModel
from ensq.train.reference import Predictions

TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the file's model is from the trained one, over some frames."""

    frames: int
    energy_error: float  # largest |difference|, relative to the range of the frames' energies
    force_error: float  # largest |difference| relative to the largest force of the frame
    split_frames: int  # frames that were also run as two domains with ghosts
    ghosts: int  # most ghosts of one domain


def compare(
    content: bytes, expected: Predictions, frames: Data, what: str, tolerance: float = TOLERANCE
) -> Agreement:
    """Hold the energies and forces of a model file against the trained model's.

    Every frame is run on one rank, and the first one also on two that see each other's atoms as
    ghosts, unless the file says that it holds priors; each with newton on and off.

    Args:
        content: The file's bytes.
        expected: Energies and forces of the frames by the trained model.
        frames: The frames.
        what: What the file is of, for the error.
        tolerance: Largest relative difference that is accepted.

    Raises:
        ExportError: They differ by more.
    """
    loaded = LoadedModel(content)
    runs = list(_runs(loaded, frames))
    loaded.reserve([system for _, systems, _ in runs for system in systems])
    # Energies are compared on the scale on which the frames differ, so that a large constant can't
    # hide an error; the second term is what float32 can resolve beside such a constant.
    energies = expected.energy
    spread = max(float(np.ptp(energies)), 1e-2 * float(np.abs(energies).max()), 1e-6)
    in_energy, in_force = [0.0], [0.0]
    for frame, systems, newton in runs:
        energy, force = loaded.energy_and_forces(systems, newton=newton)
        wanted = expected.force[frame][frames.mask[frame]]
        in_energy.append(abs(energy - energies[frame]) / spread)
        scale = max(float(np.abs(wanted).max()), 1e-6)
        in_force.append(float(np.abs(force - wanted).max()) / scale)
    worst_energy, worst_force = float(np.max(in_energy)), float(np.max(in_force))
    if not (worst_energy <= tolerance and worst_force <= tolerance):
        raise ExportError(
            f"the exported model of {what} is not the trained one: relative difference "
            f"{worst_energy:.1e} in energies and {worst_force:.1e} in forces over "
            f"{frames.n_frames} frames; {tolerance:.0e} is allowed. Nothing was replaced"
        )
    return Agreement(
        frames=frames.n_frames,
        energy_error=worst_energy,
        force_error=worst_force,
        split_frames=len({frame for frame, systems, _ in runs if len(systems) > 1}),
        ghosts=max(system.n_ghost for _, systems, _ in runs for system in systems),
    )


def _runs(loaded: LoadedModel, frames: Data) -> Iterator[tuple[int, list[System], bool]]:
    """Frame number, the systems of all ranks, and newton, of every run."""
    for newton in (True, False):
        reach = loaded.reach(newton=newton)
        for frame in range(frames.n_frames):
            real = frames.mask[frame]
            position, species = frames.R[frame][real], frames.species[frame][real]
            if frames.cell is None:
                yield frame, [whole_system(position, species)], newton
            else:
                cell = frames.cell[frame]
                yield frame, [periodic_system(position, species, cell, reach)], newton
            if frame == 0 and loaded.restriction is None and len(species) > 1:
                cell = None if frames.cell is None else frames.cell[frame]
                yield frame, _halves(position, species, cell, reach), newton


def _halves(position: Floats, species: Ints, cell: Floats | None, reach: float) -> list[System]:
    """Two domains, cut across the longest axis."""
    if cell is not None and cell.any():
        axis = int(np.argmax(np.linalg.norm(cell, axis=1)))
        return split_domain(position, species, reach, cell=cell, axis=axis, places=[0.5])
    axis = int(np.argmax(np.ptp(position, axis=0)))
    middle = float(np.median(position[:, axis]))
    return split_domain(position, species, reach, axis=axis, places=[middle])
