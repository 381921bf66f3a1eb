"""The data files and the report, from raw trajectories."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from mapping import load_cg
from settings import AA, KB_EV, MADE, RUNS, SEQUENCE, TEMPERATURE
from statistics_cg import checks, dihedral, priors, sem

COMMON = {
    "aa_names": np.array(AA),
    "temperature_K": np.float64(TEMPERATURE),
    "units": np.array(["R: Angstrom", "F, F_residue_sum: kcal/mol/Angstrom"]),
}


def build() -> None:
    """raw/*.npz -> made/: chignolin_ca.npz, two_peptides.npz, report.json."""
    MADE.mkdir(exist_ok=True)
    cgs: dict[str, Any] = {}
    report: dict[str, Any] = {"runs": {}, "checks": {}, "priors": {}}
    for name in RUNS:
        cgs[name], report["runs"][name] = load_cg(name)
        report["checks"][name] = checks(cgs[name], TEMPERATURE)
        sums = checks(cgs[name], TEMPERATURE, "F_residue_sum")
        report["checks"][f"{name} F_residue_sum"] = {
            k: v
            for k, v in sums.items()
            if "force" in k or k in ("virial_temperature_K", "bond_prior_r2")
        }
        report["priors"][name] = priors([cgs[name]], TEMPERATURE)
    report["priors"]["both"] = priors(list(cgs.values()), TEMPERATURE)
    write_chignolin(cgs["cln025"])
    write_two_peptides(cgs)
    if (MADE / "ala2_allatom.npz").exists():
        report["ala2"] = ala2_report()
    (MADE / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(_without_histograms(report), indent=1))


def write_chignolin(c: dict[str, Any]) -> None:
    n_frames, n = c["R"].shape[:2]
    np.savez_compressed(
        MADE / "chignolin_ca.npz",
        R=c["R"].astype(np.float32),
        F=c["F"].astype(np.float32),
        F_residue_sum=c["F_residue_sum"].astype(np.float32),
        species=np.tile(c["species"], (n_frames, 1)),
        mask=np.ones((n_frames, n), np.float32),
        Z=np.full(n, 6, np.int32),
        N_max=np.int64(n),
        replica=c["replica"],
        resname=c["resname"],
        resid=np.arange(n, dtype=np.int32),
        **COMMON,
    )


def write_two_peptides(cgs: dict[str, dict[str, Any]]) -> None:
    """Both peptides in one file, padded to the longer one."""
    n_max = max(len(SEQUENCE[name]) for name in RUNS)
    keys = ("R", "F", "F_residue_sum", "species", "mask", "protein", "replica")
    columns: dict[str, list[Any]] = {key: [] for key in keys}
    for number, c in enumerate(cgs.values()):
        frames, n = c["R"].shape[:2]
        padding = [(0, 0), (0, n_max - n)]
        for key in ("R", "F", "F_residue_sum"):
            columns[key].append(np.pad(c[key].astype(np.float32), [*padding, (0, 0)]))
        columns["species"].append(np.pad(np.tile(c["species"], (frames, 1)), padding))
        columns["mask"].append(np.pad(np.ones((frames, n), np.float32), padding))
        columns["protein"].append(np.full(frames, number, np.int32))
        columns["replica"].append(c["replica"])
    np.savez_compressed(
        MADE / "two_peptides.npz",
        **{key: np.concatenate(values) for key, values in columns.items()},
        Z=np.full(n_max, 6, np.int32),
        N_max=np.int64(n_max),
        protein_names=np.array(list(RUNS)),
        sequences=np.array([SEQUENCE[name] for name in RUNS]),
        n_beads=np.array([len(SEQUENCE[name]) for name in RUNS], np.int32),
        **COMMON,
    )


def ala2_report() -> dict[str, Any]:
    d = np.load(MADE / "ala2_allatom.npz", allow_pickle=False)
    R, F, E = d["R"].astype(float), d["F"].astype(float), d["E"]

    def at(residue: int, name: str) -> Any:
        return R[:, np.flatnonzero((d["resid"] == residue) & (d["atom_names"] == name))[0]]

    phi = dihedral(at(0, "C"), at(1, "N"), at(1, "CA"), at(1, "C"))
    psi = dihedral(at(1, "N"), at(1, "CA"), at(1, "C"), at(2, "N"))
    virial = -(R * F).sum((1, 2)) / (3 * R.shape[1] - 3) / KB_EV
    return {
        **json.loads(str(d["meta"])),
        "frames": len(R),
        "atoms": int(R.shape[1]),
        "temperature_K": float(d["temperature_K"]),
        "energy_eV": [float(E.mean()), float(E.std())],
        "force_rms_eV_A": float(np.sqrt((F**2).mean())),
        "force_max_eV_A": float(abs(F).max()),
        "net_force_max": float(abs(F.sum(1)).max()),
        "net_torque_max": float(abs(np.cross(R, F).sum(1)).max()),
        "virial_temperature_K": [float(virial.mean()), sem(virial)],
        "phi_mean_std": [float(phi.mean()), float(phi.std())],
        "psi_mean_std": [float(psi.mean()), float(psi.std())],
        "phi_positive_fraction": float((phi > 0).mean()),
    }


def _without_histograms(report: dict[str, Any]) -> dict[str, Any]:
    brief: dict[str, Any] = json.loads(json.dumps(report))
    for prior in brief["priors"].values():
        for key in ("angle", "dihedral"):
            for column in ("centre_deg", "count", "U_kcal_mol"):
                del prior[key][column]
    return brief
