"""Langevin dynamics with the mean energy of an ensemble: many replicas in one compiled program."""

from ensq.train.dynamics.replicas import Dynamics, Look, Stop
from ensq.train.dynamics.step import REASONS, Limits, Settings

__all__ = ["REASONS", "Dynamics", "Limits", "Look", "Settings", "Stop"]
