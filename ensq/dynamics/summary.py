"""What a simulation says: stability, temperature, epsilon, distributions, a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensq import simulation, units
from ensq.dynamics import contacts
from ensq.dynamics.distributions import BLOCKS, compare
from ensq.dynamics.options import Options
from ensq.dynamics.preparing import Prepared
from ensq.dynamics.trajectory import Trajectory
from ensq.ensemble import LoadedEnsemble
from ensq.resampling import blocks_of
from ensq.simulation import Contacts, Distribution, Simulation

if TYPE_CHECKING:
    from ensq.dynamics.running import Recorded
    from ensq.train.dynamics import Stop

Array = NDArray[Any]

UNUSUAL = 0.99  # quantile of the data's epsilon above which a bead counts as unusual


def summarize(
    ensemble: LoadedEnsemble,
    source: Path,
    options: Options,
    prepared: Prepared,
    recorded: Recorded,
    trajectory: Trajectory,
) -> Simulation:
    """Everything but the trajectories, as it is kept in a file."""
    kelvin = _temperatures(recorded, prepared, ensemble.config.unit)
    equilibration = options.equilibration * options.steps * prepared.timestep * 1e-3
    kept = trajectory.recorded & (trajectory.time > equilibration)[:, None]
    kept[0] = False
    mean, error = _mean_temperature(kelvin, kept)
    beads = trajectory.epsilon[kept][trajectory.mask[np.nonzero(kept)[1]]]
    several = len(ensemble) > 1
    unusual = None
    if several and beads.size:
        unusual = float((beads > np.quantile(prepared.epsilon, UNUSUAL)).mean())
    looks = recorded.looks
    names = [one.name for one in prepared.molecules]
    found = Simulation(
        name=ensemble.members.name,
        seeds=ensemble.seeds,
        members=ensemble.members.digests,
        source=source.name,
        molecules=tuple(names[number] for number in prepared.molecule),
        temperature=prepared.temperature,
        timestep=prepared.timestep,
        friction=options.friction,
        steps=options.steps,
        every=options.interval(),
        seed=options.seed,
        dtype=options.dtype,
        energy_unit=ensemble.config.unit,
        equilibration=equilibration,
        bond_limits=_bond_words(prepared),
        max_epsilon=options.max_epsilon,
        interrupted=recorded.interrupted,
        seconds=looks[-1].step / recorded.steps_per_second if recorded.steps_per_second else 0.0,
        ensemble_temperature=mean,
        temperature_error=error,
        epsilon_levels=simulation.LEVELS,
        epsilon_simulation=_quantiles(beads) if several else (),
        epsilon_data=_quantiles(prepared.epsilon) if several else (),
        extrapolation=unusual,
        verdict="",
        stable=not any(recorded.stops),
        reasons=tuple(
            _reason(stop, int(done), prepared, number, ensemble.config.unit)
            for number, (stop, done) in enumerate(zip(recorded.stops, looks[-1].done, strict=True))
        ),
        time=trajectory.time,
        potential=trajectory.potential,
        kinetic_temperature=kelvin,
        epsilon_max=np.stack([look.peak for look in looks]),
        bonds=np.stack([look.bonds for look in looks]),
        recorded=trajectory.recorded,
        steps_done=looks[-1].done,
        distributions=_distributions(prepared, trajectory, kept),
        contacts=_contacts(ensemble, prepared, recorded, trajectory, kept),
        nearest=np.stack([look.nearest for look in looks]),
        closest=np.stack([look.closest for look in looks]),
    )
    return simulation.judged(found)


def _temperatures(recorded: Recorded, prepared: Prepared, unit: units.EnergyUnit) -> Array:
    """[K,R] K: twice the kinetic energy over three degrees of freedom for each bead."""
    kinetic = np.stack([look.kinetic for look in recorded.looks])
    beads = prepared.starts.mask.sum(axis=1)
    return np.asarray(2 * kinetic / (3 * beads * units.boltzmann(unit)))


def _mean_temperature(kelvin: Array, kept: Array) -> tuple[float | None, float | None]:
    """Mean over replicas of their means, and its standard error: replicas are independent."""
    count = kept.sum(axis=0)
    if not count.any():
        return None, None
    means = (kelvin * kept).sum(axis=0)[count > 0] / count[count > 0]
    error = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
    return float(means.mean()), error


def _quantiles(values: Array) -> tuple[float, ...]:
    if not values.size:
        return ()
    return tuple(float(x) for x in np.quantile(values, simulation.LEVELS))


def _distributions(
    prepared: Prepared, trajectory: Trajectory, kept: Array
) -> tuple[Distribution, ...]:
    found = []
    for number, molecule in enumerate(prepared.molecules):
        look, replica = np.nonzero(kept & (prepared.molecule == number))
        if not look.size:
            continue
        part = prepared.frames.take(molecule.frames)
        block = blocks_of(part.n_frames, replica=part.replica, wanted=BLOCKS)
        first = int(np.flatnonzero(prepared.molecule == number)[0])
        mass = prepared.mass[first]
        _, group = np.unique(replica, return_inverse=True)
        for coordinate in molecule.coordinates:
            found.append(
                compare(
                    coordinate,
                    coordinate.values(trajectory.position[look, replica], mass),
                    np.asarray(group).reshape(-1),
                    coordinate.values(part.R, mass),
                    block,
                    molecule=molecule.name,
                )
            )
    return tuple(found)


def _contacts(
    ensemble: LoadedEnsemble,
    prepared: Prepared,
    recorded: Recorded,
    trajectory: Trajectory,
    kept: Array,
) -> tuple[Contacts, ...]:
    """By molecule: the closest pair of all, and frames held against those of the data."""
    closest = np.stack([look.closest for look in recorded.looks])
    found = []
    for number, molecule in enumerate(prepared.molecules):
        own, known = np.flatnonzero(prepared.molecule == number), prepared.near[number]
        if known is None or not len(own):
            continue

        def beads(pair: Any, word: str, species: Array = molecule.species) -> dict[str, Any]:
            i, j = int(pair[0]), int(pair[1])
            names = (ensemble.species_names[int(species[one])] for one in (i, j))
            return {f"{word}pair": (i, j), f"{word}names": tuple(names)}

        theirs = known[1]
        least = int(theirs.distance.argmin())
        look, place = np.unravel_index(closest[:, own].argmin(), closest[:, own].shape)
        replica = int(own[place])
        shares, usual = _near_frames(prepared, recorded, number, kept)
        found.append(
            Contacts(
                molecule=molecule.name,
                ceiling=float(ensemble.config.model.cutoff),
                limit=prepared.contact[number],
                smallest=float(closest[look, replica]),
                replica=replica,
                time=float(trajectory.time[look]),
                data_smallest=float(theirs.distance[least]),
                data_frames=len(theirs.distance),
                **beads(recorded.looks[look].closest_pair[replica], ""),
                **beads(theirs.pair[least], "data_"),
                **({} if usual is None else beads(usual, "usual_")),
                **shares,
            )
        )
    return tuple(found)


def _near_frames(
    prepared: Prepared, recorded: Recorded, number: int, kept: Array
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """How frames of a molecule compare with the data's, and the pair that most near ones have."""
    known = prepared.near[number]
    assert known is not None
    index, theirs = known
    chosen = np.nonzero(kept & (prepared.molecule == number))
    if not len(chosen[0]):
        return {"data_level": contacts.level_of(theirs.distance)}, None
    near = np.stack([look.nearest for look in recorded.looks])[chosen]
    pair = np.stack([look.pair for look in recorded.looks])[chosen]
    part = prepared.frames.take(index)
    block = blocks_of(part.n_frames, replica=part.replica, wanted=BLOCKS)
    _, group = np.unique(chosen[1], return_inverse=True)
    shares = contacts.compared(near, np.asarray(group).reshape(-1), theirs.distance, block)
    return shares, contacts.commonest(pair[near < shares["data_level"]])


