"""SLURM as seen from inside: who am I, until when. All of it is advice, never proof."""

from ensq.slurm.deadline import deadline, parse_time_left
from ensq.slurm.task import SlurmTask, task_from_environment

__all__ = ["SlurmTask", "deadline", "parse_time_left", "task_from_environment"]
