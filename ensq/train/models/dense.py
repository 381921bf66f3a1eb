"""Linear maps of edges-last features whose derivatives are edges-last too.

JAX's own derivative of a matrix product returns its results transposed, [edges, features]; XLA
then copies nearly every array back. The two products here are each other's derivatives and keep
the long axis last in derivatives of any order, which makes a training step a fifth faster.

Likewise for joining features and taking them apart: the derivative of a slice is an array of zeros
around it, and a sum of such arrays asks at every element which of them it is in, with no vector
instructions. JAX 0.4 differentiates its own joints so, which took a quarter of a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

Weights = Array | np.ndarray  # parameters come from NumPy where they are constants


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(
    weight: Float[Weights, "out in"], x: Float[Array, "in *e"], mixed: bool = False
) -> Float[Array, " out *e"]:
    """A linear map of the features of every edge.

    If ``mixed``, the factors are rounded to bfloat16, here and in all derivatives; their products
    are added up in the precision of ``x``.
    """
    return _product(weight, x, ((1,), (0,)), mixed)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _backward(
    weight: Float[Weights, "out in"], g: Float[Array, " out *e"], mixed: bool
) -> Float[Array, " in *e"]:
    """The map of the transposed weights, which are never written down as such."""
    return _product(weight, g, ((0,), (0,)), mixed)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def outer(
    g: Float[Array, " out *e"], x: Float[Array, "in *e"], mixed: bool = False
) -> Float[Array, "out in"]:
    """The sum over all edges of products."""
    axes = tuple(range(1, g.ndim))
    return _product(g, x, (axes, axes), mixed)


def _product(
    left: Weights, right: Array, axes: tuple[tuple[int, ...], tuple[int, ...]], mixed: bool
) -> Array:
    if not mixed:
        return jnp.tensordot(left, right, axes=axes)
    a, b = (_rounded(jnp.asarray(one)) for one in (left, right))
    return jnp.tensordot(a, b, axes=axes, preferred_element_type=right.dtype)


def _rounded(x: Array) -> Array:
    """In bfloat16. Where a device has no such products, XLA would leave a mere conversion out."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)


def _linear_forward(weight: Weights, x: Array, mixed: bool) -> tuple[Array, tuple[Weights, Array]]:
    return linear(weight, x, mixed), (weight, x)


def _linear_backward(mixed: bool, kept: tuple[Weights, Array], g: Array) -> tuple[Array, Array]:
    weight, x = kept
    return outer(g, x, mixed), _backward(weight, g, mixed)


def _backward_forward(
    weight: Weights, g: Array, mixed: bool
) -> tuple[Array, tuple[Weights, Array]]:
    return _backward(weight, g, mixed), (weight, g)


def _backward_backward(mixed: bool, kept: tuple[Weights, Array], h: Array) -> tuple[Array, Array]:
    weight, g = kept
    return outer(g, h, mixed), linear(weight, h, mixed)


def _outer_forward(g: Array, x: Array, mixed: bool) -> tuple[Array, tuple[Array, Array]]:
    return outer(g, x, mixed), (g, x)


def _outer_backward(mixed: bool, kept: tuple[Array, Array], h: Array) -> tuple[Array, Array]:
    g, x = kept
    return linear(h, x, mixed), _backward(h, g, mixed)


linear.defvjp(_linear_forward, _linear_backward)
_backward.defvjp(_backward_forward, _backward_backward)
outer.defvjp(_outer_forward, _outer_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def split(x: Float[Array, " n *e"], sizes: tuple[int, ...]) -> tuple[Float[Array, " ..."], ...]:
    """Consecutive parts of the first axis; the parts' ``sizes`` add up to n."""
    ends = itertools.accumulate(sizes)
    return tuple(x[end - size : end] for size, end in zip(sizes, ends, strict=True))


def components(x: Float[Array, " n *e"]) -> list[Float[Array, " *e"]]:
    """Each feature by itself."""
    return [part.reshape(x.shape[1:]) for part in split(x, (1,) * x.shape[0])]


def join(parts: Sequence[Float[Array, " ..."]]) -> Float[Array, " n *e"]:
    """One after the other along the first axis."""
    return _join(tuple(parts), tuple(part.shape[0] for part in parts))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _join(parts: tuple[Array, ...], sizes: tuple[int, ...]) -> Array:
    return jnp.concatenate(parts, axis=0)


def _split_forward(x: Array, sizes: tuple[int, ...]) -> tuple[tuple[Array, ...], None]:
    return split(x, sizes), None


def _split_backward(sizes: tuple[int, ...], _: None, g: tuple[Array, ...]) -> tuple[Array]:
    return (_join(tuple(g), sizes),)


def _join_forward(parts: tuple[Array, ...], sizes: tuple[int, ...]) -> tuple[Array, None]:
    return _join(parts, sizes), None


def _join_backward(sizes: tuple[int, ...], _: None, g: Array) -> tuple[tuple[Array, ...]]:
    return (split(g, sizes),)


split.defvjp(_split_forward, _split_backward)
_join.defvjp(_join_forward, _join_backward)
