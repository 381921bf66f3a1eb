"""The model and data of a configuration, as both sides of a pair take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensq import config as configuration
from ensq import data
from ensq.train import environment
from ensq.train.dataset import prepare
from ensq.train.pack import Program


def program_of(config: str, sets: Sequence[str] = ()) -> Program:
    """ensq's program for a configuration file with these settings replaced."""
    made = configuration.load(Path(config), list(sets))
    environment.set_precision(made.training.precision)
    path = Path(config).parent / made.data.path  # an absolute one stays as it is
    return Program(made, prepare(path, data.digest(path), made, lambda text: None))
