"""Members that a rule of early stopping ended: whether they count, and what is told of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ensq import selection
from ensq.config import early
from ensq.errors import EnsqError
from ensq.jobs import Ensemble, Job, Verdict
from ensq.store import Store
from ensq.text import ranges, wrapped

PLATEAU = "plateau"  # such a member is trained as far as it gets: it counts like any other


def counted(ensemble: Ensemble, done: Sequence[Job]) -> list[Job]:
    """The trained members that count: all, or by ``early_stopping.statistics: exclude`` those that
    no rule found worse than the others. Raises EnsqError if none is left."""
    if early.loads(ensemble.early_stopping).statistics == "include":
        return list(done)
    left = [job for job in done if job.early in (None, PLATEAU)]
    if done and not left:
        raise EnsqError(
            f"every trained member of {ensemble.name!r} was stopped early, and by "
            "early_stopping.statistics: exclude none of them counts; `ensq resume` trains them on"
        )
    return left


def told(store: Store, ensemble: Ensemble, done: Sequence[Job]) -> dict[str, Any]:
    """What the metadata say: who was stopped, by which numbers, and both statistics.

    Losses are those of each member's best epoch, standard deviations have ddof 0.
    """
    section = early.loads(ensemble.early_stopping)
    kept = {job.id for job in counted(ensemble, done)}
    evidence = {
        (one.job_id, one.rule): one.evidence
        for one in store.decisions(ensemble.id)
        if one.verdict is Verdict.STOPPED
    }
    stopped = [job for job in done if job.early is not None]
    others = [job for job in done if job.early in (None, PLATEAU)]
    return {
        "mode": section.mode,
        "rule": section.rule,
        "statistics": section.statistics,
        "stopped_members": [
            {
                "index": job.index,
                "seed": job.seed,
                "rule": job.early,
                "epoch": job.epoch,
                "epochs": job.epochs,
                "best_epoch": job.best_epoch,
                "best_loss": job.best_loss,
                "counted": job.id in kept,
                "evidence": _read(evidence.get((job.id, str(job.early)))),
            }
            for job in stopped
        ],
        "with_stopped": _statistics(done),
        "without_stopped": _statistics(others),
        "resumed_members": [job.seed for job in done if job.exempt],
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people; none where nobody was."""
    text = []
    for one in found["stopped_members"]:
        counts = "" if one["counted"] else "; not counted"
        text += wrapped(
            f"stopped early: seed {one['seed']} by the rule {one['rule']} after epoch "
            f"{one['epoch']} of {one['epochs']}, best loss {one['best_loss']:.6g}{counts}"
        )
    compared = [one for one in found["stopped_members"] if one["rule"] != PLATEAU]
    key = "without_stopped" if found["statistics"] == "include" else "with_stopped"
    if compared and (other := found[key]) is not None:
        word = "without" if found["statistics"] == "include" else "with"
        members = "it" if len(compared) == 1 else "them"
        text.append(
            f"  {word} {members}: {other['n']} members, mean {other['mean']:.6g}, std "
            f"{other['std']:.3g}"
        )
    if resumed := found["resumed_members"]:
        text += wrapped(f"stopped early, then resumed and trained on: seeds {ranges(resumed)}")
    return text


def _statistics(jobs: Sequence[Job]) -> dict[str, Any] | None:
    losses = [job.best_loss for job in jobs if job.best_loss is not None]
    if not losses:
        return None
    found = selection.ensemble_statistics(losses)
    return {
        "n": found.n,
        "seeds": [job.seed for job in jobs],
        "mean": found.mean,
        "std": found.std,
        "variance": found.variance,
        "best_seed": jobs[found.best].seed,
        "best_loss": min(losses),
    }


def _read(evidence: str | None) -> Any:
    try:
        return None if evidence is None else json.loads(evidence)
    except (ValueError, RecursionError):
        return None
