"""Trajectories from elsewhere, held against the data: matched by their beads, measured alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from report_tools import with_results
from scipy.stats import wasserstein_distance

from ensq.cli import cli
from ensq.data import Data
from ensq.dynamics import given
from ensq.dynamics.given import Given, compared
from ensq.errors import DataError
from ensq.report import build, known
from ensq.simulation import Distribution

NAMES = ("ALA", "GLY", "TRP")
KINDS = np.array([0, 1, 2, 1, 0, 2])
DATA, TRAJECTORY = Path("data.npz"), Path("run.extxyz")


def chain(frames: int, length: float, seed: int) -> np.ndarray:
    """[T,6,3] random chains with bonds of about one length."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(frames, 6, 3))
    steps *= rng.normal(length, 0.05, (frames, 6, 1)) / np.linalg.norm(
        steps, axis=-1, keepdims=True
    )
    return np.cumsum(steps, axis=1)


def frames_of(R: np.ndarray, first: int = 0, places: int = 6, **more: Any) -> Data:
    """Frames whose beads stand from ``first`` on among ``places``; padding lies at the origin."""
    wide = np.zeros((len(R), places, 3))
    mask, species = np.zeros((len(R), places), bool), np.zeros((len(R), places), np.int32)
    wide[:, first : first + 6], mask[:, first : first + 6] = R, True
    species[:, first : first + 6] = KINDS
    plain = {"F": None, "U": None, "replica": None, "species_names": NAMES}
    return Data(**{"R": wide, "mask": mask, "species": species, **plain, **more})


def reading(**files: Data) -> Any:
    """As much of an ensemble as is needed: it reads files that are not there."""
    return SimpleNamespace(
        species_names=NAMES,
        elements=False,
        read=lambda path: files[path.stem],
    )


def test_a_trajectory_is_measured_as_the_data_are() -> None:
    """Its file has no padding where that of the data has some; bonds are longer by 0.3 Angstrom."""
    ours, theirs = chain(200, 3.8, 1), chain(120, 4.1, 2)
    found = compared(
        reading(data=frames_of(ours, places=8), run=frames_of(theirs)), DATA, TRAJECTORY
    )
    assert (found.source, found.frames) == ("run.extxyz", 120)
    by_label = {one.label: one for one in found.distributions}
    assert set(by_label) == {
        *("bond", "angle", "dihedral", "distance i, i+4", "end to end", "radius of gyration")
    }
    bond = by_label["bond"]
    mine = np.linalg.norm(np.diff(theirs, axis=1), axis=-1).ravel()
    other = np.linalg.norm(np.diff(ours, axis=1), axis=-1).ravel()
    assert (bond.n_simulation, bond.n_data) == (mine.size, other.size)
    drawn = np.histogram(mine, bond.edges, density=True)[0]
    np.testing.assert_allclose(bond.simulation, drawn, rtol=1e-9)
    width = bond.edges[1] - bond.edges[0]
    assert bond.wasserstein == pytest.approx(wasserstein_distance(mine, other), abs=width)
    assert bond.differs
    assert not by_label["angle"].differs
    mass = np.array([71.08, 57.05, 186.21])[KINDS]
    centre = (mass[:, None] * theirs).sum(axis=1, keepdims=True) / mass.sum()
    rg = np.sqrt((mass * np.square(theirs - centre).sum(axis=-1)).sum(axis=1) / mass.sum())
    drawn = np.histogram(rg, by_label["radius of gyration"].edges, density=True)[0]
    np.testing.assert_allclose(by_label["radius of gyration"].simulation, drawn, rtol=1e-9)


def test_other_molecules_and_boxes_are_refused() -> None:
    ours = frames_of(chain(50, 3.8, 1))
    turned = replace(ours, species=ours.species[:, ::-1])
    with pytest.raises(DataError, match=r"run.extxyz: no frame has the beads of a molecule of"):
        compared(reading(data=ours, run=turned), DATA, TRAJECTORY)
    boxed = replace(ours, cell=np.tile(30.0 * np.eye(3), (50, 1, 1)))
    with pytest.raises(DataError, match=r"run.extxyz: has a periodic cell"):
        compared(reading(data=ours, run=boxed), DATA, TRAJECTORY)


def a_distribution() -> Distribution:
    edges = np.linspace(3.0, 5.0, 5)
    return Distribution(
        molecule="",
        kind="bond",
        label="bond",
        unit="Angstrom",
        edges=edges,
        simulation=np.array([0.0, 1.5, 0.5, 0.0]),
        data=np.array([0.2, 0.8, 0.8, 0.2]),
        n_simulation=100,
        n_data=200,
        js=0.2,
        js_interval=(0.15, 0.25),
        js_noise=(0.01, 0.02),
        wasserstein=0.11,
        wasserstein_interval=(0.1, 0.12),
        wasserstein_noise=None,
    )


def test_the_report_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, ensemble = with_results(tmp_path, (4.0, 2.25))
    one = Given(source="<run>.extxyz", frames=1234, distributions=(a_distribution(),))
    made = build.make(known.from_store(store, ensemble), [], "report", given=[one])
    assert "The trajectory &lt;run&gt;.extxyz" in made.html and "1,234 frames" in made.html
    csv = made.files["report-distributions-trajectory-1.csv"].decode().splitlines()
    assert csv[0] == "coordinate,unit,from,to,trajectory,data"
    assert csv[2] == "bond,Angstrom,3.5,4.0,1.5,0.8"
    asked: list[Any] = []
    monkeypatch.setattr(given, "compared", lambda *what: asked.append(what[1:]) or one)
    where = ("--db", str(tmp_path / "ensq.db"), "--no-evaluate", "--trajectory", "run.extxyz")
    done = CliRunner().invoke(cli, ["report", ensemble.name, *where])
    assert done.exit_code == 0, done.output
    assert asked == [(store.root / ensemble.data_path, Path("run.extxyz"))]
    assert (tmp_path / ensemble.run_path / "analysis/report/report.html").exists()
