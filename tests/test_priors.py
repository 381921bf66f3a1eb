"""The prior terms against plain NumPy formulas, and where their geometry is undefined."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from ensq.train.compat import enable_x64

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from model_tools import PRIORS, compile_fast, force_gradient, frames_of, make_model
from model_tools import chain as beads_of_model

from ensq.config.model import PriorsConfig, PriorWeights
from ensq.train.models.priors import ChainPriors

ONE = PriorWeights(bond=1.0, angle=1.0, dihedral=1.0, repulsive=1.0, excluded_volume=1.0)
A, B = (0.7, -0.4, 0.2), (0.3, 0.5, -0.1)
K, GAMMA = (1.1, 0.6, 0.3), (0.4, -1.2, 2.0)

TERMS = {
    "bond": PriorsConfig(weights=ONE, r0=3.8, kr=20.0),
    "angle": PriorsConfig(weights=ONE, a=A, b=B),
    "dihedral": PriorsConfig(weights=ONE, k_dih=K, gamma_dih=GAMMA),
    "repulsive": PriorsConfig(weights=ONE, epsilon=2.0, sigma=4.0),
    "excluded_volume": PriorsConfig(weights=ONE, epsilon_ex=1.5, sigma_ex=3.5),
}
ALL = PriorsConfig(
    r0=3.8,
    kr=20.0,
    a=A,
    b=B,
    k_dih=K,
    gamma_dih=GAMMA,
    epsilon=2.0,
    sigma=4.0,
    epsilon_ex=1.5,
    sigma_ex=3.5,
)


def chain(beads: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    walk = rng.normal(loc=[0.7, 0, 0], size=(beads, 3))
    walk *= rng.uniform(3.6, 4.0, size=(beads, 1)) / np.linalg.norm(walk, axis=-1, keepdims=True)
    return np.cumsum(walk, axis=0)


def helix(beads: int = 10) -> np.ndarray:
    """A right-handed helix of C-alpha beads: 100 degrees and 1.5 Angstrom a residue."""
    turn = np.deg2rad(100.0) * np.arange(beads)
    return np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(beads)], axis=-1)


def angle(x: np.ndarray, i: int) -> float:
    one, two = x[i] - x[i + 1], x[i + 2] - x[i + 1]
    return float(np.arccos(one @ two / np.linalg.norm(one) / np.linalg.norm(two)))


def dihedral(x: np.ndarray, i: int) -> float:
    """The textbook way: project the outer bonds on the plane across the middle one."""
    back, axis, on = x[i] - x[i + 1], x[i + 2] - x[i + 1], x[i + 3] - x[i + 2]
    axis = axis / np.linalg.norm(axis)
    v, w = back - back @ axis * axis, on - on @ axis * axis
    return float(np.arctan2(np.cross(axis, v) @ w, v @ w))


def plain_terms(x: np.ndarray) -> dict[str, np.ndarray]:
    """Energies [N] of each term with weight 1, term by term in loops."""
    n = len(x)
    out = {name: np.zeros(n) for name in TERMS}

    def add(name: str, beads: tuple[int, ...], energy: float) -> None:
        for bead in beads:
            out[name][bead] += energy / len(beads)

    for i in range(n - 1):
        add("bond", (i, i + 1), 0.5 * 20.0 * (np.linalg.norm(x[i] - x[i + 1]) - 3.8) ** 2)
    for i in range(n - 2):
        t, terms = angle(x, i), enumerate(zip(A, B, strict=True), start=1)
        energy = sum(a * np.cos(k * t) + b * np.sin(k * t) for k, (a, b) in terms)
        add("angle", (i, i + 1, i + 2), energy)
    for i in range(n - 3):
        phi, terms = dihedral(x, i), enumerate(zip(K, GAMMA, strict=True), start=1)
        energy = sum(k * (1 + np.cos(m * phi - g)) for m, (k, g) in terms)
        add("dihedral", (i, i + 1, i + 2, i + 3), energy)
    for i in range(n):
        for j in range(i + 2, n):
            r = np.linalg.norm(x[i] - x[j])
            if j - i >= 6:
                add("repulsive", (i, j), 2.0 * (4.0 / r) ** 4)
            else:
                add("excluded_volume", (i, j), 1.5 * (3.5 / r) ** 4)
    return out


@functools.cache
def function(config: PriorsConfig) -> Any:
    """Energies per bead and the gradient of their sum, of one frame."""
    priors = ChainPriors(config)

    def total(x: Any, real: Any) -> Any:
        species = jnp.zeros(real.shape, jnp.int32)
        beads = priors.per_bead_energy(priors.init(x.dtype), x, real, species)
        return beads.sum(), beads

    # unoptimised machine code: compiling takes less time
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=options)


def evaluate(
    config: PriorsConfig, x: np.ndarray, real: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    with enable_x64():
        real = np.ones(len(x), bool) if real is None else real
        (_, beads), gradient = function(config)(jnp.asarray(x), jnp.asarray(real))
        return np.asarray(beads), np.asarray(gradient)


@pytest.mark.parametrize("term", TERMS)
def test_each_term_is_its_plain_formula_shared_between_its_beads(term):
    x = chain()
    beads, _ = evaluate(TERMS[term], x)
    assert np.abs(beads).max() > 1e-3
    np.testing.assert_allclose(beads, plain_terms(x)[term], rtol=1e-9, atol=1e-12)


def test_terms_are_added_with_their_weights_by_default_those_of_the_plan():
    x = chain()
    weights = {"bond": 0.5, "angle": 0.1, "dihedral": 0.15, "repulsive": 0.25}
    plain = plain_terms(x)
    expected = plain["excluded_volume"] + sum(w * plain[name] for name, w in weights.items())
    np.testing.assert_allclose(evaluate(ALL, x)[0], expected, rtol=1e-9)


def test_a_prior_without_parameters_is_nothing():
    assert not evaluate(PriorsConfig(), chain())[0].any()


@pytest.mark.parametrize("term", TERMS)
def test_forces_are_finite_differences(term):
    x = chain()
    _, gradient = evaluate(TERMS[term], x)
    for bead, axis in ((0, 0), (4, 1), (9, 2)):
        moved = np.zeros_like(x)
        moved[bead, axis] = 1e-5
        up, down = (evaluate(TERMS[term], x + d)[0].sum() for d in (moved, -moved))
        assert gradient[bead, axis] == pytest.approx((up - down) / 2e-5, rel=1e-6, abs=1e-8)


def test_a_right_handed_helix_has_a_positive_dihedral_and_its_image_another_energy():
    assert np.rad2deg(dihedral(helix(), 0)) == pytest.approx(50.0, abs=3.0)
    at_helix = PriorsConfig(weights=ONE, k_dih=(1.0,), gamma_dih=(dihedral(helix(), 0) - np.pi,))
    right, _ = evaluate(at_helix, helix())
    left, _ = evaluate(at_helix, helix() * [1, 1, -1])
    assert right.sum() == pytest.approx(0.0, abs=1e-9)  # the minimum of every one of its terms
    assert left.sum() > 1.0


@pytest.mark.parametrize("at", [0.0, 1.7, 1e4], ids=["origin", "inside", "far"])
def test_padding_changes_nothing(at):
    x = chain(beads=7)
    x -= x[0]  # a real bead at the origin
    beads, gradient = evaluate(ALL, x)
    padded = np.concatenate([x, np.full((3, 3), at)])
    beads2, gradient2 = evaluate(ALL, padded, np.arange(10) < 7)
    np.testing.assert_allclose(beads2[:7], beads, rtol=1e-12)
    np.testing.assert_allclose(gradient2[:7], gradient, rtol=1e-9, atol=1e-12)
    assert not beads2[7:].any() and not gradient2[7:].any()


@pytest.mark.parametrize("beads", [1, 2, 3, 4])
def test_short_chains_have_the_terms_they_have_beads_for(beads):
    x = chain(beads)
    plain = plain_terms(x)
    for term, config in TERMS.items():
        np.testing.assert_allclose(evaluate(config, x)[0], plain[term], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_undefined_geometry_gives_finite_energies_and_forces(term, dtype):
    straight = np.arange(10.0)[:, None] * [3.8, 0.0, 0.0]
    folded = straight * 0 + np.array([0.0, 3.8])[np.arange(10) % 2, None] * [1.0, 0.0, 0.0]
    coincident = np.zeros((10, 3))
    with enable_x64(dtype == np.float64):
        for x in (straight, folded, coincident):
            (_, beads), gradient = function(TERMS[term])(jnp.asarray(x, dtype), jnp.ones(10, bool))
            assert beads.dtype == gradient.dtype == dtype
            assert np.isfinite(beads).all() and np.isfinite(gradient).all()


def test_undefined_geometry_gives_finite_gradients_of_forces():
    """By positions and by parameters: what training with ``train_priors`` needs."""
    priors, real = ChainPriors(ALL), jnp.arange(10) < 8

    def loss(params: Any, x: Any) -> Any:
        def energy(y: Any) -> Any:
            return priors.per_bead_energy(params, y, real, jnp.zeros(10, jnp.int32)).sum()

        return jnp.square(jax.grad(energy)(x)).sum()

    gradients = compile_fast(jax.grad(loss, argnums=(0, 1)))
    straight = np.arange(10.0)[:, None] * [3.8, 0.0, 0.0]
    flat = np.stack([3.3 * np.arange(10), 1.9 * (np.arange(10) % 2), np.zeros(10)], axis=-1)
    for x in (straight, flat, np.zeros((10, 3)), chain()):
        found = gradients(priors.init(), jnp.asarray(x, jnp.float32))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_members_of_an_ensemble_have_parameters_of_their_own():
    """One mapped function over stacked parameters."""
    priors, x = ChainPriors(ALL), jnp.asarray(chain(), jnp.float32)
    arguments = (x, jnp.ones(10, bool), jnp.zeros(10, jnp.int32))
    one = priors.init()
    two = {key: 1.1 * value for key, value in one.items()}
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, two)
    both = jax.vmap(lambda params: priors.per_bead_energy(params, *arguments))(stacked)
    for got, params in zip(both, (one, two), strict=True):
        np.testing.assert_allclose(got, priors.per_bead_energy(params, *arguments), rtol=1e-5)
    assert not np.allclose(both[0], both[1])


def test_energy_ignores_rotation_and_translation():
    x = chain()
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    turn *= np.linalg.det(turn)
    beads, gradient = evaluate(ALL, x)
    beads2, gradient2 = evaluate(ALL, x @ turn.T + [1.0, 2.0, 3.0])
    np.testing.assert_allclose(beads2, beads, rtol=1e-9)
    np.testing.assert_allclose(gradient2, gradient @ turn.T, atol=1e-9)


def test_frames_of_a_batch_do_not_see_each_other():
    x = np.stack([chain(seed=seed) for seed in range(3)])
    real = np.arange(10) < np.array([[10], [6], [3]])
    with enable_x64():
        priors, species = ChainPriors(ALL), jnp.zeros(real.shape, jnp.int32)
        arguments = (priors.init(float), jnp.asarray(x), jnp.asarray(real), species)
        batch = np.asarray(priors.per_bead_energy(*arguments))
    for one, frame, mask in zip(batch, x, real, strict=True):
        np.testing.assert_allclose(one, evaluate(ALL, frame, mask)[0], rtol=1e-9)


def test_the_number_of_beads_may_be_symbolic():
    (n,) = export.symbolic_shape("n")
    exported = export.export(function(ALL))(
        jax.ShapeDtypeStruct((n, 3), np.float32), jax.ShapeDtypeStruct((n,), np.bool_)
    )
    for beads in (3, 10):
        x = jnp.asarray(chain(beads), jnp.float32)
        (_, got), _ = exported.call(x, jnp.ones(beads, bool))
        np.testing.assert_allclose(got, evaluate(ALL, np.asarray(x, float))[0], rtol=1e-4)


@pytest.fixture(scope="module")
def force_gradients() -> dict[bool, Any]:
    """Gradients of a force loss by all parameters, of a network with priors."""
    model = make_model((0, 1, "o3"), PRIORS)
    positions, species = beads_of_model()
    # all bonds of this chain have the length r0: stretched, so that kr matters
    frames = frames_of(1.05 * positions, species, dtype=np.float32)
    params = model.init(jax.random.key(0), frames)
    found = {}
    for trained in (True, False):
        chosen = dataclasses.replace(model, train_priors=trained)
        found[trained] = compile_fast(force_gradient(chosen))(params, frames)
    return found


def test_training_the_priors_reaches_each_of_their_numbers(force_gradients):
    gradients = force_gradients[True]["priors"]
    assert set(gradients) == {
        *("r0", "kr", "a", "b", "k_dih", "gamma_dih"),
        *("epsilon", "sigma", "epsilon_ex", "sigma_ex"),
    }
    for key, value in gradients.items():
        assert np.isfinite(value).all() and np.abs(value).min() > 1e-6, key


def test_priors_that_are_not_trained_get_no_gradient_and_the_network_the_same(force_gradients):
    trained, fixed = force_gradients[True], force_gradients[False]
    assert not any(np.asarray(value).any() for value in fixed["priors"].values())
    for one, two in zip(*(jax.tree.leaves(g["network"]) for g in (trained, fixed)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    assert any(np.asarray(x).any() for x in jax.tree.leaves(fixed["network"]))


def test_a_term_without_weight_has_no_numbers_to_train():
    weights = PriorWeights(bond=0.0, dihedral=0.0)
    config = PriorsConfig(weights=weights, r0=3.8, kr=1.0, a=A, b=B, k_dih=K, gamma_dih=GAMMA)
    assert set(ChainPriors(config).init()) == {"a", "b"}


def test_the_other_dihedral_sign_is_the_potential_of_the_mirror_image() -> None:
    def energy(sign: int, hand: int) -> float:
        config = PriorsConfig(
            k_dih=(0.5, 0.2),
            gamma_dih=(0.3, -1.0),
            dihedral_sign=sign,  # type: ignore[arg-type]
        )
        priors, R = ChainPriors(config), jnp.asarray(helix() * [1, hand, 1])
        real, species = jnp.ones(len(R), bool), jnp.zeros(len(R), jnp.int32)
        return float(priors.per_bead_energy(priors.init(), R, real, species).sum())

    assert energy(-1, 1) == pytest.approx(energy(1, -1), rel=1e-5)
    assert energy(-1, 1) != pytest.approx(energy(1, 1), rel=1e-2)
