"""Coordinates, distributions, masses and limits of dynamics checks, against other computations."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from scipy import spatial, stats

from ensq import boltzmann
from ensq.dynamics.distributions import compare, counts, divergence, wasserstein
from ensq.dynamics.measures import Coordinate, bonds_of, coordinates
from ensq.dynamics.molecules import bond_limits, kinetic_limit
from ensq.dynamics.options import Options, numbers_in
from ensq.errors import UsageError
from ensq.masses import masses_of
from ensq.resampling import blocks_of


def chain(frames: int = 50, beads: int = 9, seed: int = 0) -> Any:
    steps = np.random.default_rng(seed).normal(size=(frames, beads, 3))
    return np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=-1, keepdims=True), axis=1)


def measured(R: Any, real: Any, mass: Any = None) -> dict[str, Any]:
    found = coordinates(R, real, np.zeros(len(real), int), ["A"], elements=False)
    mass = np.ones(len(real)) if mass is None else mass
    return {one.label: one.values(R, mass) for one in found}


def test_a_chains_coordinates_are_those_of_the_priors_fit() -> None:
    R, real = chain(), np.array([True] * 7 + [False] * 2)
    real_of_all = np.broadcast_to(real, (len(R), 9))
    other = boltzmann.measure(
        boltzmann.Chains(R, real_of_all, np.zeros((50, 9), int), 1, None, "made")
    )
    found = measured(R, real)
    np.testing.assert_allclose(found["bond"].ravel(), other.bond, rtol=1e-12)
    np.testing.assert_allclose(found["angle"].ravel(), np.degrees(other.angle), rtol=1e-12)
    np.testing.assert_allclose(found["dihedral"].ravel(), np.degrees(other.dihedral), rtol=1e-9)
    np.testing.assert_allclose(
        found["distance i, i+4"], np.linalg.norm(R[:, 4:7] - R[:, :3], axis=-1)
    )
    np.testing.assert_allclose(found["end to end"][:, 0], np.linalg.norm(R[:, 6] - R[:, 0], axis=1))


def test_the_radius_of_gyration_is_weighted_by_mass_and_leaves_padding_out() -> None:
    R = chain(5, 4)
    R[:, 3] = 100.0
    mass = np.array([1.0, 2.0, 3.0, 50.0])
    found = measured(R, np.array([True, True, True, False]), mass)["radius of gyration"][:, 0]
    atoms = [Atoms("H3", positions=frame[:3]) for frame in R]
    for one, value in zip(atoms, found, strict=True):
        one.set_masses(mass[:3])
        centred = one.positions - one.get_center_of_mass()
        wanted = np.sqrt((mass[:3] * (centred**2).sum(axis=1)).sum() / mass[:3].sum())
        assert value == pytest.approx(wanted, rel=1e-12)


def test_atoms_are_bonded_as_their_radii_say_and_angles_are_ases() -> None:
    atoms = molecule("CH3CH2OH")
    R = np.stack([atoms.positions, atoms.positions])
    names = ["H", "C", "O"]
    species = np.array([names.index(symbol) for symbol in atoms.get_chemical_symbols()])
    found = coordinates(R, np.ones(len(atoms), bool), species, names, elements=True)
    by_label = {one.label: one for one in found}
    sizes = {label: len(one.index) for label, one in by_label.items()}
    assert sizes == {
        "bond C-C": 1,
        "bond C-H": 5,
        "bond C-O": 1,
        "bond H-O": 1,
        "angle, heavy": 1,
        "radius of gyration": 1,
    }
    assert len(bonds_of(found)) == 8
    angle = by_label["angle, heavy"]
    assert angle.values(R, np.ones(9))[0, 0] == pytest.approx(atoms.get_angle(*angle.index[0]))


def test_dihedrals_of_atoms_are_ases() -> None:
    atoms = molecule("CH3CH2OCH3")
    names = sorted(set(atoms.get_chemical_symbols()))
    species = np.array([names.index(symbol) for symbol in atoms.get_chemical_symbols()])
    R = atoms.positions[None] + np.random.default_rng(0).normal(0, 0.1, (1, len(atoms), 3))
    found = coordinates(R, np.ones(len(atoms), bool), species, names, elements=True)
    dihedral = next(one for one in found if one.kind == "dihedral")
    atoms.positions = R[0]
    for index, value in zip(dihedral.index, dihedral.values(R, np.ones(9))[0], strict=True):
        assert value % 360 == pytest.approx(atoms.get_dihedral(*index) % 360, abs=1e-6)
    assert len(dihedral.index) == 1


def test_beads_that_are_no_chain_have_a_radius_of_gyration_only() -> None:
    R = np.random.default_rng(0).uniform(0, 30, (20, 8, 3))
    assert list(measured(R, np.ones(8, bool))) == ["radius of gyration"]


def test_distances_of_histograms_are_scipys() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(40)), rng.dirichlet(np.ones(40))
    p[3] = q[5] = 0.0
    p, q = p / p.sum(), q / q.sum()
    wanted = spatial.distance.jensenshannon(p, q, base=2) ** 2
    assert divergence(p, q) == pytest.approx(wanted, rel=1e-12)
    places = np.arange(40) * 0.5
    moved = stats.wasserstein_distance(places, places, p, q)
    assert wasserstein(p, q, 0.5, periodic=False) == pytest.approx(moved, rel=1e-12)
    # on a circle: the best of all places to cut it
    ways = [np.abs(np.cumsum(p - q) - cut).sum() for cut in np.cumsum(p - q)]
    assert wasserstein(p, q, 0.5, periodic=True) == pytest.approx(0.5 * min(ways), rel=1e-12)
    one, other = np.eye(8)[0], np.eye(8)[7]
    assert wasserstein(one, other, 1.0, periodic=True) == 1.0
    assert wasserstein(one, other, 1.0, periodic=False) == 7.0
    assert divergence(one, other) == 1.0 and divergence(one, one) == 0.0


def test_values_are_counted_by_their_groups() -> None:
    values, group = np.random.default_rng(1).normal(size=(60, 3)), np.arange(60) % 4
    edges = np.linspace(values.min(), values.max(), 11)
    found = counts(values, group, edges)
    for k in range(4):
        np.testing.assert_array_equal(found[k], np.histogram(values[group == k], edges)[0])


BOND = Coordinate("bond", "bond", np.array([[0, 1]]))


def test_equal_distributions_are_told_from_different_ones() -> None:
    rng = np.random.default_rng(2)
    data = rng.normal(3.8, 0.1, (400, 5))
    replica, block = np.arange(320) // 40, blocks_of(400, wanted=8)
    same = compare(BOND, rng.normal(3.8, 0.1, (320, 5)), replica, data, block)
    other = compare(BOND, rng.normal(3.9, 0.1, (320, 5)), replica, data, block)
    assert same.differs is False and other.differs is True
    for one in (same, other):
        assert one.js_interval[0] <= one.js_interval[1]
        assert (one.simulation * np.diff(one.edges)).sum() == pytest.approx(1.0)
        assert (one.data * np.diff(one.edges)).sum() == pytest.approx(1.0)
    assert other.wasserstein == pytest.approx(0.1, abs=0.01)
    assert other.wasserstein_interval[0] < other.wasserstein < other.wasserstein_interval[1]


def test_the_datas_own_noise_is_that_of_all_ways_to_halve_its_blocks() -> None:
    rng = np.random.default_rng(3)
    data, block = rng.normal(size=(60, 2)), np.arange(60) // 10
    found = compare(BOND, data, np.zeros(60, int), data, block)
    edges, own = found.edges, []
    for way in combinations(range(6), 3):
        inside = np.isin(block, way)
        p, q = (np.histogram(data[half], edges)[0] / 60 for half in (inside, ~inside))
        own.append(spatial.distance.jensenshannon(p, q, base=2) ** 2)
    assert found.js_noise == pytest.approx((np.median(own), max(own)), rel=1e-9)
    assert found.js == 0.0


def test_one_block_of_data_has_no_noise_of_its_own() -> None:
    data = np.random.default_rng(4).normal(size=(10, 2))
    found = compare(BOND, data, np.zeros(10, int), data, np.zeros(10, int))
    assert found.js_noise is None and found.differs is None


def test_bond_limits_are_the_range_and_as_much_again() -> None:
    R = np.zeros((3, 3, 3))
    R[:, 1, 0] = [3.0, 4.0, 5.0]
    R[:, 2, 0] = [6.0, 7.0, 8.0]  # always 3.0 from bead 1
    low, high = bond_limits(R, np.array([[0, 1], [1, 2]]))
    np.testing.assert_allclose(low, [1.0, 2.25])
    np.testing.assert_allclose(high, [7.0, 3.75])


@pytest.mark.parametrize("beads", [1, 10, 300])
def test_thermal_motion_passes_the_kinetic_limit_never(beads: int) -> None:
    kT = 0.7
    limit = kinetic_limit(beads, kT)
    rng = np.random.default_rng(0)
    drawn = 0.5 * kT * rng.chisquare(3 * beads, 100_000)
    assert drawn.max() < limit < 40 * drawn.mean()
    assert stats.chi2.sf(2 * limit / kT, 3 * beads) == pytest.approx(1e-18, rel=1e-6)


def test_masses_are_those_of_residues_and_elements_or_as_given() -> None:
    assert masses_of(("ALA", "GLY"), [0, 1], elements=False) == [71.08, 57.05]
    assert masses_of(("H", "C", "Cl"), [0, 2], elements=True) == [1.008, 1.0, 35.45]
    # the names of amino acids are no elements, and elements no amino acids
    assert masses_of(("A", "B"), [0, 1], elements=False, given={"A": 3.0, "": 9.0}) == [3.0, 9.0]
    with pytest.raises(UsageError, match="no mass is known for B: --mass B=VALUE"):
        masses_of(("ALA", "B"), [0, 1], elements=False)
    with pytest.raises(UsageError, match="no such species"):
        masses_of(("ALA",), [0], elements=False, given={"GLY": 3.0})


def test_lists_of_frames() -> None:
    assert numbers_in("0,5,7-9", 10) == [0, 5, 7, 8, 9]
    for wrong in ("", "a", "3-", "-1", "9-7", "10", "1,,2"):
        with pytest.raises(UsageError, match="--frames"):
            numbers_in(wrong, 10)


def test_a_friction_that_float32_can_not_keep_is_refused() -> None:
    with pytest.raises(UsageError, match="float64"):
        Options(friction=0.001).check(1.0)
    Options(friction=0.001, dtype="float64").check(1.0)
    Options(friction=0.0).check(1.0)
    Options().check(0.5)
