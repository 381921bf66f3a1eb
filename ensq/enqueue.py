"""A configuration and its data in, rows of the queue out."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from ensq import config as configuration
from ensq import data
from ensq.config import RunConfig, early
from ensq.config.model import ModelConfig, not_importable
from ensq.config.output import to_yaml
from ensq.errors import ConfigError, MismatchError
from ensq.jobs import Ensemble
from ensq.rundir import RunDir, check_name, write_atomic
from ensq.store import Store


@dataclass(frozen=True, kw_only=True)
class Enqueued:
    """What ``enqueue`` did."""

    ensemble: Ensemble
    new_seeds: tuple[int, ...]
    existing_seeds: tuple[int, ...]
    early_stopping_changed: bool  # of an ensemble that was there
    frames: int
    training_frames: int
    validation_frames: int
    beads: int
    facts: data.Facts


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A configuration whose data were loaded and found to fit."""

    config: RunConfig
    data_path: Path
    data_digest: str
    frames: int
    beads: int
    split: data.Split
    facts: data.Facts


def check(config_path: Path, overrides: Sequence[str] = ()) -> Checked:
    """Load and check configuration and data; writes nothing.

    Raises ConfigError or DataError.
    """
    config = configuration.load(config_path, overrides)
    _check_network(config.model)
    data_path = (config_path.parent / config.data.path).resolve()
    loaded = data.load(data_path, config.data, config.training.gammas, config.unit)
    if config.model.use_priors:
        data.check_open(loaded, str(data_path))
    split = data.split(loaded, config, str(data_path))
    return Checked(
        config=config,
        data_path=data_path,
        data_digest=data.digest(data_path),
        frames=loaded.n_frames,
        beads=loaded.n_beads,
        split=split,
        facts=data.facts(loaded, split, config, str(data_path)),
    )


def _check_network(model: ModelConfig) -> None:
    """Raise ConfigError if the network's module is not to be found here; it is not imported."""
    name = model.ml_model
    if model.prior_only or name in ("allegro", "dimenetpp"):
        return
    module = name.partition(":")[0] if ":" in name else f"chemutils.models.{name}"
    missing = _missing(module)
    if missing is not None:
        raise ConfigError(not_importable(name, f"No module named {missing!r}"))


def _missing(module: str) -> str | None:
    """The first part of a dotted name that is no module; None if all are there.

    As in the trainer, which ``python -m`` starts, the working folder counts.
    """
    first, *rest = module.split(".")
    spec = PathFinder.find_spec(first, [str(Path.cwd())]) or _installed(first)
    so_far = first
    for part in rest:
        if spec is None:
            return so_far
        so_far = f"{so_far}.{part}"
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or ()))
    return so_far if spec is None else None


def _installed(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # a module without a spec
        return None


def enqueue(store: Store, checked: Checked, name: str | None = None) -> Enqueued:
    """Write one row per seed; rows that are there already stay as they are.

    Raises MismatchError if the name stands for another configuration or other data.
    """
    config = checked.config
    name = check_name(name or config.model_context)
    before = store.ensemble(name)
    refuse_other(before, checked)
    added = store.add_ensemble(
        name=name,
        config=configuration.dumps(config),
        config_digest=configuration.digest(config),
        data_path=_portable(checked.data_path, store.root),
        data_digest=checked.data_digest,
        run_path=f"runs/{name}",
        seeds=config.seeds,
        epochs=config.epochs,
        early_stopping=early.dumps(config.early_stopping),
    )
    run = RunDir.of(store.root, added.ensemble.run_path)
    write_atomic(run.config, to_yaml(config).encode())
    return Enqueued(
        ensemble=added.ensemble,
        new_seeds=tuple(added.new_seeds),
        existing_seeds=tuple(added.existing_seeds),
        early_stopping_changed=before is not None and _section(before) != config.early_stopping,
        frames=checked.frames,
        training_frames=len(checked.split.training),
        validation_frames=len(checked.split.validation),
        beads=checked.beads,
        facts=checked.facts,
    )


def _section(ensemble: Ensemble) -> early.EarlyStoppingConfig | None:
    try:
        return early.loads(ensemble.early_stopping)
    except ConfigError:
        return None


def refuse_other(ensemble: Ensemble | None, checked: Checked) -> None:
    """Raise MismatchError, with the changed keys, if the ensemble is of another making."""
    if ensemble is None:
        return
    old = configuration.loads(ensemble.config)
    changes = configuration.changed_keys(old, checked.config)
    if changes:
        lines = [f"  {key}: {_shown(before)} -> {_shown(after)}" for key, before, after in changes]
        raise MismatchError(
            f"the ensemble {ensemble.name!r} is there already with another configuration "
            "(recorded -> this file):\n"
            + "\n".join(lines)
            + "\ngive the new one another name with --name, or undo the changes"
        )
    if ensemble.data_digest != checked.data_digest:
        raise MismatchError(
            f"the ensemble {ensemble.name!r} was enqueued with other data: {checked.data_path} has "
            f"SHA-256 {checked.data_digest[:12]}…, recorded is {ensemble.data_digest[:12]}…; "
            "restore the file, or give the new ensemble another name with --name"
        )


def _portable(path: Path, root: Path) -> str:
    """Relative to the root folder, so that the queue may be moved or mounted elsewhere."""
    return Path(os.path.relpath(path, root)).as_posix()


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)
