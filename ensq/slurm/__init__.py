"""SLURM as seen from inside: who am I, until when. All of it is advice, never proof."""

from ensq.slurm.deadline import DeadlineWatch, deadline, parse_end_time, parse_time_left
from ensq.slurm.task import SlurmTask, task_from_environment

__all__ = [
    "DeadlineWatch",
    "SlurmTask",
    "deadline",
    "parse_end_time",
    "parse_time_left",
    "task_from_environment",
]
