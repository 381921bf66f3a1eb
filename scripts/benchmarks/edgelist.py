"""Energy functions of chemtrain's own kind, on jax_md's neighbour list and lists of edges.

chemtrain hands each frame's list to the energy function after it has searched the neighbours anew
in every step. Sums over neighbours are scatters. ``channels_last`` is Allegro the way that models
for JAX are written: channels innermost, e3nn's harmonics and Clebsch-Gordan coefficients.
``listed`` is ensq's own code on the same list. Both have ensq's parameters and its energies, which
``check`` holds against ensq's own.
"""

from __future__ import annotations

import math
from typing import Any

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np

from ensq.train.models import EnergyModel
from ensq.train.models.allegro import SCALAR, VECTOR, Allegro
from ensq.train.pack import Program

from jax_md import partition, space  # isort: skip  (after what loads jax_md_mod)

TOLERANCE = 1e-4  # of energies, relative to their spread, in single precision


def neighbour_list(cutoff: float, positions: Any) -> Any:
    """A list of edges of jax_md, with no more room than the most crowded frame [T, N, 3] needs."""
    displacement, _ = space.free()
    functions = partition.neighbor_list(
        displacement,
        1.0,  # no box: cells are off
        cutoff,
        0.0,  # frames are not a trajectory: a skin would only add pairs
        capacity_multiplier=1.0,
        disable_cell_list=True,
        format=partition.NeighborListFormat.Sparse,
    )
    distances = np.linalg.norm(positions[:, :, None] - positions[:, None, :], axis=-1)
    crowded = int(np.argmax((distances < cutoff).sum(axis=(1, 2))))
    neighbours = functions.allocate(jnp.asarray(positions[crowded]))
    overflow = jax.jit(jax.vmap(lambda R: neighbours.update(R).did_buffer_overflow))
    if np.asarray(overflow(jnp.asarray(positions))).any():
        raise ValueError("jax_md's list has no room for some frame")
    return neighbours


def listed(model: EnergyModel) -> Any:
    """ensq's network on the list."""

    def energy_fn_template(params: Any) -> Any:
        def energy_fn(R: Any, neighbor: Any, species: Any, **_: Any) -> Any:
            receivers, senders = neighbor.idx
            valid = jnp.ones(len(R), bool)
            energies = model.per_bead_energy_sparse(params, R, species, senders, receivers, valid)
            return energies.sum()

        return energy_fn

    return energy_fn_template


def channels_last(model: EnergyModel) -> Any:
    """Allegro with edges first and channels last, [E, C, 2 l + 1]."""
    network = model.network
    if not isinstance(network, Allegro) or network.config.num_layers != 1 or network.parity:
        raise ValueError("written for one layer of SO(3) features, as in configs/chignolin.yaml")

    def energy_fn_template(params: Any) -> Any:
        def energy_fn(R: Any, neighbor: Any, species: Any, **_: Any) -> Any:
            per_bead = _allegro(network, params["network"], R, species, neighbor.idx)
            energy = jnp.sum(per_bead) * model.energy_scale
            real = jnp.ones(len(R), bool)
            return energy + jnp.sum(model._of_priors(params, R, real, species))

        return energy_fn

    return energy_fn_template


def _mlp(weights: Any, x: Any, bias: Any = 0.0) -> Any:
    x = x @ weights["w0"].T + bias
    for k in range(1, len(weights)):
        x = jax.nn.silu(x) @ weights[f"w{k}"].T
    return x


def _product(a: Any, b: Any, ell: int) -> Any:
    """[E, C, 2 l1 + 1] and [E, C, 2 l2 + 1] to [E, C, 2 ell + 1]."""
    l1, l2 = (a.shape[-1] - 1) // 2, (b.shape[-1] - 1) // 2
    cg = np.asarray(e3nn.clebsch_gordan(l1, l2, ell)) * math.sqrt(2 * ell + 1)
    return jnp.einsum("eci,ecj,ijk->eck", a, b, jnp.asarray(cg, a.dtype))


def _bessel(u: Any, count: int) -> Any:
    n = jnp.arange(1, count + 1, dtype=u.dtype)
    return math.sqrt(2 / 3) * jnp.sin(n * jnp.pi * u[:, None]) / u[:, None]


