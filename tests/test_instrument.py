"""Every model held against the same measurements, over random sizes, masks, species and shapes.

All in float64, where what must hold holds to 1e-13; the tolerance here is 1e-12. All examples have
two frames of eight places, so that one compiled function for each model serves them.
"""

from __future__ import annotations

from typing import Any

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from instrument_tools import CELL, INSIDE, Batch, batches, exact_float64, images, listed
from model_tools import (
    BEADS,
    CUTOFF,
    SPECIES,
    STATISTICS,
    Measured,
    chain,
    compile_fast,
    compiled,
    everything,
    frames_of,
    make_model,
    measure,
    model_of,
    parameters,
    rotation,
)

from ensq.config.model import DimeNetConfig, ModelConfig
from ensq.train.models import EnergyModel, Frames, allegro, build_model
from ensq.train.neighbours import build_neighbours

SAME = 1e-12  # relative to the largest number of the array
MIRRORS = ["allegro-1-2-o3", "dimenetpp", "own"]  # a mirror image has the same energy
NETWORKS = ["allegro-1-1-so3", "allegro-1-2-so3", *MIRRORS]
ALL = [*NETWORKS, "priors"]

every_network = pytest.mark.parametrize("subject", NETWORKS)
every_model = pytest.mark.parametrize("subject", ALL)
examples = settings(derandomize=True, deadline=None, max_examples=25, database=None)
float64 = pytest.fixture(scope="module", autouse=True)(exact_float64)


def same(found: Any, expected: Any) -> None:
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=SAME, atol=SAME * (1 + np.abs(two).max()))


def same_bits(found: Any, expected: Any) -> None:
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, two)


def of(subject: str, frames: Frames) -> Measured:
    model = model_of(subject)
    return measure(model, parameters(model), frames)


# -- symmetries --------------------------------------------------------------------------------


@every_model
@examples
@given(batch=batches())
def test_turning_and_shifting_a_molecule_turns_its_forces(subject: str, batch: Batch) -> None:
    before = of(subject, batch.frames())
    turn = rotation(int(batch.rng.integers(1 << 30)))
    moved = batch._replace(R=batch.R @ turn.T + batch.rng.uniform(-50, 50, size=3))
    after = of(subject, moved.frames())
    same(after, before._replace(forces=before.forces @ turn.T))


@every_network
@examples
@given(batch=batches())
def test_the_order_of_beads_and_of_neighbours_changes_nothing_else(
    subject: str, batch: Batch
) -> None:
    before = of(subject, batch.frames())
    frames = jax.tree.map(np.array, batch.frames())
    to = batch.rng.permutation(BEADS)  # bead i goes to to[i]
    order = batch.rng.permuted(np.tile(np.arange(BEADS), (2, BEADS, 1)), axis=-1)
    place = np.argsort(order, axis=-1)  # the place m of a row goes to place[m]
    shuffled = {key: np.empty_like(value) for key, value in frames._asdict().items() if key in KEYS}
    for key in ("R", "species", "mask"):
        shuffled[key][:, to] = getattr(frames, key)
    for b, i, m in np.ndindex(2, BEADS, BEADS):
        there = (b, to[i], place[b, i, m])
        j, back = divmod(frames.rev[b, i, m], BEADS)
        shuffled["nbr"][there] = to[frames.nbr[b, i, m]]
        shuffled["rev"][there] = to[j] * BEADS + place[b, j, back]
        shuffled["nbr_mask"][there] = frames.nbr_mask[b, i, m]
    after = of(subject, Frames(**{key: jnp.asarray(value) for key, value in shuffled.items()}))
    same((after.energy, after.forces[:, to], after.beads[:, to]), before)


KEYS = ("R", "species", "mask", "nbr", "rev", "nbr_mask")


@pytest.mark.parametrize("subject", MIRRORS)
@examples
@given(batch=batches())
def test_a_mirror_image_has_the_same_energy_where_parity_is_kept(
    subject: str, batch: Batch
) -> None:
    before = of(subject, batch.frames())
    flip = np.array([-1.0, 1.0, 1.0])
    after = of(subject, batch._replace(R=batch.R * flip).frames())
    same(after, before._replace(forces=before.forces * flip))


# -- energies and forces -----------------------------------------------------------------------


