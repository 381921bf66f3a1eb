"""The network: derivatives, symmetries, locality, padding, and the layout of the exporter."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import enable_x64

from ensq.config.structs import AllegroConfig, ModelConfig, PriorsConfig, PriorWeights
from ensq.train.models import DataStatistics, EnergyModel, Frames, build_model
from ensq.train.models.allegro import Allegro
from ensq.train.models.graph import bead_sums, edge_vectors
from ensq.train.models.tensor import spherical_harmonics
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


@pytest.fixture
def x64() -> Iterator[None]:
    with enable_x64():
        yield


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
        priors=priors or PriorsConfig(),
    )
    return build_model(config, DataStatistics(SPECIES, 4.0, SHIFTS, 3.0))


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
def initial(network: Allegro) -> Any:
    with enable_x64():
        params = compile_fast(network.init, static_argnums=1)(jax.random.key(1), np.float64)
        # the small first readout would hide differences
        params["readout"]["w1"] = params["readout"]["w1"] * 10.0
        return jax.tree.map(np.asarray, params)


def parameters(model: EnergyModel, dtype: Any = np.float64) -> Any:
    return jax.tree.map(lambda p: p.astype(dtype), initial(model.network))


@functools.cache
def compiled(model: EnergyModel, what: str) -> Any:
    """One jitted function for each model: shapes and dtypes it has met are not compiled again."""
    functions = {"forces": model.energy_and_forces, "beads": model.per_bead_energy}
    return (
        compile_fast(functions[what]) if what in functions else compile_fast(force_gradient(model))
    )


def evaluate(model: EnergyModel, params: Any, frames: Frames) -> tuple[np.ndarray, np.ndarray]:
    energy, forces = compiled(model, "forces")(params, frames)
    return np.asarray(energy), np.asarray(forces)


def bead_energies(model: EnergyModel, params: Any, frames: Frames) -> np.ndarray:
    return np.asarray(compiled(model, "beads")(params, frames))


def squares(model: EnergyModel, params: Any, frames: Frames) -> Any:
    energy, forces = model.energy_and_forces(params, frames)
    return jnp.mean(jnp.square(forces)) + jnp.mean(jnp.square(energy))


def force_gradient(model: EnergyModel) -> Any:
    """The gradient by parameters of a loss of forces and energies."""
    return jax.grad(functools.partial(squares, model))


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
        irrep = f"{ell}{'eo'[ell % 2]}"
        theirs = e3nn.spherical_harmonics(irrep, jnp.asarray(unit), True, normalization="component")
        np.testing.assert_allclose(np.stack(components, -1), np.asarray(theirs.array), atol=1e-6)


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
    init = compile_fast(model.init, static_argnums=1)
    members = [init(jax.random.key(k), np.float64) for k in (0, 1)]
    pack = jax.tree.map(lambda *p: np.stack(p), *members)
    gradients = compile_fast(jax.vmap(force_gradient(model), in_axes=(0, None)))(pack, frames)
    for k, member in enumerate(members):
        alone = jax.tree.leaves(compiled(model, "gradient")(member, frames))
        for one, two in zip(alone, jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(np.asarray(two)[k], one, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("x64")
@every_network
def test_first_forces_are_below_the_energy_scale(network):
    positions, species = chain()
    model = make_model(network)
    params = dict(parameters(model))
    params["readout"] = {**params["readout"], "w1": params["readout"]["w1"] / 10.0}  # as at first
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
