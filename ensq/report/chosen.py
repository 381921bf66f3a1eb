"""Which members may be the best: paired differences to the lowest loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ensq.report import drawing, html
from ensq.report.drawing import BLACK, BLUE, GREY
from ensq.report.html import Content
from ensq.report.known import Known, Member
from ensq.report.numbers import NOTHING, chance, interval, percent, plain, signed
from ensq.report.page import Figure, Section

ANCHOR, TITLE = "best", "Which member is the best"
MOST = 40  # rows of the figure; the table has all


@dataclass(frozen=True, kw_only=True)
class Row:
    """One member beside the best."""

    seed: int
    loss_error: float | None
    difference: float
    error: float | None
    low: float | None
    high: float | None
    probability: float
    same: bool  # can't be told apart from the best


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The comparison of all members."""

    rows: tuple[Row, ...]
    best_seed: int
    level: float
    blocks: str  # in words
    corrected: float | None  # loss of the best without what choosing the lowest takes off
    short_blocks: str | None = None  # a note where they are

    def of(self, seed: int) -> Row | None:
        return next((one for one in self.rows if one.seed == seed), None)


def find(known: Known) -> Choice | None:
    """The comparison of the members that are trained: as `ensq finalize` told it, or made now.

    That of now takes frames in their order, since it does not look at the data for trajectories.
    """
    seeds = {one.seed for one in known.counted}
    told = choice_of(known.metadata.get("comparison"))
    if told is not None and {one.seed for one in told.rows} == seeds:
        return told
    members = [one for one in known.counted if one.result is not None]
    best = known.best
    if len(members) < 2 or best not in members:
        return None
    from ensq import choosing

    results, indices = [one.result for one in members if one.result], [one.index for one in members]
    return choice_of(choosing.comparison_of(results, indices, members.index(best), None))


def loss_error(member: Member, choice: Choice | None) -> float | None:
    """The standard error of a member's loss: by blocks where members were compared, else over
    frames taken as independent."""
    found = None if choice is None else choice.of(member.seed)
    return member.loss_error if found is None else found.loss_error


