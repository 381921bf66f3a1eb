"""Spline priors against SciPy, and where x leaves the knots or the geometry is undefined."""

from __future__ import annotations

from typing import Any

from ensq.train.compat import enable_x64

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from msgspec.structs import replace
from scipy.interpolate import CubicSpline, PPoly
from test_priors import angle, chain, dihedral, evaluate, helix

from ensq.config.model import PriorsConfig, PriorWeights, SplineConfig, SplinesConfig
from ensq.train.models.priors import ChainPriors
from ensq.train.models.splines import into_period, spline_energy

ONE = PriorWeights(bond=1.0, angle=1.0, dihedral=1.0, repulsive=1.0, excluded_volume=1.0)


def config_of(knots: np.ndarray, coeffs: np.ndarray) -> SplineConfig:
    return SplineConfig(
        knots=tuple(knots.tolist()), coeffs=tuple(tuple(row) for row in coeffs.tolist())
    )


def natural(low: float, high: float, size: int, seed: int, kind: str = "natural") -> SplineConfig:
    """Through random values at knots that are not uniform."""
    rng = np.random.default_rng(seed)
    knots = np.linspace(low, high, size)
    knots[1:-1] += rng.uniform(-0.4, 0.4, size=size - 2) * (knots[1] - knots[0])
    values = rng.normal(size=size)
    values[-1] = values[0] if kind == "periodic" else values[-1]
    return config_of(knots, CubicSpline(knots, values, bc_type=kind).c[::-1].T)


def by_scipy(spline: SplineConfig, x: Any, periodic: bool = False) -> np.ndarray:
    knots = np.array(spline.knots)
    x = knots[0] + np.mod(np.asarray(x) - knots[0], 2 * np.pi) if periodic else np.asarray(x)
    return PPoly(np.array(spline.coeffs).T[::-1], knots)(np.clip(x, knots[0], knots[-1]))


BOND = natural(3.5, 4.05, 9, seed=1)  # some bonds of the chain are outside
ANGLE = natural(0.6, 2.6, 12, seed=2)
DIHEDRAL = natural(-np.pi, np.pi, 15, seed=3, kind="periodic")
TYPES = (natural(0.2, 3.0, 5, seed=4), None, natural(0.4, 3.1, 20, seed=5))
SPLINES = SplinesConfig(bond=BOND, angle=ANGLE, dih=DIHEDRAL, angle_types=TYPES)
CONFIG = PriorsConfig(weights=ONE, use_spline_priors=True, splines=SPLINES)
ALONE = {
    name: replace(CONFIG, splines=SplinesConfig(**{name: getattr(SPLINES, name)}))
    for name in ("bond", "angle", "dih")
}


@pytest.mark.parametrize("size", [2, 3, 4, 5, 9, 40])
def test_values_and_slopes_are_scipys_also_at_the_knots(size):
    rng = np.random.default_rng(size)
    knots = np.sort(rng.uniform(-2, 3, size=size))
    spline = config_of(knots, rng.normal(size=(size - 1, 4)))  # jumps at the knots
    inner = rng.uniform(knots[0], knots[-1], size=200)
    outer = np.array([knots[0] - 5, knots[0] - 1e-9, knots[-1] + 1e-9, knots[-1] + 5])
    with enable_x64():
        x = jnp.asarray(np.concatenate([knots, inner, outer]))
        energy, slope = jax.vmap(jax.value_and_grad(lambda t: spline_energy([spline], t)))(x)
    np.testing.assert_allclose(energy, by_scipy(spline, x), rtol=1e-12, atol=1e-12)
    made = PPoly(np.array(spline.coeffs).T[::-1], knots)
    np.testing.assert_allclose(slope[:-4], made(x[:-4], 1), rtol=1e-11, atol=1e-11)
    assert not np.asarray(slope[-4:]).any()


