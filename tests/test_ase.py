"""The ASE calculator: energies, forces, stress and spreads along trajectories, and what happens
when the members disagree."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import ase
import jax
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import read as ase_read
from ase.md.verlet import VelocityVerlet
from export_tools import ROOT, SPECIES, crowd, member, small
from predict_tools import SEEDS, ensemble, export, quick_compiles, results

from ensq import data
from ensq.ase import EnsembleCalculator, UncertaintyExceeded
from ensq.ensemble import LoadedEnsemble, load_ensemble
from ensq.errors import DataError, EnsqError, UsageError
from ensq.train.checkpoint import MemberResult
from ensq.train.moving import Moving

quick = pytest.fixture(scope="module", autouse=True)(quick_compiles)
KCAL = 23.060547830619  # of an eV


@pytest.fixture(scope="module")
def loaded() -> LoadedEnsemble:
    """In float64: differences of energies are looked at."""
    return ensemble(results("triclinic"), "float64")


def beads(boundary: str = "triclinic", seed: int = 0) -> Atoms:
    """27 beads of 40 g/mol with names, moving."""
    frames = crowd(boundary, 1)
    atoms = Atoms(
        "X27",
        positions=frames.R[0].astype(np.float64),
        masses=np.full(27, 40.0),
        cell=None if frames.cell is None else frames.cell[0],
        pbc=frames.cell is not None,
    )
    atoms.set_array("bead", np.array(SPECIES)[frames.species[0]])
    spread = np.sqrt(40.0 * units.kB * 400)
    atoms.set_momenta(np.random.default_rng(seed).normal(scale=spread, size=(27, 3)))
    return atoms


def trajectory(atoms: Atoms, steps: int) -> list[np.ndarray]:
    """Beads that wander so far that neighbours change."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(steps):
        atoms.positions += rng.normal(scale=0.15, size=atoms.positions.shape)
        found.append(atoms.positions.copy())
    return found


def worst(loaded: LoadedEnsemble, calculator: EnsembleCalculator) -> float:
    """How far forces of the calculator are from those of the plain predictor, along a way."""
    atoms = beads()
    atoms.calc = calculator
    off = 0.0
    for positions in trajectory(atoms.copy(), 15):
        atoms.positions = positions
        found = loaded.predict(atoms, batch=1).converted("eV")
        off = max(off, float(np.abs(atoms.get_forces() - found.forces_mean[0]).max()))
        np.testing.assert_allclose(atoms.get_potential_energy(), found.energy_mean[0], atol=1e-6)
        spread = calculator.get_property("epsilon", atoms)
        np.testing.assert_allclose(spread, found.epsilon[0], atol=1e-6)
    return off


def test_neighbours_are_right_when_they_change_and_nothing_is_compiled_again(
    loaded: LoadedEnsemble,
) -> None:
    calculator = EnsembleCalculator(loaded, skin=1.5)
    first = loaded.predictor.programs()
    assert worst(loaded, calculator) < 1e-7
    assert 1 < calculator._moving.lists < 15  # made again, and not at every step
    before = calculator.programs
    atoms = beads()
    atoms.calc = calculator
    for positions in trajectory(atoms.copy(), 15):
        atoms.positions = positions
        atoms.get_forces()
    assert calculator.programs == before > first


