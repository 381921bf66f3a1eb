"""Decisions of early stopping, for people and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensq.jobs import Decision


def decision_json(decision: Decision) -> dict[str, Any]:
    """A decision with its evidence as an object; null if that can't be read."""
    import json
    from dataclasses import asdict

    try:
        evidence = json.loads(decision.evidence)
    except (ValueError, RecursionError):
        evidence = None
    return asdict(decision) | {"evidence": evidence}


def decision_lines(decisions: Sequence[Decision]) -> list[str]:
    """What rules found about one member, in words."""
    from ensq.early import in_words
    from ensq.progress import printable

    lines = []
    for one in decisions:
        words = in_words(one.verdict.value, one.evidence)
        text = f"  early stopping, attempt {one.attempt}, epoch {one.epoch}: it {words}"
        lines += textwrap.wrap(printable(text), 80, subsequent_indent="    ")
    return ["", *lines] if lines else []
