"""A dynamics check from its data to what it found."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ensq.dynamics import summary
from ensq.dynamics.options import Options
from ensq.dynamics.preparing import Prepared, limits_of, prepare, settings_of
from ensq.dynamics.trajectory import Trajectory
from ensq.ensemble import LoadedEnsemble
from ensq.simulation import Simulation

if TYPE_CHECKING:
    from ensq.train.dynamics import Dynamics, Look, Stop

Array = NDArray[Any]


class Listener(Protocol):
    """Hears how far the dynamics are; may ask them to end."""

    def say(self, text: str) -> None:
        """One line about what is done."""

    def progress(self, at: Progress) -> None:
        """After each look."""

    def stopped(self) -> bool:
        """Whether to end now, with what there is."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the dynamics are."""

    step: int
    steps: int
    steps_per_second: float | None
    timestep: float  # fs
    replicas: int
    exploded: int


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """All looks, and why replicas were stopped."""

    looks: list[Look]
    stops: list[Stop | None]
    steps_per_second: float | None
    interrupted: bool


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a check has found, and the trajectories."""

    simulation: Simulation
    trajectory: Trajectory


def simulate(ensemble: LoadedEnsemble, source: Path, options: Options, listener: Listener) -> Found:
    """Langevin dynamics from frames of ``source``, and their comparison with its distributions.

    Raises DataError and UsageError for data or options that do not serve.
    """
    prepared = prepare(ensemble, source, options, listener.say)
    listener.say(_about(prepared, options))
    from ensq.train.dynamics import Dynamics

    dynamics = Dynamics(
        ensemble.predictor,
        prepared.starts,
        settings_of(prepared, options, ensemble.config.unit),
        prepared.mass,
        limits_of(prepared, options),
    )
    recorded = _record(dynamics, prepared.timestep, options, listener)
    trajectory = _trajectory(ensemble, prepared, recorded)
    found = summary.summarize(ensemble, source, options, prepared, recorded, trajectory)
    return Found(simulation=found, trajectory=trajectory)


def _about(prepared: Prepared, options: Options) -> str:
    time_ = options.steps * prepared.timestep * 1e-3
    return (
        f"{options.replicas} replicas, {options.steps} steps of {prepared.timestep:g} fs "
        f"({time_:g} ps each) at {prepared.temperature:g} K; compiling"
    )


def _record(dynamics: Dynamics, timestep: float, options: Options, listener: Listener) -> Recorded:
    looks: list[Look] = []
    speed, began = None, (0, 0.0)
    for look in dynamics.looks(options.steps, options.interval(), listener.stopped):
        looks.append(look)
        now = time.monotonic()
        if look.step and not began[0]:
            began = (look.step, now)  # the program is compiled
        elif began[0]:
            speed = (look.step - began[0]) / max(now - began[1], 1e-9)
        listener.progress(
            Progress(
                step=look.step,
                steps=options.steps,
                steps_per_second=speed,
                timestep=timestep,
                replicas=len(look.alive),
                exploded=int((~look.alive).sum()),
            )
        )
    interrupted = bool(looks[-1].step < options.steps and looks[-1].alive.any())
    return Recorded(
        looks=looks, stops=dynamics.stops(), steps_per_second=speed, interrupted=interrupted
    )


def _trajectory(ensemble: LoadedEnsemble, prepared: Prepared, recorded: Recorded) -> Trajectory:
    looks, starts = recorded.looks, prepared.starts
    done = np.stack([look.done for look in looks])
    new = np.concatenate([np.ones((1, done.shape[1]), bool), done[1:] > done[:-1]])
    step = np.array([look.step for look in looks])
    return Trajectory(
        step=step,
        time=step * prepared.timestep * 1e-3,
        position=np.stack([look.position for look in looks]),
        epsilon=np.stack([look.epsilon for look in looks]),
        potential=np.stack([look.potential for look in looks]),
        recorded=new,
        species=starts.species,
        mask=starts.mask,
        cell=starts.cell,
        protein=starts.protein,
        species_names=ensemble.species_names,
        protein_names=starts.protein_names,
        elements=ensemble.elements,
        energy_unit=ensemble.energy_unit,
        temperature=prepared.temperature,
    )
