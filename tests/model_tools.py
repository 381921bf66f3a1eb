"""Tiny networks, frames and compiled functions for the tests of the models."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from ensq.train.compat import enable_x64

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensq.config.model import (
    AllegroConfig,
    DimeNetConfig,
    ModelConfig,
    PriorsConfig,
    PriorWeights,
)
from ensq.train.models import DataStatistics, EnergyModel, Frames, build_model
from ensq.train.neighbours import build_neighbours

CUTOFF = 4.0
SHIFTS = np.array([0.5, -1.0, 2.0])
SPECIES = 3
BEADS = 8
Kind = tuple[int, int, str]  # max_ell, num_layers, symmetry
NETWORKS: list[Kind] = [(1, 1, "so3"), (1, 2, "o3")]
# more ways through the code, for the tests that share one compiled function
ALL_NETWORKS: list[Kind] = [
    *NETWORKS,
    (0, 1, "o3"),
    (1, 1, "o3"),
    (1, 2, "so3"),
    (2, 2, "o3"),
    (1, 3, "o3"),
]
PRIORS = PriorsConfig(
    weights=PriorWeights(bond=1.0, angle=1.0, dihedral=1.0),
    r0=1.5,
    kr=3.0,
    a=(0.3, -0.2),
    b=(0.1, 0.4),
    k_dih=(0.5, 0.2),
    gamma_dih=(0.3, -1.0),
    epsilon=0.2,
    sigma=1.1,
    epsilon_ex=0.1,
    sigma_ex=1.2,
)


def name_of(kind: Kind) -> str:
    return f"l{kind[0]}-{kind[1]}layer-{kind[2]}"


# Unoptimised machine code: compiling takes a quarter of the time.
compile_fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

every_network = pytest.mark.parametrize("network", ALL_NETWORKS, ids=name_of)
two_networks = pytest.mark.parametrize("network", NETWORKS, ids=name_of)


@functools.cache
def make_model(kind: Kind, priors: PriorsConfig | None = None) -> EnergyModel:
    ell, layers, symmetry = kind
    allegro = AllegroConfig(
        max_ell=ell,
        num_layers=layers,
        symmetry=symmetry,  # type: ignore[arg-type]
        n_channels=2,
        mlp_n_hidden=6,
        n_radial_basis=4,
    )
    config = ModelConfig(
        cutoff=CUTOFF,
        allegro=allegro,
        use_priors=priors is not None,
        train_priors=priors is not None,
        priors=priors or PriorsConfig(),
    )
    return build_model(config, DataStatistics(SPECIES, 4.0, SHIFTS, 3.0))


STATISTICS = DataStatistics(SPECIES, 4.0, SHIFTS, 3.0)
SMALL_DIMENET = DimeNetConfig(
    embed_size=8, n_interaction_blocks=1, num_rbf=3, num_sbf=3, num_dense_out=1
)


@functools.cache
def model_of(subject: str) -> EnergyModel:
    """A small model of each sort that ensq knows, by a name for the tests."""
    if subject.startswith("allegro"):
        _, ell, layers, symmetry = subject.split("-")
        return make_model((int(ell), int(layers), symmetry))
    if subject == "priors":
        config = ModelConfig(cutoff=CUTOFF, prior_only=True, use_priors=True, priors=PRIORS)
    elif subject == "own":
        config = ModelConfig(cutoff=CUTOFF, ml_model="own_model:build", options={"hidden": 5})
    else:
        config = ModelConfig(cutoff=CUTOFF, ml_model=subject, dimenetpp=SMALL_DIMENET)
    return build_model(config, STATISTICS)


def helix(beads: int = 8) -> np.ndarray:
    turn = np.deg2rad(100.0) * np.arange(beads)
    return np.stack([1.2 * np.cos(turn), 1.2 * np.sin(turn), 0.8 * np.arange(beads)], axis=-1)


def rotation(seed: int = 5) -> np.ndarray:
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.linalg.det(matrix)


def chain(seed: int = 0, beads: int = BEADS) -> tuple[np.ndarray, np.ndarray]:
    """A chain with bonds of 1.5 and no two beads nearer than 1.2, and its species."""
    rng = np.random.default_rng(seed)
    positions = np.zeros((1, 3))
    while len(positions) < beads:
        step = rng.normal(size=3)
        new = positions[-1] + 1.5 * step / np.linalg.norm(step)
        if np.linalg.norm(positions - new, axis=-1).min() > 1.2:
            positions = np.concatenate([positions, [new]])
    return positions, rng.integers(0, SPECIES, size=beads)


def frames_of(
    positions: np.ndarray,
    species: np.ndarray,
    mask: np.ndarray | None = None,
    cutoff: float = CUTOFF,
    dtype: Any = np.float64,
) -> Frames:
    """Frames from one frame [N, 3] or several [B, N, 3], with N places for neighbours."""
    positions = np.asarray(positions, dtype).reshape(-1, *np.shape(positions)[-2:])
    mask = np.ones(positions.shape[:2]) if mask is None else np.reshape(mask, positions.shape[:2])
    edges = build_neighbours(np.nan_to_num(positions), mask, cutoff)
    # one width for all lists: one compiled function serves many tests
    beads, width = edges.index.shape[1:]
    more = ((0, 0), (0, 0), (0, beads - width))
    return Frames(
        jnp.asarray(positions),
        jnp.broadcast_to(jnp.asarray(species, jnp.int32), mask.shape),
        jnp.asarray(mask, dtype),
        jnp.asarray(np.pad(edges.index, more)),
        jnp.asarray(np.pad(edges.reverse // width * beads + edges.reverse % width, more)),
        jnp.asarray(np.pad(edges.mask, more)),
    )


@functools.cache
def initial(model: EnergyModel) -> Any:
    with enable_x64():
        params = compile_fast(model.init)(jax.random.key(1), frames_of(*chain()))
        if "readout" in params.get("network", {}):
            # the small first readout would hide differences
            readout = params["network"]["readout"]
            readout["w1"] = readout["w1"] * 10.0
        return jax.tree.map(np.asarray, params)


def parameters(model: EnergyModel, dtype: Any = np.float64) -> Any:
    return jax.tree.map(lambda p: p.astype(dtype), initial(model))


@functools.cache
def compiled(model: EnergyModel, what: str) -> Any:
    """One jitted function for each model: shapes and dtypes it has met are not compiled again."""
    functions = {
        "forces": model.energy_and_forces,
        "beads": model.per_bead_energy,
    }
    if what == "all":
        # optimised as in a training: which bits change depends on it
        return jax.jit(functools.partial(everything, model))
    return (
        compile_fast(functions[what]) if what in functions else compile_fast(force_gradient(model))
    )


def evaluate(model: EnergyModel, params: Any, frames: Frames) -> tuple[np.ndarray, np.ndarray]:
    energy, forces = compiled(model, "forces")(params, frames)
    return np.asarray(energy), np.asarray(forces)


def bead_energies(model: EnergyModel, params: Any, frames: Frames) -> np.ndarray:
    return np.asarray(compiled(model, "beads")(params, frames))


def everything(model: EnergyModel, params: Any, frames: Frames) -> Any:
    return *model.energy_and_forces(params, frames), model.per_bead_energy(params, frames)


class Measured(NamedTuple):
    """What a model says of some frames."""

    energy: np.ndarray  # [B]
    forces: np.ndarray  # [B, N, 3]
    beads: np.ndarray  # [B, N]


def measure(model: EnergyModel, params: Any, frames: Frames) -> Measured:
    return Measured(*(np.asarray(x) for x in compiled(model, "all")(params, frames)))


def squares(model: EnergyModel, params: Any, frames: Frames) -> Any:
    energy, forces = model.energy_and_forces(params, frames)
    return jnp.mean(jnp.square(forces)) + jnp.mean(jnp.square(energy))


def force_gradient(model: EnergyModel) -> Any:
    """The gradient by parameters of a loss of forces and energies."""
    return jax.grad(functools.partial(squares, model))


def sparse_arguments(frames: Frames, unused: int = 5, extra: int = 4) -> tuple[Any, ...]:
    """The first frame as an edge list, with ``extra`` beads that are not valid."""
    n = frames.R.shape[1]
    real = np.asarray(frames.nbr_mask[0])
    i, m = np.nonzero(real)
    none = np.full(unused, n + extra)
    return (
        jnp.concatenate([frames.R[0], jnp.zeros((extra, 3), frames.R.dtype)]),
        jnp.concatenate([frames.species[0], jnp.zeros(extra, jnp.int32)]),
        jnp.asarray(np.concatenate([np.asarray(frames.nbr[0])[i, m], none]), jnp.int32),
        jnp.asarray(np.concatenate([i, none]), jnp.int32),
        jnp.arange(n + extra) < n,
    )


def sparse_energy_and_forces(model: EnergyModel, params: Any) -> Any:
    def both(position: Any, *others: Any) -> Any:
        def total(x: Any) -> Any:
            beads = model.per_bead_energy_sparse(params, x, *others)
            return beads.sum(), beads

        gradient, beads = jax.grad(total, has_aux=True)(position)
        return beads, -gradient

    return both