def _envelope(u: Any, p: int) -> Any:
    return 1 - u**p * ((p + 1) * (p + 2) / 2 - u * (p * (p + 2) - u * p * (p + 1) / 2))


def _allegro(network: Allegro, params: Any, R: Any, species: Any, idx: Any) -> Any:
    """Energy [N] of each bead in units of the energy scale; see ``ensq.train.models.allegro``."""
    cfg, beads = network.config, len(R)
    receivers, senders = idx  # an index of N marks an edge that is not used
    used = (receivers < beads) & (senders < beads)
    vector = R[senders] - R[receivers]
    squared = jnp.sum(vector**2, axis=-1)
    used &= (squared < network.cutoff**2) & (squared > 0)
    vector = jnp.where(used[:, None], vector, 0.5 * network.cutoff)
    r = jnp.linalg.norm(vector, axis=-1)
    u = r / network.cutoff
    weight = jnp.where(used, _envelope(u, cfg.envelope_p), 0.0)
    weight = weight / math.sqrt(network.avg_num_neighbors)
    Y = [
        e3nn.spherical_harmonics(e3nn.Irreps([(1, (ell, 1))]), vector, True, "component").array
        for ell in range(network.degrees)
    ]
    bias = params["centre"].T[species[receivers]] + params["neighbour"].T[species[senders]]
    x = _mlp(params["embed"], _bessel(u, cfg.n_radial_basis), bias)
    features = jnp.split(x @ params["features"].T, network.degrees, axis=-1)
    V = {(ell, 1): v[:, :, None] * Y[ell][:, None, :] for ell, v in enumerate(features)}
    own = params["layer0"]
    environments = jnp.split(x @ own["environment"].T, network.degrees, axis=-1)
    A = [  # [N, C, 2 l + 1]: the sum over the edges of each bead, a scatter
        jax.ops.segment_sum(
            weight[:, None, None] * e[:, :, None] * Y[ell][:, None, :], receivers, beads
        )
        for ell, e in enumerate(environments)
    ]
    [paths] = network.layer_paths()
    scalars = [
        _product(V[path.left], A[path.right[0]][receivers], 0)[..., 0]
        for path in paths
        if path.out == SCALAR
    ]
    if network.triple:
        mixing = own["cross"] * (1 - jnp.eye(cfg.n_channels, dtype=R.dtype))
        mixed = jnp.einsum("dc,ncm->ndm", mixing, A[1])
        cross = _product(A[1], mixed, 1)[receivers]
        scalars.append(_product(V[VECTOR], cross, 0)[..., 0])
    x = (x + _mlp(own["latent"], jnp.concatenate([x, *scalars], axis=-1))) * math.sqrt(0.5)
    return jax.ops.segment_sum(_mlp(params["readout"], x)[:, 0] * weight, receivers, beads)


def check(program: Program, energy_fn_template: Any, function: str) -> None:
    """Raise if the function's energies are not those of ensq's model: no pair would be one."""
    if function == "same":
        return
    [part] = program.dataset.training
    frames = jax.tree_util.tree_map(lambda leaf: leaf[:8], part.frames)
    params = program.new_member(3).params
    neighbours = neighbour_list(program.model.cutoff, np.asarray(frames.R))
    energy_fn = energy_fn_template(params)

    def one(R: Any, species: Any) -> Any:
        return energy_fn(R, neighbours.update(R), species=species)

    def total(R: Any) -> Any:
        return program.model.per_bead_energy(params, frames._replace(R=R)).sum()

    def theirs(R: Any) -> Any:
        return jax.vmap(one)(R, frames.species).sum()

    for name, mine, other in zip(
        ("energy", "force"),
        jax.jit(jax.value_and_grad(total))(frames.R),
        jax.jit(jax.value_and_grad(theirs))(frames.R),
        strict=True,
    ):
        scale = float(np.abs(np.asarray(mine)).max())
        apart = float(np.abs(np.asarray(mine) - np.asarray(other)).max())
        if not apart < TOLERANCE * scale:
            raise ValueError(f"the {function} function's {name} is off by {apart:g} of {scale:g}")
