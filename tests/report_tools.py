"""Ensembles for tests of the report: rows in a database, with no training behind them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert, update
from store_tools import LEASE, Clock, add, claim_of, fresh, register

from ensq import config as configuration
from ensq import evaluating, evaluation, schema
from ensq.calibration.samples import Energies, Forces, Frames, Observed
from ensq.jobs import Ensemble, EpochRecord, Result
from ensq.report import build, known
from ensq.rundir import RESULT_NAME, RunDir
from ensq.simulation import Distribution, Simulation
from ensq.store import Store
from ensq.trained import Members

HOSTILE = '"><script>hacked=1</script><img src=x onerror=hacked=1>\u202e\x1b[2J'
CONFIG = """
data: {path: set.npz}
training: {stages: [{optimizer: adam, epochs: 12}]}
model: {cutoff: 8.0, use_priors: false}
ensemble: {enabled: true, n_models: 3}
model_context: rows
"""


def rows_of(content: bytes) -> list[dict[str, str]]:
    """Rows of a CSV file by the names of columns, without their units."""
    rows = csv.DictReader(io.StringIO(content.decode()))
    return [{name.partition(" [")[0]: value for name, value in row.items()} for row in rows]


def config_text(folder: Path, text: str = CONFIG) -> str:
    """A configuration as the queue holds it."""
    path = folder / "rows.yaml"
    path.write_text(text)
    return configuration.dumps(configuration.load(path))


def loss(seed: int, epoch: int) -> float:
    """Some curve, another for each seed, with its lowest value before the last epoch."""
    return 80 + 0.1 * (seed % 7) + 20 * math.exp(-epoch / 3) + 0.02 * math.cos(epoch + seed)


def with_rows(
    folder: Path,
    seeds: Sequence[int] = (42, 43, 44),
    epochs: int = 12,
    done: Sequence[int] = (),
    name: str = "rows",
    **other: Any,
) -> tuple[Store, Ensemble]:
    """An ensemble whose members are half trained by two workers; of epochs ``done`` where given."""
    clock = Clock(1_700_000_000.0)
    store = fresh(folder / "ensq.db", clock)
    made = add(
        store, name, seeds, epochs=epochs, **({"config": config_text(folder)} | other)
    ).ensemble
    register(store, "w1", "w2")
    half = -(-len(seeds) // 2)
    jobs = store.claim("w1", limit=half, lease_seconds=LEASE)
    clock.move(60)
    if len(seeds) > half:
        jobs += store.claim("w2", limit=len(seeds) - half, lease_seconds=LEASE)
    clock.move(3600)
    reached = dict(zip(seeds, done or [epochs] * len(seeds), strict=True))
    store._database.run(lambda c: _fill(c, jobs, reached), write=True)
    return store, made


def _fill(connection: Any, jobs: Sequence[Any], reached: dict[int, int]) -> None:
    rows = [
        {
            "job_id": job.id,
            "epoch": epoch,
            "attempt": 1,
            "train_loss": loss(job.seed, epoch) - 1,
            "val_loss": loss(job.seed, epoch),
            "val_rmse_force": loss(job.seed, epoch) ** 0.5,
            "val_rmse_energy": None,
            "learning_rate": 1e-3,
            "seconds": 1 + 0.1 * epoch,
        }
        for job in jobs
        for epoch in range(1, reached[job.seed] + 1)
    ]
    connection.execute(insert(schema.epochs), rows)
    for job in jobs:
        count = reached[job.seed]
        best = min(range(1, count + 1), key=lambda epoch: loss(job.seed, epoch))
        connection.execute(
            update(schema.jobs)
            .where(schema.jobs.c.id == job.id)
            .values(
                epoch=count,
                val_loss=loss(job.seed, count),
                best_epoch=best,
                best_loss=loss(job.seed, best),
                updated_at=1_700_000_000.0 + 3660,
            )
        )


def with_results(
    folder: Path, losses: Sequence[float | None] = (4.0, 2.25, None, 3.0), frames: int = 40
) -> tuple[Store, Ensemble]:
    """An ensemble whose members have results with these losses; None leaves a member queued.

    Errors of frames differ from each other, and are alike in all members.
    """
    from ensq.train import checkpoint

    text = config_text(folder)
    store = fresh(folder / "ensq.db", Clock(1_700_000_000.0))
    seeds = range(42, 42 + len(losses))
    ensemble = add(store, "rows", seeds, epochs=12, config=text).ensemble
    register(store, "w1")
    run = RunDir(store.root / ensemble.run_path)
    for job in store.claim("w1", limit=len(losses), lease_seconds=LEASE):
        claim, wanted = claim_of(job), losses[job.index]
        if wanted is None:
            store.release([claim])
            continue
        result = made_result(job.seed, wanted, frames, text)
        file = run.attempt(job.seed, job.attempt) / RESULT_NAME
        digest = checkpoint.write_result(file, result)
        records = [_record(job.seed, epoch, wanted) for epoch in range(1, 13)]
        done = Result(
            best_epoch=11,
            best_loss=result.best_loss,
            final_loss=result.final_loss,
            path=run.relative(file),
            digest=digest,
        )
        store.finish(claim, done, records)
    return store, ensemble


def _record(seed: int, epoch: int, wanted: float) -> EpochRecord:
    value = wanted + 0.1 * abs(epoch - 11)
    return EpochRecord(
        epoch=epoch,
        train_loss=value - 0.01,
        val_loss=value,
        val_rmse_force=value**0.5,
        val_rmse_energy=None,
        learning_rate=1e-3,
        seconds=1.0,
    )


def made_result(seed: int, wanted: float, frames: int, config: str) -> Any:
    """A result whose force errors have this mean square: of 5 beads, of two proteins."""
    from ensq.train import checkpoint

    rng = np.random.default_rng(1)
    components = np.full(frames, 15)
    hard = rng.gamma(4.0, size=frames) * np.random.default_rng(seed).uniform(0.9, 1.1, frames)
    errors = hard * (wanted * components.sum() / hard.sum())
    protein = (np.arange(frames) >= frames // 2).astype(np.int64)
    species = np.array([[30, 45, 0], [15, 30, 30]]) * frames // 2
    return checkpoint.MemberResult(
        params={"layer": {"w": np.full(3, float(seed))}},
        seed=seed,
        best_epoch=11,
        best_loss=float(errors.sum() / components.sum()),
        final_loss=wanted + 0.1,
        force_errors=errors,
        energy_errors=np.zeros(frames),
        components=components,
        beads=components // 3,
        protein=protein,
        species_errors=wanted * species.astype(np.float64),
        species_components=species,
        validation_index=np.arange(frames),
        history=np.array([[*vars_of(_record(seed, epoch, wanted))] for epoch in range(1, 13)]),
        statistics={
            "n_species": 3,
            "avg_num_neighbors": 4.0,
            "energy_shift": [0.0, 0.0, 0.0],
            "energy_scale": 1.0,
            "elements": False,
        },
        species_names=("ALA", "GLY", "TRP"),
        protein_names=("one", "two"),
        config=config,
        identity=checkpoint.Identity("c" * 64, "d" * 64),
        versions={"ensq": "0.1.0", "jax": "0.4.37"},
    )


def observed(members: Members, seed: int = 7) -> Observed:
    """What these members might have said of their validation frames of 5 beads; errors are twice
    as large as sigma."""
    rng = np.random.default_rng(seed)
    first = members.results[0]
    frames, count = len(first.components), len(members.results)
    n = 5 * frames
    label = rng.normal(scale=10.0, size=(n, 3))
    sigma = rng.uniform(0.5, 2.0, (n, 3)).astype(np.float32)
    error = (2 * sigma * rng.normal(size=(n, 3))).astype(np.float32)
    frame, place = np.repeat(np.arange(frames), 5), np.tile(np.arange(5), frames)
    single = error + rng.normal(scale=1.0, size=(count, n, 3))
    return Observed(
        frames=Frames(
            index=np.arange(frames),
            beads=np.full(frames, 5),
            protein=np.asarray(first.protein),
            protein_names=first.protein_names,
            replica=None,
        ),
        forces=Forces(
            mean=(label + error).astype(np.float32),
            error=error,
            sigma=sigma,
            frame=frame,
            place=place,
            species=np.tile([0, 1, 0, 1, 2], frames),
            member_squares=(single**2).sum(axis=2).reshape(count, frames, 5).sum(axis=2),
            member_sizes=np.abs(single).sum(axis=2).reshape(count, frames, 5).sum(axis=2),
        ),
        energies=Energies(
            mean=rng.normal(-100, 3, frames),
            error=rng.normal(0, 1, frames),
            sigma=rng.uniform(0.5, 1.0, frames),
            member_errors=rng.normal(0, 1, (count, frames)),
        ),
        seeds=members.seeds,
        ddof=0,
        species_names=first.species_names,
    )


def without_models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Evaluations of what ``observed`` gives in place of predictions; names of what was evaluated
    are added to the list that is returned."""
    done: list[str] = []

    def load(ensemble: Any, path: Path | None, options: Any) -> Any:
        frames = len(ensemble.members.results[0].components)
        about = evaluation.Evaluated(
            path="set.npz",
            digest="d" * 64,
            frames=frames,
            which="the validation frames",
            validation=path is None,
        )
        return SimpleNamespace(about=about, frames=SimpleNamespace(F=True, U=True), places=None)

    def predicted(ensemble: Any, loaded: Any, *other: Any) -> Observed:
        done.append(ensemble.members.name)
        return observed(ensemble.members)

    monkeypatch.setattr(evaluating, "load", load)
    monkeypatch.setattr(evaluating, "predicted", predicted)
    return done


