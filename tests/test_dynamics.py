"""Dynamics checks with an ensemble: neighbours on the way, explosions, files, the command."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

from ensq.train.compat import enable_x64

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ensemble_tools import with_losses

from ensq import data, simulation, trained
from ensq.cli import cli
from ensq.cli.simulate import Ticker
from ensq.dynamics import trajectory
from ensq.dynamics.options import Options
from ensq.dynamics.running import Found, simulate
from ensq.ensemble import LoadedEnsemble
from ensq.errors import UsageError
from ensq.train import checkpoint
from ensq.train.dynamics import Dynamics, Limits, Settings

MASSES = {"": 12.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue with two members whose parameters differ by their seeds."""
    folder = tmp_path_factory.mktemp("dynamics")
    store, _ = with_losses(folder, [1.0, 2.0])
    store.close()
    return folder


@pytest.fixture(scope="module")
def members(folder: Path) -> trained.Members:
    return trained.find("tiny", str(folder / "ensq.db"))


@pytest.fixture(scope="module")
def ensemble(members: trained.Members) -> LoadedEnsemble:
    """In float32, with programs that the tests share."""
    return LoadedEnsemble(members)


class Pairs:
    """A model that repels neighbours, k (1 - r^2/c^2)^3: what Dynamics takes for a predictor."""

    cutoff, priors, dtype = 4.0, None, "float64"

    def __init__(self) -> None:
        self.model, self.params = self, np.array([3.0, 5.0])  # of two members

    def precision(self) -> Any:
        return enable_x64(True)

    def energy_and_forces(self, params: Any, frames: Any) -> Any:
        def total(R: Any) -> Any:
            vector = jax.vmap(lambda one, place: one[place])(R, frames.nbr) - R[:, :, None]
            if frames.offset is not None:
                vector = vector + frames.offset
            share = 1.0 - jnp.square(vector).sum(-1) / self.cutoff**2
            energy = jnp.where((frames.nbr_mask > 0) & (share > 0), params * share**3, 0.0)
            return 0.5 * energy.sum(), 0.5 * energy.sum((1, 2))

        gradient, energy = jax.grad(total, has_aux=True)(frames.R)
        return energy, -gradient


@pytest.fixture(scope="module")
def double() -> Any:
    return Pairs()


def no_limits(replicas: int) -> Limits:
    none, never = np.zeros((replicas, 0)), np.full(replicas, np.inf)
    bonds = np.zeros((replicas, 0, 2), int)
    return Limits(bonds, none > 0, none, none, -never, never, never, never)


