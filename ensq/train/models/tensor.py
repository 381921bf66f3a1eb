"""Spherical harmonics and tensor products, unrolled over their components.

A feature of degree l is a list of 2l+1 arrays, one for each component, in the real basis and the
order of e3nn. Unrolled sums of products of long arrays fuse well; a matrix of Clebsch-Gordan
coefficients would be nearly empty. Components have variance 1 ("component" normalisation).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import e3nn_jax as e3nn
from jax import Array
from jaxtyping import Float

Irrep = tuple[int, int]  # degree l and parity, 1 or -1; parity 1 for all where it is not kept


class Path(NamedTuple):
    """One way to combine a feature and an environment to an irrep."""

    left: Irrep
    right: Irrep
    out: Irrep


@functools.cache
def couplings(l1: int, l2: int, l3: int) -> tuple[tuple[tuple[int, int, float], ...], ...]:
    """For each component of l3 the (m1, m2, coefficient) that are not 0.

    e3nn's Clebsch-Gordan coefficients times sqrt(2 l3 + 1): inputs of variance 1 give outputs of
    variance 1.
    """
    cg = e3nn.clebsch_gordan(l1, l2, l3) * math.sqrt(2 * l3 + 1)
    return tuple(
        tuple(
            (m1, m2, float(cg[m1, m2, m3]))
            for m1 in range(2 * l1 + 1)
            for m2 in range(2 * l2 + 1)
            if abs(cg[m1, m2, m3]) > 1e-9
        )
        for m3 in range(2 * l3 + 1)
    )


def contract(
    left: list[Float[Array, " ..."]], right: list[Float[Array, " ..."]], l3: int
) -> list[Float[Array, " ..."]]:
    """The part of degree ``l3`` of a product, component by component (arrays broadcast)."""
    l1, l2 = (len(left) - 1) // 2, (len(right) - 1) // 2
    out = []
    for terms in couplings(l1, l2, l3):
        # first all products with one component of `right`, which is the smaller array
        parts = []
        for m2 in sorted({m2 for _, m2, _ in terms}):
            parts.append(_sum([left[m1] * c for m1, m, c in terms if m == m2]) * right[m2])
        out.append(_sum(parts))
    return out


def _sum(terms: list[Array]) -> Array:
    return functools.reduce(lambda a, b: a + b, terms)


def spherical_harmonics(
    x: Float[Array, " *e"], y: Float[Array, " *e"], z: Float[Array, " *e"], max_ell: int
) -> list[list[Float[Array, " *e"]]]:
    """Real spherical harmonics of a unit vector for l = 1 .. ``max_ell``, without l = 0.

    Each degree is the product of the one below with the vector: exact polynomials from the
    Clebsch-Gordan coefficients, normalised as e3nn's "component" (sum of squares 2l+1).
    """
    if max_ell == 0:
        return []
    root = math.sqrt(3.0)
    degrees = [[root * x, root * y, root * z]]
    for ell in range(2, max_ell + 1):
        product = contract(degrees[0], degrees[-1], ell)
        factor = _harmonic_factor(ell)
        degrees.append([factor * c for c in product])
    return degrees


@functools.cache
def _harmonic_factor(ell: int) -> float:
    """What brings the product of degrees 1 and l-1 to a sum of squares of 2l+1, seen at a pole."""
    return math.sqrt(2 * ell + 1) / math.sqrt(sum(c * c for c in _product_at_pole(ell)))


def _product_at_pole(ell: int) -> list[float]:
    lower = (
        [1.0] if ell == 1 else [c * _harmonic_factor(ell - 1) for c in _product_at_pole(ell - 1)]
    )
    first = (0.0, math.sqrt(3.0), 0.0)
    if ell == 1:
        return list(first)
    return [
        sum(c * first[m1] * lower[m2] for m1, m2, c in terms)
        for terms in couplings(1, ell - 1, ell)
    ]


def paths(
    left: tuple[Irrep, ...], max_ell: int, outputs: tuple[Irrep, ...], parity: bool
) -> tuple[Path, ...]:
    """Every product of ``left`` with an environment (l, (-1)^l) that gives one of ``outputs``."""
    found = []
    for l1, p1 in left:
        for l2 in range(max_ell + 1):
            p2 = (-1) ** l2 if parity else 1
            for l3, p3 in outputs:
                if abs(l1 - l2) <= l3 <= l1 + l2 and p3 == p1 * p2:
                    found.append(Path((l1, p1), (l2, p2), (l3, p3)))
    return tuple(found)
