"""The models besides Allegro: DimeNet++, chemutils, one's own, the priors alone."""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import partition, space
from jax_md_mod.model.neural_networks import dimenetpp_neighborlist
from model_tools import (
    BEADS,
    CUTOFF,
    PRIORS,
    SHIFTS,
    SPECIES,
    STATISTICS,
    bead_energies,
    chain,
    compile_fast,
    evaluate,
    frames_of,
    make_model,
    model_of,
    parameters,
    sparse_arguments,
    sparse_energy_and_forces,
)
from train_tools import settings

from ensq.config.model import ModelConfig
from ensq.errors import ConfigError, ExportError
from ensq.train.batches import batches_of_epoch
from ensq.train.models import EnergyModel, Frames, build_model, dimenetpp, graph
from ensq.train.pack import Program, stack

ROOT = Path(__file__).parent.parent


def named(ml_model: str, **more: Any) -> ModelConfig:
    return ModelConfig(cutoff=CUTOFF, ml_model=ml_model, **more)


def two_chains(dtype: Any = np.float32) -> Frames:
    """Of different shapes and species; in the second one beads are out of each other's reach."""
    (first, kinds), (second, others) = chain(3), chain(4)
    stretched = second * [1.6, 1.6, 1.6]
    frames = frames_of(np.stack([first, stretched]), np.stack([kinds, others]), dtype=dtype)
    counts = np.asarray(frames.nbr_mask).sum(axis=(1, 2))
    assert counts[1] < counts[0]
    return frames


# -- DimeNet++ against jax_md_mod's own energy function ----------------------------------------

