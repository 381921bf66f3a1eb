"""Molecular dynamics of one molecule, and the self-test of the fast driver."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from building import alanine_dipeptide, make_context, make_system, peptide
from settings import ALA2_TEMPERATURE, EV_PER_KJ, MADE, RAW, RUNS, SEQUENCE, TEMPERATURE


def run_md(
    topology: Any,
    positions: Any,
    system: Any,
    driver: Any,
    *,
    temperature: float,
    dt_fs: float,
    eq_ps: float,
    prod_ps: int,
    seed: int,
    label: str,
    out: Path | None = None,
) -> dict[str, Any]:
    """Sample with ``driver`` (may be a faster form of ``system``); record one frame per ps with
    the energy and forces of ``system`` itself, in double precision. Units here: nm, kJ/mol."""
    md, exact = _contexts(system, driver, positions, temperature, dt_fs, seed)
    per_ps = round(1000 / dt_fs)
    began = time.time()
    md.getIntegrator().step(int(eq_ps * per_ps))
    pos, frc, pot, kin = [], [], [], []
    for k in range(int(prod_ps)):
        md.getIntegrator().step(per_ps)
        state = md.getState(getPositions=True, getEnergy=True)
        kin.append(state.getKineticEnergy()._value)
        exact.setPositions(state.getPositions(asNumpy=True))
        reference = exact.getState(getPositions=True, getForces=True, getEnergy=True)
        pos.append(reference.getPositions(asNumpy=True)._value.copy())
        frc.append(reference.getForces(asNumpy=True)._value.copy())
        pot.append(reference.getPotentialEnergy()._value)
        if (k + 1) % 100 == 0 or k + 1 == int(prod_ps):
            wall = time.time() - began
            speed = (eq_ps + k + 1) * 1e-3 / wall * 86400
            print(
                f"{label}: {k + 1} ps after {eq_ps} ps, {wall:.0f} s, {speed:.1f} ns/day",
                flush=True,
            )
    dof = 3 * system.getNumParticles() - 3
    data = {
        "pos": np.array(pos),
        "frc": np.array(frc),
        "pot": np.array(pot),
        "kinetic_T": 2 * np.mean(kin) / (dof * 0.00831446261815324),
        "ns_per_day": speed,
        "wall_s": wall,
        "temperature": temperature,
        "dt_fs": dt_fs,
        "eq_ps": eq_ps,
        **_atoms(topology),
    }
    if out is not None:
        out.parent.mkdir(exist_ok=True)
        single = {k: v.astype(np.float32) if k in ("pos", "frc") else v for k, v in data.items()}
        np.savez(out, **single)
    return data


def _contexts(
    system: Any, driver: Any, positions: Any, temperature: float, dt_fs: float, seed: int
) -> tuple[Any, Any]:
    """The one that moves, and the one that gives forces; from a minimum of the plain system."""
    import openmm as mm
    import openmm.unit as u

    integrator = mm.LangevinMiddleIntegrator(
        temperature * u.kelvin, 1 / u.picosecond, dt_fs * u.femtosecond
    )
    integrator.setRandomNumberSeed(seed)
    md = make_context(driver, integrator, "CPU")
    exact = make_context(system, mm.VerletIntegrator(0.001), "Reference")
    exact.setPositions(positions)
    mm.LocalEnergyMinimizer.minimize(exact, 10.0, 500)
    md.setPositions(exact.getState(getPositions=True).getPositions())
    md.setVelocitiesToTemperature(temperature * u.kelvin, seed)
    return md, exact


def _atoms(topology: Any) -> dict[str, Any]:
    atoms = list(topology.atoms())
    return {
        "atom": np.array([a.name for a in atoms]),
        "resid": np.array([a.residue.index for a in atoms], dtype=np.int32),
        "resname": np.array([r.name for r in topology.residues()]),
        "Z": np.array([a.element.atomic_number for a in atoms], dtype=np.int32),
    }


def sample(
    name: str, replica: int, plain: bool = False, eq: float | None = None, ps: int | None = None
) -> None:
    """One trajectory of RUNS into raw/."""
    from fast_gbn2 import replace_custom_gb

    start, eq_ps, prod_ps = RUNS[name][replica]
    topology, positions, ff = peptide(name, start)
    system, driver = make_system(topology, ff), make_system(topology, ff)
    if not plain:
        replace_custom_gb(driver)
    run_md(
        topology,
        positions,
        system,
        driver,
        temperature=TEMPERATURE,
        dt_fs=1.0,
        eq_ps=eq_ps if eq is None else eq,
        prod_ps=prod_ps if ps is None else ps,
        seed=1000 + 10 * replica + len(SEQUENCE[name]),
        label=f"{name}/{replica} {start}",
        out=RAW / f"{name}_{replica}.npz",
    )


def selftest() -> None:
    """Energy and forces of the fast GBn2 against OpenMM's Reference platform."""
    import openmm as mm
    from fast_gbn2 import replace_custom_gb

    for name, start in (("cln025", "hairpin"), ("aaqaa3", "helix")):
        topology, positions, ff = peptide(name, start)
        plain, fast = make_system(topology, ff), make_system(topology, ff)
        replace_custom_gb(fast)
        a = make_context(plain, mm.VerletIntegrator(0.001), "Reference")
        b = make_context(fast, mm.VerletIntegrator(0.001), "Reference")
        a.setPositions(positions)
        mm.LocalEnergyMinimizer.minimize(a, 10.0, 100)
        rng = np.random.default_rng(0)
        x0 = a.getState(getPositions=True).getPositions(asNumpy=True)._value
        for sigma in (0.0, 0.005, 0.02):
            x = x0 + sigma * rng.normal(size=x0.shape)
            (ea, fa), (eb, fb) = (_energy_and_forces(c, x) for c in (a, b))
            de, df, rms = abs(ea - eb), abs(fa - fb).max(), np.sqrt((fa**2).mean())
            print(
                f"{name} noise {sigma} nm: |dE| {de:.1e} kJ/mol, max|dF| {df:.1e} of rms "
                f"{rms:.0f} kJ/mol/nm"
            )
            if not (de < 1e-6 and df < 1e-8 * rms + 1e-6):
                raise SystemExit("the fast GBn2 differs from OpenMM's")