def gas(replicas: int, beads: int, cell: float | None = None) -> data.Data:
    """Beads on a grid with a little noise, 3 Angstrom apart, the last two of them padding."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[:beads]
    mask = np.ones((replicas, beads), bool)
    mask[:, -2:] = False
    R = 3.0 * grid + rng.normal(0, 0.2, (replicas, beads, 3))
    box = None if cell is None else np.tile(np.eye(3) * cell, (replicas, 1, 1))
    return data.Data(
        R=np.where(mask[..., None], R, 0.0),
        F=None,
        U=None,
        species=np.where(mask, rng.integers(0, 3, (replicas, beads)), 0).astype(np.int32),
        mask=mask,
        replica=None,
        species_names=("A", "B", "C"),
        cell=box,
    )


def begun(predictor: Any, starts: data.Data, **options: Any) -> Dynamics:
    return Dynamics(
        predictor,
        starts,
        Settings(temperature=900.0, timestep=4.0, friction=1.0, seed=0, unit="kcal/mol"),
        np.full(starts.mask.shape, 12.0),
        no_limits(starts.n_frames),
        **options,
    )


def walked(predictor: Any, starts: data.Data, steps: int, **options: Any) -> Any:
    """Final positions, and the dynamics."""
    dynamics = begun(predictor, starts, **options)
    *_, last = dynamics.looks(steps, steps)
    assert last.done.tolist() == [steps] * starts.n_frames
    return last.position, dynamics


def test_neighbours_on_the_way_are_those_of_all_pairs(
    double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = gas(2, 18)
    wanted, _ = walked(double, starts, 250, all_pairs=True)
    found, dynamics = walked(double, starts, 250, skin=1.0, all_pairs=False)
    assert dynamics.rebuilt > 3
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8)
    assert (found[:, -2:] == 0).all(), "padding has moved"
    # the negative control: neighbours that are never found again give something else
    keep = Dynamics._neighbours

    def once(self: Any, position: Any) -> Any:
        return keep(self, position)._replace(reach=jnp.asarray(np.inf))

    monkeypatch.setattr(Dynamics, "_neighbours", once)
    wrong, dynamics = walked(double, starts, 250, skin=1.0, all_pairs=False)
    assert dynamics.rebuilt == 1
    assert np.abs(wrong - wanted).max() > 1e-4


def test_a_row_of_neighbours_that_gets_too_short_grows(double: Any) -> None:
    """Beads that start far from each other and are then put together."""
    starts = gas(2, 18)
    apart = dataclasses.replace(starts, R=2.0 * starts.R)
    dynamics = begun(double, apart, skin=1.0, all_pairs=False)
    few = dynamics._width
    with dynamics.precision():
        layout = dynamics._neighbours(jnp.asarray(starts.R * 0.5))
    assert layout.nbr.shape[-1] == dynamics._width > few
    pairs = np.linalg.norm(0.5 * (starts.R[:, None] - starts.R[:, :, None]), axis=-1)
    near = (pairs < 5.0) & starts.mask[:, None] & starts.mask[:, :, None]
    assert int(np.asarray(layout.mask).sum()) == near.sum() - starts.mask.sum()


def test_periodic_images_are_followed_through_the_boundary(double: Any) -> None:
    """In a large box nothing changes, wherever the box cuts the beads apart."""
    starts = gas(2, 18)
    wanted, _ = walked(double, starts, 120, skin=1.0, all_pairs=False)
    boxed = dataclasses.replace(starts, cell=np.tile(np.eye(3) * 100.0, (2, 1, 1)))
    over = np.where(starts.R[..., :1] > 4.0, [100.0, 0.0, 0.0], 0.0) * starts.mask[..., None]
    for moved in (0.0 * over, over):
        found, dynamics = walked(
            double, dataclasses.replace(boxed, R=boxed.R - moved), 120, skin=1.0
        )
        np.testing.assert_allclose(found + moved, wanted, rtol=0, atol=1e-9)
        assert dynamics.rebuilt > 1
    # the negative control: without the box, what is cut apart stays apart
    apart = dataclasses.replace(starts, R=starts.R - over)
    found, _ = walked(double, apart, 120, skin=1.0, all_pairs=False)
    assert np.abs(found + over - wanted).max() > 1e-3


class Told:
    """A listener that ends the run after some looks."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.lines, self.seen = after, [], []  # type: ignore[var-annotated]

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, at: Any) -> None:
        self.seen.append(at)

    def stopped(self) -> bool:
        return self.after is not None and len(self.seen) >= self.after


def run(
    ensemble: LoadedEnsemble, folder: Path, listener: Told | None = None, **options: Any
) -> Found:
    made = Options(
        **{"temperature": 300.0, "masses": MASSES, "replicas": 3, "steps": 40, "every": 10}
        | {"timestep": 1.0}
        | options
    )
    return simulate(ensemble, folder / "tiny.npz", made, listener or Told())


def finite(found: simulation.Simulation) -> bool:
    return all(
        np.isfinite(getattr(found, name)).all()
        for name in ("time", "potential", "kinetic_temperature", "epsilon_max", "bonds")
    )


