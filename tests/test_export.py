"""The exported model file is the trained model: read back, run, compared; and the controls."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from export_tools import chignolin, chignolin_frames, member

from ensq import data
from ensq.errors import ExportError
from ensq.train import ensemble_mean, export
from ensq.train.compare import Agreement, compare, float32_step
from ensq.train.domains import System, periodic_system, split_domain, whole_system
from ensq.train.module import LoadedModel
from ensq.train.reference import Predictions, Reference

CUTOFF = 12.0


@dataclasses.dataclass
class Exported:
    result: Any
    content: bytes
    reference: Reference
    embedded: bool

    def predict(self, result: Any) -> Predictions:
        return self.reference.predict(result, priors=self.embedded)

    def compare(self, result: Any, content: bytes | None = None) -> Agreement:
        expected = self.predict(result)
        return compare(content or self.content, expected, self.reference.frames, "seed 42")


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(chignolin_frames(6), CUTOFF)


def exported(reference: Reference, embed: bool) -> Exported:
    """A member of Chignolin and its model file."""
    result = member(chignolin(), reference.frames)
    return Exported(result, export.to_bytes([result], embed_priors=embed), reference, embed)


@pytest.fixture(scope="module")
def network(reference: Reference) -> Exported:
    return exported(reference, embed=False)


@pytest.fixture(scope="module")
def embedded(reference: Reference) -> Exported:
    return exported(reference, embed=True)


@pytest.fixture(scope="module", params=["network", "embedded"])
def trained(request: Any) -> Exported:
    found: Exported = request.getfixturevalue(request.param)
    return found


def test_module_gives_energies_and_forces_of_the_trained_model(trained: Exported) -> None:
    found = trained.compare(trained.result)
    assert found.frames == 6
    assert found.energy_error < 1e-4
    assert found.force_error < 1e-4
    assert (found.split_frames, found.ghosts > 0) == ((0, False) if trained.embedded else (1, True))


def test_module_of_other_parameters_is_refused(trained: Exported) -> None:
    other = jax.tree_util.tree_map(lambda leaf: leaf * np.float32(1.01), trained.result.params)
    with pytest.raises(ExportError, match="of seed 42 is not the trained one"):
        trained.compare(dataclasses.replace(trained.result, params=other))


def test_energy_that_is_off_by_a_constant_is_refused(trained: Exported) -> None:
    expected = trained.predict(trained.result)
    shifted = Predictions(expected.energy + 0.5, expected.force)
    with pytest.raises(ExportError, match=r"difference .* in energies"):
        compare(trained.content, shifted, trained.reference.frames, "seed 42")


DFT = (-300.0, -1000.0, -13000.0)


def test_error_beside_totals_of_dft_is_seen(reference: Reference) -> None:
    """A hundredth of the total would have hidden it."""
    frames = reference.frames
    count = len(frames.species_names)
    result = member(chignolin(), frames, shift=np.resize(DFT, count).tolist())
    trained = reference.predict(export.without_reference_energies(result))
    constant = export.reference_energies(result, frames)
    assert np.abs(constant).max() > 1e4
    content = export.to_bytes([result], embed_priors=True)
    whole = trained._replace(energy=trained.energy + constant)
    found = compare(content, whole, frames, "it")
    step = np.spacing(np.float32(np.abs(whole.energy).max()))
    assert found.energy_difference <= 4 * step
    assert found.energy_range == pytest.approx(np.ptp(whole.energy))
    assert found.energy_error == found.energy_difference / found.energy_range
    off = trained.energy + constant
    off[0] += 10 * step + 2e-4 * np.ptp(off)
    with pytest.raises(ExportError, match="in energies"):
        compare(content, whole._replace(energy=off), frames, "it")
    # left out: the digits are all there
    small = export.to_bytes([result], embed_priors=True, reference_energies=False)
    assert compare(small, trained, frames, "it").energy_difference < 0.1 * step


def test_module_that_is_wrong_with_ghosts_only_is_refused(
    network: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the engine brought one ghost only."""

    def with_one_ghost(*arguments: Any, **options: Any) -> list[System]:
        kept = []
        for system in split_domain(*arguments, **options):
            some = slice(0, system.n_local + 1)
            arrays = (system.position[some], system.species[some], system.owner[some])
            kept.append(System(*arrays, system.n_local))
        return kept

    monkeypatch.setattr("ensq.train.compare.split_domain", with_one_ghost)
    with pytest.raises(ExportError, match="not the trained one"):
        network.compare(network.result)


def test_file_says_what_the_engine_must_know(trained: Exported) -> None:
    loaded = LoadedModel(trained.content)
    assert loaded.cutoff == CUTOFF
    assert loaded.neighbour_order == (1, 2)
    assert loaded.unit_style == "real"


def test_file_itself_states_the_restriction_of_embedded_priors(
    network: Exported, embedded: Exported
) -> None:
    assert LoadedModel(network.content).restriction is None
    assert LoadedModel(embedded.content).restriction == export.EMBEDDED
    assert b"atom_modify sort 0 0" in embedded.content, "not legible in the file"