def choice_of(told: Any) -> Choice | None:
    """From the metadata's ``comparison``; None if there is none that can be read."""
    from ensq import choosing

    try:
        rows = tuple(_row(one) for one in told["members"])
        blocks = told["blocks"]
        few, most = blocks["fewest_frames"], blocks["most_frames"]
        frames = f"{few}" if few == most else f"{few} to {most}"
        return Choice(
            rows=rows,
            best_seed=int(told["best_seed"]),
            level=float(told["level"]),
            blocks=f"{blocks['number']} blocks of {frames} consecutive frames",
            corrected=_number(told.get("corrected_loss")),
            short_blocks=choosing.short_blocks(told),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _row(one: Any) -> Row:
    between = one["interval"] or (None, None)
    return Row(
        seed=int(one["seed"]),
        loss_error=_number(one.get("loss_error")),
        difference=float(one["difference"]),
        error=_number(one.get("difference_error")),
        low=_number(between[0]),
        high=_number(between[1]),
        probability=float(one["probability_best"]),
        same=bool(one["indistinguishable"]),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def section(known: Known, choice: Choice | None) -> Section:
    if choice is None:
        return Section(anchor=ANCHOR, title=TITLE, body=(_missing(known),))
    return Section(
        anchor=ANCHOR,
        title=TITLE,
        body=(_said(known, choice), _figure(known, choice), _table(choice)),
    )


def _missing(known: Known) -> Content:
    if len(known.counted) < 2:
        return html.missing("Members are compared as soon as two are trained.")
    return html.missing("There are too few validation frames to compare members by.")


def _said(known: Known, choice: Choice) -> Content:
    same = [one.seed for one in choice.rows if one.same and one.seed != choice.best_seed]
    level = percent(choice.level)
    unit = f" {known.loss_unit}" if known.loss_unit else ""
    if not same:
        text = f"All other members can be told apart from seed {choice.best_seed} at {level}."
    else:
        seeds = ", ".join(map(str, same[:20])) + (" …" if len(same) > 20 else "")
        word = "Seed" if len(same) == 1 else "Seeds"
        text = (
            f"{word} {seeds} can't be told apart from seed {choice.best_seed}, which has the "
            "lowest "
            f"loss: with a probability of {level} the truly best member is among these "
            f"{len(same) + 1}."
        )
    if choice.corrected is not None:
        text += (
            " The lowest of several losses is partly luck; expect "
            f"{plain(choice.corrected, 5)}{unit} of the best on new frames of this kind."
        )
    return html.paragraph(text)


def _figure(known: Known, choice: Choice) -> Figure:
    rows = sorted(choice.rows, key=lambda one: (one.difference, one.seed))
    shown = rows[:MOST]
    losses = (
        drawing.with_unit(name, known.loss_unit) for name in ("difference", "error", "low", "high")
    )
    head = ("seed", *losses, "probability_best", "indistinguishable")
    lines = [
        (one.seed, one.difference, one.error, one.low, one.high, one.probability, one.same)
        for one in choice.rows
    ]
    rest = f" Shown are the {MOST} best of {len(rows)} members." if len(rows) > MOST else ""
    unit = f", in {known.loss_unit}" if known.loss_unit else ""
    return drawing.figure(
        "differences",
        lambda canvas, narrow: _draw(canvas, narrow, known, shown),
        alt=f"Difference of each member's loss to that of seed {choice.best_seed}, with intervals",
        caption=f"How much higher a member's loss is than the lowest, over the same frames{unit}, "
        "with "
        f"{percent(choice.level)} intervals by bootstrap over {choice.blocks}. Filled circles: "
        "can't be "
        f"told apart from the best. Open diamonds: can.{rest}",
        csv=drawing.as_csv(head, lines),
        height=90 + 24 * len(shown),
        slim_height=110 + 24 * len(shown),
    )


def _draw(canvas: Any, narrow: bool, known: Known, rows: list[Row]) -> None:
    (axes,) = drawing.panels(canvas, narrow, 1)
    axes.axvline(0, color=GREY, lw=1.0)
    for place, one in enumerate(rows):
        color = BLUE if one.same else BLACK
        if one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [place, place], color=color, lw=1.6)
        fill = color if one.same else "white"
        marker = "o" if one.same else "D"
        axes.plot([one.difference], [place], marker, color=color, mfc=fill, ms=6, zorder=4)
    axes.set_yticks(range(len(rows)), [f"seed {one.seed}" for one in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    unit = f" / {known.loss_unit}" if known.loss_unit else ""
    axes.set_xlabel(f"loss above the lowest{unit}")
    axes.grid(axis="x", lw=0.6)
    axes.set_axisbelow(True)


def _table(choice: Choice) -> Content:
    head = (
        "seed",
        "above the lowest",
        f"{percent(choice.level)} interval",
        "P(best)",
        "told apart",
    )
    rows = [
        (
            str(one.seed),
            NOTHING if one.seed == choice.best_seed else signed(one.difference, one.error),
            NOTHING if one.seed == choice.best_seed else interval(one.low, one.high),
            chance(one.probability),
            NOTHING if one.seed == choice.best_seed else "no" if one.same else "yes",
        )
        for one in choice.rows
    ]
    marked = [place for place, one in enumerate(choice.rows) if one.seed == choice.best_seed]
    note = html.paragraph(
        "± is the standard error of the difference over the blocks; P(best) the share of "
        "bootstrap draws in which the member's loss is the lowest. Whether a member is told apart "
        "is a test of all members together, which asks for more than an interval without 0."
        + ("" if choice.short_blocks is None else f" Note: {choice.short_blocks}.")
    )
    table = html.table(head, rows, left=(4,), marked=marked, label="comparison of members")
    return html.join((table, note), "\n")