def vars_of(record: EpochRecord) -> tuple[float, ...]:
    """A record as a row of a result's history."""
    nothing = float("nan")
    force, energy = record.val_rmse_force, record.val_rmse_energy
    return (
        record.train_loss,
        record.val_loss,
        nothing if force is None else force,
        nothing if energy is None else energy,
        record.learning_rate,
        record.seconds,
    )


def report_of(store: Store, ensemble: Ensemble, stem: str = "report") -> build.Report:
    return build.make(known.from_store(store, ensemble), [], stem)


def a_simulation(**other: Any) -> Simulation:
    looks, replicas = 5, 3
    recorded = np.ones((looks, replicas), bool)
    recorded[3:, 1] = False
    edges = np.linspace(-180, 180, 7)
    distribution = Distribution(
        molecule="",
        kind="dihedral",
        label="dihedral",
        unit="degrees",
        edges=edges,
        simulation=np.full(6, 1 / 360),
        data=np.array([2, 1, 1, 1, 1, 0]) / 360,
        n_simulation=60,
        n_data=60,
        js=0.1234,
        js_interval=(0.1, 0.15),
        js_noise=(0.01, 0.02),
        wasserstein=12.5,
        wasserstein_interval=(10.0, 15.0),
        wasserstein_noise=None,
    )
    values: dict[str, Any] = {
        "name": "rows",
        "seeds": (42, 43),
        "source": "set.npz",
        "molecules": ("", "", ""),
        "temperature": 300.0,
        "timestep": 2.0,
        "friction": 1.0,
        "steps": 100,
        "every": 25,
        "seed": 0,
        "dtype": "float32",
        "energy_unit": "kcal/mol",
        "equilibration": 0.0,
        "bond_limits": "2 to 5 Angstrom",
        "max_epsilon": None,
        "interrupted": False,
        "seconds": 12.0,
        "ensemble_temperature": 301.2,
        "temperature_error": 2.5,
        "epsilon_levels": (0.5, 0.99, 1.0),
        "epsilon_simulation": (0.5, 0.9, 1.2),
        "epsilon_data": (0.4, 0.8, 1.0),
        "extrapolation": 0.03,
        "verdict": "2 of 3 replicas came through <b>.",
        "stable": False,
        "reasons": ("", "a bond of 9 Angstrom", ""),
        "time": np.arange(looks) * 0.05,
        "potential": np.zeros((looks, replicas)),
        "kinetic_temperature": np.full((looks, replicas), 300.0),
        "epsilon_max": np.arange(looks * replicas).reshape(looks, replicas) + 1.0,
        "bonds": np.full((looks, replicas, 2), 3.8),
        "recorded": recorded,
        "steps_done": np.array([100, 60, 100]),
        "distributions": (distribution,),
    }
    return Simulation(**(values | other))


class Page(HTMLParser):
    """The elements of a page, its words, and the rows of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def row(self, *first: str) -> list[str]:
        """The row that begins with these cells."""
        return next(row for row in self.rows if row[: len(first)] == list(first))
