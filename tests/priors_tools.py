"""Chains whose coordinates have known potentials, and what is fitted to them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ensq import boltzmann
from ensq.boltzmann import Chains, Fit

DATA = Path(__file__).parent.parent / "data"
CHIGNOLIN = DATA / "chignolin_ca.npz"
KT = 0.0019872041 * 300.0


def drawn(density: Callable[[Any], Any], low: float, high: float, shape: Any, seed: int) -> Any:
    """Numbers of a density, by inversion of its sum."""
    x = np.linspace(low, high, 20001)
    total = np.cumsum(density(x))
    return np.interp(np.random.default_rng(seed).uniform(size=shape), total / total[-1], x)


def built(r: Any, theta: Any, phi: Any) -> Any:
    """Chains [T, N, 3] from bonds [T, N-1], angles [T, N-2] and dihedrals [T, N-3]."""
    frames, bonds = r.shape
    x = np.zeros((frames, bonds + 1, 3))
    x[:, 1, 0] = r[:, 0]
    x[:, 2] = x[:, 1]
    x[:, 2, 0] -= r[:, 1] * np.cos(theta[:, 0])
    x[:, 2, 1] += r[:, 1] * np.sin(theta[:, 0])
    for i in range(3, bonds + 1):
        ahead = x[:, i - 1] - x[:, i - 2]
        ahead /= np.linalg.norm(ahead, axis=-1, keepdims=True)
        normal = np.cross(x[:, i - 2] - x[:, i - 3], ahead)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        side = np.cross(normal, ahead)
        t, p = theta[:, i - 2, None], phi[:, i - 3, None]
        # p = 0 (cis) bends back to the side where the bead before the last three is
        step = -np.cos(t) * ahead + np.sin(t) * (np.cos(p) * side + np.sin(p) * normal)
        x[:, i] = x[:, i - 1] + r[:, i - 1, None] * step
    return x


def bond_energy(r: Any) -> Any:
    return 0.5 * 150.0 * (r - 3.8) ** 2


def angle_energy(t: Any) -> Any:
    return 6.0 * np.cos(t) + 2.0 * np.cos(2 * t) - 3.0 * np.sin(t) + 0.8 * np.sin(2 * t)


def dihedral_energy(p: Any) -> Any:
    return 0.6 * np.cos(p - 0.7) + 0.5 * np.cos(2 * p + 1.9) + 0.2 * np.cos(3 * p)


TRUE = {"bond": bond_energy, "angle": angle_energy, "dihedral": dihedral_energy}


@functools.cache
def known(frames: int = 4000, beads: int = 9) -> Chains:
    """Chains whose coordinates are independent and have the potentials above at 300 K."""
    r = drawn(lambda r: r**2 * np.exp(-bond_energy(r) / KT), 3, 5, (frames, beads - 1), 1)
    theta = drawn(
        lambda t: np.sin(t) * np.exp(-angle_energy(t) / KT), 0, np.pi, (frames, beads - 2), 2
    )
    phi = drawn(lambda p: np.exp(-dihedral_energy(p) / KT), -np.pi, np.pi, (frames, beads - 3), 3)
    shape = (frames, beads)
    species = np.broadcast_to(np.arange(beads) % 3, shape)
    return Chains(built(r, theta, phi), np.ones(shape, bool), species, 3, 300.0, "known")


@functools.cache
def fitted(kind: Any) -> Fit:
    return boltzmann.fit(known(), temperature=300.0, kind=kind)
