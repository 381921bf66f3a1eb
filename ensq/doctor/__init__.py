"""Looks at a machine and says what would trouble training there, and what to do about it."""

from ensq.doctor.finding import Finding
from ensq.doctor.machine import check_machine
from ensq.doctor.places import check_places
from ensq.doctor.slurm import check_slurm

__all__ = ["Finding", "check_machine", "check_places", "check_slurm"]
