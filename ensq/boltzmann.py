"""Priors by Boltzmann inversion: potentials U = -kT ln(p / J) of the distributions in the data.

p is the distribution of a bond length r, an angle theta or a dihedral phi over all chains and
frames, J its volume element: r^2, sin(theta), 1. The inversion of one coordinate knows nothing of
the others, so terms that are correlated count some of the same free energy twice.

Series of angles are fitted by maximum likelihood, not to a histogram: the density that they imply
is normalised over all angles, so no minimum can hide where the data have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensq.errors import DataError, UsageError

Array = NDArray[Any]
Unit = Literal["kcal/mol", "eV"]
Kind = Literal["fourier", "spline"]
BOLTZMANN: dict[Unit, float] = {"kcal/mol": 0.0019872041, "eV": 8.617333262e-5}  # per K
FEWEST = 200  # samples below which no distribution is fitted
NEAR, FAR = 2, 6  # |i - j|: excluded volume from NEAR, repulsion from FAR on
CLOSE = 1e-3  # share of the pairs that are nearer than sigma
WIDEST = 0.25  # spread of the bonds, against their length, of what still is a chain
RIDGE = 1e-9  # of a series' numbers: those that the data leave open stay moderate
COARSE = 0.1  # kT between a spline and what it should follow, from where on it is refused
MOST_KNOTS = 10_000
TAIL = 5.0  # widths of the kernel that a spline goes on beyond the last sample


class Chains(NamedTuple):
    """Frames of chains whose beads follow each other in the order of their indices."""

    R: Array  # [T, N, 3] float64, Angstrom
    real: Array  # [T, N] bool
    species: Array  # [T, N] int
    n_species: int
    temperature: float | None  # K, if the file tells
    source: str
    species_names: tuple[str, ...] = ()


class Samples(NamedTuple):
    """What occurs in the frames: lengths in Angstrom, angles in rad."""

    bond: Array  # [b]
    angle: Array  # [a]
    dihedral: Array  # [d], after IUPAC
    central: Array  # [a] species of each angle's central bead
    near: Array  # distances of pairs NEAR to FAR - 1 beads apart
    far: Array  # and of those further apart


class Spline(NamedTuple):
    """Knots [K] and coefficients [K-1, 4], as ``config.model.SplineConfig`` has them."""

    knots: Array
    coeffs: Array

    def energy(self, x: Array) -> Array:
        x = np.clip(x, self.knots[0], self.knots[-1])
        place = np.clip(np.searchsorted(self.knots, x, "right") - 1, 0, len(self.coeffs) - 1)
        c, d = self.coeffs[place], x - self.knots[place]
        energy: Array = c[:, 0] + d * (c[:, 1] + d * (c[:, 2] + d * c[:, 3]))
        return energy


@dataclass(frozen=True)
class Term:
    """One term's samples and the potential that was fitted to them."""

    name: Literal["bond", "angle", "dihedral"]
    samples: Array
    potential: Callable[[Array], Array]  # [n] to [n], in the unit of energy
    numbers: dict[str, Any]  # keys of model.priors; none for a spline
    spline: Spline | None = None
    # the largest difference of the spline and the potential of the smoothed density, in the unit
    # of energy, between the smallest and the largest sample
    spline_error: float = 0.0

    @property
    def range(self) -> tuple[float, float]:
        """Where the samples are, and somewhat more."""
        if self.name == "dihedral":
            return -np.pi, np.pi
        low, high = float(self.samples.min()), float(self.samples.max())
        more = 0.1 * (high - low)
        return max(low - more, 0.0), min(high + more, np.pi if self.name == "angle" else np.inf)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fitted priors."""

    terms: tuple[Term, ...]
    pairs: dict[str, float]  # epsilon, sigma, epsilon_ex, sigma_ex, as far as there are such pairs
    angle_terms: tuple[Term | None, ...]  # by species of the central bead
    angle_counts: tuple[int, ...]  # angles of each species
    species_names: tuple[str, ...]
    kind: Kind
    temperature: float
    unit: Unit
    frames: int
    source: str
    grid: int
    bandwidth: float

    @property
    def kT(self) -> float:
        return BOLTZMANN[self.unit] * self.temperature

    @property
    def angle_types(self) -> tuple[Spline | None, ...]:
        return tuple(None if term is None else term.spline for term in self.angle_terms)


def volume(name: str, x: Array) -> Array:
    """The volume element J of a bond length, an angle or a dihedral."""
    if name == "bond":
        return np.square(x)
    return np.sin(x) if name == "angle" else np.ones_like(x)


def measure(chains: Chains) -> Samples:
    """Bonds, angles, dihedrals and distances wherever all beads of a term are real."""
    R, real = chains.R, chains.real
    bond = R[:, 1:] - R[:, :-1]
    length = np.linalg.norm(bond, axis=-1)
    two = real[:, 1:] & real[:, :-1]
    three, four = two[:, 1:] & two[:, :-1], two[:, 2:] & two[:, 1:-1] & two[:, :-2]
    turn = np.cross(bond[:, :-1], bond[:, 1:])
    along = -(bond[:, :-1] * bond[:, 1:]).sum(axis=-1)
    theta = np.arctan2(np.linalg.norm(turn, axis=-1), along)
    across = length[:, 1:-1] * (bond[:, :-2] * turn[:, 1:]).sum(axis=-1)
    phi = np.arctan2(across, (turn[:, :-1] * turn[:, 1:]).sum(axis=-1))
    central = chains.species[:, 1:-1][three]
    beads = R.shape[1]
    near = [_apart(chains, k) for k in range(NEAR, min(FAR, beads))]
    far = [_apart(chains, k) for k in range(FAR, beads)]
    none = np.empty(0)
    return Samples(
        *(length[two], theta[three], phi[four], central),
        *(np.concatenate([none, *parts]) for parts in (near, far)),
    )


def _apart(chains: Chains, k: int) -> Array:
    """Distances of the beads i and i + k, of at most 5,000 frames."""
    frames = slice(None, None, max(1, len(chains.R) // 5000))
    R, real = chains.R[frames], chains.real[frames]
    both = real[:, k:] & real[:, :-k]
    distance: Array = np.linalg.norm(R[:, k:] - R[:, :-k], axis=-1)[both]
    return distance


def fit(
    chains: Chains,
    *,
    temperature: float,
    unit: Unit = "kcal/mol",
    kind: Kind = "fourier",
    orders: tuple[int, int] = (3, 3),
    grid: int = 500,
    bandwidth: float = 1.0,
) -> Fit:
    """Fit all terms that the chains have beads for.

    Args:
        chains: Frames.
        temperature: Of the simulation, K.
        unit: Of the energies.
        kind: Harmonic bonds and Fourier series, or splines.
        orders: Of the angle's and the dihedral's series.
        grid: Knots of a spline.
        bandwidth: Factor on the width of the kernels that smooth a spline's distribution.

    Raises:
        DataError: No chain, or too few samples.
        UsageError: The grid is too coarse.
    """
    samples = measure(chains)
    _check(samples, chains.source)
    kT = BOLTZMANN[unit] * temperature
    found = {name: getattr(samples, name) for name in ("bond", "angle", "dihedral")}
    found = {name: values for name, values in found.items() if values.size}
    counts = np.bincount(samples.central, minlength=chains.n_species)
    types: list[Term | None] = []
    if kind == "spline":
        terms = [_smooth(name, values, kT, grid, bandwidth) for name, values in found.items()]
        for number, count in enumerate(counts):
            own = samples.angle[samples.central == number]
            enough = count >= FEWEST
            types.append(_smooth("angle", own, kT, grid, bandwidth) if enough else None)
    else:
        terms = [_parametric(name, values, kT, orders) for name, values in found.items()]
    return Fit(
        terms=tuple(terms),
        pairs=_pairs(samples, kT),
        angle_terms=tuple(types),
        angle_counts=tuple(int(count) for count in counts),
        species_names=chains.species_names,
        kind=kind,
        temperature=temperature,
        unit=unit,
        frames=len(chains.R),
        source=chains.source,
        grid=grid,
        bandwidth=bandwidth,
    )


def _check(samples: Samples, source: str) -> None:
    if not samples.bond.size:
        raise DataError(f"{source}: no chain: nowhere do two real beads follow each other")
    spread = float(samples.bond.std() / max(samples.bond.mean(), 1e-12))
    if spread > WIDEST:
        raise DataError(
            f"{source}: the distance of consecutive beads is {samples.bond.mean():.3g} +- "
            f"{samples.bond.std():.2g} Angstrom: these beads are no linear chain in their order"
        )
    for name in ("bond", "angle", "dihedral"):
        values = getattr(samples, name)
        if 0 < values.size < FEWEST:
            raise DataError(
                f"{source}: {values.size} {name}s in all frames together; {FEWEST} at least are "
                "needed to fit a distribution"
            )
    if samples.bond.std() == 0:
        raise DataError(f"{source}: all bonds have one length: nothing to invert")


def _parametric(name: Any, x: Array, kT: float, orders: tuple[int, int]) -> Term:
    """1/2 kr (r - r0)^2 from mean and variance, or a series."""
    if name == "bond":
        r0, kr = float(x.mean()), float(kT / x.var())
        return Term(name, x, lambda r: 0.5 * kr * (r - r0) ** 2, {"r0": r0, "kr": kr})
    cosines, sines = (kT * c for c in fit_series(name, x, orders[name == "dihedral"]))

    def potential(t: Array) -> Array:
        energy: Array = np.concatenate([cosines, sines]) @ _waves(t, len(cosines))
        return energy

    if name == "angle":
        return Term(name, x, potential, {"a": cosines.tolist(), "b": sines.tolist()})
    k, gamma = np.hypot(cosines, sines), np.arctan2(sines, cosines)
    return Term(name, x, potential, {"k_dih": k.tolist(), "gamma_dih": gamma.tolist()})


def _waves(x: Array, order: int) -> Array:
    """cos(n x) for n from 1 to ``order``, then sin(n x): [2 * order, len(x)]."""
    n = np.arange(1, order + 1)[:, None]
    return np.concatenate([np.cos(n * x), np.sin(n * x)])


def fit_series(name: str, x: Array, order: int) -> tuple[Array, Array]:
    """U/kT = sum_n c_n cos(n x) + s_n sin(n x) whose density J exp(-U/kT) is the likeliest.

    That density has the means of all cos(n x) and sin(n x) of the samples (an exponential family;
    the problem is convex, Newton's method solves it).

    Args:
        name: ``angle`` or ``dihedral``, which gives the range and J.
        x: Samples, rad.
        order: The highest n.

    Returns:
        c and s, both [order].
    """
    low = 0.0 if name == "angle" else -np.pi
    points = low + (np.arange(4000) + 0.5) / 4000 * (np.pi - low)
    waves = _waves(points, order)
    means = np.array([f(n * x).mean() for f in (np.cos, np.sin) for n in range(1, order + 1)])
    log_volume = np.log(volume(name, points))
    ridge = RIDGE * np.tile(np.arange(1, order + 1.0), 2) ** 2

    def state(c: Array) -> tuple[float, Array]:
        """Minus the log likelihood per sample (with the ridge), and the density at the points."""
        exponent: Array = log_volume - c @ waves
        density = np.exp(exponent - exponent.max())
        value = exponent.max() + np.log(density.sum()) + c @ means + 0.5 * ridge @ c**2
        return float(value), density / density.sum()

    c = np.zeros(2 * order)
    value, density = state(c)
    for _ in range(500):
        mean = waves @ density
        gradient = means - mean + ridge * c
        if np.abs(gradient).max() < 1e-9:
            break
        second = (waves * density) @ waves.T - np.outer(mean, mean) + np.diag(ridge)
        step = -np.linalg.solve(second, gradient)
        size = 1.0
        while size > 1e-9 and state(c + size * step)[0] > value + 1e-4 * size * gradient @ step:
            size /= 2
        c = c + size * step
        value, density = state(c)
    return c[:order], c[order:]


def _smooth(name: Any, x: Array, kT: float, grid: int, bandwidth: float) -> Term:
    """A spline through -kT ln of the samples' distribution per volume, smoothed by a kernel."""
    smooth = _smoothed(name, x, bandwidth * _width(x))
    low, high = x.min() - TAIL * smooth.width[0], x.max() + TAIL * smooth.width[-1]
    if name == "dihedral":
        low, high = -np.pi, np.pi
    elif name == "angle":
        high = min(high, np.pi)
    low = low if name == "dihedral" else max(low, 0.0)

    def energy(points: Array) -> Array:
        at: Array = -kT * np.log(np.maximum(smooth.at(points), smooth.floor))
        return at

    sampled = np.linspace(x.min(), x.max(), 2000)
    exact = energy(sampled)

    def through(count: int) -> tuple[Spline, float]:
        """The spline of so many knots, and how far it is from what it should follow."""
        knots = np.linspace(low, high, count)
        spline = _interpolated(name, knots, energy(knots))
        return spline, float(np.abs(spline.energy(sampled) - exact).max())

    spline, error = through(grid)
    if error > COARSE * kT:
        finer = (grid * 2**n for n in range(1, 12) if grid * 2**n <= MOST_KNOTS)
        enough = next((count for count in finer if through(count)[1] <= COARSE * kT), None)
        advice = f"--grid {enough} is enough" if enough else "is there an outlier in the data?"
        raise UsageError(
            f"--grid {grid} is too coarse: the spline of the {name} is up to {error / kT:.2g} kT "
            f"off the potential that it should follow, where there are samples: {advice}"
        )
    spline.coeffs[:, 0] -= spline.coeffs[:, 0].min()
    return Term(name, x, spline.energy, {}, spline, error)


def _interpolated(name: str, knots: Array, energy: Array) -> Spline:
    from scipy.interpolate import CubicSpline  # type: ignore[import-untyped]

    kind = "natural"
    if name == "dihedral":
        energy[-1], kind = energy[0], "periodic"
    return Spline(knots, np.ascontiguousarray(CubicSpline(knots, energy, bc_type=kind).c[::-1].T))


def _width(x: Array) -> float:
    """Silverman's rule of thumb for the width of a Gaussian kernel."""
    lower, upper = np.quantile(x, [0.25, 0.75])
    spread = min(float(x.std()), float(upper - lower) / 1.34) or float(x.std())
    return max(0.9 * spread / math.pow(len(x), 0.2), 1e-4)


class _Kernels(NamedTuple):
    """A density per volume as a sum of Gaussians; each bin of samples has its own width."""

    centre: Array  # [b], with images where the coordinate is periodic or mirrored
    weight: Array  # [b]
    width: Array  # [b]

    def at(self, x: Array) -> Array:
        total = np.zeros_like(x)
        for some in np.array_split(np.arange(len(self.centre)), 1 + len(self.centre) // 1000):
            width = self.width[some]
            exponent = -0.5 * ((x[:, None] - self.centre[some]) / width) ** 2
            total += np.exp(exponent) @ (self.weight[some] / width)
        return total

    @property
    def floor(self) -> float:
        """What the lightest of the bins gives at the end of its tail: a lower density can't be
        told from none."""
        return float(np.exp(-0.5 * TAIL**2) * (self.weight / self.width).min())


def _smoothed(name: str, x: Array, width: float) -> _Kernels:
    """The density per volume of samples, up to a factor.

    Samples are counted in bins of a tenth of the width, so that millions cost no more. Kernels
    widen where samples are rare (Abramson, Ann. Stat. 10, 1217 (1982)): with one width every
    outlier would dig a well of its own into the potential.
    """
    low, high = (-np.pi, np.pi) if name == "dihedral" else (float(x.min()), float(x.max()))
    bins = int(np.clip(np.ceil((high - low) / (0.1 * width)), 1, 4000))
    counts, edges = np.histogram(x, bins, (low, high))
    centre = (0.5 * (edges[1:] + edges[:-1]))[counts > 0]
    counts = counts[counts > 0]
    weight = counts / np.maximum(volume(name, centre), 1e-3)
    pilot = _images(name, _Kernels(centre, weight, np.full(len(centre), width))).at(centre)
    mean = np.exp((counts @ np.log(pilot)) / counts.sum())
    widths = width * np.clip(np.sqrt(mean / pilot), 0.5, 2.5)
    return _images(name, _Kernels(centre, weight, widths))


def _images(name: str, kernels: _Kernels) -> _Kernels:
    """With the periods before and after of a dihedral, or an angle's mirror images at 0 and pi,
    beyond which the density per volume goes on evenly."""
    c = kernels.centre
    if name == "bond":
        return kernels
    centres = [c, c - 2 * np.pi, c + 2 * np.pi] if name == "dihedral" else [c, -c, 2 * np.pi - c]
    return _Kernels(np.concatenate(centres), np.tile(kernels.weight, 3), np.tile(kernels.width, 3))


def _pairs(samples: Samples, kT: float) -> dict[str, float]:
    """kT at a distance that only one pair in a thousand is nearer than."""
    found = {}
    for end, distances in (("", samples.far), ("_ex", samples.near)):
        if distances.size >= FEWEST:
            found[f"epsilon{end}"] = kT
            found[f"sigma{end}"] = float(np.quantile(distances, CLOSE))
    return found
