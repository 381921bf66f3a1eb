"""One step of Langevin dynamics for all replicas, and what stops a replica.

The integrator is BAOAB (Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34 (2013)) from the
parts of ``jax_md.simulate.nvt_langevin``, put together here so that each evaluation of the forces
also tells energy and epsilon: every step is looked at, not only those that are recorded.

Inside, the unit of time is that in which Newton's equations have no factor (``units.time_unit``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ensq.train.compat import enable_x64  # before chemtrain and jax_md

import jax
import jax.numpy as jnp
from jax import Array
from jax_md import simulate

from ensq import units
from ensq.train.dynamics import contacts
from ensq.train.models import Frames

__all__ = ["REASONS", "Forces", "Layout", "Limits", "Settings", "Walk", "enable_x64"]

# What stops a replica; the number is the code in ``Walk.reason``, 0 is nothing.
REASONS = ("", "not finite", "moved", "bond", "energy", "temperature", "epsilon", "contact")
NOT_FINITE, MOVED, BOND, ENERGY, TEMPERATURE, EPSILON, CONTACT = range(1, 8)
FARTHEST = 1.0  # Angstrom that a bead may move in one step: thermal ones move a tenth of it


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the dynamics are run."""

    temperature: float  # K
    timestep: float  # fs
    friction: float  # 1/ps; 0: constant energy
    seed: int
    unit: units.EnergyUnit

    @property
    def kT(self) -> float:
        return units.boltzmann(self.unit) * self.temperature

    @property
    def dt(self) -> float:
        """The time step in units of the dynamics."""
        return self.timestep / units.time_unit(self.unit)

    @property
    def gamma(self) -> float:
        """The friction in units of the dynamics."""
        return self.friction * 1e-3 * units.time_unit(self.unit)

    def bath(self, dtype: Any) -> Bath:
        dt, kT, gamma = (jnp.asarray(x, dtype) for x in (self.dt, self.kT, self.gamma))
        return Bath(dt, kT, gamma, jax.random.PRNGKey(self.seed))


class Bath(NamedTuple):
    """Settings as the program takes them: other values need no other program."""

    dt: Any  # []
    kT: Any  # []
    gamma: Any  # []
    key: Any  # of the random numbers


class Limits(NamedTuple):
    """What is taken as an explosion, for each of R replicas; infinite where there is no limit.

    Arrays of NumPy, or on the device.
    """

    bonds: Any  # [R,b,2] int
    used: Any  # [R,b] bool: there is such a bond
    low: Any  # [R,b] Angstrom
    high: Any  # [R,b]
    energy_low: Any  # [R]
    energy_high: Any  # [R]
    kinetic: Any  # [R] the highest kinetic energy
    epsilon: Any  # [R] the highest of a bead
    # None: no pair is watched.
    pairs: Any = None  # [R,N,N] bool: those that no bond and no angle holds; on the host only
    contact: Any = None  # [R] Angstrom: nearer they overlap


class Layout(NamedTuple):
    """Neighbours of all replicas, right as long as no bead is further than ``reach`` from where it
    was when they were found."""

    nbr: Array  # [R,N,M]
    rev: Array  # [R,N,M]
    mask: Array  # [R,N,M]
    offset: Array | None  # [R,N,M,3]
    origin: Array  # [R,N,3]
    reach: Array  # [] Angstrom
    free: Array | None = None  # [R,N,M] bool: pairs that are watched


class Walk(NamedTuple):
    """The state of R replicas after their last good steps."""

    md: Any  # jax_md's NVTLangevinState, every array with R in front
    energy: Array  # [R]
    epsilon: Array  # [R,N]
    alive: Array  # [R] bool
    done: Array  # [R] int32 good steps
    reason: Array  # [R] int32
    value: Array  # [R] of what was beyond its limit; 0 where it was no number
    which: Array  # [R] int32 the bond, bead or pair (i * N + j) of it
    nearest: Array  # [R] of the watched pairs; infinite where none are neighbours
    pair: Array  # [R] int32 which
    # since they were last set to zero:
    heat: Array  # [R] sum of the kinetic energies of all steps
    counted: Array  # [R] int32 steps in that sum
    peak: Array  # [R] largest epsilon
    shortest: Array  # [R] bond
    longest: Array  # [R] bond
    closest: Array  # [R] watched pair
    closest_pair: Array  # [R] int32 which


class Beads(NamedTuple):
    """What never changes."""

    species: Array  # [R,N]
    mask: Array  # [R,N] float


# positions [R,N,3], beads and layout to the mean energy [R], the mean forces [R,N,3], epsilon [R,N]
Forces = Callable[[Array, Beads, Layout], tuple[Array, Array, Array]]


