"""Priors as LAMMPS input, run by LAMMPS itself and held against ``ChainPriors`` in float64."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ensq.train.compat import enable_x64

import jax
import jax.numpy as jnp
import lammps_tools
import numpy as np
import pytest
from export_tools import (
    ALL_TERMS,
    CELLS,
    CUTOFF,
    chignolin,
    chignolin_frames,
    crowd,
    member,
    with_params,
)
from model_tools import compile_fast

from ensq import config as configuration
from ensq.config.model import SplineConfig, SplinesConfig
from ensq.train import export, lammps, lammps_data
from ensq.train.domains import SKIN, neighbour_list, periodic_system, whole_system
from ensq.train.module import LoadedModel
from ensq.train.reference import Reference

TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def lammps_is_there() -> None:
    lammps_tools.skip_without_lammps()


def smooth_spline(
    first: float, last: float, knots: int, scale: float, waves: float = 2.0
) -> SplineConfig:
    """A natural-looking cubic spline: pieces of a cosine with a continuous slope."""
    x = np.linspace(first, last, knots)
    y, slope = scale * np.cos(waves * x), -waves * scale * np.sin(waves * x)
    h, rise = np.diff(x), np.diff(y) / np.diff(x)
    c2 = (3 * rise - 2 * slope[:-1] - slope[1:]) / h
    c3 = (slope[:-1] + slope[1:] - 2 * rise) / h**2
    rows = zip(y[:-1], slope[:-1], c2, c3, strict=True)
    return SplineConfig(
        knots=tuple(map(float, x)), coeffs=tuple(tuple(map(float, row)) for row in rows)
    )


def with_splines(by_species: bool, sign: int = 1) -> Any:
    """A member whose bonds, angles and dihedrals are splines."""
    import msgspec

    frames = chignolin_frames()
    names = len(frames.species_names)
    types = tuple(
        smooth_spline(1.0, 3.0, 15, 1.0 + 0.1 * k) if k % 2 else None for k in range(names)
    )
    splines = SplinesConfig(
        bond=smooth_spline(3.0, 4.8, 20, 30.0),
        angle=smooth_spline(1.0, 3.1, 20, 5.0),
        dih=smooth_spline(-np.pi, np.pi, 40, 2.0),
        angle_types=types,
    )
    config = chignolin(*ALL_TERMS)
    priors = msgspec.structs.replace(
        config.model.priors,
        use_spline_priors=True,
        residue_specific_angles=by_species,
        dihedral_sign=sign,
        splines=splines,
    )
    model = msgspec.structs.replace(config.model, priors=priors)
    return member(msgspec.structs.replace(config, model=model), frames)


def with_narrow_splines() -> Any:
    """As Boltzmann inversion makes them: 500 knots, and bonds within 0.7 Angstrom."""
    import msgspec

    result = with_splines(by_species=False)
    config = configuration.loads(result.config)
    priors = config.model.priors
    splines = msgspec.structs.replace(
        priors.splines,
        bond=smooth_spline(3.5, 4.2, 500, 40.0, waves=40.0),
        angle=smooth_spline(0.9, np.pi, 500, 5.0, waves=10.0),
    )
    priors = msgspec.structs.replace(priors, splines=splines)
    model = msgspec.structs.replace(config.model, priors=priors)
    return member(msgspec.structs.replace(config, model=model), chignolin_frames())


CASES = {
    "formulas": lambda: member(chignolin(*ALL_TERMS), chignolin_frames()),
    "bonds and angles alone": lambda: member(
        chignolin("model.priors.k_dih=[]", "model.priors.gamma_dih=[]"), chignolin_frames()
    ),
    "trained values and weights": lambda: with_params(
        member(
            chignolin(
                *ALL_TERMS,
                "model.priors.weights={bond: .5, angle: .1, dihedral: .15, repulsive: .25}",
            ),
            chignolin_frames(),
        ),
        kr=150.0,
        k_dih=[0.5, -0.3, 0.2],
        sigma=7.0,
    ),
    "the other dihedral sign": lambda: member(
        chignolin(*ALL_TERMS, "model.priors.dihedral_sign=-1"), chignolin_frames()
    ),
    "splines": lambda: with_splines(by_species=False),
    "splines with the other dihedral sign": lambda: with_splines(by_species=False, sign=-1),
    "narrow splines": with_narrow_splines,
    "splines by residue": lambda: with_splines(by_species=True),
}


@functools.cache
def case(name: str) -> Any:
    """The member of one case."""
    return CASES[name]()


def written(folder: Path, result: Any, frames: Any) -> None:
    files = lammps_data.system_files(result, "c", frames)
    files |= lammps.prior_files(result, "c", "c_best.mlir", "c_system.data")
    for name, text in files.items():
        (folder / name).write_text(text)


def exact(result: Any, frames: Any, frame: int = 0) -> Any:
    """Energies and forces of the priors by the model itself in float64, for each position."""
    priors = export.model_of(result).priors
    assert priors is not None
    with enable_x64():
        params = {
            k: jnp.asarray(np.asarray(v), jnp.float64) for k, v in result.params["priors"].items()
        }
        real, species = jnp.asarray(frames.mask[frame]), jnp.asarray(frames.species[frame])

        def energy(position: Any) -> Any:
            return priors.per_bead_energy(params, position, real, species).sum()

        both = compile_fast(jax.value_and_grad(energy))

    def evaluate(position: np.ndarray) -> tuple[float, np.ndarray]:
        with enable_x64():
            value, gradient = both(jnp.asarray(position, jnp.float64))
            return float(value), -np.asarray(gradient)

    return evaluate


def differences(result: Any, frames: Any, engine: Any) -> Iterator[tuple[float, float]]:
    """Relative differences of energies (over their range) and forces of each frame."""
    evaluate = exact(result, frames)
    wanted = [evaluate(position) for position in frames.R]
    spread = np.ptp([energy for energy, _ in wanted])
    found = lammps_tools.energy_and_forces(engine, list(frames.R))
    for (energy, force), (exact_energy, exact_force) in zip(found, wanted, strict=True):
        yield (
            abs(energy - exact_energy) / spread,
            float(np.abs(force - exact_force).max() / np.abs(exact_force).max()),
        )


@pytest.mark.parametrize("name", CASES)
def test_lammps_gives_the_priors_energies_and_forces(name: str, tmp_path: Path) -> None:
    frames, result = chignolin_frames(), case(name)
    written(tmp_path, result, frames)
    with lammps_tools.running(tmp_path, "c_system.data", "real", "include c_priors.in") as engine:
        worst = np.max(list(differences(result, frames, engine)), axis=0)
    assert worst[0] < TOLERANCE
    assert worst[1] < TOLERANCE


def test_lammps_goes_on_beyond_the_knots_of_a_bond(tmp_path: Path) -> None:
    frames, result = chignolin_frames(), case("narrow splines")
    written(tmp_path, result, frames)
    assert (tmp_path / "c_priors.table").stat().st_size < 2_000_000
    far = frames.R[:1].astype(float)
    far[:, 5:] += (far[:, 5:] - far[:, 4:5]).mean(axis=1, keepdims=True)
    wanted = exact(result, frames)(far[0])
    with lammps_tools.running(tmp_path, "c_system.data", "real", "include c_priors.in") as engine:
        ((energy, force),) = lammps_tools.energy_and_forces(engine, list(far))
    assert np.linalg.norm(np.diff(far[0], axis=0), axis=1).max() > 4.3
    assert energy == pytest.approx(wanted[0], rel=TOLERANCE)
    np.testing.assert_allclose(force, wanted[1], rtol=0, atol=TOLERANCE * np.abs(wanted[1]).max())


@pytest.mark.parametrize("key", ["kr", "a", "gamma_dih", "epsilon", "sigma_ex"])
def test_a_value_that_is_one_percent_off_is_seen(key: str, tmp_path: Path) -> None:
    frames, result = chignolin_frames(), case("formulas")
    written(tmp_path, result, frames)
    other = with_params(result, **{key: 1.01 * np.asarray(result.params["priors"][key])})
    with lammps_tools.running(tmp_path, "c_system.data", "real", "include c_priors.in") as engine:
        worst = np.max(list(differences(other, frames, engine)))
    assert worst > TOLERANCE


def test_network_as_an_external_force_and_native_priors_are_the_trained_model(
    tmp_path: Path,
) -> None:
    """The exported module gives LAMMPS its forces, the included file the rest: short dynamics,
    and at every step the total energy and forces of the trained model."""
    frames = chignolin_frames()
    result = case("formulas")
    written(tmp_path, result, frames)
    network = LoadedModel(export.to_bytes([result], embed_priors=False))
    species, steps = frames.species[0], []

    def forces(_: Any, step: int, n: int, tags: Any, x: Any, f: Any) -> None:
        order = np.argsort(tags)
        system = whole_system(np.array(x)[order].astype(np.float32), species)
        energy, force = network.energy_and_forces([system], newton=True)
        f[order] = force
        engine.fix_external_set_energy_global("network", energy)

    commands = (
        "include c_priors.in",
        "fix network all external pf/callback 1 1",
        "fix_modify network energy yes",
        "velocity all create 300 7",
        "fix move all nve",
        "timestep 2.0",
        "thermo_modify norm no",
    )
    with lammps_tools.running(tmp_path, "c_system.data", "real", *commands) as engine:
        engine.set_fix_external_callback("network", forces)
        for _ in range(5):
            engine.command("run 4")
            position = np.array(engine.gather_atoms("x", 1, 3)).reshape(-1, 3)
            force = np.array(engine.gather_atoms("f", 1, 3)).reshape(-1, 3)
            steps.append((position, force, engine.get_thermo("pe")))
    visited = dataclasses.replace(
        frames.take(np.zeros(len(steps), int)),
        R=np.stack([position for position, _, _ in steps]).astype(np.float32),
    )
    assert np.abs(visited.R[-1] - visited.R[0]).max() > 0.05, "nothing moved"
    expected = Reference(visited, 12.0).predict(result)
    for place, (_, force, energy) in enumerate(steps):
        assert energy == pytest.approx(expected.energy[place], rel=TOLERANCE)
        scale = np.abs(expected.force[place]).max()
        np.testing.assert_allclose(force, expected.force[place], rtol=0, atol=TOLERANCE * scale)


# -- neighbour lists -----------------------------------------------------------------------------


@pytest.mark.parametrize(("included", "pairs"), [("include c_priors.in", 45), ("", 0)])
def test_network_sees_bonded_beads_because_of_the_included_file(
    included: str, pairs: int, tmp_path: Path
) -> None:
    """LAMMPS leaves bonded pairs out of its lists unless it is told; here all pairs are bonded."""
    frames, result = chignolin_frames(), case("formulas")
    written(tmp_path, result, frames)
    commands = [included] if included else ["bond_style zero", "bond_coeff *", *NO_ANGLES]
    with lammps_tools.running(
        tmp_path, "c_system.data", "real", *commands, "neighbor 30.0 bin", "run 0"
    ) as engine:
        listed = engine.numpy.get_neighlist(engine.find_pair_neighlist("zero"))
        assert sum(len(neighbours) for _, neighbours in listed) == pairs


NO_ANGLES = ("angle_style zero", "angle_coeff *", "dihedral_style zero", "dihedral_coeff *")


@pytest.mark.parametrize("newton", [True, False], ids=["newton on", "off"])
@pytest.mark.parametrize("boundary", ["orthogonal", "triclinic"])
def test_lists_with_ghosts_are_those_that_lammps_makes(
    boundary: str, newton: bool, tmp_path: Path
) -> None:
    """The rows of the rank's own atoms: full with newton on, half with newton off."""
    from lammps import lammps as start

    frames, cell = crowd(boundary, 1), CELLS[boundary]
    assert cell is not None
    with lammps_tools.in_folder(tmp_path):
        engine = start(cmdargs=["-screen", "none", "-log", "none"])
        try:
            for line in (
                f"newton {'on' if newton else 'off'}",
                "units real",
                f"region box prism 0 8 0 8 0 8 {cell[1, 0]} {cell[2, 0]} {cell[2, 1]}",
                "create_box 3 box",
                "mass * 1.0",
                f"pair_style zero {CUTOFF}{' full' if newton else ''}",
                "pair_coeff * *",
                f"neighbor {SKIN} bin",
            ):
                engine.command(line)
            scaled = frames.R[0] @ np.linalg.inv(cell)
            inside = (scaled - np.floor(scaled)) @ cell
            engine.create_atoms(27, None, (frames.species[0] + 1).tolist(), inside.ravel().tolist())
            engine.command("run 0")
            x = np.array(engine.numpy.extract_atom("x", nelem=5000, dim=3))
            listed = engine.numpy.get_neighlist(engine.find_pair_neighlist("zero"))
            wanted = [
                (x[i], x[j])
                for i, row in listed
                for j in row
                if np.linalg.norm(x[j] - x[i]) < CUTOFF + SKIN
            ]
            own = int(engine.extract_global("nlocal"))
        finally:
            engine.close()
    system = periodic_system(frames.R[0], frames.species[0], cell, 2 * CUTOFF)
    assert system.n_local == own == 27
    rows, others = neighbour_list(system, CUTOFF + SKIN, half=not newton, ghost_rows=False)
    at = system.position
    found = [(at[i], at[j]) for i, j in zip(rows, others, strict=True)]
    assert len(wanted) > 27
    assert legible(found, newton) == legible(wanted, newton)


