"""The proof of an export: its file, run with and without ghosts, against the trained model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensq.data import Data
from ensq.errors import ExportError
from ensq.train.domains import Floats, Ints, System, periodic_system, split_domain, whole_system
from ensq.train.module import LoadedModel
from ensq.train.reference import Predictions

TOLERANCE = 1e-4
STEPS = 4  # of float32: what sums of it may be off by


def float32_step(energy: Any) -> Any:
    """The distance of a number from the next one in float32."""
    return np.spacing(np.abs(energy).astype(np.float32)).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the file's model is from the trained one, over some frames."""

    frames: int
    energy_difference: float  # largest |difference|, in the run's unit
    energy_range: float  # of the frames' energies
    largest_energy: float  # the total that is furthest from 0
    force_error: float  # largest |difference| relative to the largest force of the frame
    split_frames: int  # frames that were also run as two domains with ghosts
    ghosts: int  # most ghosts of one domain

    @property
    def energy_error(self) -> float:
        """The largest difference relative to the range of the frames' energies."""
        return self.energy_difference / self.energy_range


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
        tolerance: Largest relative difference that is accepted: of energies to their range over
            the frames, beside which there may be ``STEPS`` steps of float32 at the total.

    Raises:
        ExportError: They differ by more.
    """
    loaded = LoadedModel(content)
    runs = list(_runs(loaded, frames))
    loaded.reserve([system for _, systems, _ in runs for system in systems])
    # Energies are compared on the scale on which the frames differ, so that a large constant can't
    # hide an error, and it may not be finer than float32 is at the total. Where the frames hardly
    # differ, or there is one, that scale is what a shift of 0.01 Angstrom changes.
    energies = expected.energy
    largest_force = float(np.abs(expected.force[frames.mask]).max())
    spread = max(float(np.ptp(energies)), 1e-2 * largest_force, 1e-6)
    allowed = tolerance * spread + STEPS * float32_step(energies)
    in_energy, in_force, energies_agree = [0.0], [0.0], True
    for frame, systems, newton in runs:
        energy, force = loaded.energy_and_forces(systems, newton=newton)
        wanted = expected.force[frame][frames.mask[frame]]
        in_energy.append(abs(energy - energies[frame]))
        energies_agree &= bool(in_energy[-1] <= allowed[frame])
        scale = max(float(np.abs(wanted).max()), 1e-6)
        in_force.append(float(np.abs(force - wanted).max()) / scale)
    worst_energy, worst_force = float(np.max(in_energy)), float(np.max(in_force))
    if not (energies_agree and worst_force <= tolerance):
        raise ExportError(
            f"the exported model of {what} is not the trained one: relative difference "
            f"{worst_energy / spread:.1e} in energies ({worst_energy:.1e} of a range of "
            f"{spread:.3g}) and {worst_force:.1e} in forces over {frames.n_frames} frames; "
            f"{tolerance:.0e} is allowed, and {STEPS} steps of float32 at the total energy. "
            "Nothing was replaced"
        )
    return Agreement(
        frames=frames.n_frames,
        energy_difference=worst_energy,
        energy_range=spread,
        largest_energy=float(energies[np.argmax(np.abs(energies))]),
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
