"""What the rules of early stopping found, and by which numbers."""

from __future__ import annotations

import json
from typing import Any

from ensq import early
from ensq.jobs import Decision, Verdict
from ensq.report import drawing, html
from ensq.report.html import Content
from ensq.report.known import Known
from ensq.report.numbers import moment, plain
from ensq.report.page import Section

ANCHOR, TITLE = "early", "Early stopping"
VERDICTS = {
    Verdict.STOPPED: "stopped",
    Verdict.REPORTED: "would have been stopped",
    Verdict.KEPT: "kept, since no more may be stopped",
}
_COLUMNS = ("time", "seed", "epoch", "rule", "verdict", "attempt", "worker", "evidence")


def section(known: Known) -> Section:
    if not known.from_queue:
        text = "An export folder does not tell what rules of early stopping found."
        return Section(anchor=ANCHOR, title=TITLE, body=(html.missing(text),))
    seeds = {one.job_id: one.seed for one in known.members if one.job_id is not None}
    if not known.decisions:
        return Section(anchor=ANCHOR, title=TITLE, body=(_none(known),))
    head = ("seed", "after epoch", "rule", "what became of it", "when (UTC)", "evidence")
    rows = [_row(one, seeds) for one in known.decisions]
    csv = drawing.as_csv(_COLUMNS, [_line(one, seeds) for one in known.decisions])
    return Section(
        anchor=ANCHOR,
        title=TITLE,
        body=(
            html.paragraph(
                "Each time that a rule held for a member, and the numbers by which it did. Members "
                "that a rule stopped keep the parameters of their best epoch; ",
                html.code("ensq resume"),
                " trains them on.",
            ),
            html.table(head, rows, left=(2, 3, 5), label="decisions of early stopping"),
        ),
        tables=((ANCHOR, csv),),
    )


def _none(known: Known) -> Content:
    if known.early_stopping is None:
        return html.missing(
            "Off: every member is trained to its last epoch (",
            html.code("early_stopping"),
            " in the configuration).",
        )
    return html.paragraph("No rule held for any member.")


def _row(one: Decision, seeds: dict[int, int]) -> tuple[Content, ...]:
    return (
        str(seeds.get(one.job_id, "?")),
        str(one.epoch),
        one.rule,
        VERDICTS[one.verdict],
        moment(one.time),
        html.tag("span", in_words(one), class_="long"),
    )


def _line(one: Decision, seeds: dict[int, int]) -> tuple[Any, ...]:
    return (
        one.time,
        seeds.get(one.job_id),
        one.epoch,
        one.rule,
        str(one.verdict),
        one.attempt,
        one.worker_id,
        one.evidence,
    )


def in_words(one: Decision) -> str:
    """A decision in a sentence; of a rule that ensq does not know, the numbers by their names."""
    sentence = early.in_words(one.verdict.value, one.evidence)
    return _plainly(one.evidence) if sentence.endswith("can't be read") else sentence


def _plainly(evidence: str) -> str:
    try:
        found = json.loads(evidence)
    except ValueError:
        return evidence
    if not isinstance(found, dict):
        return evidence
    return ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in found.items())


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return plain(value)
    if isinstance(value, list):
        shown = ", ".join(_value(one) for one in value[:8])
        return f"[{shown}{', …' if len(value) > 8 else ''}]"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_value(one)}" for key, one in list(value.items())[:8]) + ")"
    return str(value)
