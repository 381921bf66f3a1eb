"""The network: derivatives, symmetries, locality, padding, and the layout of the exporter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ensq.config.structs import AllegroConfig, ModelConfig, PriorsConfig, PriorWeights
from ensq.train.models import DataStatistics, EnergyModel, Frames, build_model
from ensq.train.models.graph import bead_sums, edge_vectors
from ensq.train.models.tensor import spherical_harmonics
from ensq.train.neighbours import build_neighbours
from jax import export
from jax.experimental import enable_x64

CUTOFF = 4.0
SPECIES = 3
# (max_ell, num_layers, symmetry): each takes another way through the code
NETWORKS = [(0, 1, "o3"), (1, 1, "o3"), (1, 1, "so3"), (2, 2, "o3"), (1, 2, "so3"), (1, 3, "o3")]
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


@pytest.fixture(params=NETWORKS, ids=lambda p: f"l{p[0]}-{p[1]}layer-{p[2]}", scope="module")
def network(request: pytest.FixtureRequest) -> tuple[int, int, str]:
    return request.param


@pytest.fixture
def x64() -> Iterator[None]:
    with enable_x64():
        yield


def make_model(
    kind: tuple[int, int, str], priors: PriorsConfig | None = None, cutoff: float = CUTOFF
) -> EnergyModel:
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
        cutoff=cutoff,
        allegro=allegro,
        use_priors=priors is not None,
        priors=priors or PriorsConfig(),
    )
    return build_model(config, DataStatistics(SPECIES, 4.0, np.array([0.5, -1.0, 2.0]), 3.0))


def chain(seed: int = 0, beads: int = 8, step: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    walk = rng.normal(size=(beads, 3)) + [0.8, 0, 0]
    walk *= step / np.linalg.norm(walk, axis=-1, keepdims=True)
    return np.cumsum(walk, axis=0), rng.integers(0, SPECIES, size=beads)


def frames_of(
    positions: np.ndarray,
    species: np.ndarray,
    mask: np.ndarray | None = None,
    cutoff: float = CUTOFF,
    dtype: Any = np.float64,
) -> Frames:
    """Frames from one frame [N, 3] or several [B, N, 3]."""
    positions = np.asarray(positions, dtype).reshape(-1, *np.shape(positions)[-2:])
    mask = np.ones(positions.shape[:2]) if mask is None else np.reshape(mask, positions.shape[:2])
    edges = build_neighbours(np.nan_to_num(positions), mask, cutoff)
    return Frames(
        jnp.asarray(positions),
        jnp.broadcast_to(jnp.asarray(species, jnp.int32), mask.shape),
        jnp.asarray(mask, dtype),
        jnp.asarray(edges.index),
        jnp.asarray(edges.reverse),
        jnp.asarray(edges.mask),
    )


def parameters(model: EnergyModel, dtype: Any = np.float64) -> Any:
    params = model.init(jax.random.key(1), dtype)
    # the small first readout would hide differences
    params["readout"]["w1"] = params["readout"]["w1"] * 10.0
    return params


def evaluate(model: EnergyModel, params: Any, frames: Frames) -> tuple[np.ndarray, np.ndarray]:
    energy, forces = jax.jit(model.energy_and_forces)(params, frames)
    return np.asarray(energy), np.asarray(forces)


def force_gradient(model: EnergyModel, params: Any, frames: Frames) -> Any:
    def loss(params: Any) -> Any:
        energy, forces = model.energy_and_forces(params, frames)
        return jnp.mean(jnp.square(forces)) + jnp.mean(jnp.square(energy))

    return jax.grad(loss)(params)


def rotation(seed: int = 5) -> np.ndarray:
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.linalg.det(matrix)


def helix(beads: int = 8) -> np.ndarray:
    turn = np.deg2rad(100.0) * np.arange(beads)
    return np.stack([1.2 * np.cos(turn), 1.2 * np.sin(turn), 0.8 * np.arange(beads)], axis=-1)


@pytest.mark.usefixtures("x64")
def test_harmonics_are_those_of_e3nn():
    unit = np.random.default_rng(0).normal(size=(5, 3))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    ours = spherical_harmonics(*jnp.asarray(unit.T), 3)
    for ell, components in enumerate(ours, start=1):
        theirs = e3nn.spherical_harmonics(ell, jnp.asarray(unit), True, normalization="component")
        np.testing.assert_allclose(jnp.stack(components, -1), theirs.array, atol=1e-6)


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
def test_forces_are_the_negative_finite_differences(network):
    positions, species = chain()
    model = make_model(network, PRIORS)
    params, frames = parameters(model), frames_of(positions, species)
    _, forces = evaluate(model, params, frames)
    energy = jax.jit(lambda R: model.per_bead_energy(params, frames._replace(R=R)).sum())
    step = 1e-5
    for bead, axis in ((0, 0), (3, 1), (7, 2)):
        moved = np.zeros_like(frames.R)
        moved[0, bead, axis] = step
        slope = (energy(frames.R + moved) - energy(frames.R - moved)) / (2 * step)
        assert -float(slope) == pytest.approx(forces[0, bead, axis], rel=1e-6, abs=1e-8)
    assert np.abs(forces).max() > 0.1


@pytest.mark.usefixtures("x64")
def test_parameter_gradients_of_forces_are_the_finite_differences(network):
    positions, species = chain()
    model = make_model(network)
    params, frames = parameters(model), frames_of(positions, species, cutoff=2.5)
    gradient = force_gradient(model, params, frames)
    direction = jax.tree.map(
        lambda p: jnp.asarray(np.random.default_rng(p.size).normal(size=p.shape)), params
    )

    @jax.jit
    def loss(step: float) -> Any:
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        energy, forces = model.energy_and_forces(moved, frames)
        return jnp.mean(jnp.square(forces)) + jnp.mean(jnp.square(energy))

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    along = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    assert float(slope) == pytest.approx(float(along), rel=1e-5)


@pytest.mark.usefixtures("x64")
def test_energy_ignores_rotation_translation_and_order_of_beads(network):
    positions, species = chain()
    model = make_model(network)
    params = parameters(model)
    energy, forces = evaluate(model, params, frames_of(positions, species))
    turn, order = rotation(), np.random.default_rng(2).permutation(len(positions))
    moved = (positions @ turn.T + [3.0, -2.0, 1.0])[order]
    energy2, forces2 = evaluate(model, params, frames_of(moved, species[order]))
    assert energy2 == pytest.approx(energy)
    np.testing.assert_allclose(forces2[0], (forces[0] @ turn.T)[order], atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_mirror_images_are_told_apart_with_so3_only(network):
    model = make_model(network)
    params, species = parameters(model), np.zeros(8, int)
    image = helix() * [1.0, 1.0, -1.0]
    energy, _ = evaluate(model, params, frames_of(helix(), species))
    mirrored, _ = evaluate(model, params, frames_of(image, species))
    if network[2] == "so3":
        assert abs(mirrored[0] - energy[0]) > 1e-3
    else:
        assert mirrored == pytest.approx(energy, abs=1e-10)


@pytest.mark.usefixtures("x64")
def test_a_dihedral_prior_tells_mirror_images_apart_where_the_network_cannot():
    model = make_model((1, 1, "o3"), PRIORS)
    params, species = parameters(model), np.zeros(8, int)
    energy, _ = evaluate(model, params, frames_of(helix(), species))
    mirrored, _ = evaluate(model, params, frames_of(helix() * [1.0, 1.0, -1.0], species))
    assert abs(mirrored[0] - energy[0]) > 1e-2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("padding", [0.0, 1e4, np.nan], ids=["origin", "far", "nan"])
def test_padding_changes_nothing_and_gives_no_nan(network, padding):
    positions, species = chain()
    positions[0] = 0.0  # a real bead at the point where padded ones lie
    model = make_model(network, PRIORS)
    params = parameters(model)
    frames = frames_of(positions, species)
    energy, forces = evaluate(model, params, frames)
    padded = frames_of(
        np.concatenate([positions, np.full((3, 3), padding)]),
        np.concatenate([species, [0, 0, 0]]),
        np.arange(11) < 8,
    )
    beads = model.per_bead_energy(params, padded)
    assert (np.asarray(beads[0, 8:]) == 0).all()
    energy2, forces2 = evaluate(model, params, padded)
    assert energy2 == pytest.approx(energy)
    np.testing.assert_allclose(forces2[0, :8], forces[0], atol=1e-10)
    assert (forces2[0, 8:] == 0).all()
    plain, other = (force_gradient(model, params, f) for f in (frames, padded))
    for one, two in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_beads_outside_the_cutoff_do_not_touch_a_bead(network):
    positions = np.arange(8.0)[:, None] * np.array([1.5, 0.1, 0.2])
    species = np.arange(8) % SPECIES
    model = make_model(network)
    params = parameters(model)
    before = np.asarray(model.per_bead_energy(params, frames_of(positions, species)))[0]
    positions[0, 1] += 0.3  # beads 0 to 2 see bead 0, however many layers there are
    after = np.asarray(model.per_bead_energy(params, frames_of(positions, species)))[0]
    assert (before[:3] != after[:3]).all()
    np.testing.assert_array_equal(before[3:], after[3:])


@pytest.mark.usefixtures("x64")
def test_an_edge_beyond_the_cutoff_contributes_exactly_nothing(network):
    positions, species = chain()
    model = make_model(network)
    params = parameters(model)
    short = evaluate(model, params, frames_of(positions, species))
    # a list that was built with a longer cutoff holds more edges
    long = evaluate(model, params, frames_of(positions, species, cutoff=2 * CUTOFF))
    np.testing.assert_allclose(long[0], short[0], rtol=1e-12)
    np.testing.assert_allclose(long[1], short[1], atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_energy_and_forces_are_smooth_at_the_cutoff(network):
    model = make_model(network)
    params = parameters(model)
    species = np.array([0, 1, 2])

    def at(gap: float) -> tuple[np.ndarray, np.ndarray]:
        x = np.array([[0, 0, 0], [1.2, 0.5, 0], [CUTOFF - gap, 0, 0]])
        return evaluate(model, params, frames_of(x, species, cutoff=2 * CUTOFF))

    inside, edge, outside = at(1e-4), at(0.0), at(-1e-4)
    assert np.abs(inside[0] - edge[0]) < 1e-9
    assert np.abs(inside[1] - edge[1]).max() < 2e-4  # two derivatives of the envelope vanish
    assert np.abs(outside[1] - edge[1]).max() < 2e-4
    assert np.abs(at(1.0)[0] - edge[0]) > 1e-6


@pytest.mark.usefixtures("x64")
def test_bead_energies_sum_to_the_total_and_shifts_are_in_them(network):
    positions, species = chain()
    model = make_model(network, PRIORS)
    params, frames = parameters(model), frames_of(positions, species)
    beads = model.per_bead_energy(params, frames)
    energy, _ = evaluate(model, params, frames)
    assert float(beads.sum()) == pytest.approx(energy[0])
    nothing = jax.tree.map(jnp.zeros_like, params)
    bare = make_model(network)
    shifts = np.array([0.5, -1.0, 2.0])[species]
    np.testing.assert_allclose(bare.per_bead_energy(nothing, frames)[0], shifts)


@pytest.mark.usefixtures("x64")
def test_a_batch_gives_what_its_frames_give_one_by_one(network):
    chains = [chain(seed) for seed in range(3)]
    mask = np.arange(8) < np.array([[8], [5], [7]])
    batch = frames_of(np.stack([c[0] for c in chains]), np.stack([c[1] for c in chains]), mask)
    model = make_model(network, PRIORS)
    params = parameters(model)
    energy, forces = evaluate(model, params, batch)
    for b in range(3):
        one = evaluate(model, params, jax.tree.map(lambda x, b=b: x[b : b + 1], batch))
        assert one[0][0] == pytest.approx(energy[b])
        np.testing.assert_allclose(one[1][0], forces[b], atol=1e-10)


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


def test_the_edge_list_gives_the_padded_energies_and_forces_in_float32(network):
    positions, species = chain()
    frames = frames_of(positions, species, cutoff=2.5, dtype=np.float32)
    model = make_model(network, PRIORS)
    params = parameters(model, np.float32)
    _, forces = evaluate(model, params, frames)
    beads, sparse = jax.jit(sparse_energy_and_forces(model, params))(*sparse_arguments(frames))
    scale = np.abs(forces).max()
    np.testing.assert_allclose(beads[:8], model.per_bead_energy(params, frames)[0], rtol=1e-5)
    np.testing.assert_allclose(sparse[:8], forces[0], atol=1e-5 * scale)
    assert (np.asarray(beads[8:]) == 0).all() and (np.asarray(sparse[8:]) == 0).all()
    assert beads.dtype == sparse.dtype == forces.dtype == np.float32


@pytest.mark.parametrize("kind", [(1, 1, "so3"), (1, 2, "o3")])
def test_the_edge_list_can_be_exported_with_symbolic_sizes(kind):
    positions, species = chain()
    frames = frames_of(positions, species, cutoff=2.5, dtype=np.float32)
    model = make_model(kind, PRIORS)
    both = sparse_energy_and_forces(model, parameters(model, np.float32))
    n, e = export.symbolic_shape("n, e")
    shapes = (((n, 3), np.float32), ((n,), np.int32), ((e,), np.int32), ((e,), np.int32))
    symbolic = [jax.ShapeDtypeStruct(*s) for s in (*shapes, ((n,), np.bool_))]
    exported = export.export(jax.jit(both), platforms=["cpu", "cuda"])(*symbolic)
    for unused, extra in ((5, 4), (0, 0)):
        arguments = sparse_arguments(frames, unused, extra)
        for one, two in zip(exported.call(*arguments), both(*arguments), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


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


def test_training_of_a_pack_scatters_nothing(network):
    positions, species = chain()
    frames = frames_of(positions, species, dtype=np.float32)
    model = make_model(network, PRIORS)
    params = parameters(model, np.float32)
    pack = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    step = jax.vmap(lambda p: force_gradient(model, p, frames))
    names = primitives(jax.make_jaxpr(step)(pack).jaxpr)
    assert "gather" in names and not any("scatter" in name for name in names)
    # the control: the same search finds the scatters of the edge list
    both = sparse_energy_and_forces(model, params)
    names = primitives(jax.make_jaxpr(both)(*sparse_arguments(frames)).jaxpr)
    assert any("scatter" in name for name in names)


def test_members_of_a_pack_get_what_each_gets_alone():
    positions, species = chain()
    frames = frames_of(positions, species, dtype=np.float32)
    model = make_model((1, 1, "so3"))
    members = [model.init(jax.random.key(seed)) for seed in (0, 1)]
    pack = jax.tree.map(lambda *p: jnp.stack(p), *members)
    _, forces = jax.vmap(lambda p: model.energy_and_forces(p, frames))(pack)
    gradients = jax.vmap(lambda p: force_gradient(model, p, frames))(pack)
    for k, member in enumerate(members):
        np.testing.assert_allclose(
            forces[k], model.energy_and_forces(member, frames)[1], rtol=1e-4, atol=1e-5
        )
        alone = jax.tree.leaves(force_gradient(model, member, frames))
        for one, two in zip(alone, jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(two[k], one, rtol=1e-3, atol=1e-4)


def test_first_forces_are_below_the_energy_scale(network):
    positions, species = chain(beads=12)
    model = make_model(network)
    _, forces = evaluate(
        model, model.init(jax.random.key(0)), frames_of(positions, species, dtype=np.float32)
    )
    assert 0 < np.sqrt(np.mean(np.square(forces))) < model.energy_scale


@pytest.mark.usefixtures("x64")
def test_float64_goes_all_the_way(network):
    positions, species = chain()
    model = make_model(network, PRIORS)
    params, frames = parameters(model), frames_of(positions, species)
    for result in (*evaluate(model, params, frames), *jax.tree.leaves(params)):
        assert result.dtype == np.float64
    single = jax.tree.map(lambda p: p.astype(np.float32), params)
    low, _ = evaluate(model, single, frames_of(positions, species, dtype=np.float32))
    high, _ = evaluate(model, params, frames)
    assert low.dtype == np.float32
    assert low[0] != high[0]
    assert low[0] == pytest.approx(high[0], rel=1e-5)


def test_shifts_for_another_number_of_species_are_refused():
    with pytest.raises(ValueError, match="2 entries for 3 species"):
        build_model(ModelConfig(cutoff=4.0), DataStatistics(3, 4.0, np.zeros(2), 1.0))


def test_so3_without_directions_is_refused():
    with pytest.raises(ValueError, match="so3 needs max_ell"):
        AllegroConfig(max_ell=0, symmetry="so3")
