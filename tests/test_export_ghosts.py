"""Exported modules on systems laid out as LAMMPS lays them out: ranks, ghosts, images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from export_tools import CELLS, CUTOFF, crowd, member, small

from ensq.errors import ExportError
from ensq.train import domains, export, reference
from ensq.train.compare import compare
from ensq.train.domains import System, periodic_system, split_domain, whole_system
from ensq.train.module import LoadedModel

NETWORKS = {"one hop": "allegro", "two hops": "export_tools:two_hops"}
TOLERANCE = 1e-5  # relative, of float32 sums


@dataclasses.dataclass
class Case:
    loaded: LoadedModel
    expected: dict[str, reference.Predictions]
    frames: dict[str, Any]

    def systems(
        self, boundary: str, ranks: int, newton: bool, missing: float = 0.0
    ) -> list[System]:
        """The first frame on one or two ranks, with ghosts up to ``missing`` less than needed."""
        frames = self.frames[boundary]
        cell = None if frames.cell is None else frames.cell[0]
        reach = self.loaded.reach(newton=newton) - missing
        position, species = frames.R[0], frames.species[0]
        if ranks == 1 and cell is None:
            return [whole_system(position, species)]
        if ranks == 1:
            return [periodic_system(position, species, cell, reach)]
        place = float(np.median(position[:, 0])) if cell is None else 0.45
        return split_domain(position, species, reach, cell=cell, places=[place])

    def error(self, boundary: str, energy: float, force: np.ndarray) -> float:
        """The largest relative difference from the whole system."""
        expected = self.expected[boundary]
        scale = np.abs(expected.force[0]).max()
        of_energy = abs(energy - expected.energy[0]) / abs(expected.energy[0])
        return max(of_energy, float(np.abs(force - expected.force[0]).max() / scale))


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: Any) -> Case:
    frames = {boundary: crowd(boundary) for boundary in CELLS}
    result = member(small(NETWORKS[request.param]), frames["orthogonal"])
    loaded = LoadedModel(export.to_bytes([result], embed_priors=False))
    made = Case(
        loaded,
        {name: reference.Reference(part, CUTOFF).predict(result) for name, part in frames.items()},
        frames,
    )
    every = [made.systems(b, ranks, newton=False) for b in CELLS for ranks in (1, 2)]
    loaded.reserve([system for systems in every for system in systems])
    return made


newton_on_and_off = pytest.mark.parametrize("newton", [True, False], ids=["newton on", "off"])


@newton_on_and_off
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("boundary", CELLS)
def test_domains_with_ghosts_give_the_whole_systems_energy_and_forces(
    case: Case, boundary: str, ranks: int, newton: bool
) -> None:
    systems = case.systems(boundary, ranks, newton)
    assert len(systems) == ranks
    assert all(system.n_ghost for system in systems) == (boundary != "open" or ranks == 2)
    found = case.loaded.energy_and_forces(systems, newton=newton)
    assert case.error(boundary, *found) < TOLERANCE


@newton_on_and_off
def test_too_few_ghosts_are_seen(case: Case, newton: bool) -> None:
    """The control of the test above: it would notice ghosts that end one cutoff too early."""
    systems = case.systems("orthogonal", 2, newton, missing=CUTOFF)
    found = case.loaded.energy_and_forces(systems, newton=newton)
    assert case.error("orthogonal", *found) > 5 * TOLERANCE


def test_energies_of_ghosts_that_are_counted_are_seen(case: Case) -> None:
    systems = case.systems("orthogonal", 2, True)
    wrong = [dataclasses.replace(system, n_local=system.n_atoms) for system in systems]
    energy = sum(case.loaded.of_rank(system, newton=True)[0] for system in wrong)
    _, force = case.loaded.energy_and_forces(systems, newton=True)
    assert case.error("orthogonal", energy, force) > 100 * TOLERANCE


def test_forces_on_ghosts_that_are_lost_are_seen(case: Case) -> None:
    systems = case.systems("orthogonal", 2, True)
    parts = [case.loaded.of_rank(system, newton=True) for system in systems]
    force = domains.total_forces(systems, [part[1] for part in parts], 27, newton=False)
    energy = sum(part[0] for part in parts)
    assert case.error("orthogonal", energy, force) > 100 * TOLERANCE


def test_half_list_with_newton_on_is_seen(case: Case) -> None:
    (system,) = case.systems("orthogonal", 1, True)
    half = case.loaded.edges(system, newton=False)
    energy, force = case.loaded.of_rank(system, newton=True, edges=half)
    total = domains.total_forces([system], [force], 27, newton=True)
    assert case.error("orthogonal", energy, total) > 100 * TOLERANCE


@newton_on_and_off
def test_engine_may_name_the_ends_of_an_edge_either_way_round(case: Case, newton: bool) -> None:
    """Releases of chemtrain-deploy differ in whether a row's atom is the sender or the receiver."""
    systems = case.systems("triclinic", 2, newton)
    parts = []
    for system in systems:
        senders, receivers = case.loaded.edges(system, newton=newton)
        parts.append(case.loaded.of_rank(system, newton=newton, edges=(receivers, senders)))
    force = domains.total_forces(systems, [part[1] for part in parts], 27, newton=newton)
    assert case.error("triclinic", sum(part[0] for part in parts), force) < TOLERANCE