@every_model
@examples
@given(batch=batches())
def test_bead_energies_sum_to_the_total_and_forces_to_nothing(subject: str, batch: Batch) -> None:
    found = of(subject, batch.frames())
    np.testing.assert_allclose(found.beads.sum(axis=1), found.energy, rtol=1e-12, atol=1e-12)
    largest = 1 + np.abs(found.forces).max()
    np.testing.assert_allclose(found.forces.sum(axis=1), 0.0, atol=SAME * largest)
    torque = np.cross(np.where(batch.mask[..., None], batch.R, 0.0), found.forces).sum(axis=1)
    np.testing.assert_allclose(torque, 0.0, atol=10 * SAME * largest)
    assert (found.beads[~batch.mask] == 0).all() and (found.forces[~batch.mask] == 0).all()


@every_model
@examples
@given(batch=batches())
def test_forces_are_the_negative_slope_of_the_energy(subject: str, batch: Batch) -> None:
    # the third derivative jumps at the cutoff: differences across it mean nothing
    apart = np.linalg.norm(batch.R[:, :, None] - batch.R[:, None], axis=-1)
    assume(np.abs(apart - CUTOFF).min() > 1e-2)
    frames = batch.frames(cutoff=100.0)
    direction = batch.rng.normal(size=batch.R.shape) * batch.mask[..., None]
    forces = of(subject, frames).forces

    def energy(step: float) -> np.ndarray:
        return of(subject, frames._replace(R=frames.R + step * direction)).energy

    h = 1e-4
    # of fourth order: the priors' repulsion is steep
    slope = (8 * (energy(h) - energy(-h)) - (energy(2 * h) - energy(-2 * h))) / (12 * h)
    work = (forces * direction).sum(axis=(1, 2))
    np.testing.assert_allclose(-slope, work, rtol=1e-6, atol=1e-6 * (1 + np.abs(forces).max()))


# -- what must change nothing ------------------------------------------------------------------


@every_model
@examples
@given(batch=batches(), rubbish=st.sampled_from([np.nan, np.inf, -1e300, 0.0]))
def test_what_padding_holds_changes_no_bit(subject: str, batch: Batch, rubbish: float) -> None:
    clean = batch.frames()
    R = np.where(batch.mask[..., None], batch.R, rubbish)
    species = np.where(batch.mask, batch.species, batch.rng.integers(-9, 99, size=(2, BEADS)))
    edges = np.asarray(clean.nbr_mask)
    nbr = np.where(edges, clean.nbr, batch.rng.integers(0, BEADS, size=edges.shape))
    rev = np.where(edges, clean.rev, batch.rng.integers(0, BEADS**2, size=edges.shape))
    spoilt = clean._replace(
        R=jnp.asarray(R),
        species=jnp.asarray(species, jnp.int32),
        nbr=jnp.asarray(nbr, jnp.int32),
        rev=jnp.asarray(rev, jnp.int32),
    )
    same_bits(of(subject, spoilt), of(subject, clean))


@every_network
def test_a_mask_that_takes_padding_for_a_bead_would_be_seen(subject: str) -> None:
    positions, species = chain()
    masks = [np.arange(BEADS) < count for count in (5, 6)]
    found = of(subject, frames_of(np.stack([positions] * 2), species, np.array(masks)))
    assert abs(found.energy[1] - found.energy[0]) > 1e-3
    assert np.abs(found.forces[1, :5] - found.forces[0, :5]).max() > 1e-4


@every_model
@examples
@given(batch=batches())
def test_other_frames_of_a_batch_and_their_order_change_no_bit(subject: str, batch: Batch) -> None:
    frames = batch.frames()
    found = of(subject, frames)
    swapped = of(subject, jax.tree.map(lambda x: x[::-1], frames))
    same_bits((x[::-1] for x in swapped), found)
    twice = of(subject, jax.tree.map(lambda x: x[jnp.array([0, 0])], frames))
    same_bits((x[0] for x in twice), (x[0] for x in found))


