"""From all-atom frames to one bead per residue at C-alpha, with mapped forces.

Without constraints, bead = C-alpha and force = sum over the residue's atoms is a consistent map:
the force weights are one on every C-alpha of their own bead and zero on every other bead's, so the
mapped force averages, at fixed bead positions, to the negative gradient of the potential of mean
force. That map cuts the stiff C-N bonds at residue borders, which is mostly noise. Sharing the
peptide-plane atoms between the two C-alphas they hang from (C, O of a residue: 0.38 to the next
bead; N, H: 0.34 to the previous one) keeps the constraint on the weights, hence the mean force,
and halves the force rms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from settings import AA, C_SHARE, KCAL, N_SHARE, RAW, RUNS
from statistics_cg import covalent_temperature, dihedral


def force_map(atom: Any, resid: Any, n_share: float = 0.0, c_share: float = 0.0) -> Any:
    """[bead, atom] weights: residue sums, optionally with shared peptide planes."""
    n = resid.max() + 1
    w = np.zeros((n, len(atom)))
    for k, (a, r) in enumerate(zip(atom, resid, strict=True)):
        to, share = r, 0.0
        if a in ("N", "H"):
            to, share = r - 1, n_share
        elif a in ("C", "O"):
            to, share = r + 1, c_share
        if not 0 <= to < n:  # chain ends
            to, share = r, 0.0
        w[r, k] = 1.0 - share
        w[to, k] += share
    ca = np.flatnonzero(atom == "CA")
    # Consistent, and the net force is kept.
    assert (w[:, ca] == np.eye(n)).all() and np.allclose(w.sum(0), 1)
    return w


def load_cg(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every replica of a peptide, mapped: Angstrom, kcal/mol/Angstrom; and notes on each run."""
    parts, infos = [], []
    resname = None
    for replica in range(len(RUNS[name])):
        path = RAW / f"{name}_{replica}.npz"
        if not path.exists():
            print(f"{path} is missing, left out")
            continue
        d = np.load(path, allow_pickle=False)
        part, info = _map_replica(d, replica)
        parts.append(part)
        infos.append({"start": RUNS[name][replica][0], **info})
        resname = d["resname"]
    if resname is None:
        raise SystemExit(f"no trajectory of {name} in {RAW}: run sample first")
    out = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    out["species"] = np.array([AA.index(r) for r in resname], np.int32)
    out["resname"] = resname
    return out, infos


def _map_replica(d: Any, replica: int) -> tuple[dict[str, Any], dict[str, Any]]:
    ca = np.flatnonzero(d["atom"] == "CA")
    n = len(d["resname"])
    assert len(ca) == n and (d["resid"][ca] == np.arange(n)).all()
    pos = d["pos"].astype(np.float64) * 10.0
    frc = d["frc"].astype(np.float64) / KCAL / 10.0
    sums = np.einsum("ba,fad->fbd", force_map(d["atom"], d["resid"]), frc)
    plane = np.einsum("ba,fad->fbd", force_map(d["atom"], d["resid"], N_SHARE, C_SHARE), frc)
    R = pos[:, ca]
    R = R - R.mean(1, keepdims=True)
    numbers = np.full(len(R), replica, np.int32)
    part = {"R": R, "F": plane, "F_residue_sum": sums, "replica": numbers}
    info = {
        "replica": replica,
        "frames": len(R),
        "atoms": int(pos.shape[1]),
        "eq_ps": float(d["eq_ps"]),
        "ns_per_day": float(d["ns_per_day"]),
        "wall_s": float(d["wall_s"]),
        "kinetic_T": float(d["kinetic_T"]),
        "covalent_bond_force_T": covalent_temperature(pos, frc, d["Z"]),
        "mean_epot_kcal": float(d["pot"].mean() / KCAL),
        "allatom_force_rms": float(np.sqrt((frc**2).mean())),
        "net_force_max": float(abs(frc.sum(1)).max()),
        **_stereochemistry(d, pos),
    }
    return part, info


def _stereochemistry(d: Any, pos: Any) -> dict[str, Any]:
    """Whether all residues stay L and how many peptide bonds are cis."""
    n = len(d["resname"])

    def place(residue: int, atom: str) -> int:
        return int(np.flatnonzero((d["resid"] == residue) & (d["atom"] == atom))[0])

    bb = {a: np.array([place(r, a) for r in range(n)]) for a in ("N", "CA", "C")}
    corners = (bb["CA"][:-1], bb["C"][:-1], bb["N"][1:], bb["CA"][1:])
    omega = dihedral(*(pos[:, k] for k in corners))
    has_cb = [r for r in range(n) if d["resname"][r] != "GLY"]
    cb = np.array([place(r, "CB") for r in has_cb])
    centre = pos[:, bb["CA"][has_cb]]
    v = [pos[:, k] - centre for k in (bb["N"][has_cb], bb["C"][has_cb], cb)]
    chirality = np.einsum("fbd,fbd->fb", np.cross(v[0], v[1]), v[2])
    return {
        "cis_peptide_fraction": float((abs(omega) < 90).mean()),
        "all_L": bool((chirality > 0).all()),
    }
