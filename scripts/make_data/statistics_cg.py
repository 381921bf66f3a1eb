"""Checks of mapped data (temperatures from forces, autocorrelation) and Boltzmann inversion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from settings import KB


def dihedral(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Degrees, any leading shape."""
    b0, b1, b2 = a - b, c - b, d - c
    b1 = b1 / np.linalg.norm(b1, axis=-1, keepdims=True)
    v = b0 - (b0 * b1).sum(-1, keepdims=True) * b1
    w = b2 - (b2 * b1).sum(-1, keepdims=True) * b1
    return np.degrees(np.arctan2((np.cross(b1, v) * w).sum(-1), (v * w).sum(-1)))


def angle(a: Any, b: Any, c: Any) -> Any:
    """Degrees, any leading shape."""
    u, v = a - b, c - b
    cos = (u * v).sum(-1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1)
    return np.degrees(np.arccos(np.clip(cos, -1, 1)))


def sem(x: Any, block: int = 20) -> float:
    """Standard error of the mean of a time series, from means of 20-frame blocks."""
    m = x[: len(x) // block * block].reshape(-1, block).mean(1)
    return float(m.std(ddof=1) / np.sqrt(len(m)))


def covalent_temperature(pos: Any, frc: Any, Z: Any) -> dict[str, list[float]]:
    """All-atom configurational temperature: <force along a bond * its excursion> = -kT <div>, for
    the bonds with and without a hydrogen; [T, standard error] each, K."""
    d = np.linalg.norm(pos[0][:, None] - pos[0][None], axis=-1)
    light = (Z[:, None] == 1) | (Z[None] == 1)
    both = (Z[:, None] == 1) & (Z[None] == 1)
    bonded = np.triu(np.where(light, d < 1.3, d < 1.75) & ~both, 1)
    out = {}
    for label, chosen in (("X-H", bonded & light), ("heavy", bonded & ~light)):
        i, j = np.nonzero(chosen)
        v = pos[:, j] - pos[:, i]
        r = np.linalg.norm(v, axis=-1)
        x = r - r.mean(0)
        w = -(0.5 * ((frc[:, j] - frc[:, i]) * v).sum(-1) / r * x).mean(1)
        div = (1.0 + 2.0 * x / r).mean()
        out[label] = [float(w.mean() / div / KB), float(sem(w) / div / KB)]
    return out


def autocorrelation_time(series: Sequence[Any]) -> dict[str, Any]:
    """Integrated autocorrelation time, frames (= ps), summed to the first zero crossing; the
    first lag below 1/e; ``series`` is a list of per-replica arrays, each about its own mean."""
    n = min(len(s) for s in series) // 2
    total, var = np.zeros(n), 0.0
    for values in series:
        s = values - values.mean()
        var += (s * s).mean()
        total += [(s[: len(s) - k] * s[k:]).mean() for k in range(n)]
    acf = total / var
    zero = np.flatnonzero(acf <= 0)
    stop = zero[0] if len(zero) else n
    below = np.flatnonzero(acf < np.exp(-1))
    return {
        "tau_int_ps": float(0.5 + acf[1:stop].sum()),
        "lag_1_over_e_ps": int(below[0]) if len(below) else None,
        "acf_at_1_10_100ps": [float(acf[k]) if k < n else None for k in (1, 10, 100)],
    }


def _spread(v: Any) -> dict[str, float]:
    return {
        "mean": float(v.mean()),
        "std": float(v.std()),
        "min": float(v.min()),
        "max": float(v.max()),
    }


def checks(cg: dict[str, Any], temperature: float, forces: str = "F") -> dict[str, Any]:
    """Figures that show whether positions, forces, map and temperature belong together."""
    R, F = cg["R"], cg[forces]
    n_frames, n = R.shape[:2]
    rg = np.sqrt((R**2).sum(-1).mean(1))
    ete = np.linalg.norm(R[:, -1] - R[:, 0], axis=-1)

    def split(x: Any) -> list[Any]:
        return [x[cg["replica"] == k] for k in np.unique(cg["replica"])]

    def per_replica(x: Any) -> list[list[float]]:
        return [[round(float(v.mean()), 3), round(float(v.std()), 3)] for v in split(x)]

    # Mean force on a bead along the molecule's own random orientation is zero only within noise.
    sem_f = F.std(0) / np.sqrt(n_frames)
    virial = -(R * F).sum((1, 2)) / (3 * (n - 1)) / KB
    dist = np.linalg.norm(R[:, :, None] - R[:, None], axis=-1)
    far = dist[:, np.triu_indices(n, 3)[0], np.triu_indices(n, 3)[1]]
    lag1 = np.mean([(f[1:] * f[:-1]).mean() / (f * f).mean() for f in split(F)])
    return {
        "frames": n_frames,
        "beads": n,
        "temperature_K": temperature,
        "force_rms_per_component": float(np.sqrt((F**2).mean())),
        "force_rms_per_bead": [round(float(v), 2) for v in np.sqrt((F**2).mean((0, 2)))],
        "force_abs_max": float(abs(F).max()),
        "mean_force_per_component": [float(v) for v in F.mean((0, 1))],
        "mean_force_max_over_beads": float(abs(F.mean(0)).max()),
        "mean_force_z_rms": float(np.sqrt(((F.mean(0) / sem_f) ** 2).mean())),
        "net_force_per_frame_max": float(abs(F.sum(1)).max()),
        "lag1_force_autocorrelation": float(lag1),
        "nonbonded_i_i3_min_A": float(far.min()),
        "end_to_end_A": _spread(ete),
        "rg_A": _spread(rg),
        "rg_per_replica": per_replica(rg),
        "end_to_end_per_replica": per_replica(ete),
        "rg_autocorrelation": autocorrelation_time(split(rg)),
        "end_to_end_autocorrelation": autocorrelation_time(split(ete)),
        "virial_temperature_K": [float(virial.mean()), sem(virial)],
        **_bond_checks(R, F, KB * temperature),
    }


def _bond_checks(R: Any, F: Any, kt: float) -> dict[str, Any]:
    bond = R[:, 1:] - R[:, :-1]
    r = np.linalg.norm(bond, axis=-1)
    unit = bond / r[..., None]
    # <F.v> = -kT <div v>: a test of forces, positions, map and temperature together.
    x = r - r.mean(0)
    per_frame = -(0.5 * ((F[:, 1:] - F[:, :-1]) * unit).sum(-1) * x).mean(1)
    div = (1.0 + 2.0 * x / r).mean()
    # How much of the instantaneous force a harmonic C-alpha bond prior already explains.
    kr, r0 = kt / r.var(), r.mean()
    fb = -kr * (r - r0)[..., None] * unit
    prior = np.zeros_like(F)
    prior[:, 1:] += fb
    prior[:, :-1] -= fb
    return {
        "bond_A": _spread(r),
        "bond_force_temperature_K": [
            float(per_frame.mean() / div / KB),
            float(sem(per_frame) / div / KB),
        ],
        "bond_prior_r2": float(1 - ((F - prior) ** 2).sum() / (F**2).sum()),
    }


def priors(cgs: Sequence[dict[str, Any]], temperature: float) -> dict[str, Any]:
    """Boltzmann inversion, pooled over the list of peptides."""
    kt = KB * temperature
    chains = [c["R"] for c in cgs]
    r = np.concatenate([np.linalg.norm(R[:, 1:] - R[:, :-1], axis=-1).ravel() for R in chains])
    th = np.concatenate([angle(R[:, :-2], R[:, 1:-1], R[:, 2:]).ravel() for R in chains])
    ph = np.concatenate(
        [dihedral(*(R[:, k : R.shape[1] - 3 + k] for k in range(4))).ravel() for R in chains]
    )
    rad = np.radians(ph)
    moments = [[float(np.cos(k * rad).mean()), float(np.sin(k * rad).mean())] for k in (1, 2, 3)]
    return {
        "temperature_K": temperature,
        "kT_kcal_mol": kt,
        "form": "0.5*kr*(r-r0)^2",
        "bond": {
            "r0_A": float(r.mean()),
            "std_A": float(r.std()),
            "kr_kcal_mol_A2": float(kt / r.var()),
            "n": len(r),
        },
        "angle": {
            "mean_deg": float(th.mean()),
            "std_deg": float(th.std()),
            "min": float(th.min()),
            "max": float(th.max()),
            "percentiles_1_25_50_75_99": [float(v) for v in np.percentile(th, [1, 25, 50, 75, 99])],
            "harmonic_k_kcal_mol_rad2": float(kt / np.radians(th).var()),
            **_inversion(th, np.linspace(60, 180, 41), kt, lambda m: np.sin(np.radians(m))),
        },
        "dihedral": {
            "mean_cos_sin_1_2_3": moments,
            **_inversion(ph, np.linspace(-180, 180, 37), kt, np.ones_like),
        },
    }


def _inversion(
    values: Any, edges: Any, kt: float, jacobian: Callable[[Any], Any]
) -> dict[str, list[Any]]:
    h, _ = np.histogram(values, edges)
    mid = 0.5 * (edges[1:] + edges[:-1])
    with np.errstate(divide="ignore"):
        u = -kt * np.log(h / jacobian(mid))
    u -= u[np.isfinite(u)].min()
    return {
        "centre_deg": mid.tolist(),
        "count": h.tolist(),
        "U_kcal_mol": [float(v) if np.isfinite(v) else None for v in u],
    }