def ensemble_forces(of_members: Callable[[Any, Frames], Any], params: Any) -> Forces:
    """Mean energy and forces of stacked members, and sqrt(mean |F - <F>|^2) of each bead.

    ``of_members`` gives energies [M,R] and forces [M,R,N,3].
    """

    def forces(position: Array, beads: Beads, layout: Layout) -> tuple[Array, Array, Array]:
        frames = Frames(
            R=position,
            species=beads.species,
            mask=beads.mask,
            nbr=layout.nbr,
            rev=layout.rev,
            nbr_mask=layout.mask,
            offset=layout.offset,
        )
        energy, force, *_ = of_members(params, frames)
        mean = force.mean(axis=0)
        apart = jnp.square(force - mean).sum(axis=-1).mean(axis=0)
        return energy.mean(axis=0), mean, jnp.sqrt(apart)

    return forces


def begin(
    forces: Forces,
    bath: Bath,
    position: Array,
    mass: Array,
    beads: Beads,
    layout: Layout,
    limits: Limits,
) -> Walk:
    """Replicas at rest in the forces of their first frames, with momenta drawn for the temperature.

    ``mass`` [R,N]. Each replica draws from a sequence of its own, which its number and the seed
    give: it does not depend on how many others there are.
    """
    replicas, dtype = len(position), position.dtype
    every = jax.vmap(partial(jax.random.fold_in, bath.key))(jnp.arange(replicas))
    keys = jax.vmap(jax.random.split)(every)
    mass = mass[..., None]
    drawn = jax.vmap(lambda key: jax.random.normal(key, position.shape[1:], dtype))(keys[:, 0])
    momentum = jnp.sqrt(mass * bath.kT) * drawn * beads.mask[..., None]
    energy, force, epsilon = forces(position, beads, layout)
    none, zero = jnp.zeros(replicas, jnp.int32), jnp.zeros(replicas, dtype)
    nearest, pair = contacts.nearest(position, layout)
    walk = Walk(
        md=simulate.NVTLangevinState(position, momentum, force, mass, keys[:, 1]),
        energy=energy,
        epsilon=epsilon,
        alive=jnp.ones(replicas, bool),
        done=none,
        reason=none,
        value=zero,
        which=none,
        nearest=nearest,
        pair=pair,
        heat=zero,
        counted=none,
        peak=epsilon.max(axis=1),
        shortest=zero,
        longest=zero,
        closest=nearest,
        closest_pair=pair,
    )
    code, value, which, (shortest, longest) = _judged(walk, walk, beads, limits, jnp.inf)
    kinetic = kinetic_energy(walk, beads)
    return walk._replace(
        alive=code == 0,
        reason=code,
        value=value,
        which=which,
        heat=kinetic,
        counted=none + 1,
        shortest=shortest,
        longest=longest,
    )