def test_a_spline_is_chosen_for_each_x():
    splines = [natural(0, 1, 4, seed=0), natural(0, 2, 9, seed=1), natural(-1, 1, 2, seed=2)]
    x, which = np.linspace(-1.5, 2.5, 90), np.arange(90) % 3
    with enable_x64():
        energy = spline_energy(splines, jnp.asarray(x), jnp.asarray(which))
    expected = [by_scipy(splines[s], t) for s, t in zip(which, x, strict=True)]
    np.testing.assert_allclose(energy, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("start", [-np.pi, 0.0, -1.0])
def test_a_dihedral_is_wrapped_into_the_period_that_its_knots_span(start):
    spline = natural(start, start + 2 * np.pi, 11, seed=3, kind="periodic")
    phi = np.linspace(-7, 7, 101)
    with enable_x64():
        wrapped = into_period(jnp.asarray(phi), spline)
        energy = spline_energy([spline], wrapped)
    np.testing.assert_allclose(energy, by_scipy(spline, phi, periodic=True), rtol=1e-9, atol=1e-9)


def plain(x: np.ndarray, species: np.ndarray | None = None) -> float:
    """The sum of all three terms by SciPy and textbook geometry."""
    n = len(x)
    lengths = np.linalg.norm(np.diff(x, axis=0), axis=-1)
    total = by_scipy(BOND, lengths).sum()
    for i in range(n - 2):
        s = -1 if species is None else int(species[i + 1])
        own = TYPES[s] if 0 <= s < len(TYPES) else None
        total += by_scipy(own or ANGLE, angle(x, i))
    total += sum(by_scipy(DIHEDRAL, dihedral(x, i), periodic=True) for i in range(n - 3))
    return float(total)


def test_terms_of_a_chain_are_scipys():
    for seed in range(3):
        beads, _ = evaluate(CONFIG, chain(seed=seed))
        assert beads.sum() == pytest.approx(plain(chain(seed=seed)), rel=1e-9)


@pytest.mark.parametrize("name", ALONE)
def test_forces_are_finite_differences(name):
    x = chain(seed=1)
    _, gradient = evaluate(ALONE[name], x)
    assert np.abs(gradient).max() > 1e-3
    for bead, axis in ((0, 0), (4, 1), (9, 2)):
        moved = np.zeros_like(x)
        moved[bead, axis] = 1e-5
        up, down = (evaluate(ALONE[name], x + d)[0].sum() for d in (moved, -moved))
        assert gradient[bead, axis] == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-7)


def test_an_angle_takes_the_spline_of_its_central_bead_or_else_the_one_for_all():
    x, species = chain(), np.array([2, 0, 1, 2, 0, 7, 0, 2, 1, 0])  # of 7 there is none
    config = replace(CONFIG, residue_specific_angles=True)
    with enable_x64():
        arguments = (jnp.asarray(x), jnp.ones(10, bool), jnp.asarray(species))
        own = ChainPriors(config).per_bead_energy({}, *arguments).sum()
        one_for_all = ChainPriors(CONFIG).per_bead_energy({}, *arguments).sum()
        none = replace(config, splines=replace(SPLINES, angle=None))
        without = ChainPriors(none).per_bead_energy({}, *arguments).sum()
    assert float(own) == pytest.approx(plain(x, species), rel=1e-9)
    assert float(one_for_all) == pytest.approx(plain(x), rel=1e-9)
    general = sum(by_scipy(ANGLE, angle(x, i)) for i in range(8) if species[i + 1] in (1, 7))
    assert float(own) - float(without) == pytest.approx(float(general), rel=1e-9)


def test_weights_multiply_and_a_weight_of_0_leaves_a_spline_out():
    weights = PriorWeights(bond=0.5, angle=0.0, dihedral=3.0)
    x = chain()
    parts = {name: evaluate(config, x)[0].sum() for name, config in ALONE.items()}
    weighted = evaluate(replace(CONFIG, weights=weights), x)[0].sum()
    assert weighted == pytest.approx(0.5 * parts["bond"] + 3.0 * parts["dih"], rel=1e-9)