def _energy_and_forces(context: Any, x: Any) -> tuple[float, Any]:
    context.setPositions(x)
    state = context.getState(getEnergy=True, getForces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def ala2(frames: int = 1000, kelvin: float = ALA2_TEMPERATURE, eq_ps: float = 100) -> None:
    """Alanine dipeptide in the gas phase, all atoms, into made/; the temperature is in the name if
    it is not that of the data set."""
    topology, positions, ff = alanine_dipeptide()
    system = make_system(topology, ff)
    d = run_md(
        topology,
        positions,
        system,
        system,
        temperature=kelvin,
        dt_fs=0.5,
        eq_ps=eq_ps,
        prod_ps=frames,
        seed=7 if kelvin == ALA2_TEMPERATURE else round(kelvin),
        label="ala2",
    )
    pos = d["pos"] * 10.0
    pos -= pos.mean(1, keepdims=True)
    energy, forces = d["pot"] * EV_PER_KJ, d["frc"] * EV_PER_KJ / 10.0
    meta = {key: float(d[key]) for key in ("ns_per_day", "wall_s", "kinetic_T")}
    meta |= {"dt_fs": 0.5, "eq_ps": eq_ps, "spacing_ps": 1}
    MADE.mkdir(exist_ok=True)
    name = "ala2_allatom" if kelvin == ALA2_TEMPERATURE else f"ala2_{kelvin:g}K"
    np.savez_compressed(
        MADE / f"{name}.npz",
        R=pos.astype(np.float32),
        F=forces.astype(np.float32),
        E=energy.astype(np.float64),
        Z=d["Z"],
        atom_names=d["atom"],
        resid=d["resid"],
        resname=d["resname"],
        temperature_K=np.float64(kelvin),
        units=np.array(["R: Angstrom", "F: eV/Angstrom", "E: eV"]),
        meta=np.array(json.dumps(meta)),
    )
    _write_extxyz(MADE / f"{name}.extxyz", d["Z"], pos, energy, forces)


def _write_extxyz(path: Path, Z: Any, pos: Any, energy: Any, forces: Any) -> None:
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    images = []
    for x, f, e in zip(pos, forces, energy, strict=True):
        atoms = Atoms(numbers=Z, positions=x)
        atoms.calc = SinglePointCalculator(atoms, energy=float(e), forces=f)
        images.append(atoms)
    write(path, images, format="extxyz")