Energies = Callable[[Any, np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def jax_md_energies() -> Energies:
    """Energy and forces of one frame, from jax_md's neighbour list and jax_md_mod's graph."""
    network = model_of("dimenetpp").network
    assert isinstance(network, dimenetpp.DimeNet)
    displacement, _ = space.free()
    settings = {
        key: getattr(network.config, key)
        for key in network.config.__struct_fields__
        if getattr(network.config, key) is not None
    }
    _, energy = dimenetpp_neighborlist(displacement, CUTOFF, SPECIES, **settings)
    search = partition.neighbor_list(
        displacement, 1.0, CUTOFF, 0.0, capacity_multiplier=3.0, disable_cell_list=True
    )
    neighbours = search.allocate(jnp.asarray(chain(3)[0], jnp.float32))
    both = compile_fast(jax.value_and_grad(lambda x, p, n, s: energy(p, x, n, species=s).sum()))

    def of(frame: Any, params: Any) -> tuple[np.ndarray, np.ndarray]:
        found = neighbours.update(frame.R)
        assert not found.did_buffer_overflow
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
            total, gradient = both(frame.R, params["network"], found, frame.species)
        return np.asarray(total), -np.asarray(gradient)

    return of


def reference(frames: Frames, params: Any, of: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same of a batch, in the model's units: times the scale, plus the species' shifts."""
    each = [of(jax.tree.map(lambda x, b=b: x[b], frames), params) for b in range(len(frames.R))]
    scale = STATISTICS.energy_scale
    shifts = SHIFTS[np.asarray(frames.species)].sum(axis=1)
    return (
        np.array([energy for energy, _ in each]) * scale + shifts,
        np.array([forces for _, forces in each]) * scale,
    )


def apart(model: EnergyModel, params: Any, frames: Frames, expected: Any) -> tuple[float, float]:
    """The largest differences of energies and forces; the latter relative to the largest force."""
    # a new function: the model's own may have been compiled before a test changed the code
    energy, forces = compile_fast(lambda p, f: model.energy_and_forces(p, f))(params, frames)
    largest = np.abs(expected[1]).max()
    return (
        float(np.abs(np.asarray(energy) - expected[0]).max()),
        float(np.abs(np.asarray(forces) - expected[1]).max() / largest),
    )


def test_dimenet_gives_the_energies_and_forces_of_jax_md_mod(jax_md_energies: Energies) -> None:
    model, frames = model_of("dimenetpp"), two_chains()
    params = parameters(model, np.float32)
    expected = reference(frames, params, jax_md_energies)
    assert np.abs(expected[1]).max() > 1e-3
    energy, forces = apart(model, params, frames, expected)
    assert energy < 1e-5 * np.abs(expected[0]).max()
    assert forces < 1e-5


def way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimenetpp, "SAME_POINT", 0.0)


def ends_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(given: graph.Graph) -> graph.EdgeList:
        edges = graph.edge_list(given)
        return edges._replace(senders=edges.receivers, receivers=edges.senders)

    monkeypatch.setattr(dimenetpp, "edge_list", swapped)


def wrong_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    angle = dimenetpp._angle
    monkeypatch.setattr(dimenetpp, "_angle", lambda a, b, real: angle(-a, b, real))


@pytest.mark.parametrize("fault", [way_back, ends_swapped, wrong_angles])
def test_a_fault_in_the_list_of_edges_and_angles_would_be_seen(
    jax_md_energies: Energies, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    model, frames = model_of("dimenetpp"), two_chains()
    params = parameters(model, np.float32)
    expected = reference(frames, params, jax_md_energies)
    fault(monkeypatch)
    _, forces = apart(model, params, frames, expected)
    assert forces > 1e-4


@pytest.mark.parametrize("subject", ["dimenetpp", "own"])
def test_padded_beads_are_as_if_they_were_not_there(subject: str) -> None:
    model = model_of(subject)
    params = parameters(model, np.float32)
    (positions, species), beads = chain(5), BEADS - 2
    bare = frames_of(positions[:beads], species[:beads], dtype=np.float32)
    padded = frames_of(positions, species, np.arange(BEADS) < beads, dtype=np.float32)
    (energy, forces), (energy2, forces2) = (evaluate(model, params, f) for f in (bare, padded))
    np.testing.assert_allclose(energy2, energy, rtol=1e-5)
    np.testing.assert_allclose(forces2[:, :beads], forces, atol=1e-5 * np.abs(forces).max())
    assert (forces2[:, beads:] == 0).all() and np.abs(forces).max() > 1e-3


def test_dimenet_says_that_it_needs_rows_of_neighbours() -> None:
    model = model_of("dimenetpp")
    both = sparse_energy_and_forces(model, parameters(model, np.float32))
    with pytest.raises(ExportError, match="dimenetpp needs its neighbours in rows"):
        both(*sparse_arguments(two_chains()))


# -- a model of one's own ----------------------------------------------------------------------


def numpy_pair_energies(params: Any, frames: Frames, frame: int) -> np.ndarray:
    """Energies [N] of tests/own_model.py by plain loops."""
    x, kinds = np.asarray(frames.R[frame], np.float64), np.asarray(frames.species[frame])
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    energies = np.zeros(len(x))
    for i in range(len(x)):
        for j in range(len(x)):
            r = np.linalg.norm(x[i] - x[j]) / CUTOFF
            if i == j or r >= 1:
                continue
            waves = np.array([np.sin(n * np.pi * r) / r for n in (1, 2, 3, 4)])
            a = params["distance"] @ waves
            a += params["centre"][:, kinds[i]] + params["neighbour"][:, kinds[j]]
            energies[i] += (1 - r**2) ** 3 * params["energy"] @ (a / (1 + np.exp(-a)))
    return energies


def test_a_model_of_ones_own_is_found_by_its_name_and_used() -> None:
    model, frames = model_of("own"), two_chains()
    assert model.hops == 1
    params = parameters(model, np.float32)
    assert params["network"]["distance"].shape == (5, 4)  # options.hidden
    found = bead_energies(model, params, frames)
    for frame in range(2):
        expected = numpy_pair_energies(params["network"], frames, frame)
        expected = STATISTICS.energy_scale * expected + SHIFTS[np.asarray(frames.species[frame])]
        np.testing.assert_allclose(found[frame], expected, rtol=1e-5, atol=1e-5)


def test_a_model_of_ones_own_works_on_a_list_of_edges_too() -> None:
    model, frames = model_of("own"), two_chains()
    params = parameters(model, np.float32)
    _, forces = evaluate(model, params, frames)
    beads, sparse = compile_fast(sparse_energy_and_forces(model, params))(*sparse_arguments(frames))
    np.testing.assert_allclose(
        beads[:BEADS], bead_energies(model, params, frames)[0], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(sparse[:BEADS], forces[0], atol=1e-5 * np.abs(forces).max())


def test_a_model_of_ones_own_takes_priors_as_well() -> None:
    config = named("own_model:build", options={"hidden": 5}, use_priors=True, priors=PRIORS)
    together, frames = build_model(config, STATISTICS), two_chains()
    alone = model_of("priors")
    params = {**parameters(model_of("own"), np.float32), **parameters(alone, np.float32)}
    bare = np.asarray(together.without_priors().per_bead_energy(params, frames))
    # a model of priors alone has the shifts of the species too
    priors = np.asarray(alone.per_bead_energy(params, frames)) - SHIFTS[np.asarray(frames.species)]
    found = np.asarray(together.per_bead_energy(params, frames))
    np.testing.assert_allclose(found, bare + priors, rtol=1e-5, atol=1e-5)
    assert np.abs(priors).max() > 0.1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:build", "model.ml_model: no_such_module can't be imported"),
        ("own_model:bild", "model.ml_model: own_model has no bild"),
    ],
)
def test_a_model_that_cannot_be_had_says_why(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(named(name), STATISTICS)


def test_what_a_factory_returns_must_have_the_interface(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "half_a_model.py").write_text(
        "class Half:\n    hops = 1\n\ndef build(config, stats):\n    return Half()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="returns has no init, per_bead_energy; docs/models"):
        build_model(named("half_a_model:build"), STATISTICS)


def test_the_example_in_the_docs_is_the_one_tested_here() -> None:
    blocks = (ROOT / "docs" / "models.md").read_text().split("```python\n")[1:]
    example = next(block.split("```")[0] for block in blocks if "def build(" in block)
    assert example == (ROOT / "tests" / "own_model.py").read_text()


# -- the priors alone --------------------------------------------------------------------------


def test_priors_alone_are_the_priors_of_a_model_with_a_network() -> None:
    alone, frames = model_of("priors"), two_chains()
    assert alone.network is None and alone.hops == 0
    params = parameters(alone, np.float32)
    assert set(params) == {"priors"}
    full = make_model((1, 1, "so3"), PRIORS)
    both = {**parameters(full, np.float32), **params}
    with_network = np.asarray(full.per_bead_energy(both, frames))
    network = np.asarray(full.without_priors().per_bead_energy(both, frames))
    shifts = SHIFTS[np.asarray(frames.species)]
    np.testing.assert_allclose(
        np.asarray(alone.per_bead_energy(params, frames)),
        with_network - network + shifts,
        rtol=1e-4,
        atol=1e-4,
    )


def test_priors_alone_work_on_a_list_of_edges_which_they_do_not_need() -> None:
    alone, frames = model_of("priors"), two_chains()
    params = parameters(alone, np.float32)
    beads, forces = sparse_energy_and_forces(alone, params)(*sparse_arguments(frames))
    energy, expected = evaluate(alone, params, frames)
    np.testing.assert_allclose(np.asarray(beads).sum(), energy[0], rtol=1e-5)
    np.testing.assert_allclose(forces[:BEADS], expected[0], rtol=1e-4, atol=1e-4)


# -- training ----------------------------------------------------------------------------------

TRAINED = {
    "own": ["model.ml_model=own_model:build", "model.options={hidden: 5}"],
    "dimenetpp": [
        "model.ml_model=dimenetpp",
        "model.dimenetpp={embed_size: 8, n_interaction_blocks: 1, num_rbf: 4, num_sbf: 2}",
    ],
    "priors": [
        "model.prior_only=true",
        "model.use_priors=true",
        "model.train_priors=true",
        "model.priors={r0: 1.2, kr: 1.0}",
    ],
}


@pytest.mark.parametrize("subject", TRAINED)
def test_each_model_trains_in_a_pack_and_its_loss_falls(dataset: Any, subject: str) -> None:
    program = Program(settings(*TRAINED[subject]), dataset)
    pack = stack([program.new_member(seed) for seed in (1, 2)])

    def loss(members: Any) -> np.ndarray:
        return program.validate(members.params).force.sum(axis=1)

    before = loss(pack)
    for number in range(8):
        batches = batches_of_epoch(dataset.sizes, program.batch, 0, number)
        pack = program.run_steps(pack, 0, batches, 0, program.steps_per_epoch)
    assert np.asarray(pack.alive).all()
    assert (loss(pack) < 0.97 * before).all()


# -- chemutils, by a stand-in ------------------------------------------------------------------

# Nothing of the real package: a pair potential that reads a list of edges as jax_md's Sparse format
# does (idx = receivers, senders; an index past the last bead is no edge) and uses `displacement`.
STAND_IN = """
import jax
import jax.numpy as jnp

def mace_neighborlist_pp(displacement, r_cutoff, n_species, *, per_particle=False, mode="energy",
                         avg_num_neighbors=None, hidden_irreps=None, **others):
    assert mode == "energy" and per_particle and hidden_irreps is not None

    def init(key, position, neighbor, species=None, mask=None):
        return {"strength": jax.random.uniform(key, (n_species, n_species), position.dtype)}

    def apply(params, position, neighbor, species=None, mask=None):
        receivers, senders = neighbor.idx
        real = receivers < len(position)
        i, j = jnp.where(real, receivers, 0), jnp.where(real, senders, 0)
        apart = jax.vmap(displacement)(position[j], position[i])
        squared = jnp.where(real, jnp.sum(apart**2, axis=-1), 1.0)
        strength = params["strength"][species[i], species[j]] / avg_num_neighbors
        energies = jnp.where(real, strength * (1 - squared / r_cutoff**2) ** 3, 0.0)
        return jnp.zeros(len(position), position.dtype).at[i].add(energies)[:, None]

    return init, apply
"""


@pytest.fixture
def chemutils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "chemutils" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "mace.py").write_text(textwrap.dedent(STAND_IN))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "chemutils"]:
        del sys.modules[name]


def test_without_chemutils_its_models_say_what_is_missing() -> None:
    for name in ("mace", "painn"):
        with pytest.raises(ConfigError, match=f"{name} is a model of the package chemutils.*inst"):
            build_model(named(name), STATISTICS)


def numpy_stand_in(strength: np.ndarray, frames: Frames) -> np.ndarray:
    x, kinds = np.asarray(frames.R, np.float64), np.asarray(frames.species)
    energies, real = np.zeros(kinds.shape), np.asarray(frames.mask) > 0
    for b, i, j in np.ndindex(*kinds.shape, kinds.shape[1]):
        squared = np.sum((x[b, i] - x[b, j]) ** 2)
        if i != j and real[b, i] and real[b, j] and squared < CUTOFF**2:
            pull = strength[kinds[b, i], kinds[b, j]] / STATISTICS.avg_num_neighbors
            energies[b, i] += pull * (1 - squared / CUTOFF**2) ** 3
    return STATISTICS.energy_scale * energies + SHIFTS[kinds]


@pytest.mark.usefixtures("chemutils")
def test_a_model_of_chemutils_gets_edges_species_and_settings_as_jax_md_has_them() -> None:
    model, frames = build_model(named("mace"), STATISTICS), two_chains()
    params = model.init(jax.random.key(0), frames)
    assert model.hops == 2  # num_interactions
    expected = numpy_stand_in(np.asarray(params["network"]["strength"]), frames)
    energies = compile_fast(model.per_bead_energy)(params, frames)
    np.testing.assert_allclose(np.asarray(energies), expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected - SHIFTS[np.asarray(frames.species)]) > 0.1


@pytest.mark.usefixtures("chemutils")
def test_a_model_of_chemutils_has_no_forces_on_padding_and_none_that_are_not_finite() -> None:
    model = build_model(named("mace"), STATISTICS)
    positions, species = chain()
    positions[5:] = 0.0
    frames = frames_of(positions, species, np.arange(BEADS) < 5, dtype=np.float32)
    params = model.init(jax.random.key(0), frames)
    _, forces = compile_fast(model.energy_and_forces)(params, frames)
    forces = np.asarray(forces)[0]
    assert np.isfinite(forces).all() and (forces[5:] == 0).all() and forces[:5].any()
    # the negative slope
    strength, step = np.asarray(params["network"]["strength"]), np.zeros((1, BEADS, 3))
    step[0, 2, 1] = 1e-4
    up, down = (
        numpy_stand_in(strength, frames._replace(R=positions + d))[0, :5].sum()
        for d in (step, -step)
    )
    assert forces[2, 1] == pytest.approx(-(up - down) / 2e-4, rel=1e-3)


@pytest.mark.usefixtures("chemutils")
def test_a_model_of_chemutils_refuses_periodic_frames() -> None:
    model, frames = build_model(named("mace"), STATISTICS), two_chains()
    periodic = frames._replace(offset=jnp.zeros((*frames.nbr.shape, 3), jnp.float32))
    with pytest.raises(ConfigError, match="mace of chemutils takes open boundaries only"):
        model.init(jax.random.key(0), periodic)
