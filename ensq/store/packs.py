"""Which jobs a claim takes: members that can train together, and those that did so before.

Members of one claim share an id, ``jobs.pack``. Once they have a checkpoint they are bound to each
other: the last bits of a training depend on who trains together, so they go on together or, where
a claim's limit is smaller, apart from all others. Without a checkpoint they begin anew, with whom
they like.
"""

from __future__ import annotations

import functools
import secrets
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Connection,
    Executable,
    Float,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    case,
    distinct,
    func,
    literal,
    null,
    or_,
    select,
    update,
)

from ensq.jobs import Claim, Job, State
from ensq.schema import ensembles, jobs
from ensq.store import fences
from ensq.store.policy import Policy
from ensq.store.rows import to_job

_QUEUED = State.QUEUED.value
_RUNNING = State.RUNNING.value
_ALL = 2**31 - 1  # jobs; no pack is larger
_CLAIMS = 7_203_841  # number of the lock of claims on PostgreSQL

# Statements of every claim are made once, with names for what changes: building them anew, and
# finding out that they are the same as before, takes longer than running them.
NOW = bindparam("p_now", type_=Float)
_LATEST = bindparam("p_latest", type_=Float)


def _paused() -> ColumnElement[bool]:
    """``not_before`` was set by another host's clock. If that is far ahead, the pause would be
    long; so a time that no pause of ours can lead to is no reason to wait."""
    return and_(jobs.c.not_before > NOW, jobs.c.not_before <= _LATEST)


def claimable() -> ColumnElement[bool]:
    """That a job is queued, and no pause after a failure holds it back; see ``times``."""
    return and_(jobs.c.state == _QUEUED, ~_paused())


def times(now: float, policy: Policy) -> dict[str, Any]:
    """The parameters of ``claimable``."""
    return {"p_now": now, "p_latest": now + policy.longest_pause}


