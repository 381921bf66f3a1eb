"""The network from its parameters, written from docs/network.md and from nothing of ensq's models.

Plain sums over the pairs of one bead; harmonics and Clebsch-Gordan coefficients are e3nn's.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np


def mlp(weights: dict[str, Any], x: Any, bias: Any = 0.0) -> Any:
    x = weights["w0"] @ x + bias
    for k in range(1, len(weights)):
        x = weights[f"w{k}"] @ (x / (1 + jnp.exp(-x)))
    return x


def product(a: Any, b: Any, l3: int) -> Any:
    """[C, 2 l1 + 1] and [C, 2 l2 + 1] to [C, 2 l3 + 1]."""
    l1, l2 = (a.shape[-1] - 1) // 2, (b.shape[-1] - 1) // 2
    cg = np.asarray(e3nn.clebsch_gordan(l1, l2, l3)) * math.sqrt(2 * l3 + 1)
    return jnp.einsum("ci,cj,ijk->ck", a, b, cg)


def kinds_made(layer: int, layers: int, max_ell: int, so3: bool) -> list[tuple[int, int]]:
    if layer == layers - 1:
        return [(0, 1)]
    if so3:
        return [(ell, 1) for ell in range(max_ell + 1)]
    if layer == layers - 2:
        return [(ell, (-1) ** ell) for ell in range(max_ell + 1)]
    return [(ell, p) for ell in range(max_ell + 1) for p in (1, -1)]


class Independent:
    """N of every bead of one frame."""

    def __init__(self, allegro: dict[str, Any], cutoff: float, average: float, so3: bool) -> None:
        self.cfg, self.cutoff, self.average, self.so3 = allegro, cutoff, average, so3

    def parity(self, ell: int) -> int:
        return 1 if self.so3 else (-1) ** ell

    def pair(self, params: Any, vector: Any, s_b: Any, s_j: Any) -> tuple[Any, Any, Any]:
        """Weight, latent and harmonics of a pair."""
        cfg = self.cfg
        r = jnp.linalg.norm(vector)
        u, p = r / self.cutoff, cfg["envelope_p"]
        n = jnp.arange(1, cfg["n_radial_basis"] + 1)
        basis = math.sqrt(2 / 3) * jnp.sin(n * jnp.pi * u) / u
        f = 1 - u**p * ((p + 1) * (p + 2) / 2 - u * (p * (p + 2) - u * p * (p + 1) / 2))
        weight = jnp.where(u < 1, f, 0.0) / math.sqrt(self.average)
        bias = jnp.asarray(params["centre"])[:, s_b] + jnp.asarray(params["neighbour"])[:, s_j]
        harmonics = [
            e3nn.spherical_harmonics(
                e3nn.Irreps([(1, (ell, 1))]), vector, True, normalization="component"
            ).array
            for ell in range(cfg["max_ell"] + 1)
        ]
        return weight, mlp(params["embed"], basis, bias), harmonics

    def blocks(self, weight: Any, x: Any) -> list[Any]:
        """[J, hidden] to one [J, C] for each degree."""
        return jnp.split(x @ jnp.asarray(weight).T, self.cfg["max_ell"] + 1, axis=1)

    def of_bead(self, params: Any, vectors: Any, s_b: Any, s_j: Any) -> Any:
        """N of a bead with these vectors [J, 3] to the others, of species s_j [J]."""
        layers = self.cfg["num_layers"]
        w, x, Y = jax.vmap(lambda v, s: self.pair(params, v, s_b, s))(vectors, s_j)
        V = {
            (ell, self.parity(ell)): v[:, :, None] * Y[ell][:, None, :]
            for ell, v in enumerate(self.blocks(params["features"], x))
        }
        for k in range(layers):
            x, V = self.layer(params[f"layer{k}"], k, w, x, V, Y)
        return jnp.sum(w * jax.vmap(lambda one: mlp(params["readout"], one)[0])(x))

    def layer(self, own: Any, k: int, w: Any, x: Any, V: Any, Y: Any) -> tuple[Any, Any]:
        layers, max_ell = self.cfg["num_layers"], self.cfg["max_ell"]
        A = [
            jnp.einsum("j,jc,jm->cm", w, e, Y[ell])
            for ell, e in enumerate(self.blocks(own["environment"], x))
        ]
        made: dict[tuple[int, int], list[Any]] = {}
        wanted = kinds_made(k, layers, max_ell, self.so3)
        for kind, l2 in itertools.product(sorted(V), range(max_ell + 1)):
            for out in wanted:
                allowed = abs(kind[0] - l2) <= out[0] <= kind[0] + l2
                if allowed and out[1] == kind[1] * self.parity(l2):
                    products = jax.vmap(product, (0, None, None))(V[kind], A[l2], out[0])
                    made.setdefault(out, []).append(products)
        scalars = [P[:, :, 0] for P in made.get((0, 1), [])]
        if self.so3 and layers == 1:
            cross = product(A[1], own["cross"] @ A[1], 1)
            scalars.append(jax.vmap(product, (0, None, None))(V[1, 1], cross, 0)[:, :, 0])
        inputs = jnp.concatenate([x, *scalars], axis=1)
        x = (x + jax.vmap(lambda one: mlp(own["latent"], one))(inputs)) / math.sqrt(2)
        if k + 1 == layers:
            return x, {}
        mixes = {kind: own[f"mix_{kind[0]}{'o' if kind[1] < 0 else 'e'}"] for kind in made}
        mixed = {
            kind: jnp.einsum("dc,jcm->jdm", mixes[kind], jnp.concatenate(parts, axis=1))
            for kind, parts in made.items()
        }
        return x, mixed

    def beads(self, params: Any, R: Any, species: Any) -> Any:
        """[N]"""
        found = []
        for b in range(len(R)):
            others = np.array([j for j in range(len(R)) if j != b])
            found.append(self.of_bead(params, R[others] - R[b], species[b], species[others]))
        return jnp.stack(found)
