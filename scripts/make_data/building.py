"""Molecules with hydrogens, and OpenMM systems of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from settings import SEQUENCE, STARTS


def chain_as_pdb(sequence: str, phi: Any, psi: Any) -> str:
    """Heavy atoms of a free-ended peptide as PDB text; angles in degrees."""
    import Bio.PDB
    import PeptideBuilder
    from PeptideBuilder import Geometry

    n = len(sequence)
    phi, psi = np.broadcast_to(phi, n), np.broadcast_to(psi, n)
    chain = None
    for k, letter in enumerate(sequence):
        geometry = Geometry.geometry(letter)
        geometry.phi = -65.0 if letter == "P" else float(phi[k])
        geometry.psi_im1 = float(psi[k - 1])
        chain = (
            PeptideBuilder.initialize_res(geometry)
            if chain is None
            else PeptideBuilder.add_residue(chain, geometry)
        )
    PeptideBuilder.add_terminal_OXT(chain)
    out, text = Bio.PDB.PDBIO(), io.StringIO()
    out.set_structure(chain)
    out.save(text)
    return text.getvalue()


def peptide(name: str, start: str) -> tuple[Any, Any, Any]:
    """(topology, positions, force field) with hydrogens; charged termini, pH 7."""
    import openmm.app as app

    pdb = app.PDBFile(io.StringIO(chain_as_pdb(SEQUENCE[name], *STARTS[start])))
    ff = app.ForceField("amber14-all.xml", "implicit/gbn2.xml")
    model = app.Modeller(pdb.topology, pdb.positions)
    model.addHydrogens(ff, pH=7.0)
    return model.topology, model.positions, ff


def alanine_dipeptide() -> tuple[Any, Any, Any]:
    """ACE-ALA-NME, cut out of a built Ala3: its outer residues give the caps' atoms."""
    import openmm.app as app

    keep = {
        1: ("ACE", {"CA": "CH3", "C": "C", "O": "O"}),
        2: ("ALA", {a: a for a in ("N", "CA", "C", "O", "CB")}),
        3: ("NME", {"N": "N", "CA": "CH3"}),
    }
    lines = []
    for line in chain_as_pdb("AAA", -80, 80).splitlines():
        if line.startswith("ATOM"):
            residue, names = keep[int(line[22:26])]
            atom = line[12:16].strip()
            if atom in names:
                lines.append(f"{line[:12]} {names[atom]:<3} {residue}{line[20:]}")
    pdb = app.PDBFile(io.StringIO("\n".join([*lines, "END\n"])))
    ff = app.ForceField("amber14-all.xml")
    model = app.Modeller(pdb.topology, pdb.positions)
    model.addHydrogens(ff)
    return model.topology, model.positions, ff


def make_system(topology: Any, ff: Any) -> Any:
    """No cut-off, no constraints, normal hydrogen masses."""
    import openmm.app as app

    return ff.createSystem(
        topology,
        nonbondedMethod=app.NoCutoff,
        constraints=None,
        rigidWater=False,
        hydrogenMass=None,
    )


def make_context(system: Any, integrator: Any, platform: str, threads: int = 1) -> Any:
    import openmm as mm

    properties = {"Threads": str(threads)} if platform == "CPU" else {}
    return mm.Context(system, integrator, mm.Platform.getPlatformByName(platform), properties)
