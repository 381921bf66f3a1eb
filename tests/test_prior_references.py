"""Every term of the priors against LAMMPS, which shares no formula and no code with ensq."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ensq.train.compat import enable_x64

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lammps_reference import lammps, require_lammps
from msgspec.structs import replace
from scipy.interpolate import CubicSpline

from ensq.config.model import PriorsConfig, PriorWeights, SplineConfig, SplinesConfig
from ensq.train.models.priors import ChainPriors

CHIGNOLIN = Path(__file__).parent.parent / "data" / "chignolin_ca.npz"
ONE = PriorWeights(bond=1.0, angle=1.0, dihedral=1.0, repulsive=1.0, excluded_volume=1.0)
BONDED = {"r0": 3.85, "kr": 150.0, "a": (3.1, -1.4, 0.7), "b": (-2.3, 0.5, 0.9)}
TWISTED = {"k_dih": (0.9, 0.5, 0.3), "gamma_dih": (0.7, -1.9, 2.4)}
APART = {"epsilon": 1.7, "sigma": 4.2, "epsilon_ex": 0.8, "sigma_ex": 3.9}
# Weights that are no powers of two, no two alike.
WEIGHTS = PriorWeights(bond=0.5, angle=0.1, dihedral=0.15, repulsive=0.25, excluded_volume=1.3)


def knots_of(low: float, high: float, values: Any, kind: str = "natural") -> SplineConfig:
    at = np.linspace(low, high, len(values))
    made = CubicSpline(at, values, bc_type=kind)
    return SplineConfig(knots=tuple(at.tolist()), coeffs=tuple(map(tuple, made.c[::-1].T.tolist())))


def _splines() -> SplinesConfig:
    r, theta = np.linspace(2.5, 6.0, 41), np.linspace(0.3, np.pi, 41)
    phi = np.linspace(-np.pi, np.pi, 41)
    turn = np.cos(phi - 0.6) + 0.4 * np.sin(2 * phi)
    turn[-1] = turn[0]
    return SplinesConfig(
        bond=knots_of(2.5, 6.0, 40 * (1 - np.exp(-(r - 3.9))) ** 2),
        angle=knots_of(0.3, np.pi, 3 * np.cos(theta - 1.2) + np.sin(4 * theta)),
        dih=knots_of(-np.pi, np.pi, turn, "periodic"),
    )


SPLINES = _splines()
CASES = {
    "bond": PriorsConfig(weights=ONE, r0=BONDED["r0"], kr=BONDED["kr"]),
    "angle": PriorsConfig(weights=ONE, a=BONDED["a"], b=BONDED["b"]),
    "dihedral": PriorsConfig(weights=ONE, **TWISTED),
    "repulsive": PriorsConfig(weights=ONE, epsilon=1.7, sigma=4.2),
    "excluded volume": PriorsConfig(weights=ONE, epsilon_ex=0.8, sigma_ex=3.9),
    "all, weighted": PriorsConfig(weights=WEIGHTS, **BONDED, **TWISTED, **APART),
    "splines, weighted": PriorsConfig(
        weights=WEIGHTS, **APART, use_spline_priors=True, splines=SPLINES
    ),
}


class Result(NamedTuple):
    energy: np.ndarray  # [T]
    forces: np.ndarray  # [T, N, 3]

    def differs(self, other: Result) -> float:
        """The largest difference of energies and of forces, each against the largest value."""
        pairs = ((self.energy, other.energy), (self.forces, other.forces))
        return float(max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs))


def ours(config: PriorsConfig, frames: np.ndarray, dtype: Any = np.float64) -> Result:
    priors = ChainPriors(config)

    def total(x: Any) -> Any:
        real, species = jnp.ones(x.shape[:-1], bool), jnp.zeros(x.shape[:-1], jnp.int32)
        energy = priors.per_bead_energy(priors.init(dtype), x, real, species).sum(axis=-1)
        return energy.sum(), energy

    with enable_x64(dtype == np.float64):
        options = {"xla_backend_optimization_level": 0}
        function = jax.jit(jax.grad(total, has_aux=True), compiler_options=options)
        gradient, energy = function(jnp.asarray(frames, dtype))
        return Result(np.asarray(energy, float), -np.asarray(gradient, float))


def commands(config: PriorsConfig, beads: int, folder: Path) -> list[str]:
    """The same terms in LAMMPS' own styles."""
    w, out = config.weights, []
    if config.splines is not None:
        out += _tables(config, folder)
    if config.r0 is not None:
        out += ["bond_style harmonic", f"bond_coeff 1 {w.bond * config.kr / 2} {config.r0}"]
    if config.a:
        terms = (
            f"{w.angle * a}*cos({n}*theta)+{w.angle * b}*sin({n}*theta)"
            for n, (a, b) in enumerate(zip(config.a, config.b, strict=True), start=1)
        )
        out += ["angle_style lepton", f'angle_coeff 1 0.0 "{"+".join(terms)}"']
    if config.k_dih:
        terms = (
            f"{w.dihedral * k} {n} {np.rad2deg(gamma)}"
            for n, (k, gamma) in enumerate(zip(config.k_dih, config.gamma_dih, strict=True), 1)
        )
        out += ["dihedral_style fourier", f"dihedral_coeff 1 {len(config.k_dih)} {' '.join(terms)}"]
    return out + _pairs(config, beads)


def reference_of(config: PriorsConfig, frames: np.ndarray, folder: Path) -> Result:
    """Energies and forces by LAMMPS."""
    beads = frames.shape[1]
    energy, forces = lammps(frames, commands(config, beads, folder), folder)
    # angle_style lepton counts each angle's energy from its value at 0, where cosines are 1
    return Result(energy + config.weights.angle * sum(config.a) * (beads - 2), forces)