def _bond_words(prepared: Prepared) -> str:
    low = [float(one.low.min()) for one in prepared.molecules if len(one.bonds)]
    high = [float(one.high.max()) for one in prepared.molecules if len(one.bonds)]
    return f"{min(low):.3g} to {max(high):.3g} Angstrom" if low else ""


def _reason(
    stop: Stop | None, done: int, prepared: Prepared, replica: int, unit: units.EnergyUnit
) -> str:
    """In words: when, what, and the limit."""
    if stop is None:
        return ""
    molecule = prepared.molecules[prepared.molecule[replica]]
    low, high = prepared.energies[prepared.molecule[replica]]
    heat = 2 / (3 * molecule.beads * units.boltzmann(unit))
    top = prepared.kinetic[prepared.molecule[replica]] * heat
    value, which = stop.value, stop.which
    if stop.reason == "bond":
        i, j = molecule.bonds[which]
        words = (
            f"the bond of beads {i} and {j} was {value:.4g} Angstrom, outside "
            f"{molecule.low[which]:.3g} to {molecule.high[which]:.3g}"
        )
    elif stop.reason == "contact":
        i, j = sorted(divmod(which, len(molecule.real)))
        words = (
            f"beads {i} and {j} were {value:.4g} Angstrom apart, below "
            f"{prepared.contact[prepared.molecule[replica]]:.3g}: they overlap"
        )
    else:
        words = {
            "not finite": "energy or forces were not finite",
            "moved": f"a bead moved {value:.3g} Angstrom in one step",
            "energy": f"the energy was {value:.6g} {unit}, outside {low:.6g} to {high:.6g}",
            "temperature": f"the kinetic temperature was {value * heat:.4g} K, above {top:.4g} K",
            "epsilon": f"epsilon of bead {which} was {value:.4g} {unit}/Angstrom",
        }[stop.reason]
    return f"after {done * prepared.timestep * 1e-3:.6g} ps {words}"