def test_a_check_from_frames_to_its_file(
    ensemble: LoadedEnsemble, folder: Path, tmp_path: Path
) -> None:
    told = Told()
    found = run(ensemble, folder, told).simulation
    assert found.stable and found.survived == 3 and finite(found)
    np.testing.assert_allclose(found.time, np.arange(5) * 0.01)
    assert found.steps_done.tolist() == [40, 40, 40]
    assert found.recorded.all()
    assert [at.step for at in told.seen] == [0, 10, 20, 30, 40]
    # the members' mean, and their disagreement, at the start
    frames = ensemble.read(folder / "tiny.npz")
    validated = np.sort(ensemble.members.results[0].validation_index)
    starts = frames.take(validated[[0, 4, 9]])
    predicted = ensemble.predict(starts)
    energy = predicted.energy_mean - ensemble.predictor.constant(starts)
    np.testing.assert_allclose(found.potential[0], energy, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.epsilon_max[0], predicted.epsilon_max, rtol=1e-3)
    path, _ = simulation.write(tmp_path / "simulation-tiny.npz", found)
    assert simulation.read(path).verdict == found.verdict
    assert found.verdict.startswith("Stable: all 3 replicas went on for 0.04 ps.")
    # frames have 4 to 6 beads: three molecules, of which some have replicas
    assert {one.molecule for one in found.distributions} <= set(found.molecules)
    assert {one.kind for one in found.distributions} >= {"bond", "angle", "dihedral", "rg"}


def test_one_seed_gives_one_trajectory_and_another_another(
    ensemble: LoadedEnsemble, folder: Path
) -> None:
    one, same, other = (
        run(ensemble, folder, seed=seed).trajectory.position.tobytes() for seed in (5, 5, 6)
    )
    assert one == same != other


def test_a_model_that_does_not_hold_its_molecules_is_caught_with_the_reason(
    ensemble: LoadedEnsemble, folder: Path
) -> None:
    """Untrained, it knows no bonds; with steps that are far too long beads jump."""
    for timestep, words in ((20.0, "the bond of beads "), (900.0, "a bead moved ")):
        found = run(ensemble, folder, timestep=timestep, steps=400)
        simulated = found.simulation
        assert not simulated.stable and simulated.survived == 0
        for why in simulated.reasons:
            assert why.startswith("after ") and f" ps {words}" in why, why
        assert "UNSTABLE: 3 of 3 replicas were stopped" in simulated.verdict
        assert finite(simulated) and np.isfinite(found.trajectory.position).all()
        assert len(simulated.time) < 41, "nobody went on, and the run did"


def test_epsilon_above_its_limit_stops_a_replica(ensemble: LoadedEnsemble, folder: Path) -> None:
    sound = run(ensemble, folder).simulation
    limit = float(np.sort(sound.epsilon_max[0])[1]) * 1.0001  # one replica begins above it
    found = run(ensemble, folder, max_epsilon=limit).simulation
    first = int(sound.epsilon_max[0].argmax())
    assert found.reasons[first].startswith("after 0 ps epsilon of bead ")
    assert found.steps_done[first] == 0
    assert found.recorded[:, first].tolist() == [True] + [False] * 4
    # whoever else goes on is not touched by it
    others = [k for k, why in enumerate(found.reasons) if not why]
    assert others
    assert (found.potential[:, others] == sound.potential[:, others]).all()


def test_an_interrupted_run_keeps_what_there_is(ensemble: LoadedEnsemble, folder: Path) -> None:
    found = run(ensemble, folder, Told(after=3))
    assert found.simulation.interrupted and "It was interrupted." in found.simulation.verdict
    assert found.simulation.time.tolist() == [0.0, 0.01, 0.02]
    whole = run(ensemble, folder)
    np.testing.assert_array_equal(found.trajectory.position, whole.trajectory.position[:3])


def test_padded_beads_and_short_chains_run_together(ensemble: LoadedEnsemble, folder: Path) -> None:
    sizes = ensemble.read(folder / "tiny.npz").mask[np.arange(40)].sum(axis=1)
    chosen = [int(np.flatnonzero(sizes == size)[0]) for size in (4, 5, 6)]
    found = run(ensemble, folder, frames=",".join(map(str, chosen))).trajectory
    assert found.mask.sum(axis=1).tolist() == [4, 5, 6]
    assert (found.position[:, ~found.mask] == 0).all()
    assert (found.position[-1][found.mask] != found.position[0][found.mask]).all()


