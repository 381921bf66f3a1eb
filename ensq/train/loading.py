"""A trained model from its ``.safetensors`` file, for people's own scripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ensq import config as configuration
from ensq.config import RunConfig
from ensq.errors import CheckpointError
from ensq.train import checkpoint
from ensq.train.export import model_of, parameters_of
from ensq.train.models import EnergyModel


@dataclass(frozen=True)
class Loaded:
    """A trained model with what it takes to use it."""

    model: EnergyModel  # reference energies and priors included
    params: Any  # in float32
    config: RunConfig
    species_names: tuple[str, ...]  # species i of the model has name i
    validation_index: NDArray[Any]  # [V] the frames of the data that it was validated on


def load_model(path: str | Path) -> Loaded:
    """The model that ``finalize`` or ``export`` wrote as ``.safetensors``.

    Raises CheckpointError if the file can't be read or is none.
    """
    try:
        result = checkpoint.read_result(Path(path).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Loaded(
        model=model_of(result),
        params=parameters_of(result),
        config=configuration.loads(result.config),
        species_names=result.species_names,
        validation_index=result.validation_index,
    )
