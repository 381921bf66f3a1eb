"""Langevin dynamics against theory: simple potentials of the test's own, through the same step."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

from ensq.train.compat import enable_x64

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import simulate

from ensq.train.dynamics import Limits, Settings, step
from ensq.units import boltzmann, time_unit

K, M = 60.0, 100.0  # force constant in kcal/mol/Angstrom^2, mass in u
WEAK = 2.0  # the same, between beads


@pytest.fixture(autouse=True)
def double() -> Any:
    with enable_x64(True):
        yield


def spring(position: Any, beads: Any, layout: Any) -> Any:
    """1/2 K x^2 for each bead."""
    energy = 0.5 * K * jnp.where(beads.mask > 0, jnp.square(position).sum(-1), 0.0).sum(-1)
    return energy, -K * position * beads.mask[..., None], jnp.zeros(position.shape[:2])


def free(position: Any, beads: Any, layout: Any) -> Any:
    return position[:, 0, 0] * 0.0, position * 0.0, jnp.zeros(position.shape[:2])


def quartic(position: Any, beads: Any, layout: Any) -> Any:
    """Coupled and not harmonic: 1/4 x^4 of each coordinate, springs between neighbours."""
    bond = position[:, 1:] - position[:, :-1]
    energy = 0.25 * (position**4).sum((1, 2)) + 0.5 * WEAK * (bond**2).sum((1, 2))
    force = -(position**3)
    force = force.at[:, :-1].add(WEAK * bond).at[:, 1:].add(-WEAK * bond)
    return energy, force, jnp.zeros(position.shape[:2])


def no_limits(replicas: int) -> Limits:
    none = np.zeros((replicas, 0))
    return Limits(
        bonds=np.zeros((replicas, 0, 2), int),
        used=none > 0,
        low=none,
        high=none,
        energy_low=np.full(replicas, -np.inf),
        energy_high=np.full(replicas, np.inf),
        kinetic=np.full(replicas, np.inf),
        epsilon=np.full(replicas, np.inf),
    )


def settings(timestep: float, friction: float, temperature: float = 300.0) -> Settings:
    return Settings(
        temperature=temperature, timestep=timestep, friction=friction, seed=3, unit="kcal/mol"
    )


@functools.cache
def programs(forces: Any) -> tuple[Any, Any]:
    return jax.jit(partial(step.begin, forces)), jax.jit(partial(step.advance, forces))


class Run:
    """A walk with its program."""

    def __init__(
        self,
        forces: Any,
        made: Settings,
        position: Any,
        mask: Any = None,
        limits: Limits | None = None,
        mass: Any = M,
    ) -> None:
        position = jnp.asarray(position)
        replicas, beads = position.shape[:2]
        mask = jnp.ones((replicas, beads)) if mask is None else jnp.asarray(mask)
        self.beads = step.Beads(jnp.zeros((replicas, beads), jnp.int32), mask)
        none = jnp.zeros((replicas, beads, 1), jnp.int32)
        self.layout = step.Layout(none, none, none, None, position, jnp.asarray(jnp.inf))
        self.limits = no_limits(replicas) if limits is None else limits
        begin, self.advance = programs(forces)
        self.bath = made.bath(float)
        self.walk = begin(
            self.bath,
            position,
            jnp.broadcast_to(jnp.asarray(mass, float), mask.shape),
            self.beads,
            self.layout,
            self.limits,
        )

    def on(self, steps: int) -> step.Walk:
        self.walk, made = self.advance(
            self.bath,
            self.walk,
            self.beads,
            self.layout,
            self.limits,
            jnp.asarray(steps, jnp.int32),
        )
        assert made == steps
        return self.walk


def discrete_variances(timestep: float, friction: float) -> tuple[float, float]:
    """<x^2> and <p^2>/m that BAOAB has for this spring, from its step as a 2x2 matrix: S = A S A^T
    + noise."""
    kT, unit = boltzmann("kcal/mol") * 300.0, time_unit("kcal/mol")
    h, gamma = timestep / unit, friction * 1e-3 * unit
    B = np.array([[1.0, 0.0], [-K * h / 2, 1.0]])  # of (x, p)
    A = np.array([[1.0, h / 2 / M], [0.0, 1.0]])
    c = np.exp(-gamma * h)
    O_ = np.diag([1.0, c])
    noise = B @ A @ np.diag([0.0, M * kT * (1 - c * c)]) @ A.T @ B.T
    whole = B @ A @ O_ @ A @ B
    big = np.eye(4) - np.kron(whole, whole)
    variance = np.linalg.solve(big, noise.ravel()).reshape(2, 2)
    return variance[0, 0], variance[1, 1] / M


@pytest.mark.parametrize("timestep", [5.0, 30.0, 60.0])
def test_a_spring_has_the_width_and_the_temperature_of_theory(timestep: float) -> None:
    """The width is kT/k at any time step (Leimkuhler and Matthews, J. Chem. Phys. 138, 174102
    (2013)); the kinetic temperature falls short by (h w)^2/4."""
    kT = boltzmann("kcal/mol") * 300.0
    width, heat = discrete_variances(timestep, 20.0)
    assert width == pytest.approx(kT / K, rel=1e-9)
    hw = timestep / time_unit("kcal/mol") * np.sqrt(K / M)
    assert heat == pytest.approx(kT * (1 - hw * hw / 4), rel=1e-9)
    start = np.random.default_rng(0).normal(0, np.sqrt(kT / K), (32, 25, 3))
    run = Run(spring, settings(timestep, 20.0), start)
    squares, heats = [], []
    for _ in range(40):
        walk = run.on(max(1, int(200 / timestep)))  # about four times 1/gamma
        squares.append(float(jnp.square(walk.md.position).mean()))
        heats.append(float((jnp.square(walk.md.momentum) / M).mean()))
    # 32 * 25 * 3 * 40 values, of which some are correlated: about 0.7 % of error
    assert np.mean(squares) == pytest.approx(width, rel=0.03)
    assert np.mean(heats) == pytest.approx(heat, rel=0.03)


def test_a_free_bead_diffuses_as_einstein_says() -> None:
    """<x^2> = 2 D (t - (1 - exp(-gamma t)) / gamma), D = kT / (m gamma), from thermal momenta."""
    friction, timestep, steps = 5.0, 10.0, 300  # 3 ps: 15 relaxation times
    start = np.zeros((200, 20, 3))
    walk = Run(free, settings(timestep, friction), start).on(steps)
    # in SI: Angstrom^2/ps^2 are 1e4 m^2/s^2
    kT_over_m = 8.31446261815324 * 300.0 / (M * 1e-3) / 1e4
    t = steps * timestep * 1e-3
    wanted = 2 * kT_over_m / friction * (t - (1 - np.exp(-friction * t)) / friction)
    found = float(jnp.square(walk.md.position).mean())
    assert found == pytest.approx(wanted, rel=0.04)  # 12,000 values: 1.3 % of error


def test_without_friction_the_energy_error_falls_with_the_square_of_the_time_step() -> None:
    start = np.random.default_rng(1).normal(size=(2, 4, 3))
    errors = []
    for timestep in (4.0, 2.0, 1.0):
        run = Run(quartic, settings(timestep, 0.0), start)
        energies = []
        for _ in range(20):
            walk = run.on(int(20 / timestep))
            energies.append(np.asarray(walk.energy + step.kinetic_energy(walk, run.beads)))
        errors.append(np.abs(np.diff(energies, axis=0)).max())
    ratios = np.array(errors[:-1]) / errors[1:]
    np.testing.assert_allclose(ratios, 4.0, rtol=0.15)


def test_without_friction_it_is_the_same_steps_in_numpy() -> None:
    rng = np.random.default_rng(2)
    start, mass = rng.normal(size=(2, 4, 3)), rng.uniform(5, 50, (2, 4))
    made = settings(3.0, 0.0)
    run = Run(quartic, made, start, mass=mass)
    x, p = start.copy(), np.asarray(run.walk.md.momentum)
    h = 3.0 / np.sqrt(1e4 / 4.184)

    def force(x: Any) -> Any:
        bond = x[:, 1:] - x[:, :-1]
        found = -(x**3)
        found[:, :-1] += WEAK * bond
        found[:, 1:] -= WEAK * bond
        return found

    for _ in range(200):
        p = p + h / 2 * force(x)
        x = x + h * p / mass[..., None]
        p = p + h / 2 * force(x)
    walk = run.on(200)
    np.testing.assert_allclose(walk.md.position, x, rtol=0, atol=1e-10)
    np.testing.assert_allclose(walk.md.momentum, p, rtol=0, atol=1e-9)


def test_with_friction_it_is_the_sampler_of_jax_md() -> None:
    start = np.random.default_rng(4).normal(size=(2, 4, 3))
    made = settings(3.0, 4.0)
    run = Run(quartic, made, start)
    first = run.walk.md
    _, theirs = simulate.nvt_langevin(
        lambda x, **_: quartic(x[None], None, None)[1][0],
        lambda x, by, **_: x + by,
        made.dt,
        made.kT,
        gamma=made.gamma,
    )
    states = [jax.tree_util.tree_map(lambda leaf, k=k: leaf[k], first) for k in range(2)]
    for _ in range(30):
        states = [theirs(state) for state in states]
    walk = run.on(30)
    for k, state in enumerate(states):
        np.testing.assert_allclose(walk.md.position[k], state.position, rtol=0, atol=1e-11)


def test_momenta_are_drawn_for_the_temperature_and_padding_has_none() -> None:
    mask = np.ones((200, 20))
    mask[:, 16:] = 0
    run = Run(free, settings(1.0, 1.0), np.zeros((200, 20, 3)), mask)
    p = np.asarray(run.walk.md.momentum)
    assert (p[:, 16:] == 0).all()
    kT = boltzmann("kcal/mol") * 300.0
    assert (p[:, :16] ** 2).mean() / M == pytest.approx(kT, rel=0.04)  # 9,600 values
    kinetic = step.kinetic_energy(run.walk, run.beads)
    assert float(kinetic.mean()) == pytest.approx(1.5 * 16 * kT, rel=0.04)


def test_padding_stays_where_it_is_and_counts_for_nothing() -> None:
    start = np.random.default_rng(5).normal(size=(3, 5, 3))
    mask = np.ones((3, 5))
    mask[1, 3:] = 0
    start[1, 3:] = 7.0
    run = Run(spring, settings(5.0, 3.0), start, mask)
    walk = run.on(50)
    assert (np.asarray(walk.md.position)[1, 3:] == 7.0).all()
    assert (np.asarray(walk.md.position)[0] != start[0]).all()


def test_replicas_draw_their_own_numbers_whatever_the_others_are() -> None:
    start = np.random.default_rng(6).normal(size=(3, 5, 3))
    start[1] = start[0]
    whole = Run(spring, settings(5.0, 3.0), start).on(40).md.position
    fewer = Run(spring, settings(5.0, 3.0), start[:2]).on(40).md.position
    np.testing.assert_array_equal(np.asarray(whole[:2]), np.asarray(fewer))
    assert (np.asarray(whole[0]) != np.asarray(whole[1])).all()
    again = Run(spring, settings(5.0, 3.0), start).on(40).md.position
    assert np.asarray(again).tobytes() == np.asarray(whole).tobytes()


def cliff(position: Any, beads: Any, layout: Any) -> Any:
    """A spring whose forces are no numbers beyond x = 5."""
    energy, force, epsilon = spring(position, beads, layout)
    over = (position[..., 0] > 5.0).any(-1)
    energy = jnp.where(over, jnp.nan, energy)
    return energy, jnp.where(over[:, None, None], jnp.nan, force), epsilon


def thrown() -> tuple[Any, Any]:
    """Replica 1 of 3 is going to pass the cliff; the same without it."""
    start = np.random.default_rng(7).normal(size=(3, 5, 3))
    bad = start.copy()
    bad[1, 2, 0] = -6.0  # swings through to the other side
    return start, bad


def test_a_replica_that_is_no_number_is_stopped_and_the_others_keep_their_bits() -> None:
    start, bad = thrown()
    sound = Run(cliff, settings(5.0, 0.5), start).on(200)
    walk = Run(cliff, settings(5.0, 0.5), bad).on(200)
    assert walk.reason.tolist() == [0, step.NOT_FINITE, 0]
    assert walk.alive.tolist() == [True, False, True]
    assert walk.done.tolist()[::2] == [200, 200] and 0 < int(walk.done[1]) < 200
    for leaf, theirs in zip(
        *(jax.tree_util.tree_leaves(one) for one in (walk, sound)), strict=True
    ):
        assert np.isfinite(np.asarray(leaf)).all()
        assert np.asarray(leaf)[::2].tobytes() == np.asarray(theirs)[::2].tobytes()
    # where it stands, it stood after its last good step
    alone = Run(cliff, settings(5.0, 0.5), bad)
    before = alone.on(int(walk.done[1]))
    np.testing.assert_array_equal(before.md.position[1], walk.md.position[1])


def test_without_the_stop_that_replica_would_be_no_number() -> None:
    """The negative control of the test above: the plain sampler runs into NaN."""
    _, bad = thrown()
    made = settings(5.0, 0.5)
    init, theirs = simulate.nvt_langevin(
        lambda x, **_: cliff(x[None], step.Beads(None, jnp.ones((1, 5))), None)[1][0],
        lambda x, by, **_: x + by,
        made.dt,
        made.kT,
        gamma=made.gamma,
    )
    state = init(jax.random.PRNGKey(0), jnp.asarray(bad[1]), mass=M)
    for _ in range(200):
        state = theirs(state)
    assert not np.isfinite(np.asarray(state.position)).all()


def uncertain(position: Any, beads: Any, layout: Any) -> Any:
    """A spring; epsilon is how far off a bead is along x."""
    energy, force, _ = spring(position, beads, layout)
    return energy, force, jnp.abs(position[..., 0])


LIMITS: dict[str, tuple[str, Any, int]] = {
    "bond": ("bond", {"high": 0.35}, step.BOND),
    "energy": ("energy_high", 5.0, step.ENERGY),
    "low energy": ("energy_low", 5.0, step.ENERGY),
    "kinetic": ("kinetic", 1e-3, step.TEMPERATURE),
    "epsilon": ("epsilon", 0.15, step.EPSILON),
}


@pytest.mark.parametrize("case", LIMITS)
def test_each_limit_stops_the_replica_that_passes_it_and_says_which(case: str) -> None:
    """Replica 1 has the limit, replica 0 has none."""
    limits = no_limits(2)
    name, value, code = LIMITS[case]
    if name == "bond":
        limits = limits._replace(
            bonds=np.array([[[0, 1], [1, 2]]] * 2),
            used=np.array([[False, False], [False, True]]),
            low=np.zeros((2, 2)),
            high=np.full((2, 2), value["high"]),
        )
    else:
        limits = limits._replace(**{name: np.array([getattr(limits, name)[0], value])})
    start = np.zeros((2, 3, 3))
    start[:, 2, 0] = 0.5 if case == "low energy" else 0.1  # 7.5 or 0.3 kcal/mol
    walk = Run(uncertain, settings(10.0, 1.0), start, limits=limits).on(400)
    assert walk.reason.tolist() == [0, code]
    if code == step.BOND:
        assert int(walk.which[1]) == 1 and float(walk.value[1]) > 0.35
    if code == step.EPSILON:
        assert float(walk.value[1]) > 0.15


def test_beads_that_overlap_stop_their_replica_and_pairs_that_are_not_watched_do_not() -> None:
    """Replica 0 watches beads 0 and 1, which stay apart; replica 1 beads 0 and 2, which meet."""
    start = np.zeros((2, 3, 3))
    start[:, 1, 1], start[:, 2, 0] = 5.0, 0.3
    run = Run(free, settings(1.0, 0.0, temperature=1e-6), start)
    near = jnp.broadcast_to(jnp.array([[1, 2], [0, 2], [0, 1]]), (2, 3, 2))
    watched = np.zeros((2, 3, 2), bool)
    watched[0, 0, 0] = watched[0, 1, 0] = watched[1, 0, 1] = watched[1, 2, 0] = True
    run.layout = run.layout._replace(nbr=near, free=jnp.asarray(watched))
    assert run.on(2).reason.tolist() == [0, 0]  # no limit yet: the negative control
    np.testing.assert_allclose(run.walk.nearest, [5.0, 0.3], rtol=1e-4)
    run.limits = run.limits._replace(contact=jnp.array([0.5, 0.5]))
    walk = run.on(2)
    assert walk.reason.tolist() == [0, step.CONTACT]
    assert float(walk.value[1]) == pytest.approx(0.3, rel=1e-3)
    assert sorted(divmod(int(walk.which[1]), 3)) == [0, 2]


def test_a_bead_that_moves_too_far_in_one_step_stops_its_replica() -> None:
    walk = Run(free, settings(400.0, 0.0, temperature=3000.0), np.zeros((2, 5, 3))).on(3)
    assert walk.reason.tolist() == [step.MOVED] * 2 and float(walk.value[0]) > step.FARTHEST
    assert walk.done.tolist() == [0, 0] and (np.asarray(walk.md.position) == 0).all()


def test_a_bead_that_outruns_its_neighbours_in_one_step_is_stopped_not_waited_for() -> None:
    """New neighbours would be too old again, for ever."""
    run = Run(free, settings(10.0, 0.0), np.zeros((2, 5, 3)))
    run.layout = run.layout._replace(reach=jnp.asarray(1e-3))
    assert run.on(2).reason.tolist() == [step.MOVED] * 2


def test_old_neighbours_end_the_run_before_the_step_that_they_would_be_wrong_for() -> None:
    run = Run(free, settings(10.0, 0.0), np.zeros((2, 5, 3)))
    run.layout = run.layout._replace(reach=jnp.asarray(0.3))
    walk, made = run.advance(
        run.bath,
        run.walk,
        run.beads,
        run.layout,
        run.limits,
        jnp.asarray(500, jnp.int32),
    )
    assert 0 < int(made) < 500 and walk.done.tolist() == [int(made)] * 2
    far = np.linalg.norm(np.asarray(walk.md.position), axis=-1).max()
    a_step = (
        np.linalg.norm(np.asarray(walk.md.momentum), axis=-1).max()
        / M
        * 10.0
        / time_unit("kcal/mol")
    )
    assert far <= 0.3 < far + a_step + 1e-12
