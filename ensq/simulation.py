"""What a dynamics check has found, and its file: an NPZ with the summary as JSON text in it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ensq import npzfile
from ensq.errors import DataError
from ensq.rundir import write_atomic

Array = NDArray[Any]
Kind = Literal["bond", "angle", "dihedral", "distance", "rg"]

FORMAT = 1
PREFIX = "simulation-"  # of the files' names: simulation-<stem>.npz and .json
LEVELS = (0.5, 0.9, 0.95, 0.99, 1.0)  # of epsilon's quantiles
# Above this share of beads with an epsilon over the 99th percentile of the data (1 % is usual) the
# simulation is said to have left the data.
FAR_OUT = 0.05
NEAR = 0.01  # share of the data's frames in which beads count as near


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One coordinate's values in the simulation and in the data, on common bins.

    Distances are the Jensen-Shannon divergence in bits (0 equal, 1 without overlap) and the
    Wasserstein distance in ``unit``; intervals hold 95 % of bootstrap draws of replicas and of the
    data's blocks. ``noise`` is (the median, the largest) of the same distance between halves of
    the data's blocks; None where the data are too few for that.
    """

    molecule: str  # of which; empty if there is one kind only
    kind: Kind
    label: str  # as a person reads it: "bond", "bond C-H", "distance i, i+4"
    unit: str  # Angstrom or degrees
    edges: Array  # [B+1]
    simulation: Array  # [B] probability per unit
    data: Array  # [B]
    n_simulation: int  # values
    n_data: int
    js: float
    js_interval: tuple[float, float]
    js_noise: tuple[float, float] | None
    wasserstein: float
    wasserstein_interval: tuple[float, float]
    wasserstein_noise: tuple[float, float] | None

    @property
    def differs(self) -> bool | None:
        """Whether the interval of js lies above all that halves of the data differ by; None: not
        known."""
        return None if self.js_noise is None else self.js_interval[0] > self.js_noise[1]

    @property
    def title(self) -> str:
        return f"{self.molecule}: {self.label}" if self.molecule else self.label


@dataclass(frozen=True, kw_only=True)
class Contacts:
    """How near beads came that no bond and no angle holds, and how near they do in the data.

    Shares are of recorded frames after equilibration; a frame is near where its smallest distance
    is below ``data_level``, as it is in 1 % of the data's frames. Intervals hold 95 % of bootstrap
    draws of replicas; ``closer_noise`` are the median and the largest share of one half of the
    data's blocks below the level of the other; None where they are not known.
    """

    molecule: str  # empty if there is one kind only
    ceiling: float  # Angstrom: larger distances are taken for it
    limit: float  # Angstrom: nearer stopped a replica
    smallest: float  # Angstrom, of all good steps
    pair: tuple[int, int]  # of which beads
    names: tuple[str, str]  # their species
    replica: int
    time: float  # ps, the look by which it had been
    data_smallest: float
    data_pair: tuple[int, int]
    data_names: tuple[str, str]
    data_frames: int
    data_level: float  # first percentile of the frames' smallest distances
    closer: float | None = None
    closer_interval: tuple[float, float] | None = None
    closer_noise: tuple[float, float] | None = None
    never: float | None = None  # share of frames that are nearer than any of the data
    replicas: int = 0  # that have frames after equilibration
    replicas_closer: int = 0  # that came near
    usual_pair: tuple[int, int] | None = None  # the nearest pair of most of the near frames
    usual_names: tuple[str, str] | None = None

    @property
    def differs(self) -> bool | None:
        """Whether the interval lies above all that halves of the data differ by; None: not
        known."""
        if self.closer_interval is None or self.closer_noise is None:
            return None
        return self.closer_interval[0] > max(NEAR, self.closer_noise[1])

    @property
    def beads(self) -> str:
        """Which came nearest, in words."""
        return _beads(self.pair, self.names)

    @property
    def data_beads(self) -> str:
        """Which are nearest in the data."""
        return _beads(self.data_pair, self.data_names)


