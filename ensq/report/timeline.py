"""Who trained what, when and how fast, and what interrupted it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from ensq.jobs import Attempt, Outcome, WorkerInfo
from ensq.progress import duration
from ensq.report import drawing, html
from ensq.report.drawing import BLACK, BLUE, GREY, SERIES
from ensq.report.html import Content
from ensq.report.known import Known, Member
from ensq.report.numbers import NOTHING, moment, plain
from ensq.report.page import Figure, Section

ANCHOR, TITLE = "time", "Speed and attempts"
_COLUMNS = (
    *("seed", "attempt", "worker", "host", "device", "slurm_job", "started_at", "ended_at"),
    *("start_epoch", "end_epoch", "outcome", "reason"),
)
HATCHES = ("", "///", "\\\\\\", "xxx", "...", "---", "+++")
# How an attempt ended: marker, and the word of the legend.
ENDS = {
    Outcome.DONE: ("o", "done"),
    Outcome.EARLY: ("^", "stopped early"),
    Outcome.INTERRUPTED: ("|", "interrupted"),
    Outcome.LOST: ("x", "worker lost"),
    Outcome.CRASH: ("*", "crashed"),
    Outcome.FAILURE: ("v", "failed"),
    Outcome.BLOCKED: ("s", "host could not"),
    Outcome.CANCELLED: ("d", "cancelled"),
}
LABELLED = 40  # rows of the timeline that have names; more would touch each other
SCALES = ((2 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (180.0, 60.0, "minutes"))


def section(known: Known) -> Section:
    parts: list[Content | Figure] = []
    tries = [(member, one) for member in known.members for one in member.tries]
    if not known.from_queue:
        parts.append(
            html.missing(
                "An export folder does not tell who trained its members; ",
                html.code(f"ensq report {known.name}"),
                " where the queue is does.",
            )
        )
    elif not tries:
        parts.append(html.missing("No worker has claimed a member yet."))
    else:
        names = _letters([one for _, one in tries])
        parts += [_summary(tries), _gantt(known, names), _workers(known, names)]
        parts += _interruptions(known, tries, names)
    if any(one.history for one in known.members):
        parts.append(_speed(known))
    return Section(anchor=ANCHOR, title=TITLE, body=tuple(parts))


Tries = Sequence[tuple[Member, Attempt]]


def _letters(tries: Sequence[Attempt]) -> dict[str, str]:
    """A short name for each worker, in the order of their first attempts: A … Z, AA …"""
    names: dict[str, str] = {}
    for one in sorted(tries, key=lambda one: (one.started_at, one.job_id, one.number)):
        names.setdefault(one.worker_id, _letter(len(names)))
    return names


def _letter(number: int) -> str:
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(65 + rest) + text
    return text


def _summary(tries: Tries) -> Content:
    counts = Counter("running" if one.outcome is None else str(one.outcome) for _, one in tries)
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    start = min(one.started_at for _, one in tries)
    ends = [one.ended_at for _, one in tries if one.ended_at is not None]
    span = f" to {moment(max(ends))}, {duration(max(ends) - start)}" if ends else ""
    return html.paragraph(
        f"{len(tries)} attempts ({told}), from {moment(start)}{span}. Times are in UTC, by the "
        "clock of the database."
    )


# -- who trained what ---------------------------------------------------------------------------


def _gantt(known: Known, names: dict[str, str]) -> Figure:
    tries = [(member, one) for member in known.members for one in member.tries]
    rows = len(known.members)
    each = 26 if rows <= LABELLED else 9
    height = 110 + each * rows
    return drawing.figure(
        "timeline",
        lambda canvas, narrow: _draw(canvas, narrow, known, names),
        alt=f"A bar for each of {len(tries)} attempts at {rows} members, over time",
        caption="A row for each member, a bar for each attempt at it; letters and patterns are the "
        "workers of the table below, the mark at the end of a bar says how it ended.",
        csv=_csv(known, tries),
        height=height,
        slim_height=height + 40,
    )


def _draw(canvas: Any, narrow: bool, known: Known, names: dict[str, str]) -> None:
    (axes,) = drawing.panels(canvas, narrow, 1)
    tries = [(member, one) for member in known.members for one in member.tries]
    start = min(one.started_at for _, one in tries)
    now = max([known.last_event or start, *(one.ended_at or start for _, one in tries)])
    scale, unit = _scale(now - start)
    order = {name: place for place, name in enumerate(names)}
    row_of = {member.seed: place for place, member in enumerate(known.members)}
    few = len(row_of) <= LABELLED
    total = max(now - start, 1.0) / scale
    found: set[Outcome] = set()
    for member, one in tries:
        place = order[one.worker_id]
        left = (one.started_at - start) / scale
        length = max(((one.ended_at or now) - one.started_at) / scale, 0.002 * total)
        row = row_of[member.seed]
        axes.barh(
            row,
            length,
            left=left,
            height=0.62,
            color=SERIES[place % len(SERIES)],
            alpha=0.55,
            hatch=HATCHES[place % len(HATCHES)] if few else None,
            edgecolor="white",
            lw=0.5,
        )
        if few and length > (0.06 if narrow else 0.025) * total:
            axes.text(
                left + length / 2,
                row,
                names[one.worker_id],
                ha="center",
                va="center",
                color=BLACK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.85},
            )
        if one.outcome is not None:
            found.add(one.outcome)
            marker = ENDS[one.outcome][0]
            size = 2.5 if not few else 9.0 if marker in "|*" else 5.5
            style = {"color": BLACK, "ms": size, "mew": 1.8 if marker in "|x" else 0.0, "zorder": 5}
            axes.plot([left + length], [row], marker, **style)
    _dress(axes, known, few, total, unit, start)
    handles = [
        axes.plot([], [], ENDS[kind][0], color=BLACK, label=ENDS[kind][1])[0]
        for kind in Outcome
        if kind in found
    ]
    if handles:
        canvas.legend(handles=handles, loc="outside lower center", ncols=3 if narrow else 7)


def _dress(axes: Any, known: Known, few: bool, total: float, unit: str, start: float) -> None:
    axes.set_xlim(0, 1.03 * total)
    axes.set_ylim(len(known.members) - 0.4, -0.6)
    axes.set_xlabel(f"{unit} since {moment(start)} UTC")
    if few:
        axes.set_yticks(range(len(known.members)), [f"seed {one.seed}" for one in known.members])
        axes.tick_params(axis="y", length=0)
    else:
        axes.set_ylabel("member")
    axes.grid(axis="x", lw=0.6)
    axes.set_axisbelow(True)


def _scale(span: float) -> tuple[float, str]:
    for least, scale, unit in SCALES:
        if span >= least:
            return scale, unit
    return 1.0, "seconds"


def _workers(known: Known, names: dict[str, str]) -> Content:
    tries: dict[str, list[tuple[Member, Attempt]]] = {name: [] for name in names}
    for member in known.members:
        for one in member.tries:
            tries[one.worker_id].append((member, one))
    rows = [_worker_row(known, name, letter, tries[name]) for name, letter in names.items()]
    head = (
        "",
        "host",
        "process",
        "device",
        "SLURM job",
        "members",
        "attempts",
        "epochs",
        "in attempts",
    )
    return html.table(head, rows, left=(0, 1, 3, 4), label="workers")


def _worker_row(
    known: Known, name: str, letter: str, tries: Sequence[tuple[Member, Attempt]]
) -> list[str]:
    worker = known.workers.get(name)
    spent = sum(
        (one.ended_at or known.last_event or one.started_at) - one.started_at for _, one in tries
    )
    epochs = sum(max(0, _reached(member, one) - one.start_epoch) for member, one in tries)
    return [
        letter,
        NOTHING if worker is None else worker.host,
        NOTHING if worker is None else str(worker.pid),
        NOTHING if worker is None or not worker.device else worker.device,
        _slurm(worker),
        str(len({member.seed for member, _ in tries})),
        str(len(tries)),
        str(epochs),
        duration(spent),
    ]


def _slurm(worker: WorkerInfo | None) -> str:
    if worker is None or worker.slurm_job is None:
        return NOTHING
    cluster = f" ({worker.slurm_cluster})" if worker.slurm_cluster else ""
    again = f", restart {worker.slurm_restarts}" if worker.slurm_restarts else ""
    return f"{worker.slurm_job}{cluster}{again}"


def _reached(member: Member, one: Attempt) -> int:
    """Epochs completed at the end of an attempt, or so far."""
    return member.last_epoch if one.end_epoch is None else one.end_epoch


# -- what went otherwise ------------------------------------------------------------------------


def _interruptions(known: Known, tries: Tries, names: dict[str, str]) -> list[Content]:
    head = ("seed", "attempt", "worker", "began (UTC)", "took", "epochs", "ended", "reason")
    rows = [_row(known, member, one, names) for member, one in tries]
    odd = [
        row
        for row, (_, one) in zip(rows, tries, strict=True)
        if one.outcome not in (None, Outcome.DONE, Outcome.EARLY)
    ]
    parts: list[Content] = [html.tag("h3", "Interruptions")]
    if odd:
        parts.append(html.table(head, odd, left=(2, 6, 7), label="interruptions"))
    else:
        parts.append(html.paragraph("None: no attempt ended before its member did."))
    all_of_them = html.table(head, rows, left=(2, 6, 7), label="all attempts")
    parts.append(html.folded(f"all {len(rows)} attempts", all_of_them))
    return parts


def _row(known: Known, member: Member, one: Attempt, names: dict[str, str]) -> list[Content]:
    end = one.ended_at or known.last_event or one.started_at
    return [
        str(member.seed),
        str(one.number),
        names[one.worker_id],
        moment(one.started_at),
        duration(max(0.0, end - one.started_at)),
        f"{one.start_epoch}–{_reached(member, one)}",
        "running" if one.outcome is None else ENDS[one.outcome][1],
        html.tag("span", one.reason or "", class_="long"),
    ]


def _csv(known: Known, tries: Tries) -> str:
    rows = []
    for member, one in tries:
        worker = known.workers.get(one.worker_id)
        rows.append(
            (
                member.seed,
                one.number,
                one.worker_id,
                None if worker is None else worker.host,
                None if worker is None else worker.device,
                None if worker is None else worker.slurm_job,
                one.started_at,
                one.ended_at,
                one.start_epoch,
                one.end_epoch,
                None if one.outcome is None else str(one.outcome),
                one.reason,
            )
        )
    return drawing.as_csv(_COLUMNS, rows)


# -- speed --------------------------------------------------------------------------------------


def _speed(known: Known) -> Figure:
    rows = [
        (member.seed, record.epoch, record.seconds)
        for member in known.members
        for record in member.history
    ]
    seconds = [value for _, _, value in rows if math.isfinite(value)]
    middle = median(seconds) if seconds else math.nan
    return drawing.figure(
        "speed",
        lambda canvas, narrow: _draw_speed(canvas, narrow, rows, middle),
        alt=f"Seconds per epoch of {len(rows)} epochs; their median is {plain(middle, 3)} s",
        caption=f"Seconds of each epoch of each member, training and validation; the line is their "
        f"median, {plain(middle, 3)} s. Members that are trained together as a pack have one time.",
        csv=drawing.as_csv(("seed", "epoch", "seconds"), rows),
        height=260,
        slim_height=240,
    )


def _draw_speed(
    canvas: Any, narrow: bool, rows: Sequence[tuple[int, int, float]], middle: float
) -> None:
    (axes,) = drawing.panels(canvas, narrow, 1)
    epochs, seconds = [row[1] for row in rows], [row[2] for row in rows]
    many = len(rows) > 600
    axes.plot(
        epochs,
        seconds,
        "o",
        ms=1.5 if many else 3.5,
        color=GREY,
        alpha=0.35 if many else 0.7,
        mec="none",
        rasterized=len(rows) > drawing.MANY_POINTS // 4,
    )
    if math.isfinite(middle):
        axes.axhline(middle, color=BLUE, lw=1.2)
    if drawing.is_log(seconds):
        drawing.log_axis(axes.yaxis)
    else:
        axes.set_ylim(0, None)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("s per epoch")
    axes.grid(axis="y", lw=0.6)
    axes.set_axisbelow(True)