def test_a_spline_replaces_the_term_of_its_kind_and_no_other():
    given = PriorsConfig(
        weights=ONE, r0=3.8, kr=9.0, a=(1.0,), b=(0.5,), k_dih=(0.7,), gamma_dih=(0.2,)
    )
    mixed = replace(given, use_spline_priors=True, splines=SplinesConfig(angle=ANGLE))
    assert set(ChainPriors(mixed).init()) == {"r0", "kr", "k_dih", "gamma_dih"}
    x, no_angle = chain(), replace(given, a=(), b=())
    expected = evaluate(no_angle, x)[0] + evaluate(ALONE["angle"], x)[0]
    np.testing.assert_allclose(evaluate(mixed, x)[0], expected, rtol=1e-9)
    unused = replace(mixed, use_spline_priors=False)
    np.testing.assert_allclose(evaluate(unused, x)[0], evaluate(given, x)[0], rtol=1e-12)


def test_splines_hold_no_parameters():
    assert ChainPriors(CONFIG).init() == {"nothing": 0.0}  # a tree needs a leaf


def test_a_spline_file_that_was_not_read_is_an_error():
    config = PriorsConfig(use_spline_priors=True, spline_file="splines.npz")
    with pytest.raises(ValueError, match=r"splines\.npz have not been read"):
        ChainPriors(config)


STRAIGHT = np.arange(10.0)[:, None] * [3.8, 0.0, 0.0]
FOLDED = np.array([0.0, 3.8])[np.arange(10) % 2, None] * [1.0, 0.0, 0.0]
FLAT = np.stack([3.3 * np.arange(10), 1.9 * (np.arange(10) % 2), np.zeros(10)], axis=-1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_undefined_geometry_gives_finite_forces_and_gradients_of_forces(dtype):
    priors = ChainPriors(CONFIG)

    def energy(x: Any, real: Any) -> Any:
        return priors.per_bead_energy({}, x, real, jnp.zeros(10, jnp.int32)).sum()

    def both(x: Any, real: Any) -> Any:
        force = jax.grad(energy)
        return force(x, real), jax.grad(lambda y: jnp.square(force(y, real)).sum())(x)

    some = np.arange(10) < 6
    with enable_x64(dtype == np.float64):
        function = jax.jit(both, compiler_options={"xla_backend_optimization_level": 0})
        for x in (STRAIGHT, FOLDED, FLAT, np.zeros((10, 3)), chain() * some[:, None]):
            for real in (np.ones(10, bool), some):
                for values in function(jnp.asarray(x, dtype), jnp.asarray(real)):
                    assert values.dtype == dtype and np.isfinite(values).all()


def test_an_arc_cosine_would_not_pass_the_test_above():
    """Why angles are taken by atan2."""
    gradient = jax.grad(lambda x: jnp.arccos(jnp.clip(x, -1.0, 1.0)))(jnp.float32(-1.0))
    assert not np.isfinite(gradient)


def test_a_right_handed_helix_has_a_positive_dihedral():
    at = np.linspace(-np.pi, np.pi, 73)
    values = (at - dihedral(helix(), 0)) ** 2
    values[-1] = values[0]
    made = CubicSpline(at, values, bc_type="periodic")
    spline = SplinesConfig(dih=config_of(at, made.c[::-1].T))
    config = PriorsConfig(weights=ONE, use_spline_priors=True, splines=spline)
    right, left = (evaluate(config, helix() * [1, 1, z])[0].sum() for z in (1, -1))
    assert right < 0.1 < left


def test_the_number_of_beads_may_be_symbolic():
    (n,) = export.symbolic_shape("n")
    config = replace(CONFIG, residue_specific_angles=True)

    def beads_of(x: Any, real: Any, species: Any) -> Any:
        return ChainPriors(config).per_bead_energy({}, x, real, species)

    kinds = (((n, 3), np.float32), ((n,), np.bool_), ((n,), np.int32))
    exported = export.export(jax.jit(beads_of))(*(jax.ShapeDtypeStruct(*one) for one in kinds))
    for beads in (3, 10):
        x, species = chain(beads), np.arange(beads) % 4
        got = exported.call(
            jnp.asarray(x, jnp.float32), jnp.ones(beads, bool), jnp.asarray(species, jnp.int32)
        )
        assert float(got.sum()) == pytest.approx(plain(x, species), rel=1e-4)