def one_by_one(connection: Connection) -> None:
    """Have claims follow each other until the end of the transaction.

    On SQLite they do. On PostgreSQL two claims at once would each leave out the rows that the
    other looks at, and so tear a pack apart.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(literal(_CLAIMS, BigInteger))))


def taking(now: float, policy: Policy, worker_id: str, lease_seconds: float) -> dict[str, Any]:
    """The parameters of ``take`` and ``take_beside``."""
    pack = secrets.token_hex(8)
    return times(now, policy) | {"p_worker": worker_id, "p_lease": lease_seconds, "p_pack": pack}


def take(
    connection: Connection,
    given: dict[str, Any],
    *,
    limit: int,
    ensemble: str | None,
    whole: bool,
) -> list[Job]:
    """Take the first job of the queue with its pack, or with others that are free.

    With ``whole`` the limit does not cut a pack.
    """
    given = given | {"p_limit": limit}
    if ensemble is not None:
        given["p_ensemble"] = ensemble
    rows = connection.execute(_take_statement(ensemble is not None, whole), given)
    return [to_job(row) for row in rows]


def take_beside(
    connection: Connection, given: dict[str, Any], head: Claim, *, limit: int, policy: Policy
) -> list[Job]:
    """Take up to ``limit`` free jobs that stand where ``head`` stands, to be one pack with it.

    No more than ``could_join``. [] if ``head`` is lost.
    """
    where = _place_of(connection, head, policy, lock=True)
    wanted = min(limit, _share(connection, given, where))
    if wanted < 1:
        return []
    rows = connection.execute(_beside_statement(), given | where | {"p_limit": wanted})
    taken = [to_job(row) for row in rows]
    if taken:
        connection.execute(update(jobs).where(fences.held(head)).values(pack=given["p_pack"]))
    return taken


def could_join(
    connection: Connection, given: dict[str, Any], head: Claim, *, policy: Policy
) -> int:
    """How many jobs ``head`` may be joined by; 0 if it is lost, too.

    A fair share, since each worker that has but one member wants a pack as well. Jobs that have
    one try left count not: see ``Policy.is_last_try``. ``given`` are the parameters of ``times``.
    """
    return _share(connection, given, _place_of(connection, head, policy))


def _share(connection: Connection, given: dict[str, Any], where: dict[str, Any]) -> int:
    if not where:
        return 0
    waiting = int(connection.execute(_waiting_statement(), given | where).scalar_one())
    alone = int(connection.execute(_alone_statement(), where).scalar_one())
    return -(-(waiting + 1) // max(1, alone)) - 1


def _place_of(
    connection: Connection, head: Claim, policy: Policy, *, lock: bool = False
) -> dict[str, Any]:
    """Where it stands, as parameters; none if the claim is lost."""
    query = select(jobs).where(fences.held(head))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        return {}
    return {
        "p_ensemble": row.ensemble_id,
        "p_epoch": row.checkpoint_epoch,
        "p_step": row.checkpoint_step,
        "p_strikes": max(1, policy.strikes - 1),
    }


def _is_free() -> ColumnElement[bool]:
    return or_(jobs.c.pack.is_(None), jobs.c.checkpoint_path.is_(None))


@functools.cache
def _take_statement(of_one_ensemble: bool, whole: bool) -> Executable:
    """The one statement that hands out jobs.

    ``head`` is the first job of the queue; ``pack`` are the queued jobs of its ensemble at its
    checkpoint that may go with it. Both are CTEs and locked, so that PostgreSQL works each out
    once: as a plain subquery it may be run again and take more than the limit. SQLite ignores the
    locks: there, the transaction is the only writer.
    """
    queue = select(
        jobs.c.ensemble_id,
        jobs.c.checkpoint_epoch,
        jobs.c.checkpoint_step,
        jobs.c.position,
        case((jobs.c.checkpoint_path.is_not(None), jobs.c.pack), else_=null()).label("bound"),
    ).where(claimable())
    if of_one_ensemble:
        wanted = select(ensembles.c.id).where(ensembles.c.name == bindparam("p_ensemble"))
        queue = queue.where(jobs.c.ensemble_id == wanted.scalar_subquery())
    head = (
        queue.order_by(
            jobs.c.ensemble_id,
            jobs.c.checkpoint_epoch.desc(),
            jobs.c.checkpoint_step.desc(),
            jobs.c.position,
        )
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("head")
    )
    bound = select(head.c.bound).scalar_subquery()
    limit: ColumnElement[int] = bindparam("p_limit", type_=Integer)
    if whole:
        limit = case((bound.is_not(None), literal(_ALL, Integer)), else_=limit)
    # Those of a pack crashed together: whoever's pause ends first ends it for all.
    pack = (
        _at(
            select(head.c.ensemble_id).scalar_subquery(),
            select(head.c.checkpoint_epoch).scalar_subquery(),
            select(head.c.checkpoint_step).scalar_subquery(),
        )
        .where(or_(jobs.c.pack == bound, and_(bound.is_(None), _is_free(), ~_paused())))
        .order_by(jobs.c.position)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("pack")
    )
    several = select(func.count()).select_from(pack).scalar_subquery() > 1
    return _taken(pack, case((several, _pack_id()), else_=null()))


@functools.cache
def _beside_statement() -> Executable:
    pack = (
        _free_there()
        .order_by(jobs.c.position)
        .limit(bindparam("p_limit", type_=Integer))
        .with_for_update(skip_locked=True)
        .cte("pack")
    )
    return _taken(pack, _pack_id())


@functools.cache
def _waiting_statement() -> Executable:
    return select(func.count()).select_from(_free_there().subquery())


@functools.cache
def _alone_statement() -> Executable:
    """Workers that have one member of the ensemble and no pack; lost ones were taken back."""
    return select(func.count(distinct(jobs.c.owner))).where(
        jobs.c.state == _RUNNING,
        jobs.c.ensemble_id == bindparam("p_ensemble", type_=Integer),
        jobs.c.pack.is_(None),
    )


def _free_there() -> Select[Any]:
    return _at(
        bindparam("p_ensemble", type_=Integer),
        bindparam("p_epoch", type_=Integer),
        bindparam("p_step", type_=Integer),
    ).where(_is_free(), ~_paused(), jobs.c.strikes < bindparam("p_strikes", type_=Integer))


def _at(ensemble: Any, epoch: Any, step: Any) -> Select[Any]:
    """The ids of the queued jobs of an ensemble at a checkpoint, in the order of the index."""
    return select(jobs.c.id).where(
        jobs.c.state == _QUEUED,
        jobs.c.ensemble_id == ensemble,
        jobs.c.checkpoint_epoch == epoch,
        jobs.c.checkpoint_step == step,
    )


def _pack_id() -> ColumnElement[str]:
    return bindparam("p_pack", type_=Text)


def _taken(pack: CTE, pack_id: ColumnElement[Any]) -> Executable:
    return (
        update(jobs)
        .where(jobs.c.id.in_(select(pack.c.id)))
        .values(
            state=_RUNNING,
            attempt=jobs.c.attempt + 1,
            owner=bindparam("p_worker"),
            lease_seconds=bindparam("p_lease", type_=Float),
            beat=jobs.c.beat + 1,
            not_before=0.0,
            pack=pack_id,
            wish=None,
            error=None,
            updated_at=NOW,
        )
        .returning(*jobs.c)
    )
