"""Ensembles for tests of the last steps: trained for real through the command line, or with losses
of the test's own choice."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from store_tools import LEASE, register
from train_tools import SETTINGS, write_tiny

from ensq import config as configuration
from ensq.data import digest
from ensq.enqueue import check, enqueue
from ensq.jobs import Claim, Ensemble, EpochRecord, Result
from ensq.rundir import RESULT_NAME, RunDir
from ensq.store import Store

ENSEMBLE = """
model_context: tiny
ensemble: {enabled: true, n_models: N, base_seed: 42, save_all_models: true}
"""


def write_config(folder: Path, n_models: int = 2, extra: str = "") -> Path:
    """A configuration file with its data beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny(folder / "tiny.npz")
    path = folder / "tiny.yaml"
    path.write_text(SETTINGS + ENSEMBLE.replace("N", str(n_models)) + extra)
    return path


def ensq(*arguments: Any, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "ensq.cli", *map(str, arguments)],
        cwd=cwd,
        env={**clean_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of ensq; all runs share compiled programs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ENSQ_")}
    kept.setdefault("JAX_COMPILATION_CACHE_DIR", _shared_cache())
    return kept


@functools.cache
def _shared_cache() -> str:
    folder = tempfile.TemporaryDirectory(prefix="ensq-test-cache-")
    atexit.register(folder.cleanup)
    return folder.name


def with_losses(
    folder: Path,
    losses: Sequence[float | None],
    overrides: Sequence[str] = (),
    change: Callable[[Any, int], Any] = lambda params, seed: params,
    noise: float = 0.0,
) -> tuple[Store, Ensemble]:
    """An ensemble whose members have these validation losses; None leaves a member queued.

    ``change`` makes a member's parameters from the untrained ones and its seed; ``noise`` is how
    far errors of single frames are from those of all, as a share of them.
    """
    from ensq.train import checkpoint

    path = write_config(folder, len(losses))
    checked = check(path, ["training.gammas.U=0", *overrides])
    store = Store.open(folder / "ensq.db", create=True)
    ensemble = enqueue(store, checked).ensemble
    register(store, "w")
    run = RunDir(store.root / ensemble.run_path)
    for job in store.claim("w", limit=len(losses), lease_seconds=LEASE):
        loss = losses[job.index]
        claim = Claim(job_id=job.id, attempt=job.attempt, owner="w")
        if loss is None:
            store.release([claim])
            continue
        for epoch in range(1, job.epochs + 1):
            store.record_epoch(
                claim,
                EpochRecord(
                    epoch=epoch,
                    train_loss=loss,
                    val_loss=loss,
                    val_rmse_force=loss**0.5,
                    val_rmse_energy=None,
                    learning_rate=1e-3,
                    seconds=1.0,
                ),
                best_epoch=1,
                best_loss=loss,
                checkpoint=None,
            )
        file = run.attempt(job.seed, job.attempt) / RESULT_NAME
        result = _result(checked, job.seed, loss, noise)
        result = dataclasses.replace(result, params=change(result.params, job.seed))
        digest = checkpoint.write_result(file, result)
        store.finish(
            claim,
            Result(
                best_epoch=1,
                best_loss=loss,
                final_loss=loss,
                path=run.relative(file),
                digest=digest,
            ),
        )
    return store, ensemble


@functools.cache
def _program(config: str, content: bytes) -> Any:
    """One program for each configuration and data, since each compiles anew."""
    from ensq.train.dataset import prepare
    from ensq.train.pack import Program

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        path.write_bytes(content)
        made = configuration.loads(config)
        return Program(made, prepare(path, digest(path), made, lambda text: None))


def _result(checked: Any, seed: int, loss: float, noise: float) -> Any:
    """A result of untrained parameters whose errors per frame give this loss."""
    from ensq.train import checkpoint
    from ensq.train.pack import lane, stack

    program = _program(configuration.dumps(checked.config), checked.data_path.read_bytes())
    dataset = program.dataset
    components = dataset.validated.components
    errors = components * (1 + noise * np.random.default_rng(seed).uniform(-1, 1, len(components)))
    errors *= components.sum() / errors.sum()
    return checkpoint.MemberResult(
        params=lane(stack([program.new_member(seed).params]), 0),
        seed=seed,
        best_epoch=1,
        best_loss=loss,
        final_loss=loss,
        force_errors=loss * errors,
        energy_errors=np.zeros(len(components)),
        components=components,
        beads=dataset.validated.beads,
        protein=dataset.validated.protein,
        species_errors=loss * dataset.validated.species_components,
        species_components=dataset.validated.species_components,
        validation_index=dataset.validated.index,
        history=np.ones((checked.config.epochs, len(checkpoint.HISTORY_COLUMNS))),
        statistics=dataset.statistics.as_plain(),
        species_names=dataset.species_names,
        protein_names=dataset.protein_names,
        config=configuration.dumps(checked.config),
        identity=checkpoint.Identity(configuration.digest(checked.config), checked.data_digest),
        versions={},
    )