@every_network
@examples
@given(batch=batches(most=6))
def test_a_bead_beyond_the_cutoff_of_all_others_changes_nothing(subject: str, batch: Batch) -> None:
    both, new = np.arange(2), np.argmin(batch.mask, axis=1)  # the first free place
    direction = rotation(int(batch.rng.integers(1 << 30)))[0]
    farthest = np.where(batch.mask, batch.R @ direction, -np.inf).argmax(axis=1)
    mask = batch.mask.copy()
    mask[both, new] = True

    def with_bead(distance: float) -> Batch:
        """The new bead at a distance from the bead that is farthest out along a direction."""
        R = batch.R.copy()
        R[both, new] = R[both, farthest] + distance * direction
        return batch._replace(R=R, mask=mask)

    before, old = of(subject, batch.frames()), batch.mask
    far = with_bead(CUTOFF + 1e-6)
    after = of(subject, far.frames())
    same_bits((after.forces[old], after.beads[old]), (before.forces[old], before.beads[old]))
    assert (after.forces[both, new] == 0).all() and np.isfinite(after.beads[both, new]).all()
    # in the lists of the others it takes places, so that sums are grouped in another way
    listed = of(subject, far.frames(cutoff=100.0))
    same((listed.forces[old], listed.beads[old]), (before.forces[old], before.beads[old]))
    near = of(subject, with_bead(CUTOFF - 1.0).frames())
    assert (near.beads != after.beads)[old].any()


# -- how far a bead sees -----------------------------------------------------------------------


@every_network
def test_a_bead_sees_as_many_steps_from_neighbour_to_neighbour_as_the_model_says(
    subject: str,
) -> None:
    positions = np.arange(BEADS)[:, None] * 0.7 * CUTOFF * np.array([[0.8, 0.6, 0.0]])
    positions[:, 2] = 0.3 * np.array([0, 1, 0, 2, 1, 0, 2, 0])  # no straight line
    species = np.arange(BEADS) % SPECIES
    moved = positions.copy()
    moved[0] += [0.1, -0.2, 0.1]
    one, two = (of(subject, frames_of(np.stack([x, x]), species)) for x in (positions, moved))
    hops = model_of(subject).hops
    assert hops == (2 if subject == "dimenetpp" else 1)
    changed = one.beads[0] != two.beads[0]
    assert changed.tolist() == [bead <= hops for bead in range(BEADS)]


@pytest.mark.parametrize("blocks", [1, 2])
def test_dimenet_says_how_many_steps_its_blocks_see(blocks: int) -> None:
    dimenet = DimeNetConfig(n_interaction_blocks=blocks)
    config = ModelConfig(cutoff=CUTOFF, ml_model="dimenetpp", dimenetpp=dimenet)
    assert build_model(config, STATISTICS).hops == blocks + 1


