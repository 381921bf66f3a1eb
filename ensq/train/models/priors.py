"""Prior energies over a linear chain: bond, angle, dihedral, repulsion, excluded volume.

Beads follow each other in the order of their indices; a term exists where all its beads are real,
so padding ends the chain. Each term is shared equally between its beads. A value that would make
a root or quotient undefined (padded beads at one point, three beads on a line) is replaced before
that operation, since a mask behind it would still leave 0 * inf = NaN in the derivative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax

from ensq.config.structs import PriorsConfig

TINY = 1e-12  # squared length (or its square) below which a direction is taken as undefined
NEAR, FAR = 2, 6  # |i - j|: excluded volume from NEAR, repulsion from FAR on


@dataclass(frozen=True)
class ChainPriors:
    """The terms that a configuration gives parameters for, times their weights."""

    config: PriorsConfig

    def per_bead_energy(self, positions: Array, real: Array) -> Array:
        """Energies [..., N] from positions [..., N, 3] and ``real`` [..., N] bool.

        N may be a symbolic dimension. Terms with no parameters, or a weight of 0, cost nothing.
        """
        cfg = self.config
        energy = jnp.zeros(real.shape, positions.dtype)
        bond = _between(positions, real)
        if cfg.r0 is not None and cfg.kr is not None and cfg.weights.bond:
            term = bond_energy(bond, cfg.r0, cfg.kr)
            energy = energy + cfg.weights.bond * _share(term, _joined(real, 2), 2)
        if cfg.a and cfg.weights.angle:
            term = angle_energy(bond, _move(bond, 1, -2), cfg.a, cfg.b)
            energy = energy + cfg.weights.angle * _share(term, _joined(real, 3), 3)
        if cfg.k_dih and cfg.weights.dihedral:
            bonds = (bond, _move(bond, 1, -2), _move(bond, 2, -2))
            term = dihedral_energy(bonds, _joined(real, 4), cfg.k_dih, cfg.gamma_dih)
            energy = energy + cfg.weights.dihedral * _share(term, _joined(real, 4), 4)
        return energy + self._pairs(positions, real)

    def _pairs(self, positions: Array, real: Array) -> Array:
        """Repulsion and excluded volume: half of each pair's energy to each of its beads."""
        cfg = self.config
        parts = []
        place = jnp.arange(positions.shape[-2], dtype=jnp.int32)
        apart = jnp.abs(place[:, None] - place[None, :])
        if cfg.epsilon is not None and cfg.sigma is not None and cfg.weights.repulsive:
            parts.append((cfg.weights.repulsive * cfg.epsilon * cfg.sigma**4, apart >= FAR))
        if cfg.epsilon_ex is not None and cfg.sigma_ex is not None and cfg.weights.excluded_volume:
            factor = cfg.weights.excluded_volume * cfg.epsilon_ex * cfg.sigma_ex**4
            parts.append((factor, (apart >= NEAR) & (apart < FAR)))
        if not parts:
            return jnp.zeros((), positions.dtype)
        both = real[..., :, None] & real[..., None, :]
        x, y, z = (positions[..., k] for k in range(3))
        squared = sum(jnp.square(c[..., :, None] - c[..., None, :]) for c in (x, y, z))
        coefficient = sum(jnp.where(where & both, factor, 0.0) for factor, where in parts)
        coefficient = jnp.asarray(coefficient, positions.dtype)
        inverse = 1.0 / jnp.where((coefficient != 0) & (squared > TINY), squared, 1.0)
        return 0.5 * jnp.sum(coefficient * jnp.square(inverse), axis=-1)


def bond_energy(bond: Array, r0: float, kr: float) -> Array:
    """1/2 kr (r - r0)^2 of bond vectors [..., N, 3]."""
    return 0.5 * kr * jnp.square(_length(bond) - r0)


def angle_energy(first: Array, second: Array, a: tuple[float, ...], b: tuple[float, ...]) -> Array:
    """sum_n a_n cos(n theta) + b_n sin(n theta), n from 1, between bonds [..., N, 3].

    theta is the angle at the middle bead: pi when the two bonds have one direction. Where a bond
    has no length theta counts as 0, with no force.
    """
    along = -jnp.sum(first * second, axis=-1)
    across = _length(jnp.cross(first, second))
    return _series(along, across, [(x, y) for x, y in zip(a, b, strict=True)])


def dihedral_energy(
    bonds: tuple[Array, Array, Array],
    joined: Array,
    k: tuple[float, ...],
    gamma: tuple[float, ...],
) -> Array:
    """sum_n k_n (1 + cos(n phi - gamma_n)), n from 1, of three bonds [..., N, 3] in a row.

    phi after IUPAC: 0 for cis, positive when the far bond turns clockwise; a right-handed helix of
    C-alpha beads has about +50 degrees. Where three beads stand on a line (or ``joined`` [..., N]
    is False) phi counts as 0, with no force.
    """
    first, middle, last = bonds
    left, right = jnp.cross(first, middle), jnp.cross(middle, last)
    along = jnp.where(joined, jnp.sum(left * right, axis=-1), 0.0)
    across = jnp.where(joined, _length(middle) * jnp.sum(first * right, axis=-1), 0.0)
    pairs = [(x * math.cos(g), x * math.sin(g)) for x, g in zip(k, gamma, strict=True)]
    return sum(k) + _series(along, across, pairs)


def _series(along: Array, across: Array, pairs: list[tuple[float, float]]) -> Array:
    """sum_n p_n cos(n t) + q_n sin(n t) of the angle t of the point (along, across).

    Powers of cos t + i sin t: no arc cosine, whose derivative is infinite at 0 and pi.
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
