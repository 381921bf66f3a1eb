"""Looks at a machine and says what would trouble training there, and what to do about it."""

from ensq.doctor.apart import check_places, check_scratch
from ensq.doctor.devices import check_jax
from ensq.doctor.finding import Finding
from ensq.doctor.machine import Share, check_machine
from ensq.doctor.packages import check_packages
from ensq.doctor.slurm import check_slurm

__all__ = [
    "Finding",
    "Share",
    "check_jax",
    "check_machine",
    "check_packages",
    "check_places",
    "check_scratch",
    "check_slurm",
]