def test_file_asks_for_the_ghosts_that_its_network_needs(case: Case) -> None:
    hops = case.loaded.neighbour_order[0]
    assert hops in (1, 2)
    assert case.loaded.neighbour_order == (hops, 2 * hops)
    assert case.loaded.reach(newton=False) == 2 * hops * CUTOFF


def test_rows_of_ghosts_are_there_only_where_the_engine_makes_them(case: Case) -> None:
    (system,) = case.systems("orthogonal", 1, True)
    rows, _ = case.loaded.edges(system, newton=True)
    assert (rows.max() >= system.n_local) == (case.loaded.neighbour_order[0] > 1)


def test_each_beads_energy_is_its_own(case: Case) -> None:
    """The sum over any first k beads as a rank's own gives the energies of beads one by one."""
    from ensq.train.labelled import frames_of
    from ensq.train.neighbours import build_neighbours

    frames = case.frames["open"].take(np.array([0]))
    result = member(small(_network(case)), case.frames["orthogonal"])
    layout = build_neighbours(frames.R, frames.mask, CUTOFF)
    batch = frames_of(frames.R, frames.species, frames.mask, layout, np.float32)
    model = export.model_of(result)
    expected = np.asarray(model.per_bead_energy(export.parameters_of(result), batch))[0]
    system = whole_system(frames.R[0], frames.species[0])
    sums = [
        case.loaded.of_rank(dataclasses.replace(system, n_local=k), newton=True)[0]
        for k in range(28)
    ]
    np.testing.assert_allclose(np.diff(sums), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def _network(case: Case) -> str:
    return NETWORKS["one hop" if case.loaded.neighbour_order[0] == 1 else "two hops"]


def test_frames_with_cells_are_compared_with_their_images() -> None:
    """A cell, a slab, and no periodic direction at all in one data set."""
    parts = [crowd(boundary, 1) for boundary in ("triclinic", "slab", "open")]
    cells = [np.zeros((1, 3, 3)) if part.cell is None else part.cell for part in parts]
    mixed = dataclasses.replace(
        parts[0],
        R=np.concatenate([part.R for part in parts]),
        species=np.concatenate([part.species for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
        cell=np.concatenate(cells),
    )
    result = member(small(), mixed)
    content = export.to_bytes([result], embed_priors=False)
    expected = reference.Reference(mixed, CUTOFF).predict(result)
    found = compare(content, expected, mixed, "seed 42")
    assert found.force_error < TOLERANCE
    assert found.ghosts > 100
    closed = dataclasses.replace(mixed, cell=None)
    with pytest.raises(ExportError, match="not the trained one"):
        compare(content, expected, closed, "seed 42")


@pytest.fixture(scope="module")
def with_angles() -> Case:
    """DimeNet++, whose file takes a row of neighbours for each atom instead of a list of edges."""
    sizes = "{embed_size: 4, n_interaction_blocks: 1, num_dense_out: 1, num_rbf: 2, num_sbf: 2}"
    frames = {boundary: crowd(boundary, 1) for boundary in ("open", "orthogonal")}
    result = member(small("dimenetpp", f"model.dimenetpp={sizes}"), frames["open"])
    loaded = LoadedModel(export.to_bytes([result], embed_priors=False))
    expected = {b: reference.Reference(part, CUTOFF).predict(result) for b, part in frames.items()}
    return Case(loaded, expected, frames)


@pytest.mark.parametrize(("boundary", "newton"), [("orthogonal", True), ("open", False)])
def test_network_with_angles_is_right_with_ghosts(
    with_angles: Case, boundary: str, newton: bool
) -> None:
    assert with_angles.loaded.neighbour_order == (2, 4)
    systems = with_angles.systems(boundary, 2, newton)
    found = with_angles.loaded.energy_and_forces(systems, newton=newton)
    assert with_angles.error(boundary, *found) < TOLERANCE
    reach = with_angles.loaded.reach(newton=newton)
    few = with_angles.systems(boundary, 2, newton, missing=reach - 0.5 * CUTOFF)
    found = with_angles.loaded.energy_and_forces(few, newton=newton)
    assert with_angles.error(boundary, *found) > 100 * TOLERANCE
