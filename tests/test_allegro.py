"""The network: derivatives, symmetries, locality, padding, precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ensq.train.compat import enable_x64

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_tools import (
    BEADS,
    CUTOFF,
    NETWORKS,
    PRIORS,
    SHIFTS,
    SPECIES,
    bead_energies,
    chain,
    compile_fast,
    compiled,
    evaluate,
    every_network,
    frames_of,
    helix,
    make_model,
    name_of,
    parameters,
    rotation,
    two_networks,
)

from ensq.config.model import AllegroConfig, ModelConfig
from ensq.train.models import DataStatistics, build_model, graph
from ensq.train.models.tensor import spherical_harmonics


@pytest.fixture
def x64() -> Iterator[None]:
    with enable_x64():
        yield


@pytest.mark.usefixtures("x64")
def test_harmonics_are_those_of_e3nn():
    unit = np.random.default_rng(0).normal(size=(5, 3))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    ours = spherical_harmonics(*jnp.asarray(unit.T), 3)
    for ell, components in enumerate(ours, start=1):
        irrep = f"{ell}{'eo'[ell % 2]}"
        theirs = e3nn.spherical_harmonics(irrep, jnp.asarray(unit), True, normalization="component")
        np.testing.assert_allclose(np.stack(components, -1), np.asarray(theirs.array), atol=1e-6)


@pytest.mark.usefixtures("x64")
@every_network
def test_forces_are_the_negative_finite_differences(network):
    positions, species = chain()
    model = make_model(network)
    params, frames = parameters(model), frames_of(positions, species)
    _, forces = evaluate(model, params, frames)
    step = 1e-5
    for bead, axis in ((0, 0), (3, 1), (7, 2)):
        moved = np.zeros((1, BEADS, 3))
        moved[0, bead, axis] = step
        up, down = (
            evaluate(model, params, frames._replace(R=frames.R + d))[0] for d in (moved, -moved)
        )
        slope = float((up - down)[0]) / (2 * step)
        assert -slope == pytest.approx(forces[0, bead, axis], rel=1e-6, abs=1e-8)
    assert np.abs(forces).max() > 0.1


@pytest.mark.usefixtures("x64")
@two_networks
def test_parameter_gradients_of_forces_are_the_finite_differences(network):
    positions, species = chain()
    model = make_model(network, PRIORS)
    params, frames = parameters(model), frames_of(positions, species, cutoff=2.5)
    gradient = compiled(model, "gradient")(params, frames)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params)

    def loss(step: float) -> float:
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        energy, forces = evaluate(model, moved, frames)
        return float(np.mean(np.square(forces)) + np.mean(np.square(energy)))

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    assert slope == pytest.approx(sum(np.vdot(g, d) for g, d in pairs), rel=1e-5)


@pytest.mark.usefixtures("x64")
@every_network
def test_energy_ignores_rotation_translation_and_order_of_beads(network):
    positions, species = chain()
    model = make_model(network)
    params = parameters(model)
    energy, forces = evaluate(model, params, frames_of(positions, species))
    turn, order = rotation(), np.random.default_rng(2).permutation(BEADS)
    moved = (positions @ turn.T + [3.0, -2.0, 1.0])[order]
    energy2, forces2 = evaluate(model, params, frames_of(moved, species[order]))
    assert energy2 == pytest.approx(energy)
    np.testing.assert_allclose(forces2[0], (forces[0] @ turn.T)[order], atol=1e-9)


@pytest.mark.usefixtures("x64")
@every_network
def test_mirror_images_are_told_apart_with_so3_only(network):
    model = make_model(network)
    params, species = parameters(model), np.zeros(BEADS, int)
    energy, _ = evaluate(model, params, frames_of(helix(), species))
    mirrored, _ = evaluate(model, params, frames_of(helix() * [1.0, 1.0, -1.0], species))
    if network[2] == "so3":
        assert abs(mirrored[0] - energy[0]) > 1e-5
    else:
        assert mirrored == pytest.approx(energy, abs=1e-10)


@pytest.mark.usefixtures("x64")
@two_networks
def test_padding_changes_nothing_and_gives_no_nan(network):
    positions, species = chain(beads=5)  # its first bead lies at the origin, as padding does
    model = make_model(network, PRIORS)
    params = parameters(model)
    energy, forces = evaluate(model, params, frames_of(positions, species))
    gradients = []
    for padding in (0.0, 1e4, np.nan):
        padded = frames_of(
            np.concatenate([positions, np.full((3, 3), padding)]),
            np.concatenate([species, [0, 0, 0]]),
            np.arange(BEADS) < 5,
        )
        energy2, forces2 = evaluate(model, params, padded)
        assert energy2 == pytest.approx(energy)
        np.testing.assert_allclose(forces2[0, :5], forces[0], atol=1e-10)
        assert (forces2[0, 5:] == 0).all()
        assert (bead_energies(model, params, padded)[0, 5:] == 0).all()
        gradients.append(jax.tree.leaves(compiled(model, "gradient")(params, padded)))
    for first, *others in zip(*gradients, strict=True):
        assert np.isfinite(first).all()
        for other in others:
            np.testing.assert_array_equal(first, other)


@pytest.mark.usefixtures("x64")
def test_without_harmless_vectors_unused_edges_would_give_nan(monkeypatch: pytest.MonkeyPatch):
    def masked_only(vectors: Any, mask: Any, cutoff: float) -> Any:
        return vectors, mask

    monkeypatch.setattr(graph, "_usable", masked_only)
    model = make_model(NETWORKS[0])
    frames = frames_of(*chain(), np.arange(BEADS) < 5)
    # a new function: the method itself may have been compiled before, without the patch
    _, forces = compile_fast(lambda p: model.energy_and_forces(p, frames))(parameters(model))
    assert np.isnan(forces).any()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("network", [(1, 1, "so3"), (1, 3, "o3")], ids=name_of)
def test_beads_outside_the_cutoff_do_not_touch_a_bead(network):
    positions = np.arange(BEADS)[:, None] * np.array([1.5, 0.1, 0.2])
    species = np.arange(BEADS) % SPECIES
    model = make_model(network)
    params = parameters(model)
    before = bead_energies(model, params, frames_of(positions, species))[0]
    positions[0, 1] += 0.3  # beads 0 to 2 see bead 0, however many layers there are
    after = bead_energies(model, params, frames_of(positions, species))[0]
    assert (before[:3] != after[:3]).all()
    np.testing.assert_array_equal(before[3:], after[3:])


@pytest.mark.usefixtures("x64")
@two_networks
def test_an_edge_beyond_the_cutoff_contributes_exactly_nothing(network):
    positions, species = chain()
    model = make_model(network)
    params = parameters(model)
    near = frames_of(positions, species)
    far = frames_of(positions, species, cutoff=2 * CUTOFF)
    assert np.asarray(far.nbr_mask).sum() > np.asarray(near.nbr_mask).sum()
    short, long = evaluate(model, params, near), evaluate(model, params, far)
    np.testing.assert_allclose(long[0], short[0], rtol=1e-12)
    np.testing.assert_allclose(long[1], short[1], atol=1e-12)


@pytest.mark.usefixtures("x64")
@every_network
def test_energy_and_forces_are_smooth_at_the_cutoff(network):
    model = make_model(network)
    params = parameters(model)
    species = np.array([0, 1, 2] + [0] * 5)

    def at(gap: float) -> tuple[np.ndarray, np.ndarray]:
        x = np.zeros((BEADS, 3))
        x[1:3] = [[1.2, 0.5, 0], [CUTOFF - gap, 0, 0]]
        return evaluate(model, params, frames_of(x, species, np.arange(BEADS) < 3, 2 * CUTOFF))

    inside, edge, outside = at(1e-4), at(0.0), at(-1e-4)
    # a jump, or a kink of the forces, would show in second differences at first order of the step
    bend = inside[1] + outside[1] - 2 * edge[1]
    assert np.abs(bend).max() < 1e-6 * (1 + np.abs(edge[1]).max())
    assert abs(inside[0] + outside[0] - 2 * edge[0])[0] < 1e-6
    assert np.abs(at(1.0)[1] - edge[1]).max() > 1e-3


@pytest.mark.usefixtures("x64")
def test_bead_energies_sum_to_the_total_and_shifts_are_in_them():
    positions, species = chain()
    model = make_model(NETWORKS[0], PRIORS)
    params, frames = parameters(model), frames_of(positions, species)
    energy, _ = evaluate(model, params, frames)
    assert bead_energies(model, params, frames).sum() == pytest.approx(energy[0])
    bare = make_model(NETWORKS[0])
    nothing = jax.tree.map(np.zeros_like, params)
    np.testing.assert_allclose(bead_energies(bare, nothing, frames)[0], SHIFTS[species])


@pytest.mark.usefixtures("x64")
@every_network
def test_first_forces_are_below_the_energy_scale(network):
    positions, species = chain()
    model = make_model(network)
    network = parameters(model)["network"]
    readout = {**network["readout"], "w1": network["readout"]["w1"] / 10.0}  # as at first
    params = {"network": {**network, "readout": readout}}
    _, forces = evaluate(model, params, frames_of(positions, species))
    assert 0 < np.sqrt(np.mean(np.square(forces))) < model.energy_scale


@pytest.mark.usefixtures("x64")
def test_float64_goes_all_the_way():
    positions, species = chain()
    model = make_model(NETWORKS[0], PRIORS)
    params, frames = parameters(model), frames_of(positions, species)
    high = evaluate(model, params, frames)
    for result in (*high, *jax.tree.leaves(params)):
        assert result.dtype == np.float64
    single = jax.tree.map(lambda p: p.astype(np.float32), params)
    low, _ = evaluate(model, single, frames_of(positions, species, dtype=np.float32))
    assert low.dtype == np.float32
    assert low[0] != high[0][0]
    assert low[0] == pytest.approx(high[0][0], rel=1e-5)


def test_shifts_for_another_number_of_species_are_refused():
    with pytest.raises(ValueError, match="2 entries for 3 species"):
        build_model(ModelConfig(cutoff=4.0), DataStatistics(3, 4.0, np.zeros(2), 1.0))


def test_so3_without_directions_is_refused():
    with pytest.raises(ValueError, match="so3 needs max_ell"):
        AllegroConfig(max_ell=0, symmetry="so3")
