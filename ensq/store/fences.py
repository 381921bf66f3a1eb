"""The fence: the one condition under which a worker may write to a job."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_

from ensq.errors import LeaseLost
from ensq.jobs import Claim, State
from ensq.schema import jobs


def held(claim: Claim) -> ColumnElement[bool]:
    """That the job runs and is still this attempt of this owner."""
    return and_(
        jobs.c.id == claim.job_id,
        jobs.c.state == State.RUNNING.value,
        jobs.c.attempt == claim.attempt,
        jobs.c.owner == claim.owner,
    )


def lost(claim: Claim) -> LeaseLost:
    """The error for a write that the fence held back."""
    return LeaseLost(
        f"job {claim.job_id}: attempt {claim.attempt} of worker {claim.owner} was superseded or "
        "cancelled; nothing was written"
    )