def test_a_list_that_is_not_made_again_would_be_noticed(
    loaded: LoadedEnsemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    calculator = EnsembleCalculator(loaded, skin=0.2)
    monkeypatch.setattr(Moving, "_stale", lambda self, *_: self._frames is None)
    with pytest.raises(AssertionError):
        assert worst(loaded, calculator) < 1e-3


def test_more_neighbours_than_there_is_room_for_are_taken_in(loaded: LoadedEnsemble) -> None:
    atoms = beads("open")
    atoms.calc = loaded.calculator()
    atoms.positions *= 1.8  # few neighbours
    atoms.get_forces()
    width = atoms.calc._moving._width
    atoms.positions /= 1.8
    expected = loaded.predict(atoms).converted("eV")
    np.testing.assert_allclose(atoms.get_forces(), expected.forces_mean[0], atol=1e-7)
    assert atoms.calc._moving._width > width


def test_results_are_in_ev_and_forces_are_minus_the_gradient(loaded: LoadedEnsemble) -> None:
    atoms = beads()
    atoms.calc = loaded.calculator()
    assert loaded.energy_unit == "kcal/mol"
    plain = loaded.predict([atoms], ddof=0)
    np.testing.assert_allclose(atoms.get_potential_energy() * KCAL, plain.energy_mean[0])
    # ASE's own constant is of CODATA 2014
    assert units.kcal / units.mol * KCAL == pytest.approx(1, abs=1e-7)
    results = atoms.calc.results
    np.testing.assert_allclose(results["forces_std"] * KCAL, plain.forces_std[0], rtol=1e-6)
    np.testing.assert_allclose(results["energy_std"] * KCAL, plain.energy_std[0], rtol=1e-6)
    assert results["free_energy"] == results["energy"]
    forces, step = atoms.get_forces(), 1e-4
    for bead, axis in [(0, 0), (13, 1), (26, 2)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[bead, axis] += sign * step
            energies.append(moved.get_potential_energy())
        assert forces[bead, axis] == pytest.approx(
            -(energies[0] - energies[1]) / (2 * step), rel=1e-5, abs=1e-7
        )


def test_stress_is_the_derivative_by_a_strain_where_all_directions_are_periodic(
    loaded: LoadedEnsemble,
) -> None:
    atoms = beads()
    atoms.calc = loaded.calculator()
    stress, step, found = atoms.get_stress(), 1e-5, []
    for i, j in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]:
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            strained.calc = atoms.calc
            energies.append(strained.get_potential_energy())
        found.append((energies[0] - energies[1]) / (2 * step) / atoms.get_volume())
    np.testing.assert_allclose(stress, found, rtol=1e-4, atol=1e-9)
    flat = beads("open")
    flat.calc = loaded.calculator()
    with pytest.raises(PropertyNotImplementedError):
        flat.get_stress()


def test_the_energy_is_conserved(loaded: LoadedEnsemble) -> None:
    atoms = beads()
    atoms.calc = loaded.calculator()
    energies = []
    md = VelocityVerlet(atoms, timestep=2 * units.fs)
    md.attach(lambda: energies.append((atoms.get_total_energy(), atoms.get_kinetic_energy())))
    md.run(60)
    total, kinetic = np.array(energies).T
    assert np.ptp(kinetic) > 0.02  # something happens
    assert np.abs(total - total[0]).max() < 0.02 * np.ptp(kinetic)


# -- thresholds --------------------------------------------------------------------------------


def moved(loaded: LoadedEnsemble, steps: int = 8, **options: Any) -> tuple[Atoms, list[float]]:
    """Atoms after some evaluations, and the largest epsilon at each (of another calculator)."""
    atoms, other = beads(), beads()
    atoms.calc, other.calc = loaded.calculator(**options), loaded.calculator()
    largest = []
    for positions in trajectory(beads(), steps):
        other.positions = positions
        largest.append(float(other.calc.get_property("epsilon", other).max()))
    for positions in trajectory(beads(), steps):
        atoms.positions = positions
        atoms.get_forces()
    return atoms, largest


def test_stop_keeps_the_frame_and_says_where(loaded: LoadedEnsemble, tmp_path: Path) -> None:
    _, largest = moved(loaded)
    threshold = float(np.median(largest))
    first = next(k for k, value in enumerate(largest) if value > threshold)
    file = tmp_path / "stopped.extxyz"
    with pytest.raises(UncertaintyExceeded, match="the members disagree") as caught:
        moved(loaded, threshold=threshold, record=file)
    error = caught.value
    assert isinstance(error, EnsqError) and error.evaluation == first
    assert error.value == pytest.approx(largest[first]) == error.epsilon.max()
    kept = ase_read(file)
    np.testing.assert_allclose(kept.positions, error.atoms.positions, atol=1e-7)
    np.testing.assert_allclose(kept.get_forces(), error.atoms.get_forces(), atol=1e-7)
    assert kept.arrays["bead"].tolist() == beads().arrays["bead"].tolist()
    assert kept.info["epsilon_max"] == pytest.approx(error.value) and kept.pbc.all()


def test_record_goes_on_with_a_distance_between_frames(
    loaded: LoadedEnsemble, tmp_path: Path
) -> None:
    _, largest = moved(loaded)
    threshold = float(np.sort(largest)[2])
    over = [k for k, value in enumerate(largest) if value > threshold]
    options = {"threshold": threshold, "on_exceed": "record", "interval": 3}
    atoms, _ = moved(loaded, record=tmp_path / "kept.extxyz", **options)
    kept = [frame.info["evaluation"] for frame in atoms.calc.recorded]
    expected: list[int] = []
    for k in over:
        if not expected or k - expected[-1] >= 3:
            expected.append(k)
    assert kept == expected and len(kept) > 1
    assert len(ase_read(tmp_path / "kept.extxyz", index=":")) == len(kept)
    seen: list[Atoms] = []
    moved(loaded, threshold=threshold, on_exceed=seen.append)
    assert [frame.info["evaluation"] for frame in seen] == over
    assert seen[0].calc.results["energy"] is not None
    with pytest.raises(ZeroDivisionError):  # what the function raises ends the simulation
        moved(loaded, threshold=threshold, on_exceed=lambda frame: 1 / 0)


def test_nothing_happens_below_the_threshold(loaded: LoadedEnsemble) -> None:
    atoms, largest = moved(loaded, threshold=10.0)
    assert max(largest) < 10 and atoms.calc.recorded == [] and atoms.calc.evaluations == 8
    with pytest.raises(UncertaintyExceeded, match="mean epsilon"):
        moved(loaded, threshold=1e-9, by="mean")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": 0}, "over 0"),
        ({"threshold": np.nan}, "over 0"),
        ({"threshold": "0.3"}, "a number"),
        ({"by": "median"}, "max or mean"),
        ({"on_exceed": "halt"}, "stop, record"),
        ({"ddof": 2}, "ddof"),
        ({"interval": 0}, "interval"),
    ],
)
def test_wrong_options_are_refused(loaded: LoadedEnsemble, options: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        loaded.calculator(**options)


# -- which atoms -------------------------------------------------------------------------------


def test_a_file_for_frames_needs_a_threshold(loaded: LoadedEnsemble, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give a threshold, too"):
        loaded.calculator(record=tmp_path / "kept.extxyz")


def test_members_are_calculators_of_their_own(loaded: LoadedEnsemble) -> None:
    atoms = beads()
    singles = []
    for place in range(len(SEEDS)):
        atoms.calc = loaded.member(place).calculator()
        singles.append(atoms.get_forces())
        with pytest.raises(PropertyNotImplementedError):
            atoms.calc.get_property("epsilon", atoms)
    atoms.calc = loaded.calculator(ddof=1)
    np.testing.assert_allclose(atoms.get_forces(), np.mean(singles, axis=0), atol=1e-8)
    spread = atoms.calc.get_property("forces_std", atoms)
    np.testing.assert_allclose(spread, np.std(singles, axis=0, ddof=1), atol=1e-8)
    with pytest.raises(UsageError, match="no spread"):
        loaded.member(0).calculator(threshold=1.0)


def test_kinds_of_beads_come_from_an_array_a_list_or_the_training_s_key(
    loaded: LoadedEnsemble,
) -> None:
    atoms = beads()
    atoms.calc = loaded.calculator()
    expected = atoms.get_potential_energy()
    names = atoms.arrays["bead"].copy()
    del atoms.arrays["bead"]
    with pytest.raises(DataError, match=r'atoms.set_array\("bead"'):
        loaded.calculator().get_property("energy", atoms)
    listed = loaded.calculator(species=names.tolist())
    assert listed.get_property("energy", atoms) == pytest.approx(expected)
    atoms.set_array("residuenames", np.char.add(names, "  "))
    assert loaded.calculator().get_property("energy", atoms) == pytest.approx(expected)
    atoms.arrays["residuenames"][3] = "ZN"
    with pytest.raises(DataError, match="bead 3 is of the species ZN"):
        loaded.calculator().get_property("energy", atoms)
    keyed = results("triclinic", SEEDS[:1], "data.keys.species=kind")
    assert ensemble(keyed).bead_array(atoms) is None
    atoms.set_array("kind", names)
    assert ensemble(keyed).bead_array(atoms) == "kind"


def test_elements_are_known_by_their_symbols(loaded: LoadedEnsemble, tmp_path: Path) -> None:
    """From an export folder, whose path is all that a script names."""
    members = [
        dataclasses.replace(
            one,
            species_names=("C", "H", "O"),
            statistics={**one.statistics, "elements": True},
        )
        for one in loaded.members.results
    ]
    folder = export(tmp_path / "models", members)
    frames = crowd("triclinic", 1)
    symbols = np.array(["C", "H", "O"])[frames.species[0]].tolist()
    atoms = ase.Atoms(symbols, positions=frames.R[0], cell=beads().cell, pbc=True)
    atoms.calc = EnsembleCalculator(str(folder))
    assert atoms.calc.ensemble.elements and len(load_ensemble(folder)) == len(SEEDS)
    found = atoms.calc.ensemble.predict(frames=[atoms, atoms[:20]])
    assert found.mask.sum(axis=1).tolist() == [27, 20]
    atoms.numbers[5] = 30
    with pytest.raises(DataError, match="bead 5 is of the species Zn"):
        atoms.get_forces()


def test_calibrated_spreads_are_held_against_the_threshold(loaded: LoadedEnsemble) -> None:
    class Threefold:
        def check(self, how: str) -> None:
            assert how == "global"

        def apply(self, found: Any, how: str) -> Any:
            return dataclasses.replace(found, epsilon=3 * found.epsilon)

    own = LoadedEnsemble(loaded.members, "float64")
    with pytest.raises(UsageError, match="finalize"):
        own.calculator(calibrated="global")
    own.__dict__ |= {"calibration": Threefold(), "predictor": loaded.predictor}
    atoms = beads()
    plain = loaded.calculator().get_property("epsilon", atoms)
    calculator = own.calculator(calibrated="global", threshold=2 * plain.max())
    with pytest.raises(UncertaintyExceeded) as caught:
        calculator.get_property("energy", atoms)
    np.testing.assert_allclose(caught.value.epsilon, 3 * plain)


def test_atoms_that_flew_apart_end_the_simulation(loaded: LoadedEnsemble) -> None:
    atoms = beads()
    atoms.calc = loaded.calculator()
    atoms.positions[3, 1] = np.nan
    with pytest.raises(EnsqError, match=r"NaN|no finite energy"):
        atoms.get_forces()


# -- frames from arrays ------------------------------------------------------------------------


def test_arrays_are_frames_too(loaded: LoadedEnsemble) -> None:
    atoms = beads()
    expected = loaded.predict([atoms])
    names, R, cell = atoms.arrays["bead"], atoms.positions, atoms.cell.array
    found = loaded.predict(loaded.frames(R, names, cell=cell))
    np.testing.assert_allclose(found.energy_mean, expected.energy_mean)
    numbers = [SPECIES.index(name) for name in names]
    twice = loaded.frames(np.stack([R, R]), numbers, cell=cell, mask=np.arange(27) < 27)
    np.testing.assert_array_equal(twice.species, [numbers, numbers])
    for wrong, says in (
        ({"R": R[:, :2], "species": names}, r"\[T,N,3\]"),
        ({"R": R, "species": names[:5]}, "species has the shape"),
        ({"R": R, "species": np.full(27, 3)}, "species 3"),
        ({"R": np.where(R[4, 1] == R, np.inf, R), "species": names}, "bead 4: its position"),
        ({"R": R, "species": names, "cell": np.eye(2)}, "cell"),
        ({"R": R, "species": names, "mask": np.zeros(27)}, "no real bead"),
    ):
        with pytest.raises(DataError, match=says):
            loaded.frames(**wrong)
    with pytest.raises(UsageError, match="list of ase"):
        loaded.predict([1, 2])
    with pytest.raises(DataError, match="no frames"):
        loaded.predict([])


# -- the docs ----------------------------------------------------------------------------------


def test_the_script_of_the_docs_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fewer steps, and members that were not trained."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "prediction.md").read_text(), re.S)
    [script] = [block for block in blocks if "Langevin" in block]
    data_file = ROOT / "data" / "ala2_allatom.npz"
    config = small("allegro", "model.allegro.max_ell=0", "data.units.energy=eV")
    whole = data.load(data_file, config.data, None, config.unit)
    assert isinstance(whole, data.Data)
    first = member(config, whole.take(np.arange(2)))
    monkeypatch.chdir(tmp_path)
    export(Path("runs/ala2_allatom/exported_models"), [first, nearly(first)])
    Path("data").symlink_to(ROOT / "data")
    assert script.count("20_000") == 1 and "interval=500" in script
    exec(script.replace("20_000", "4").replace("interval=500", "interval=2"), {})
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["0", "2", "4"] and "eV/Angstrom" in shown[0]
    assert Path("md.traj").exists() and not Path("uncertain.extxyz").exists()
    exec(script.replace("threshold=0.3", "threshold=1e-9"), {})
    assert "the members disagree here" in capsys.readouterr().out
    assert ase_read("uncertain.extxyz").get_chemical_symbols().count("H") == 12


def nearly(first: MemberResult) -> MemberResult:
    """A member whose predictions are nearly the same."""
    params = jax.tree_util.tree_map(lambda leaf: leaf * np.float32(1.0001), first.params)
    return dataclasses.replace(first, seed=first.seed + 1, params=params)


def test_beads_get_masses_by_one_call_and_forces_stay(loaded: LoadedEnsemble) -> None:
    atoms = beads()
    atoms.calc = loaded.calculator()
    before = atoms.get_forces()
    with pytest.raises(UsageError, match="no mass is known"):
        loaded.set_masses(atoms)
    loaded.set_masses(atoms, {name: 10.0 + k for k, name in enumerate(loaded.species_names)})
    names = list(loaded.species_names)
    wanted = [10.0 + names.index(name) for name in atoms.arrays["bead"]]
    assert atoms.get_masses().tolist() == wanted
    np.testing.assert_array_equal(atoms.get_forces(), before)
    loaded.set_masses(atoms, 12)
    assert set(atoms.get_masses()) == {12.0}