def test_file_is_the_same_each_time_and_tells_nothing_of_this_machine(trained: Exported) -> None:
    assert export.to_bytes([trained.result], embed_priors=trained.embedded) == trained.content
    assert str(Path(export.__file__).parent).encode() not in trained.content
    assert b"loc(" not in trained.content


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 50, b"\n\x04what"])
def test_file_that_is_no_model_is_an_error(content: bytes) -> None:
    with pytest.raises(ExportError, match="not a model file"):
        LoadedModel(content)


@pytest.mark.parametrize("newton", [True, False], ids=["newton on", "off"])
def test_embedded_priors_are_right_beside_images_of_a_molecule_that_is_whole(
    network: Exported, embedded: Exported, newton: bool
) -> None:
    """Ghosts are no part of the chain. The control: a chain that the box has cut is wrong."""
    frames, species = embedded.reference.frames, embedded.reference.frames.species[0]
    position = frames.R[0] - frames.R[0].min(axis=0) + 0.5
    cell = np.diag(position.max(axis=0) + 0.5 + np.array([6.0, 8.0, 30.0]))
    with_priors, alone = LoadedModel(embedded.content), LoadedModel(network.content)
    reach = alone.reach(newton=newton)
    system = periodic_system(position, species, cell, reach)
    cut = periodic_system(position + 0.5 * cell[0], species, cell, reach)
    assert min(system.n_ghost, cut.n_ghost) > 10
    for loaded in (with_priors, alone):
        loaded.reserve([system, cut])
    energy, force = with_priors.energy_and_forces([system], newton=newton)
    of_network, force_of_network = alone.energy_and_forces([system], newton=newton)
    first = np.array([0])
    both = embedded.reference.predict(embedded.result, first)
    open_network = network.reference.predict(network.result, first, priors=False)
    assert abs(of_network - open_network.energy[0]) > 1e-3, "images too far away to matter"
    prior = both.energy[0] - open_network.energy[0]
    assert energy - of_network == pytest.approx(prior, rel=1e-5)
    scale = np.abs(both.force[0]).max()
    wanted = both.force[0] - open_network.force[0]
    np.testing.assert_allclose(force - force_of_network, wanted, rtol=0, atol=1e-5 * scale)
    assert abs(with_priors.energy_and_forces([cut], newton=newton)[0] - energy) > 1.0


def test_padding_slots_of_the_engine_change_nothing(trained: Exported) -> None:
    """Engines hand over arrays with spare atoms and spare places for edges at the end."""
    frames = trained.reference.frames
    system = whole_system(frames.R[0], frames.species[0])
    exact, spacious = LoadedModel(trained.content), LoadedModel(trained.content)
    spacious._program(2 * system.n_atoms + 3, 700)
    for newton in (True, False):
        energy, force = exact.of_rank(system, newton=newton)
        padded_energy, padded_force = spacious.of_rank(system, newton=newton)
        assert padded_energy == pytest.approx(energy, rel=1e-6)
        np.testing.assert_allclose(padded_force, force, rtol=0, atol=1e-5 * np.abs(force).max())


# -- the mean of several members -----------------------------------------------------------------


@pytest.fixture(scope="module")
def members(reference: Reference) -> list[Any]:
    return [member(chignolin(), reference.frames, seed) for seed in (1, 2, 3)]


def test_mean_model_is_the_mean_of_its_members(members: list[Any], reference: Reference) -> None:
    content = export.to_bytes(members, embed_priors=False)
    alone = [reference.predict(result, priors=False) for result in members]
    mean = Predictions(
        np.mean([one.energy for one in alone], axis=0),
        np.mean([one.force for one in alone], axis=0),
    )
    found = compare(content, mean, reference.frames, "the mean")
    assert found.energy_error < 1e-5
    assert found.force_error < 1e-5
    of_two = ensemble_mean.predict(reference, members[:2], priors=False)
    with pytest.raises(ExportError, match="the mean is not the trained one"):
        compare(content, of_two, reference.frames, "the mean")


def test_mean_models_figures_are_those_of_the_mean_forces(
    members: list[Any], reference: Reference
) -> None:
    frames = reference.frames
    assert frames.F is not None
    gammas = chignolin().training.gammas
    found = ensemble_mean.scores(reference, members, gammas)
    force = np.mean([reference.predict(result).force for result in members], axis=0)
    assert found.loss == pytest.approx(np.mean((force - frames.F) ** 2), rel=1e-6)
    assert found.rmse_force == pytest.approx(found.loss**0.5)


def test_frames_of_several_sizes_are_compared_without_their_padding(reference: Reference) -> None:
    frames = reference.frames
    mask = frames.mask.copy()
    mask[1:, 7:] = False
    some: data.Data = dataclasses.replace(frames, mask=mask)
    result = member(chignolin(), some)
    content = export.to_bytes([result], embed_priors=True)
    compare(content, Reference(some, CUTOFF).predict(result), some, "seed 42")


def test_a_single_frame_has_a_scale_too(reference: Reference) -> None:
    """It has no range, and float32 sums are not exact."""
    frames = reference.frames.take(np.array([0]))
    result = member(chignolin(), frames)
    content = export.to_bytes([result], embed_priors=True)
    expected = Reference(frames, CUTOFF).predict(result)
    found = compare(content, expected, frames, "it")
    assert found.energy_difference < 1e-4 * found.energy_range + 4 * float32_step(expected.energy)
    with pytest.raises(ExportError, match="in energies"):
        compare(content, expected._replace(energy=expected.energy + 0.1), frames, "it")