def crossing(model: EnergyModel, steps: list[float], function: Any = None) -> Measured:
    """Three beads, of which one leaves the cutoff of the first by each step [S].

    ``function`` stands in for the model's compiled one where a test has changed its code.
    """
    x = np.zeros((len(steps), BEADS, 3))
    x[:, 1] = [1.2, 0.5, 0.3]
    x[:, 2, 0] = CUTOFF + np.array(steps)
    species = np.array([0, 1, 2] + [0] * 5)
    mask = np.tile(np.arange(BEADS) < 3, (len(steps), 1))
    frames = frames_of(x, species, mask, cutoff=2 * CUTOFF)
    function = function or compiled(model, "all")
    pairs = [jax.tree.map(lambda a, k=k: a[k : k + 2], frames) for k in range(0, len(steps), 2)]
    parts = [function(parameters(model), pair) for pair in pairs]
    return Measured(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def kinks(found: Measured) -> np.ndarray:
    """Second differences over the step, of energies and forces: [before, at, at, after]."""
    energy = np.abs(found.energy[0] + found.energy[3] - 2 * found.energy[1])
    forces = np.abs(found.forces[0] + found.forces[3] - 2 * found.forces[1]).max()
    return np.array([energy, forces])


def roughness(model: EnergyModel, function: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """What is left of second differences of energy and force, over the step, at a tenth the step.

    0.1 where the derivative goes on through the cutoff, 1 where it jumps, 10 where the value does;
    and the second differences themselves.
    """
    wide, narrow = (kinks(crossing(model, [-h, 0.0, 0.0, h], function)) / h for h in (1e-2, 1e-3))
    return narrow / wide, narrow


@every_network
def test_energies_forces_and_their_slopes_go_on_smoothly_through_the_cutoff(subject: str) -> None:
    model = model_of(subject)
    rough, left = roughness(model)
    assert (rough < 0.2).all()
    assert (left < 0.5).all()
    # a bead well inside matters; one outside does not, where its neighbours' neighbours don't count
    found = crossing(model, [-1.0, 0.0, 0.3, 1.0])
    assert np.abs(found.forces[0] - found.forces[2]).max() > 1e-3
    assert (found.beads[1, 0] == found.beads[3, 0]) == (model.hops == 1)


@pytest.mark.parametrize(("power", "broken"), [(0, "value"), (1, "force"), (2, "slope")])
def test_an_envelope_that_is_not_smooth_would_be_seen(
    monkeypatch: pytest.MonkeyPatch, power: int, broken: str
) -> None:
    monkeypatch.setattr(allegro, "_envelope", lambda x, p: (1.0 - x) ** power)
    model = make_model((1, 1, "so3"))
    function = compile_fast(lambda p, f: everything(model, p, f))
    rough, _ = roughness(model, function)
    assert rough[1] > 0.5 if broken == "slope" else rough[0] > 0.5


# -- periodic boundaries -----------------------------------------------------------------------


@pytest.mark.parametrize("subject", ["allegro-1-1-so3", "allegro-1-2-o3", "dimenetpp"])
def test_a_periodic_frame_is_a_cluster_of_its_images(subject: str) -> None:
    model = model_of(subject)
    params, kinds = jax.tree.map(jnp.asarray, parameters(model)), np.array([0, 1, 2])
    positions, bead = images(model.hops * CUTOFF)
    assert (bead[:3] == [0, 1, 2]).all() and len(bead) > 10
    cluster = listed(positions)._replace(species=jnp.asarray(kinds[bead][None], jnp.int32))

    def of_cell(inside: Any) -> Any:
        """The energy of the cell's own beads; all images follow them."""
        moved = cluster._replace(R=cluster.R + (inside - INSIDE)[bead])
        return model.per_bead_energy(params, moved)[0, :3].sum()

    energy, gradient = compile_fast(jax.value_and_grad(of_cell))(jnp.asarray(INSIDE))
    edges = build_neighbours(INSIDE[None], np.ones((1, 3)), CUTOFF, CELL[None])
    assert edges.offset is not None
    assert (edges.mask & (edges.index == np.arange(3)[:, None])).any()  # its own image
    frames = Frames(
        *map(jnp.asarray, (INSIDE[None], kinds[None].astype(np.int32), np.ones((1, 3)))),
        *map(jnp.asarray, (edges.index, edges.reverse, edges.mask, edges.offset)),
    )
    both = compile_fast(model.energy_and_forces)
    found, forces = both(params, frames)
    np.testing.assert_allclose(found[0], energy, rtol=1e-10)
    np.testing.assert_allclose(forces[0], -np.asarray(gradient), rtol=SAME, atol=1e-10)
    # the control: with the images left at their beads
    wrong, _ = both(params, frames._replace(offset=jnp.zeros_like(frames.offset)))
    assert abs(wrong[0] - energy) > 1e-3


# -- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", ["dimenetpp", "own"])
def test_beads_at_one_point_and_padding_give_no_nan_in_gradients_of_forces(subject: str) -> None:
    positions, species = chain(beads=BEADS)
    positions[0] = 0.0  # where padding stands too
    positions[3] = positions[2]  # real beads at one point have no direction
    mask = np.array([np.arange(BEADS) < 5, np.zeros(BEADS, bool)])
    frames = frames_of(np.stack([positions, positions]) * mask[..., None], species, mask)
    model = model_of(subject)
    gradient = compiled(model, "gradient")(parameters(model), frames)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any(leaf.any() for leaf in leaves)


@pytest.mark.parametrize("subject", ["dimenetpp", "own"])
def test_members_of_a_pack_of_two_get_what_each_gets_alone(subject: str) -> None:
    model = model_of(subject)
    params = parameters(model)
    other = jax.tree.map(lambda p: 1.1 * p, params)
    frames = frames_of(np.stack([chain(0)[0], chain(1)[0]]), chain(0)[1])
    pack = jax.tree.map(lambda *p: jnp.stack(p), params, other)
    both = compile_fast(jax.vmap(model.energy_and_forces, in_axes=(0, None)))(pack, frames)
    for k, member in enumerate((params, other)):
        alone = measure(model, member, frames)
        same((both[0][k], both[1][k]), (alone.energy, alone.forces))