def _pairs(config: PriorsConfig, beads: int) -> list[str]:
    """A formula for each pair of beads, which are atom types of their own."""
    if config.epsilon is None and config.epsilon_ex is None:
        return []
    out = ["pair_style lepton 60", 'pair_coeff * * "0*r"']
    for i in range(beads):
        for j in range(i + 1, beads):
            weight, epsilon, sigma = 0.0, None, None
            if j - i >= 6:
                weight, epsilon, sigma = config.weights.repulsive, config.epsilon, config.sigma
            elif j - i >= 2:
                weight = config.weights.excluded_volume
                epsilon, sigma = config.epsilon_ex, config.sigma_ex
            if epsilon is not None:
                out.append(f'pair_coeff {i + 1} {j + 1} "{weight * epsilon}*({sigma}/r)^4"')
    return out


def _tables(config: PriorsConfig, folder: Path) -> list[str]:
    """The splines as LAMMPS' tables, from SciPy's values; LAMMPS interpolates between them."""
    out, n = [], 8001
    for name, spline, weight, span in (
        ("bond", config.splines.bond, config.weights.bond, (2.6, 5.9)),
        ("angle", config.splines.angle, config.weights.angle, (0.0, np.pi)),
        ("dihedral", config.splines.dih, config.weights.dihedral, (-np.pi, np.pi)),
    ):
        made = CubicSpline(spline.knots, np.zeros(len(spline.knots)))
        made.c = np.array(spline.coeffs).T[::-1]
        ends = name != "dihedral"
        x = np.linspace(*span, n) if ends else np.linspace(*span, n, endpoint=False)
        inside = (x >= spline.knots[0]) & (x <= spline.knots[-1])
        clamped = np.clip(x, spline.knots[0], spline.knots[-1])
        value, slope = made(clamped) * weight, np.where(inside, made(clamped, 1), 0.0) * weight
        degrees = np.rad2deg(1.0) if name != "bond" else 1.0
        columns = (np.arange(1, n + 1), x * degrees, value, -slope / degrees)
        rows = (f"{i:.0f} {a:.14g} {b:.14g} {c:.14g}" for i, a, b, c in zip(*columns, strict=True))
        head = f"T\nN {n}" + (f" FP {slope[0]} {slope[-1]}" if name == "bond" else "")
        (folder / f"{name}.table").write_text(f"# spline\n\n{head}\n\n" + "\n".join(rows) + "\n")
        out += [f"{name}_style table spline {n}", f"{name}_coeff 1 {name}.table T"]
    return out


def random_chains(beads: int = 12, count: int = 6) -> np.ndarray:
    """Chains of uneven bonds, sharp and wide angles; no two beads nearer than 2.8 Angstrom."""
    rng, found = np.random.default_rng(5), []
    while len(found) < count:
        steps = rng.normal(size=(beads, 3)) + rng.normal(size=3)
        steps *= rng.uniform(3.4, 4.4, size=(beads, 1)) / np.linalg.norm(
            steps, axis=-1, keepdims=True
        )
        x = np.cumsum(steps, axis=0)
        apart = np.linalg.norm(x[:, None] - x, axis=-1) + 9 * np.eye(beads)
        if apart.min() > 2.8:
            found.append(x)
    return np.stack(found)


def real_frames(count: int = 6) -> np.ndarray:
    with np.load(CHIGNOLIN, allow_pickle=False) as archive:
        frames: np.ndarray = archive["R"][:: len(archive["R"]) // count][:count]
    return frames.astype(float)


@pytest.mark.parametrize("name", CASES)
def test_energies_and_forces_agree_with_lammps(name, tmp_path):
    config = CASES[name]
    for frames in (random_chains(), real_frames()):
        reference = reference_of(config, frames, tmp_path)
        assert np.abs(reference.energy).min() > 1e-2 and np.abs(reference.forces).max() > 1e-2
        assert ours(config, frames).differs(reference) < 1e-5


# What must be noticed: each is a change of one number or one convention.
WRONG = {
    "the sign of gamma": ("dihedral", {"gamma_dih": (-0.7, 1.9, -2.4)}),
    "the factor of the bond": ("bond", {"kr": 300.0}),
    "the sign of the sine": ("angle", {"b": (2.3, -0.5, -0.9)}),
    "a hundredth of sigma": ("repulsive", {"sigma": 4.242}),
    "a thousandth of epsilon": ("excluded volume", {"epsilon_ex": 0.8008}),
    "weights left out": ("all, weighted", {"weights": ONE}),
    "one weight": ("splines, weighted", {"weights": replace(WEIGHTS, dihedral=0.1501)}),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_number_is_noticed(what, tmp_path):
    name, change = WRONG[what]
    frames = random_chains(count=2)
    config = CASES[name]
    reference = reference_of(config, frames, tmp_path)
    assert ours(replace(config, **change), frames).differs(reference) > 1e-5


def test_single_precision_is_near_lammps_too(tmp_path):
    config, frames = CASES["all, weighted"], real_frames()
    reference = reference_of(config, frames, tmp_path)
    assert ours(config, frames, np.float32).differs(reference) < 1e-5


def test_mirror_images_have_other_energies_in_both_programs(tmp_path):
    config, frames = CASES["dihedral"], random_chains(count=2)
    image = frames * [1, 1, -1]
    right, left = (reference_of(config, x, tmp_path) for x in (frames, image))
    assert np.abs(right.energy - left.energy).min() > 0.1
    assert ours(config, image).differs(left) < 1e-5


def test_without_lammps_these_tests_are_skipped_but_fail_in_ci(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="pip install lammps mpich"):
        require_lammps()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="pip install lammps mpich"):
        require_lammps()
