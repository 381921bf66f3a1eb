"""The potentials that ensq trains."""

from ensq.train.models.base import DataStatistics, EnergyModel, build_model
from ensq.train.models.graph import Frames

__all__ = ["DataStatistics", "EnergyModel", "Frames", "build_model"]
