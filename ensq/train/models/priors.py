"""Prior energies over a linear chain: bond, angle, dihedral, repulsion, excluded volume.

Beads follow each other in the order of their indices; a term exists where all its beads are real,
so padding ends the chain. Each term is shared equally between its beads. A value that would make
a root or quotient undefined (padded beads at one point, three beads on a line) is replaced before
that operation, since a mask behind it would still leave 0 * inf = NaN in the derivative.

The formulas stand in ``PriorsConfig``; docs/priors.md tells more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ensq.config.model import PriorsConfig, SplineConfig, SplinesConfig
from ensq.train.models.splines import FLAT, into_period, spline_energy

TINY = 1e-12  # squared length (or its square) below which a direction is taken as undefined
NEAR, FAR = 2, 6  # |i - j|: excluded volume from NEAR, repulsion from FAR on


NOTHING = "nothing"  # the name of the parameter of priors that have none


@dataclass(frozen=True)
class ChainPriors:
    """The terms that a configuration gives parameters for, times their weights.

    With ``use_spline_priors`` a spline of the file stands in for the bond, angle or dihedral term;
    where the file has none the term with parameters stays. Splines are not trained.
    """

    config: PriorsConfig

    def __post_init__(self) -> None:
        if self.config.use_spline_priors and self.config.splines is None:
            raise ValueError(
                f"the splines of {self.config.spline_file} have not been read into priors.splines"
            )

    def init(self, dtype: Any = jnp.float32) -> dict[str, Array]:
        """The numbers that may be trained, of the terms that take part, each an array [] or [n].

        Without any there is one that counts for nothing: a tree without a leaf can neither be
        mapped over members nor be written to a file.
        """
        cfg = self.config
        keys = []
        if cfg.r0 is not None and cfg.weights.bond and not self._bond_spline:
            keys += ["r0", "kr"]
        if cfg.a and cfg.weights.angle and not self._angle_splines:
            keys += ["a", "b"]
        if cfg.k_dih and cfg.weights.dihedral and not self._dihedral_spline:
            keys += ["k_dih", "gamma_dih"]
        if cfg.epsilon is not None and cfg.weights.repulsive:
            keys += ["epsilon", "sigma"]
        if cfg.epsilon_ex is not None and cfg.weights.excluded_volume:
            keys += ["epsilon_ex", "sigma_ex"]
        found = {key: jnp.asarray(getattr(cfg, key), dtype) for key in keys}
        return found or {NOTHING: jnp.zeros((), dtype)}

    def per_bead_energy(
        self, params: dict[str, Array], positions: Array, real: Array, species: Array
    ) -> Array:
        """Energies [..., N] of positions [..., N, 3], ``real`` [..., N] bool and species [..., N].

        ``params`` as made by ``init``. N may be a symbolic dimension. Terms with no parameters, or
        a weight of 0, cost nothing.
        """
        weights = self.config.weights
        energy = jnp.zeros(real.shape, positions.dtype)
        bond = _between(positions, real)
        parts = (
            (weights.bond, self._bond(params, bond), 2),
            (weights.angle, self._angle(params, bond, real, species), 3),
            (weights.dihedral, self._dihedral(params, bond, real), 4),
        )
        for weight, term, size in parts:
            if term is not None:
                energy = energy + weight * _share(term, _joined(real, size), size)
        return energy + self._pairs(params, positions, real)

    def _bond(self, params: dict[str, Array], bond: Array) -> Array | None:
        """The term of each bond at its first bead [..., N]; None if there is no such term."""
        if self._bond_spline:
            return spline_energy([self._bond_spline], _length(bond))
        return bond_energy(bond, params["r0"], params["kr"]) if "r0" in params else None

    def _angle(
        self, params: dict[str, Array], bond: Array, real: Array, species: Array
    ) -> Array | None:
        """The term of each angle at its first bead [..., N]; None if there is no such term."""
        following = _move(bond, 1, -2)
        if splines := self._angle_splines:
            along, across = angle_point(bond, following)
            theta = _angle_of(along, across, _joined(real, 3))
            central = _move(species, 1, -1)
            known = (central >= 0) & (central < len(splines) - 1)
            return spline_energy(splines, theta, jnp.where(known, central, len(splines) - 1))
        return angle_energy(bond, following, params["a"], params["b"]) if "a" in params else None

    def _dihedral(self, params: dict[str, Array], bond: Array, real: Array) -> Array | None:
        """The term of each dihedral at its first bead [..., N]; None if there is no such term."""
        bonds = (bond, _move(bond, 1, -2), _move(bond, 2, -2))
        joined = _joined(real, 4)
        if spline := self._dihedral_spline:
            phi = self.config.dihedral_sign * _angle_of(*dihedral_point(bonds), joined)
            return spline_energy([spline], into_period(phi, spline))
        if "k_dih" not in params:
            return None
        # cos(-n phi - gamma) is cos(n phi + gamma)
        gamma = self.config.dihedral_sign * params["gamma_dih"]
        return dihedral_energy(bonds, joined, params["k_dih"], gamma)

    @property
    def _splines(self) -> SplinesConfig:
        """What the file held; nothing if splines are not to be used."""
        used = self.config.splines if self.config.use_spline_priors else None
        return SplinesConfig() if used is None else used

    @property
    def _bond_spline(self) -> SplineConfig | None:
        return self._splines.bond if self.config.weights.bond else None

    @property
    def _angle_splines(self) -> list[SplineConfig]:
        """One for each species of the central bead, and the one for all others last; or none."""
        splines = self._splines
        types = splines.angle_types if self.config.residue_specific_angles else ()
        if not self.config.weights.angle or not any((splines.angle, *types)):
            return []
        others = splines.angle or FLAT
        return [*(spline or others for spline in types), others]

    @property
    def _dihedral_spline(self) -> SplineConfig | None:
        return self._splines.dih if self.config.weights.dihedral else None

    def _pairs(self, params: dict[str, Array], positions: Array, real: Array) -> Array:
        """Repulsion and excluded volume: half of each pair's energy to each of its beads."""
        weights = self.config.weights
        parts = []
        place = jnp.arange(positions.shape[-2], dtype=jnp.int32)
        apart = jnp.abs(place[:, None] - place[None, :])
        if "epsilon" in params:
            factor = weights.repulsive * params["epsilon"] * params["sigma"] ** 4
            parts.append((factor, apart >= FAR))
        if "epsilon_ex" in params:
            factor = weights.excluded_volume * params["epsilon_ex"] * params["sigma_ex"] ** 4
            parts.append((factor, (apart >= NEAR) & (apart < FAR)))
        if not parts:
            return jnp.zeros((), positions.dtype)
        both = real[..., :, None] & real[..., None, :]
        x, y, z = (positions[..., k] for k in range(3))
        squared = sum(jnp.square(c[..., :, None] - c[..., None, :]) for c in (x, y, z))
        chosen = both & (squared > TINY)
        coefficient = sum(jnp.where(where & chosen, factor, 0.0) for factor, where in parts)
        inverse = 1.0 / jnp.where(chosen, squared, 1.0)
        return 0.5 * jnp.sum(coefficient * jnp.square(inverse), axis=-1)