def _beads(pair: tuple[int, int], names: tuple[str, str]) -> str:
    return f"beads {pair[0]} {names[0]} and {pair[1]} {names[1]}"


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Langevin dynamics of R replicas, looked at K times (the first one is the start).

    Numbers of a replica after it was stopped are those of its last good step; nothing is NaN.
    """

    name: str  # of the ensemble
    seeds: tuple[int, ...]  # of the members whose mean energy was the potential
    source: str  # the data file
    molecules: tuple[str, ...]  # [R] what each replica is of; empty texts if there is one kind
    temperature: float  # K
    timestep: float  # fs
    friction: float  # 1/ps
    steps: int  # wanted, of each replica
    every: int  # steps between two looks
    seed: int
    dtype: str
    energy_unit: str
    length_unit: str = "Angstrom"
    equilibration: float  # ps at the beginning, left out of distributions and means
    bond_limits: str  # in words: what a bond may be; empty if there are no bonds
    max_epsilon: float | None  # in energy_unit/length_unit, if there was a limit
    interrupted: bool
    seconds: float  # of wall time in the dynamics, compiling left out; 0 if it is not known
    ensemble_temperature: float | None  # K, mean of the kinetic temperature after equilibration
    temperature_error: float | None  # standard error over replicas
    epsilon_levels: tuple[float, ...]
    epsilon_simulation: tuple[float, ...]  # quantiles over beads and looks after equilibration
    epsilon_data: tuple[float, ...]  # the same over the data's frames
    extrapolation: float | None  # share of beads above the 99th percentile of the data
    verdict: str  # one sentence, or several, for people
    stable: bool  # no replica was stopped
    reasons: tuple[str, ...]  # [R] why it was stopped; empty: it was not
    time: Array  # [K] ps
    potential: Array  # [K,R] mean of the members, without reference energies
    kinetic_temperature: Array  # [K,R] K, mean since the last look
    epsilon_max: Array  # [K,R] largest of the beads since the last look
    bonds: Array  # [K,R,2] shortest and longest bond since the last look; 0 where there are none
    recorded: Array  # [K,R] bool: whether the replica was still going
    steps_done: Array  # [R] good steps
    distributions: tuple[Distribution, ...] = ()
    # Files of earlier versions have none of these.
    members: tuple[str, ...] = ()  # SHA-256 of the members' files
    contacts: tuple[Contacts, ...] = ()
    nearest: Array | None = None  # [K,R] Angstrom, the smallest distance of such pairs
    closest: Array | None = None  # [K,R] the same of all steps since the last look

    @property
    def n_replicas(self) -> int:
        return len(self.steps_done)

    @property
    def survived(self) -> int:
        return sum(not reason for reason in self.reasons)

    @property
    def steps_per_second(self) -> float | None:
        """Of all replicas together."""
        made = float(self.time[-1]) / (1e-3 * self.timestep)
        return made / self.seconds if self.seconds else None

    @property
    def force_unit(self) -> str:
        return f"{self.energy_unit}/{self.length_unit}"

    @property
    def time_done(self) -> Array:
        """[R] ps that each replica was simulated."""
        return np.asarray(self.steps_done * self.timestep * 1e-3)


def judged(found: Simulation) -> Simulation:
    """With the verdict in words."""
    total, lost = found.n_replicas, found.n_replicas - found.survived
    words = []
    if lost:
        first = min(
            float(ps) for ps, why in zip(found.time_done, found.reasons, strict=True) if why
        )
        words.append(
            f"UNSTABLE: {lost} of {total} replicas were stopped, the first after {first:.4g} ps."
        )
    else:
        words.append(f"Stable: all {total} replicas went on for {found.time_done.min():.4g} ps.")
    if found.interrupted:
        words.append("It was interrupted.")
    if _off(found):
        words.append(
            f"The temperature is off, {found.ensemble_temperature:.4g} K: the time step is too "
            "long, or the run too short for its friction."
        )
    if found.extrapolation is not None and found.extrapolation > FAR_OUT:
        words.append(
            f"It left the data: the members disagree on {100 * found.extrapolation:.3g} % of the "
            "beads more than on 99 % of the data's."
        )
    words += [_near(one) for one in found.contacts if one.differs]
    known = [one for one in found.distributions if one.differs is not None]
    if known:
        differ = sum(bool(one.differs) for one in known)
        words.append(
            f"{differ} of {len(known)} distributions differ from the data by more than halves of "
            "the data from each other."
        )
    return replace(found, verdict=" ".join(words))


def _near(one: Contacts) -> str:
    of = f" of {one.molecule}" if one.molecule else ""
    return (
        f"Contacts: in {100 * (one.closer or 0):.3g} % of the frames{of} beads are closer than in "
        f"99 % of the data's, down to {one.smallest:.3g} Angstrom "
        f"({one.beads}; {one.data_smallest:.3g} in the data)."
    )


def _off(found: Simulation) -> bool:
    """Whether the temperature is more than 5 % and three standard errors from the wanted one."""
    if found.ensemble_temperature is None or found.temperature_error is None or not found.friction:
        return False
    off = abs(found.ensemble_temperature - found.temperature)
    return off > 0.05 * found.temperature and off > 3 * found.temperature_error


_ARRAYS = (
    *("time", "potential", "kinetic_temperature", "epsilon_max", "bonds", "recorded"),
    "steps_done",
)
_CONTACTS = ("nearest", "closest")  # which older files do not have
_HISTOGRAM = ("edges", "simulation", "data")


def plain(found: Simulation) -> dict[str, Any]:
    """All but the arrays, for JSON; what the file's summary holds."""
    about = {
        field.name: getattr(found, field.name)
        for field in fields(found)
        if field.name not in (*_ARRAYS, *_CONTACTS, "distributions", "contacts")
    }
    return {
        "format": FORMAT,
        **about,
        "replicas": found.n_replicas,
        "survived": found.survived,
        "time_done_ps": [float(ps) for ps in found.time_done],
        "contacts": [{**asdict(one), "differs": one.differs} for one in found.contacts],
        "distributions": [
            {
                **{
                    field.name: getattr(one, field.name)
                    for field in fields(one)
                    if field.name not in _HISTOGRAM
                },
                "differs": one.differs,
            }
            for one in found.distributions
        ],
    }


