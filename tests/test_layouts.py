"""The two layouts of edges: padded without scatters, and the edge list of the exporter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from ensq.train.compat import enable_x64

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jaxtyping import TypeCheckError
from model_tools import (
    BEADS,
    NETWORKS,
    PRIORS,
    bead_energies,
    chain,
    compile_fast,
    compiled,
    evaluate,
    force_gradient,
    frames_of,
    make_model,
    name_of,
    parameters,
    sparse_arguments,
    sparse_energy_and_forces,
    two_networks,
)

from ensq.train import loss
from ensq.train.models import EnergyModel, Frames, graph
from ensq.train.models.dense import linear
from ensq.train.models.graph import bead_sums, edge_vectors


@pytest.fixture
def x64() -> Iterator[None]:
    with enable_x64():
        yield


@pytest.mark.usefixtures("x64")
def test_gather_and_sum_are_each_others_transpose():
    positions, species = chain()
    frames = frames_of(positions, species, cutoff=2.5)
    assert not np.asarray(frames.nbr_mask).all()
    nbr, mask = frames.nbr[0].T, frames.nbr_mask[0].T
    rev = (frames.rev[0] % len(mask) * len(positions) + frames.rev[0] // len(mask)).T
    rng = np.random.default_rng(0)
    x, g = jnp.asarray(rng.normal(size=(3, len(positions)))), rng.normal(size=(3, *mask.shape))
    left = jnp.sum(edge_vectors(x, nbr, rev, mask) * g)
    assert left == pytest.approx(float(jnp.sum(x * bead_sums(jnp.asarray(g), nbr, rev, mask))))


@pytest.mark.usefixtures("x64")
def test_a_batch_gives_what_its_frames_give_one_by_one():
    chains = [chain(seed) for seed in range(3)]
    mask = np.arange(BEADS) < np.array([[8], [5], [7]])
    batch = frames_of(np.stack([c[0] for c in chains]), np.stack([c[1] for c in chains]), mask)
    model = make_model(NETWORKS[0], PRIORS)
    params = parameters(model)
    energy, forces = evaluate(model, params, batch)
    for b in range(3):
        one = evaluate(model, params, jax.tree.map(lambda x, b=b: x[b : b + 1], batch))
        assert one[0][0] == pytest.approx(energy[b])
        np.testing.assert_allclose(one[1][0], forces[b], atol=1e-10)


@pytest.mark.usefixtures("x64")
@two_networks
def test_the_edge_list_gives_the_energies_and_forces_of_the_padded_layout(network):
    positions, species = chain()
    frames = frames_of(positions, species, cutoff=2.5)
    model = make_model(network, PRIORS)
    params = parameters(model)
    _, forces = evaluate(model, params, frames)
    beads, sparse = compile_fast(sparse_energy_and_forces(model, params))(*sparse_arguments(frames))
    np.testing.assert_allclose(beads[:BEADS], bead_energies(model, params, frames)[0], rtol=1e-9)
    np.testing.assert_allclose(sparse[:BEADS], forces[0], rtol=1e-9, atol=1e-9)
    assert (np.asarray(beads[BEADS:]) == 0).all() and (np.asarray(sparse[BEADS:]) == 0).all()


def test_the_edge_list_can_be_exported_with_symbolic_sizes_in_float32():
    positions, species = chain()
    model = make_model(NETWORKS[0], PRIORS)
    with enable_x64():
        frames = frames_of(positions, species)
        energies = bead_energies(model, parameters(model), frames)[0]
        forces = evaluate(model, parameters(model), frames)[1][0]
    both = sparse_energy_and_forces(model, parameters(model, np.float32))
    n, e = export.symbolic_shape("n, e")
    shapes = (((n, 3), np.float32), ((n,), np.int32), ((e,), np.int32), ((e,), np.int32))
    symbolic = [jax.ShapeDtypeStruct(*s) for s in (*shapes, ((n,), np.bool_))]
    exported = export.export(compile_fast(both), platforms=["cpu", "cuda"])(*symbolic)
    frames = frames_of(positions, species, dtype=np.float32)
    for unused, extra in ((5, 4), (0, 0)):
        beads, sparse = exported.call(*sparse_arguments(frames, unused, extra))
        assert beads.dtype == sparse.dtype == np.float32
        np.testing.assert_allclose(beads[:BEADS], energies, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(sparse[:BEADS], forces, atol=1e-5 * np.abs(forces).max())


def primitives(jaxpr: Any) -> set[str]:
    """Names of all primitives of a jaxpr and of the ones inside it."""
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= primitives(inner)
    return found


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("network", [*NETWORKS, (2, 2, "o3")], ids=name_of)
def test_training_of_a_pack_scatters_nothing(network):
    frames = frames_of(*chain())
    model = make_model(network, PRIORS)
    params = parameters(model)
    pack = jax.tree.map(lambda p: np.stack([p, 2 * p]), params)
    step = jax.vmap(lambda p: force_gradient(model)(p, frames))
    names = primitives(jax.make_jaxpr(step)(pack).jaxpr)
    assert "gather" in names and not any("scatter" in name for name in names)


@pytest.mark.usefixtures("x64")
def test_the_search_for_scatters_finds_those_of_the_edge_list():
    frames = frames_of(*chain())
    model = make_model(NETWORKS[0], PRIORS)
    both = sparse_energy_and_forces(model, parameters(model))
    names = primitives(jax.make_jaxpr(both)(*sparse_arguments(frames)).jaxpr)
    assert any("scatter" in name for name in names)


@pytest.mark.usefixtures("x64")
def test_members_of_a_pack_get_what_each_gets_alone():
    positions, species = chain()
    frames = frames_of(positions, species)
    model = make_model(NETWORKS[0], PRIORS)
    init = compile_fast(model.init)
    members = [init(jax.random.key(k), frames) for k in (0, 1)]
    pack = jax.tree.map(lambda *p: np.stack(p), *members)
    gradients = compile_fast(jax.vmap(force_gradient(model), in_axes=(0, None)))(pack, frames)
    for k, member in enumerate(members):
        alone = jax.tree.leaves(compiled(model, "gradient")(member, frames))
        for one, two in zip(alone, jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(np.asarray(two)[k], one, rtol=1e-7, atol=1e-9)


# -- shapes in signatures ----------------------------------------------------------------------


def test_the_checker_refuses_arrays_of_a_wrong_shape_or_kind() -> None:
    frames = frames_of(*chain(), dtype=np.float32)
    wrong: list[Frames] = [
        frames._replace(R=frames.R[..., :2]),
        frames._replace(R=frames.R.swapaxes(0, 1)),  # as many numbers as there should be
        frames._replace(species=frames.species.astype(np.float32)),
        frames._replace(species=frames.species[:, :-1]),
        frames._replace(species=frames.species.T),
        frames._replace(nbr=frames.nbr[..., :-1]),
        frames._replace(rev=frames.rev.astype(np.float32)),
        frames._replace(nbr_mask=frames.nbr_mask[..., :-1]),
        frames._replace(offset=jnp.zeros((*frames.nbr.shape, 2), jnp.float32)),
    ]
    for one in wrong:
        with pytest.raises(TypeCheckError):
            graph.padded_graph(one, 4.0)
    graph.padded_graph(frames, 4.0)
    with pytest.raises(TypeCheckError):
        edge_vectors(jnp.zeros((3, 4)), *(jnp.zeros((2, 5), int),) * 2, jnp.zeros((2, 5), bool))
    with pytest.raises(TypeCheckError):
        linear(jnp.zeros((2, 3)), jnp.zeros((4, 5)))
    with pytest.raises(TypeCheckError):
        loss.masked_force_error(jnp.zeros((2, 4, 3)), jnp.zeros((2, 4, 3)), jnp.zeros((2, 5)))
    with pytest.raises(TypeCheckError):
        loss.frame_errors(
            jnp.zeros(2), jnp.zeros((2, 4, 3)), jnp.zeros((2, 1)), *[jnp.zeros((2, 4, 3))] * 2
        )


def test_outside_the_tests_nothing_is_checked() -> None:
    program = """
import sys
from ensq.train import loss, models
from ensq.train.models import base, dense
assert "beartype" not in sys.modules, "a checker is loaded"
for function in (loss.frame_errors, base.EnergyModel.per_bead_energy, dense.linear.fun):
    assert not hasattr(function, "__wrapped__"), function
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_in_the_tests_functions_are_wrapped_by_the_checker() -> None:
    for function in (loss.frame_errors, EnergyModel.per_bead_energy, linear.fun):
        assert hasattr(function, "__wrapped__")
