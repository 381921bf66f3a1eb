"""A trained ensemble for people's own scripts: ``from ensq import load_ensemble``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensq import data, prediction, trained
from ensq.config import RunConfig
from ensq.errors import DataError, UsageError
from ensq.prediction import Prediction
from ensq.trained import Members

if TYPE_CHECKING:
    from ensq.train.predicting import Predictor

Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """No progress is told."""


class LoadedEnsemble:
    """All trained members of an ensemble; every prediction is in the run's units."""

    def __init__(self, members: Members, dtype: str = "float32") -> None:
        self.members = members
        self.dtype = dtype

    @property
    def config(self) -> RunConfig:
        return self.members.config

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.members.seeds

    @property
    def species_names(self) -> tuple[str, ...]:
        """Species i of the model has name i."""
        return self.members.species_names

    @property
    def energy_unit(self) -> str:
        return self.config.unit

    def __len__(self) -> int:
        return len(self.members.results)

    @cached_property
    def predictor(self) -> Predictor:
        """The compiled program of all members; JAX is imported here."""
        from ensq.train.predicting import Predictor

        return Predictor(self.members.results, self.dtype)

    def member(self, index: int) -> LoadedEnsemble:
        """One member alone, by its place. Raises UsageError if there is none."""
        if not 0 <= index < len(self):
            raise UsageError(f"no member {index}: there are 0 to {len(self) - 1}")
        results, digests = self.members.results[index], self.members.digests[index]
        return LoadedEnsemble(
            replace(self.members, results=(results,), digests=(digests,)), self.dtype
        )

    def read(self, path: str | Path, config: Any = None) -> data.Source:
        """Frames of a data file with the model's species; labels need not be there.

        ``config``: a ``DataConfig`` with the file's units and keys; None: those of the training.

        Raises DataError.
        """
        from ensq.train.predicting import with_species

        settings = self.config.data if config is None else config
        found = data.load(Path(path), settings, None, self.config.unit)
        return with_species(found, self.species_names, str(path))

    def predict(
        self,
        frames: data.Source | str | Path,
        *,
        ddof: int = 0,
        members: bool = False,
        virial: bool = False,
        batch: int | None = None,
        progress: Progress = _silent,
    ) -> Prediction:
        """Means and spreads of energies and forces over the members.

        Args:
            frames: Of ``read``, or the path of a data file.
            ddof: Taken off the number of members in standard deviations.
            members: Keep the predictions of all members, too.
            virial: Work out the spread of the virials as well.
            batch: Frames at once; None: as memory allows.
            progress: Told how many frames are done, and of how many.

        Raises DataError for frames that the model can't take or gives no finite numbers for.
        """
        source = self.read(frames) if isinstance(frames, str | Path) else frames
        parts, order = [], []
        for found in self.predictor.batches(source, virial=virial, batch=batch, progress=progress):
            mask = np.asarray(source.mask[found.index], bool)
            try:
                part = prediction.summarize(
                    found.energies,
                    found.forces,
                    mask,
                    seeds=self.seeds,
                    energy_unit=self.energy_unit,
                    ddof=ddof,
                    virials=found.virials,
                    members=members,
                )
            except ValueError as error:
                raise DataError(_where(found, error)) from error
            parts.append(part)
            order.append(found.index)
        return prediction.take(
            prediction.concatenate(parts), np.argsort(np.concatenate(order), kind="stable")
        )


def _where(found: Any, error: ValueError) -> str:
    """The first frame whose prediction is not finite."""
    finite = np.isfinite(found.energies).all(axis=0) & np.isfinite(found.forces).all(axis=(0, 2, 3))
    if finite.all():
        return str(error)
    return (
        f"frame {found.index[int(np.argmin(finite))]}: the model gives no finite energy or forces; "
        "are two beads at one place, or is the unit of length wrong (data.units)?"
    )


def load_ensemble(path: str | Path, *, db: str | None = None) -> LoadedEnsemble:
    """The ensemble of an export folder, or by its name in a database.

    Args:
        path: A folder that `ensq finalize` wrote, or a name.
        db: The database of a name; None: $ENSQ_DB, else ensq.db here.

    Raises UsageError if there is no such folder or name, CheckpointError for damaged files.
    """
    import os

    return LoadedEnsemble(trained.find(str(path), db or os.environ.get("ENSQ_DB") or "ensq.db"))