def unphysical(params: dict[str, Array]) -> list[str]:
    """What training has made of parameters that nothing bounds, one line for each oddity.

    A negative force constant of a bond drives beads apart without limit, a negative epsilon pulls
    them into each other; of sigma only the fourth power counts.
    """
    found = []
    for key in ("r0", "kr", "epsilon", "epsilon_ex"):
        if key in params and float(params[key]) < 0:
            found.append(f"the prior's {key} has become negative ({float(params[key]):.4g})")
    return found


def bond_energy(bond: Array, r0: Array, kr: Array) -> Array:
    """1/2 kr (r - r0)^2 of bond vectors [..., N, 3]."""
    return 0.5 * kr * jnp.square(_length(bond) - r0)


def angle_point(first: Array, second: Array) -> tuple[Array, Array]:
    """Coordinates (along, across) [..., N] of a point at the angle theta of the middle bead.

    theta is pi when the two bonds [..., N, 3] have one direction.
    """
    along = -jnp.sum(first * second, axis=-1)
    return along, _length(jnp.cross(first, second))


def dihedral_point(bonds: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Coordinates (along, across) [..., N] of a point at the dihedral phi of three bonds in a row.

    phi after IUPAC: 0 for cis, positive when the far bond turns clockwise; a right-handed helix of
    C-alpha beads has about +50 degrees.
    """
    first, middle, last = bonds
    left, right = jnp.cross(first, middle), jnp.cross(middle, last)
    return jnp.sum(left * right, axis=-1), _length(middle) * jnp.sum(first * right, axis=-1)


def angle_energy(first: Array, second: Array, a: Array, b: Array) -> Array:
    """sum_n a_n cos(n theta) + b_n sin(n theta), n from 1, between bonds [..., N, 3].

    Where a bond has no length theta counts as 0, with no force.
    """
    return _series(*angle_point(first, second), list(zip(a, b, strict=True)))


def dihedral_energy(
    bonds: tuple[Array, Array, Array], joined: Array, k: Array, gamma: Array
) -> Array:
    """sum_n k_n (1 + cos(n phi - gamma_n)), n from 1, of three bonds [..., N, 3] in a row.

    Where three beads stand on a line (or ``joined`` [..., N] is False) phi counts as 0, with no
    force.
    """
    along, across = (jnp.where(joined, x, 0.0) for x in dihedral_point(bonds))
    pairs = list(zip(k * jnp.cos(gamma), k * jnp.sin(gamma), strict=True))
    return jnp.sum(k) + _series(along, across, pairs)


def _angle_of(along: Array, across: Array, joined: Array) -> Array:
    """The angle of the point (along, across); 0 with no derivative where it has none, or where
    ``joined`` is False. No arc cosine, whose derivative is infinite at 0 and pi."""
    defined = joined & (jnp.square(along) + jnp.square(across) > TINY)
    return jnp.arctan2(jnp.where(defined, across, 0.0), jnp.where(defined, along, 1.0))


def _series(along: Array, across: Array, pairs: list[tuple[Array, Array]]) -> Array:
    """sum_n p_n cos(n t) + q_n sin(n t) of the angle t of the point (along, across).

    Powers of cos t + i sin t; where the point is the origin t counts as 0.
    """
    squared = jnp.square(along) + jnp.square(across)
    defined = squared > TINY
    inverse = jnp.where(defined, 1.0 / jnp.sqrt(jnp.where(defined, squared, 1.0)), 0.0)
    cosine, sine = jnp.where(defined, along * inverse, 1.0), across * inverse
    re, im, total = cosine, sine, jnp.zeros_like(along)
    for n, (p, q) in enumerate(pairs):
        if n:
            re, im = re * cosine - im * sine, re * sine + im * cosine
        total = total + p * re + q * im
    return total


def _length(x: Array) -> Array:
    """Norm over the last axis; 0 with derivative 0 for a vector of no length."""
    squared = jnp.sum(jnp.square(x), axis=-1)
    defined = squared > TINY
    return jnp.where(defined, jnp.sqrt(jnp.where(defined, squared, 1.0)), 0.0)


def _move(x: Array, by: int, axis: int) -> Array:
    """x[i + by] at i along ``axis``, 0 past the ends. A pad by negative and positive amounts, so
    that its transpose is a pad too, and the length may be symbolic."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (-by, by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _joined(real: Array, size: int) -> Array:
    """Whether ``size`` beads from each one on are all real."""
    ones = real.astype(jnp.float32)
    out = ones
    for k in range(1, size):
        out = out * _move(ones, k, -1)
    return out > 0


def _between(positions: Array, real: Array) -> Array:
    """Bond vectors [..., N, 3] from each bead to the next; 0 where there is no next one."""
    joined = _joined(real, 2)[..., None]
    return jnp.where(joined, _move(positions, 1, -2) - positions, 0.0)


def _share(term: Array, joined: Array, size: int) -> Array:
    """An equal part of each term, which stands at its first bead, for each of its beads."""
    part = jnp.where(joined, term, 0.0) / size
    out = part
    for k in range(1, size):
        out = out + _move(part, -k, -1)
    return out