def advance(
    forces: Forces,
    bath: Bath,
    walk: Walk,
    beads: Beads,
    layout: Layout,
    limits: Limits,
    steps: Array,
) -> tuple[Walk, Array]:
    """Up to ``steps`` steps; fewer if the neighbours have to be found anew before the next.

    Returns the state, and how many steps were made. A step for which the neighbours would not be
    right is not made.
    """

    def going(carry: tuple[Walk, Array, Array]) -> Array:
        _, made, stale = carry
        return (made < steps) & ~stale

    def one(carry: tuple[Walk, Array, Array]) -> tuple[Walk, Array, Array]:
        before, made, _ = carry
        after, stale = _step(forces, bath, before, beads, layout, limits)
        kept = jax.tree_util.tree_map(lambda old, new: jnp.where(stale, old, new), before, after)
        return kept, made + jnp.where(stale, 0, 1), stale

    start = (walk, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    walk, made, _ = jax.lax.while_loop(going, one, start)
    return walk, made


def forget(walk: Walk) -> Walk:
    """With nothing in the sums and extremes."""
    zero = jnp.zeros_like(walk.heat)
    return walk._replace(
        heat=zero,
        counted=jnp.zeros_like(walk.counted),
        peak=zero,
        shortest=zero + jnp.inf,
        longest=zero,
        closest=zero + jnp.inf,
    )


def kinetic_energy(walk: Walk, beads: Beads) -> Array:
    """[R] of the real beads."""
    squared = jnp.square(walk.md.momentum).sum(axis=-1) / walk.md.mass[..., 0]
    return 0.5 * jnp.where(beads.mask > 0, squared, 0.0).sum(axis=1)


def _step(
    forces: Forces, bath: Bath, walk: Walk, beads: Beads, layout: Layout, limits: Limits
) -> tuple[Walk, Array]:
    """The state after one step, and whether the neighbours were too old for it."""
    md, half = walk.md, 0.5 * bath.dt

    def moved(state: Any) -> Any:
        return jax.vmap(
            lambda one, mask: simulate.position_step(one, _shift, half, mask=mask[:, None])
        )(state, beads.mask)

    md = jax.vmap(lambda one: simulate.momentum_step(one, half))(md)
    md = moved(md)
    md = jax.vmap(lambda one: simulate.stochastic_step(one, bath.dt, bath.kT, bath.gamma))(md)
    md = moved(md)
    # Who moves further in one step than neighbours last has none to be found for: a jump as well.
    farthest = jnp.minimum(FARTHEST, layout.reach)
    jumped = _farthest(md.position, walk.md.position, beads) > farthest
    away = _farthest(md.position, layout.origin, beads) > layout.reach
    stale = (walk.alive & away & ~jumped).any()
    energy, force, epsilon = forces(md.position, beads, layout)
    md = jax.vmap(lambda one: simulate.momentum_step(one, half))(md.set(force=force))
    nearest, pair = contacts.nearest(md.position, layout)
    new = walk._replace(md=md, energy=energy, epsilon=epsilon, nearest=nearest, pair=pair)
    code, value, which, (shortest, longest) = _judged(new, walk, beads, limits, farthest)
    good = walk.alive & (code == 0)
    new = new._replace(
        done=walk.done + 1,
        heat=walk.heat + kinetic_energy(new, beads),
        counted=walk.counted + 1,
        peak=jnp.maximum(walk.peak, epsilon.max(axis=1)),
        shortest=jnp.minimum(walk.shortest, shortest),
        longest=jnp.maximum(walk.longest, longest),
        closest=jnp.minimum(walk.closest, nearest),
        closest_pair=jnp.where(nearest < walk.closest, pair, walk.closest_pair),
    )
    new = jax.tree_util.tree_map(
        lambda old, own: jnp.where(good.reshape(-1, *(1,) * (own.ndim - 1)), own, old), walk, new
    )
    stopped = walk.alive & (code > 0)
    new = new._replace(
        alive=good,
        reason=jnp.where(stopped, code, walk.reason),
        value=jnp.where(stopped, value, walk.value),
        which=jnp.where(stopped, which, walk.which),
    )
    return new, stale


def _shift(position: Array, by: Array, mask: Array) -> Array:
    """Padding stays where it is."""
    return position + jnp.where(mask > 0, by, 0.0)


def _farthest(one: Array, other: Array, beads: Beads) -> Array:
    """[R] the longest way of a real bead."""
    squared = jnp.square(one - other).sum(axis=-1)
    return jnp.sqrt(jnp.where(beads.mask > 0, squared, 0.0).max(axis=1))


def _judged(
    new: Walk, old: Walk, beads: Beads, limits: Limits, farthest: Any
) -> tuple[Array, Array, Array, tuple[Array, Array]]:
    """Why each replica is to be stopped: code, value, which bond, bead or pair; its range of
    bonds."""
    jump = _farthest(new.md.position, old.md.position, beads)
    length, beyond, which, bonds = _bonds(new.md.position, limits)
    kinetic = kinetic_energy(new, beads)
    largest = new.epsilon.max(axis=1)
    finite = jnp.isfinite(new.energy) & jnp.isfinite(largest)
    for values in (new.md.position, new.md.momentum, new.md.force):
        finite &= jnp.isfinite(values).all(axis=(1, 2))
    cold = (new.energy >= limits.energy_low) & (new.energy <= limits.energy_high)
    tests = (  # the first that holds counts
        (NOT_FINITE, ~finite, jnp.zeros_like(kinetic)),
        (MOVED, jump > farthest, jump),
        (BOND, beyond, length),
        *_overlap(new, limits),
        (ENERGY, ~cold, new.energy),
        (TEMPERATURE, kinetic > limits.kinetic, kinetic),
        (EPSILON, largest > limits.epsilon, largest),
    )
    code, value = jnp.zeros_like(new.reason), jnp.zeros_like(kinetic)
    for number, holds, what in reversed(tests):
        code = jnp.where(holds, number, code)
        value = jnp.where(holds, what, value)
    place = jnp.where(code == BOND, which, new.epsilon.argmax(axis=1))
    place = jnp.where(code == CONTACT, new.pair, place)
    return code, value, place.astype(jnp.int32), bonds


def _overlap(new: Walk, limits: Limits) -> tuple[tuple[int, Array, Array], ...]:
    """The test of contacts, if there is one."""
    if limits.contact is None:
        return ()
    return ((CONTACT, new.nearest < limits.contact, new.nearest),)


def _bonds(position: Array, limits: Limits) -> tuple[Array, Array, Array, tuple[Array, Array]]:
    """The length of the worst bond, whether it is beyond its limits, which it is, and the
    shortest and longest of all; each [R], 0 where there are no bonds."""
    if limits.bonds.shape[1] == 0:
        zero = jnp.zeros(len(position), position.dtype)
        return zero, zero > 0, zero.astype(jnp.int32), (zero, zero)

    def ends(one: Array, place: Array) -> Array:
        return one[place[:, 1]] - one[place[:, 0]]

    length = jnp.sqrt(jnp.square(jax.vmap(ends)(position, limits.bonds)).sum(axis=-1))
    excess = jnp.maximum(limits.low - length, length - limits.high)
    excess = jnp.where(limits.used, excess, -jnp.inf)
    which = excess.argmax(axis=1)
    any_used = limits.used.any(axis=1)
    shortest = jnp.where(limits.used, length, jnp.inf).min(axis=1)
    longest = jnp.where(limits.used, length, 0.0).max(axis=1)
    return (
        jnp.take_along_axis(length, which[:, None], axis=1)[:, 0],
        excess.max(axis=1) > 0,
        which,
        (jnp.where(any_used, shortest, 0.0), longest),
    )