def command(*arguments: Any) -> Any:
    return cli.main(["simulate", *map(str, arguments)], standalone_mode=False)


COMMON = ("--temperature", 300, "--mass", 12, "--replicas", 3, "--steps", 40, "--timestep", 1)


@pytest.fixture
def shared(ensemble: LoadedEnsemble, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes the programs that are compiled already, for the same members."""

    def same(found: trained.Members, dtype: str) -> LoadedEnsemble:
        assert dtype == ensemble.dtype and found.digests == ensemble.members.digests
        one = LoadedEnsemble(found, ensemble.dtype)
        one.__dict__["predictor"] = ensemble.predictor
        return one

    monkeypatch.setattr("ensq.ensemble.LoadedEnsemble", same)


@pytest.mark.parametrize("suffix", ["npz", "extxyz"])
def test_a_trajectory_is_a_data_file(
    ensemble: LoadedEnsemble, folder: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"t.{suffix}"
    found = run(ensemble, folder, every=20)
    trajectory.write(out, found.trajectory)
    keys = {"species": "bead"} if suffix == "extxyz" else {}
    frames = ensemble.read(out, keys=keys)
    assert frames.n_frames == 9  # three looks at each of three replicas
    constant = ensemble.predictor.constant(frames.take(np.arange(9)))
    energy = ensemble.predict(frames).energy_mean - constant
    np.testing.assert_allclose(energy, found.simulation.potential.T.ravel(), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("shared")
def test_the_command_takes_an_export_folder_alone(
    members: trained.Members, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "export"
    names = [f"tiny_ensemble_{k}.safetensors" for k in range(2)]
    files = {
        name: checkpoint.write_result(export / name, result)
        for name, result in zip(names, members.results, strict=True)
    }
    about = {"ensemble": "tiny", "member_files": names, "files": files}
    (export / "ensemble_metadata.json").write_text(json.dumps(about))
    out = tmp_path / "t.npz"
    assert command(export, folder / "tiny.npz", *COMMON, "-o", out) in (None, 0)
    said = capsys.readouterr()
    assert "survived: 3 of 3" in said.out and "0 of 3 exploded" in said.err
    lines = [line for line in said.out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    assert simulation.read(export / "analysis" / "simulation-tiny.npz").name == "tiny"
    with pytest.raises(UsageError, match="holds no data"):
        command(export, *COMMON)


@pytest.mark.usefixtures("shared")
def test_the_command_tells_explosions_by_its_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hot = (*COMMON, "--max-epsilon", 1e-9, "--label", "hot", "--db", folder / "ensq.db")
    assert command("tiny", *hot) == 1
    assert "UNSTABLE: 3 of 3" in capsys.readouterr().out
    assert command("tiny", *hot, "--allow-explosions", "--json") in (None, 0)
    told = json.loads(capsys.readouterr().out)
    assert told["stable"] is False and told["survived"] == 0


@pytest.mark.usefixtures("shared")
def test_ctrl_c_ends_the_run_with_what_there_is_and_75(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def progress(self: Ticker, at: Any) -> None:
        if at.step == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Ticker, "progress", progress)
    options = (*COMMON, "--every", 10, "--label", "stopped", "--db", folder / "ensq.db")
    assert command("tiny", *options) == 75
    assert "It was interrupted." in capsys.readouterr().out.replace("\n", " ")
    path = folder / "runs" / "tiny" / "analysis" / "simulation-stopped.npz"
    assert simulation.read(path).time.tolist() == [0.0, 0.01, 0.02]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    with Ticker() as ticker, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert ticker.stopped()
        signal.raise_signal(signal.SIGINT)
