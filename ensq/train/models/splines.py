"""Cubic splines of the priors: given coefficients, clamped at the outer knots.

The coefficients are constants of the compiled program; only x carries a derivative, so that no
scatter appears in forces or in gradients of forces.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from ensq.config.model import SplineConfig

# Where nothing else is given for a species: no energy, no force.
FLAT = SplineConfig(knots=(0.0, 1.0), coeffs=((0.0, 0.0, 0.0, 0.0),))


def spline_energy(splines: Sequence[SplineConfig], x: Array, which: Array | None = None) -> Array:
    """c0 + c1 d + c2 d^2 + c3 d^3 with d = x - knot of the interval that x lies in.

    Args:
        splines: One or more; their knots need be neither uniform nor the same.
        x: [...], clamped to the knots: constant energy and no force outside.
        which: [...] int, the spline of each x; None: the first for all.
    """
    # All splines in one list: bottom[s] is the place of spline s's first knot.
    sizes = [len(spline.knots) for spline in splines]
    bottom = np.cumsum([0, *sizes[:-1]]).astype(np.int32)
    top = bottom + np.asarray(sizes, np.int32) - 1
    knots = jnp.asarray(np.concatenate([spline.knots for spline in splines]), x.dtype)
    # the last knot starts no interval: a row of zeros keeps rows and knots in step
    rows = [np.asarray([*spline.coeffs, (0.0,) * 4]) for spline in splines]
    coeffs = [jnp.asarray(column, x.dtype) for column in np.concatenate(rows).T]
    chosen = jnp.zeros((), jnp.int32) if which is None else which
    first, last = _at(jnp.asarray(bottom), chosen), _at(jnp.asarray(top), chosen)
    low, high = _at(knots, first), _at(knots, last)
    place = _interval(knots, x, first, last, max(sizes))
    d = jnp.where(x < low, low, jnp.where(x > high, high, x)) - _at(knots, place)
    c0, c1, c2, c3 = (_at(column, place) for column in coeffs)
    return c0 + d * (c1 + d * (c2 + d * c3))


def _interval(knots: Array, x: Array, first: Array, last: Array, size: int) -> Array:
    """The place of the last knot at or below x, from ``first`` to ``last - 1``, by bisection."""
    low, high = jnp.broadcast_to(first, x.shape), jnp.broadcast_to(last, x.shape)
    for _ in range((size - 2).bit_length()):
        middle = (low + high) // 2
        above = x >= _at(knots, middle)
        low, high = jnp.where(above, middle, low), jnp.where(above, high, middle)
        high = jnp.maximum(high, low + 1)
    return low


def _at(values: Array, place: Array) -> Array:
    """values[place]; places are never out of bounds, so nothing is spent on a fill value."""
    return jnp.take(values, place, mode="clip")


def into_period(phi: Array, spline: SplineConfig) -> Array:
    """phi plus the multiple of 2 pi that brings it to the spline's first period."""
    start = spline.knots[0]
    turns = jnp.floor((phi - start) / (2 * np.pi))  # its derivative is 0
    return phi - (2 * np.pi) * turns