def write(path: Path, found: Simulation) -> tuple[Path, Path]:
    """The NPZ at ``path`` and the summary beside it as JSON; both are whole or not there.

    Raises DiskError or another OSError.
    """
    text = json.dumps(plain(found), indent=2, allow_nan=False, ensure_ascii=False)
    arrays = {name: getattr(found, name) for name in _ARRAYS}
    arrays |= {name: array for name in _CONTACTS if (array := getattr(found, name)) is not None}
    for number, one in enumerate(found.distributions):
        arrays |= {f"distribution_{number}_{name}": getattr(one, name) for name in _HISTOGRAM}
    content = io.BytesIO()
    np.savez(content, summary=np.array(text), **arrays)
    write_atomic(path, content.getvalue())
    beside = path.with_suffix(".json")
    write_atomic(beside, text.encode() + b"\n")
    return path, beside


def read(path: Path) -> Simulation:
    """A file of ``write``. Raises DataError if it is none, or damaged."""
    try:
        with path.open("rb") as file, npzfile.Npz(file) as archive:
            about = json.loads(str(archive.read("summary")))
            if about.pop("format") != FORMAT:
                raise ValueError("of another version of ensq")
            arrays: dict[str, Any] = {name: archive.read(name) for name in _ARRAYS}
            arrays |= {name: archive.read(name) for name in _CONTACTS if name in archive.names}
            near = tuple(_contacts(one) for one in about.pop("contacts", []))
            made = [
                _distribution(one, {k: archive.read(f"distribution_{n}_{k}") for k in _HISTOGRAM})
                for n, one in enumerate(about.pop("distributions"))
            ]
        known = {field.name for field in fields(Simulation)}
        about = {key: _tuples(value) for key, value in about.items() if key in known}
        return Simulation(**about, **arrays, distributions=tuple(made), contacts=near)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    except (npzfile.Unreadable, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: no file of `ensq simulate`, or a damaged one: {error}") from error


def find(analysis: Path) -> list[Path]:
    """The simulations in a folder of analyses, by name; none if there is no such folder."""
    return sorted(analysis.glob(f"{PREFIX}*.npz"))


def _distribution(about: dict[str, Any], arrays: dict[str, Any]) -> Distribution:
    known = {field.name for field in fields(Distribution)}
    about = {key: _tuples(value) for key, value in about.items() if key in known}
    return Distribution(**about, **arrays)


def _contacts(about: dict[str, Any]) -> Contacts:
    known = {field.name for field in fields(Contacts)}
    return Contacts(**{key: _tuples(value) for key, value in about.items() if key in known})


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