def legible(pairs: list[Any], newton: bool) -> list[Any]:
    """Pairs of positions in one order; of a half list either end may have the row."""
    rounded = [[tuple(np.round(end, 2).tolist()) for end in pair] for pair in pairs]
    return sorted(pair if newton else sorted(pair) for pair in rounded)


# -- files ---------------------------------------------------------------------------------------


def test_chain_ends_where_padding_begins(tmp_path: Path) -> None:
    frames = chignolin_frames(2)
    mask = frames.mask.copy()
    mask[:, 7:] = False
    short = dataclasses.replace(frames, mask=mask)
    result = case("formulas")
    written(tmp_path, result, short)
    evaluate = exact(result, short)
    with lammps_tools.running(tmp_path, "c_system.data", "real", "include c_priors.in") as engine:
        assert engine.get_natoms() == 7
        for position, (energy, force) in zip(
            short.R, lammps_tools.energy_and_forces(engine, [p[:7] for p in short.R]), strict=True
        ):
            exact_energy, exact_force = evaluate(position)
            assert energy == pytest.approx(exact_energy, rel=TOLERANCE)
            np.testing.assert_allclose(force, exact_force[:7], rtol=TOLERANCE, atol=1e-3)


def test_every_different_chain_has_a_data_file_named_by_its_protein() -> None:
    frames = chignolin_frames(4)
    mask = frames.mask.copy()
    mask[2:, 8:] = False
    two = dataclasses.replace(frames, mask=mask)
    result = case("formulas")
    assert set(lammps_data.system_files(result, "c", frames)) == {"c_system.data"}
    assert set(lammps_data.system_files(result, "c", two)) == {"c_1_system.data", "c_2_system.data"}
    named = dataclasses.replace(
        two, protein=np.array([0, 0, 1, 1]), protein_names=("long one", "short")
    )
    files = lammps_data.system_files(result, "c", named)
    assert set(files) == {"c_long-one_system.data", "c_short_system.data"}
    assert "8 atoms" in files["c_short_system.data"]


def test_file_tells_how_it_is_used() -> None:
    files = lammps.prior_files(case("formulas"), "c", "c_best.mlir", "c_system.data")
    text = files["c_priors.in"]
    for part in ("units real", "read_data c_system.data", "pair_coeff * * c_best.mlir", "LEPTON"):
        assert part in text
    assert text.index("velocity all create") < text.index("thermo 1000") < text.index("run 10000")
    assert "special_bonds lj/coul 1.0 1.0 1.0" in text
