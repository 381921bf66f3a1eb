"""Evidence in words, for people."""

from __future__ import annotations

import json
from typing import Any

from ensq import alike

_VERDICTS = {
    "would stop": "would be stopped",
    "stop": "is stopped",
    "kept": "is kept, since too few members would be left",
}


def in_words(verdict: str, evidence: str) -> str:
    """A decision and its numbers in a sentence; ``evidence`` is the JSON that was recorded."""
    what = _VERDICTS.get(verdict, verdict)
    try:
        found = json.loads(evidence)
        rule = found["rule"]
        told = _TOLD[rule](found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{what} by a rule whose evidence can't be read"
    return f"{what} by the rule {rule}: {told}"


def _sigma(found: dict[str, Any]) -> str:
    return (
        f"{_losses(found)}, more than {found['settings']['sigma']:g} standard deviations of "
        f"{found['std']:.3g} over {len(found['losses'])} members{_row(found)}"
    )


def _paired(found: dict[str, Any]) -> str:
    settings = found["settings"]
    return (
        f"{_losses(found)}; more than {100 * settings['margin']:g} % worse with p = "
        f"{found['p']:.1e} (below {found['level']:.1e} is needed) over {found['blocks']} blocks of "
        f"validation frames{_row(found)}{_alike(found)}"
    )


def _alike(found: dict[str, Any]) -> str:
    """That blocks are too short. Decisions of older versions don't tell."""
    correlated = found.get("correlation")
    if alike.note(correlated, found["blocks"] - 1) is None:
        return ""
    return f"; blocks are alike (correlation {correlated:.2f}), which makes this less sure"


def _plateau(found: dict[str, Any]) -> str:
    return (
        f"no loss below {found['reference']:.5g} by {100 * found['settings']['min_delta']:g} % "
        f"since epoch {found['since']}, {found['epoch'] - found['since']} epochs before"
    )


def _losses(found: dict[str, Any]) -> str:
    difference = found["difference"] / found["best_loss"] if found["best_loss"] else float("inf")
    return (
        f"at epoch {found['epoch']} its loss {found['loss']:.5g} is {100 * difference:.2g} % above "
        f"the best's, seed {found['best_seed']} with {found['best_loss']:.5g}"
    )


def _row(found: dict[str, Any]) -> str:
    count = found["epochs_in_a_row"]
    return f", for {count} epochs in a row" if count > 1 else ""


_TOLD = {"sigma": _sigma, "paired": _paired, "plateau": _plateau}
