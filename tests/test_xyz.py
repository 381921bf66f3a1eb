"""Extended XYZ files, as ASE and others write them."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from data_tools import BOTH, ENERGIES, FORCES, error_of, load

from ensq.data import data_files, xyz
from ensq.errors import DataError

EV = {"energy": "eV"}


def molecules(sizes: tuple[int, ...] = (3, 5, 4), **info: Any) -> list[Atoms]:
    """Chains of random elements with energies and forces."""
    rng = np.random.default_rng(0)
    frames = []
    for size in sizes:
        steps = rng.normal(size=(size, 3))
        steps *= 1.5 / np.linalg.norm(steps, axis=1, keepdims=True)
        atoms = Atoms(rng.choice([1, 6, 8], size=size), positions=np.cumsum(steps, axis=0))
        forces, energy = rng.normal(size=(size, 3)), float(rng.normal())
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        atoms.info.update(info)
        frames.append(atoms)
    return frames


def save(path: Path, frames: list[Atoms]) -> Path:
    write(path, frames, format="extxyz")
    return path


def test_what_ase_writes_is_read_back(tmp_path: Path) -> None:
    frames = molecules()
    loaded = load(save(tmp_path / "d.extxyz", frames), units=EV, unit="eV")
    assert loaded.R.shape == (3, 5, 3)
    assert loaded.elements and loaded.species_names == ("H", "C", "O")
    assert loaded.cell is None and loaded.protein is None and loaded.replica is None
    assert loaded.F is not None and loaded.U is not None
    for place, atoms in enumerate(frames):
        n = len(atoms)
        assert loaded.mask[place].tolist() == [True] * n + [False] * (5 - n)
        np.testing.assert_allclose(loaded.R[place, :n], atoms.positions, atol=1e-8)
        np.testing.assert_allclose(loaded.F[place, :n], atoms.calc.results["forces"], atol=1e-8)
        assert loaded.U[place] == pytest.approx(atoms.calc.results["energy"], abs=1e-12)
        names = [loaded.species_names[number] for number in loaded.species[place, :n]]
        assert names == atoms.get_chemical_symbols()
        assert not loaded.R[place, n:].any() and not loaded.F[place, n:].any()


def test_an_xyz_file_and_an_npz_file_of_the_same_frames_are_the_same_data(tmp_path: Path) -> None:
    frames = molecules((4, 4))
    for atoms in frames[1:]:
        atoms.numbers = frames[0].numbers
    one = load(save(tmp_path / "d.xyz", frames))
    path = tmp_path / "d.npz"
    np.savez(
        path,
        R=np.round([atoms.positions for atoms in frames], 8),
        F=np.round([atoms.calc.results["forces"] for atoms in frames], 8),
        E=np.array([atoms.calc.results["energy"] for atoms in frames]),
        Z=frames[0].numbers,
    )
    two = load(path)
    for key in ("R", "F", "U", "species", "mask"):
        np.testing.assert_array_equal(getattr(one, key), getattr(two, key))
    assert one.species_names == two.species_names


def test_a_file_like_those_of_3bpa_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train_300K.xyz"
    path.write_text(
        "2\n"
        'Properties=species:S:1:pos:R:3:forces:R:3 dihedrals="-1.5 2.5 3.5" energy=-17617.5 '
        'pbc="F F F"\n'
        "C 0.0 0.0 0.0 0.5 -0.25 1.0\n"
        "H 0.0 0.0 1.1 -0.5 0.25 -1.0\n"
    )
    loaded = load(path, units=EV, unit="eV")
    assert loaded.U is not None and loaded.F is not None
    assert loaded.U.tolist() == [-17617.5]
    assert loaded.F.tolist() == [[[0.5, -0.25, 1.0], [-0.5, 0.25, -1.0]]]
    assert loaded.cell is None


@pytest.mark.parametrize("suffix", ["xyz.gz", "extxyz.gz"])
def test_compressed_files_are_read(tmp_path: Path, suffix: str) -> None:
    plain = save(tmp_path / "d.xyz", molecules())
    path = tmp_path / f"e.{suffix}"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    np.testing.assert_array_equal(load(path).R, load(plain).R)
    path.write_bytes(path.read_bytes()[:-30])
    assert error_of(path).startswith("not a readable XYZ file: ")


def test_blank_lines_between_frames_lose_no_frame(tmp_path: Path) -> None:
    """ASE stops at the first one without a word."""
    from ase.io import read

    path = save(tmp_path / "d.xyz", molecules((3, 3, 3)))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("\n" + "".join(lines[:5]) + "\n \n" + "".join(lines[5:]) + "\n\n")
    assert load(path).n_frames == 3
    path.write_text("".join(lines[:5]) + "\n" + "".join(lines[5:]))
    assert len(read(path, ":", format="extxyz")) == 1
    assert load(path).n_frames == 3


# -- labels ------------------------------------------------------------------------------------


def relabelled(energy: str, forces: str, frames: list[Atoms] | None = None) -> list[Atoms]:
    frames = frames or molecules()
    for atoms in frames:
        atoms.info[energy] = atoms.calc.results["energy"]
        atoms.arrays[forces] = atoms.calc.results["forces"]
        atoms.calc = None
    return frames


@pytest.mark.parametrize(
    ("energy", "forces"),
    [("REF_energy", "REF_forces"), ("dft_energy", "dft_forces"), ("DFT_energy", "force")],
)
def test_well_known_names_of_labels_are_recognised(
    tmp_path: Path, energy: str, forces: str
) -> None:
    expected = load(save(tmp_path / "a.xyz", molecules()))
    loaded = load(save(tmp_path / "b.xyz", relabelled(energy, forces)))
    np.testing.assert_array_equal(loaded.F, expected.F)
    np.testing.assert_allclose(loaded.U, expected.U, rtol=1e-14)


def test_the_free_energy_is_taken_only_where_there_is_no_other(tmp_path: Path) -> None:
    frames = molecules()
    for atoms in frames:
        atoms.calc.results["free_energy"] = 7.0
    expected = load(save(tmp_path / "a.xyz", molecules())).U
    assert load(save(tmp_path / "b.xyz", frames)).U.tolist() == expected.tolist()
    for atoms in frames:
        del atoms.calc.results["energy"]
    assert load(save(tmp_path / "c.xyz", frames)).U.tolist() == [7.0] * 3


def test_labels_of_two_methods_are_an_error_until_one_is_chosen(tmp_path: Path) -> None:
    frames = molecules()
    for atoms in frames:
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = 3.0, 0 * atoms.positions
    path = save(tmp_path / "d.xyz", frames)
    assert "forces could each be F: say which in data.keys.F" in error_of(path)
    error = error_of(path, keys={"F": "REF_forces"})
    assert "energy could each be U: say which in data.keys.U" in error
    loaded = load(path, keys={"F": "REF_forces", "U": "REF_energy"})
    assert loaded.F is not None and loaded.U is not None
    assert not loaded.F.any() and loaded.U.tolist() == [3.0] * 3
    loaded = load(path, keys={"F": "forces", "U": "energy"})
    assert loaded.F is not None and loaded.F.any()


def test_labels_of_any_name_can_be_chosen(tmp_path: Path) -> None:
    path = save(tmp_path / "d.xyz", relabelled("mp2", "gradient_minus"))
    assert "key F is missing; the file has gradient_minus, mp2" in error_of(path)
    loaded = load(path, keys={"F": "gradient_minus", "U": "mp2"})
    expected = load(save(tmp_path / "a.xyz", molecules()))
    np.testing.assert_array_equal(loaded.F, expected.F)
    assert "frame 0 has no nothing (data.keys.F names it)" in error_of(path, keys={"F": "nothing"})


def test_the_first_frame_without_a_label_is_named(tmp_path: Path) -> None:
    frames = molecules((3, 3, 3, 3))
    del frames[2].calc.results["forces"]
    path = save(tmp_path / "d.xyz", frames)
    error = error_of(path)
    assert error.startswith("frame 2 has no forces (other frames have it); it has none: ")
    loaded = load(path, ENERGIES)  # forces have no weight there
    assert loaded.F is None and loaded.U is not None
    frames = molecules((3, 3, 3, 3))
    del frames[1].calc.results["energy"]
    save(path, frames)
    assert error_of(path, BOTH).startswith("frame 1 has no energy")
    assert load(path, FORCES).U is None
    assert error_of(path, FORCES, keys={"U": "energy"}).startswith("frame 1 has no energy")


def test_species_and_positions_can_be_chosen(tmp_path: Path) -> None:
    frames = molecules((3, 2))
    for atoms in frames:
        atoms.arrays["bead"] = np.array(["NA", "CB", "CB"])[: len(atoms)]
        atoms.arrays["centre"] = atoms.positions + 1
    path = save(tmp_path / "d.xyz", frames)
    loaded = load(path, keys={"species": "bead", "R": "centre"})
    assert loaded.species_names == ("CB", "NA")
    assert loaded.species.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert not loaded.elements
    np.testing.assert_allclose(loaded.R[0], frames[0].positions + 1, atol=1e-8)
    assert "frame 0: bead must have 3 numbers" in error_of(path, keys={"R": "bead"})
    assert "frame 0: centre must have one value" in error_of(path, keys={"species": "centre"})


# -- cells and groups --------------------------------------------------------------------------


def test_cells_and_their_open_directions_are_those_of_each_frame(tmp_path: Path) -> None:
    frames = molecules()
    skewed = np.array([[9.0, 0, 0], [1, 8, 0], [2, 3, 7]])
    frames[0].cell, frames[0].pbc = skewed, True
    frames[1].cell, frames[1].pbc = skewed, (True, True, False)
    found = load(save(tmp_path / "d.xyz", frames)).cell
    assert found is not None
    np.testing.assert_allclose(found[0], skewed)
    np.testing.assert_allclose(found[1], skewed * [[1], [1], [0]])
    assert not found[2].any()


def test_a_lattice_without_pbc_is_periodic_and_pbc_without_a_lattice_an_error(
    tmp_path: Path,
) -> None:
    path = tmp_path / "d.xyz"
    atoms = "Properties=species:S:1:pos:R:3:forces:R:3 energy=1.0\nH 0 0 0 0 0 0\nH 0 0 .8 0 0 0\n"
    path.write_text('2\nLattice="9 0 0 1 8 0 2 3 7" ' + atoms)
    found = load(path).cell
    assert found is not None and found[0].tolist() == [[9, 0, 0], [1, 8, 0], [2, 3, 7]]
    path.write_text('2\npbc="F F F" ' + atoms + '2\npbc="F T F" ' + atoms)
    assert error_of(path).startswith("Lattice: frame 1 is periodic along lattice vector 1, which")


def test_groups_are_read_from_the_comment_line(tmp_path: Path) -> None:
    frames = molecules()
    for place, atoms in enumerate(frames):
        atoms.info |= {"protein": "ba"[place % 2], "replica": place, "config_type": "x"}
    loaded = load(save(tmp_path / "d.xyz", frames))
    assert loaded.protein_names == ("a", "b")
    assert loaded.protein is not None and loaded.protein.tolist() == [1, 0, 1]
    assert loaded.replica is not None and loaded.replica.tolist() == [0, 1, 2]
    del frames[1].info["protein"]
    error = error_of(save(tmp_path / "d.xyz", frames))
    assert error.startswith("frame 1 has no protein (other frames have it); it has")
    assert "data.keys" not in error
    frames[1].info["protein"], frames[2].info["replica"] = "a", 0.5
    path = save(tmp_path / "d.xyz", frames)
    assert error_of(path) == "frame 2: replica is '0.5'; it must be one integer"


def test_config_types_are_proteins_if_they_tell_frames_apart(tmp_path: Path) -> None:
    frames = molecules()
    frames[2].info["config_type"] = "dimer"
    loaded = load(save(tmp_path / "d.xyz", frames))
    assert loaded.protein_names == ("Default", "dimer")
    assert loaded.protein is not None and loaded.protein.tolist() == [0, 0, 1]
    one = save(tmp_path / "one.xyz", molecules(config_type="dimer"))
    assert load(one).protein is None
    many = molecules((2,) * (xyz.MAX_CONFIG_TYPES + 1))
    for place, atoms in enumerate(many):
        atoms.info["config_type"] = f"frame{place}"
    assert load(save(tmp_path / "many.xyz", many)).protein is None
    assert len(load(save(tmp_path / "few.xyz", many[:-1])).protein_names) == xyz.MAX_CONFIG_TYPES


def test_files_of_both_formats_make_one_set(tmp_path: Path) -> None:
    save(tmp_path / "b.extxyz", molecules())
    np.savez(
        tmp_path / "a.npz",
        coords=np.arange(12.0).reshape(2, 2, 3),
        forces=np.ones((2, 2, 3)),
        energies=np.ones(2),
        nuclear_charges=[7, 1],
    )
    assert [file.name for file in data_files(tmp_path)] == ["a.npz", "b.extxyz"]
    loaded = load(tmp_path)
    assert loaded.R.shape == (5, 5, 3)
    assert loaded.species_names == ("H", "C", "N", "O")
    assert loaded.replica is not None and loaded.replica.tolist() == [0, 0, 1, 1, 1]


# -- files that are none -----------------------------------------------------------------------


def changed(old: str, new: str) -> Callable[[str], str]:
    def apply(content: str) -> str:
        assert old in content
        return content.replace(old, new)

    return apply


GOOD = (
    "2\nProperties=species:S:1:pos:R:3:forces:R:3 energy=1.0\nH 0 0 0 0 0 0\nO 0 0 1 0 0 0\n"
    "2\nProperties=species:S:1:pos:R:3:forces:R:3 energy=2.5\nH 0 0 0 0 0 0\nC 0 0 1 0 0 0\n"
)
WRONG: dict[str, tuple[Callable[[str], str], str]] = {
    "empty": (lambda text: "", "holds no frame"),
    "no count": (lambda text: text[2:], "frame 0: the number of its atoms should stand here, not"),
    "wrong count": (lambda text: "1" + text[1:], "frame 1: the number of its atoms should stand"),
    "negative count": (lambda text: "-2" + text[1:], "here, not '-2'"),
    "cut short": (lambda text: text[: text.rindex("C")], "frame 1: the file ends after 1 of 2"),
    "cut in a line": (lambda text: text[:-9], "frame 1: not readable as extended XYZ: "),
    "letter": (changed("C 0 0 1", "C 0 O 1"), "frame 1: not readable as extended XYZ: could not"),
    "residue": (changed("C 0", "ALA 0"), "frame 1: not readable as extended XYZ: 'ALA' is no chem"),
    "dummy": (changed("C 0", "X 0"), "species: frame 1, bead 1 has 0, no atomic number"),
    "no forces": (changed(":forces:R:3", ""), "key F is missing; the file has energy (data.keys.F"),
    "NaN": (changed("C 0 0 1 0 0 0", "C 0 0 1 0 nan 0"), "forces: frame 1, bead 1 holds NaN"),
    "energy of text": (changed("energy=2.5", "energy=abc"), "frame 1: energy is 'abc'; it must be"),
    "flag": (changed("energy=2.5", "energy"), "frame 1: energy is 'True'; it must be one number"),
    "two forces": (
        changed("forces:R:3 energy=2.5", "forces:R:2 energy=2.5"),
        "frame 1: ",
    ),
    "binary": (lambda text: "\x00\x01", "frame 0: the number of its atoms should stand here, not"),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_gives_one_line_that_names_the_frame(
    tmp_path: Path, spoil: Callable[[str], str], message: str
) -> None:
    path = tmp_path / "d.extxyz"
    path.write_text(GOOD)
    assert load(path).n_frames == 2
    path.write_text(spoil(GOOD))
    assert message in error_of(path)


def test_single_atoms_among_molecules_are_named(tmp_path: Path) -> None:
    atom = Atoms("H", info={"energy": -13.6, "config_type": "IsolatedAtom"})  # no forces
    error = error_of(save(tmp_path / "d.xyz", [*molecules(), atom, atom]))
    assert error.startswith("frame 3 is a single atom among molecules (2 such): remove isolated")
    assert error.endswith("ensq fits reference energies itself")
    save(tmp_path / "d.xyz", molecules())
    save(tmp_path / "e.xyz", molecules((1, 1)))
    assert load(tmp_path / "e.xyz").n_frames == 2
    with pytest.raises(DataError, match=r"e\.xyz: frame 0 is a single atom among molecules"):
        load(tmp_path)


def test_beads_in_the_column_of_elements_are_named_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "d.xyz"
    path.write_text(GOOD.replace("H 0", "CH 0"))
    error = error_of(path)
    assert "'CH' is no chemical element" in error and "data.keys.species" in error
    path.write_text(path.read_text().replace("species:S", "bead:S"))  # what the error says
    assert load(path, keys={"species": "bead"}).species_names == ("C", "CH", "O")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.xyz"
    path.write_bytes(b"\xff\xfe\x00")
    assert error_of(path).startswith("not a readable XYZ file: ")
    assert "no such data file" in error_of(tmp_path / "no.xyz")


def test_ase_is_loaded_for_xyz_files_only(tmp_path: Path) -> None:
    save(tmp_path / "d.xyz", molecules())
    np.savez(tmp_path / "d.npz", R=np.eye(3)[None], F=np.eye(3)[None], Z=np.array([1, 1, 1]))
    program = (
        "import sys\nfrom pathlib import Path\nfrom data_tools import load, FORCES\n"
        "load(Path(sys.argv[1]), FORCES)\nprint('ase' in sys.modules)"
    )
    for name, expected in (("d.npz", "False"), ("d.xyz", "True")):
        ran = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        )
        assert ran.stdout.strip() == expected, ran.stderr


def test_a_refused_file_is_closed_at_once(tmp_path: Path) -> None:
    file = tmp_path / "d.xyz"
    file.write_text("1\nProperties=species:S:1:pos:R:-3\nH 0 0 0\n")
    with pytest.raises(DataError) as refused:
        load(file)
    held = [link for link in Path("/proc/self/fd").iterdir() if link.resolve() == file.resolve()]
    assert held == [], refused.value
