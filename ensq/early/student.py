"""Student's t distribution by the incomplete beta function: SciPy would take long to import."""

from __future__ import annotations

import math

_STEPS = 500
_TINY = 1e-300
_ENOUGH = 1e-15


def upper_tail(t: float, dof: int) -> float:
    """P(T > t) for T of Student's distribution with ``dof`` degrees of freedom.

    P(T > t) = I_x(dof/2, 1/2) / 2 with x = dof / (dof + t^2) for t >= 0; DLMF 8.17 has I_x. The
    relative error is below 1e-10, in the far tail too. 0 for infinity.
    """
    if dof < 1:
        raise ValueError(f"Student's distribution needs a degree of freedom, not {dof}")
    if math.isnan(t):
        raise ValueError("no probability of what is not a number")
    if t < 0:
        return 1.0 - upper_tail(-t, dof)
    if math.isinf(t):
        return 0.0
    return 0.5 * _incomplete_beta(0.5 * dof, 0.5, dof, t * t)


def _incomplete_beta(a: float, b: float, above: float, beside: float) -> float:
    """I_x(a, b) at x = above / (above + beside), which loses no digits where x is near to 1."""
    x, rest = above / (above + beside), beside / (above + beside)
    if x == 0.0:
        return 0.0
    if rest == 0.0:
        return 1.0
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logarithm + a * math.log(x) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1.0 - front * _fraction(b, a, rest) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of DLMF 8.17.22, by Lentz's method."""
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for part in (even, odd):
            d = 1.0 / _away(1.0 + part * d)
            c = _away(1.0 + part / c)
            value *= d * c
        if abs(d * c - 1.0) < _ENOUGH:
            break
    return value


def _away(value: float) -> float:
    """Away from zero, by which Lentz's method would divide."""
    return value if abs(value) > _TINY else _TINY
