"""Loss curves of all members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.jobs import State
from ensq.report import drawing, html
from ensq.report.drawing import BLUE, GREY, LINES, MARKERS, SERIES, SOFT
from ensq.report.html import Content
from ensq.report.known import Known, Member
from ensq.report.numbers import plain
from ensq.report.page import Figure, Section

Array = NDArray[Any]
FEW = len(SERIES)  # members that get a colour each
ANCHOR, TITLE = "loss", "Loss curves"


@dataclass(frozen=True)
class Band:
    """Mean and population standard deviation over members, at epochs that all of them have."""

    seeds: tuple[int, ...]
    epochs: Array  # [E]
    mean: Array  # [E]
    std: Array  # [E] ddof 0


def band(members: Sequence[Member]) -> Band | None:
    """Over the members that are done; while fewer than two are, over those under way.

    Members that a rule stopped, failed and cancelled ones are left out: they would bend the mean
    where they end. None for fewer than two members or no epoch that all have.
    """
    done = [one for one in members if one.is_done and not one.is_stopped and one.history]
    open_ = [one for one in members if one.history and one.state in ("running", "queued", "held")]
    chosen = done if len(done) > 1 else [*done, *open_]
    if len(chosen) < 2:
        return None
    last = min(one.last_epoch for one in chosen)
    losses = np.array([[record.val_loss for record in one.history[:last]] for one in chosen])
    return Band(
        seeds=tuple(one.seed for one in chosen),
        epochs=np.arange(1, last + 1),
        mean=losses.mean(axis=0),
        std=losses.std(axis=0),
    )


def section(known: Known) -> Section:
    shown = [one for one in known.members if one.history]
    if not shown:
        text = html.missing(
            "No epoch is recorded yet; members are trained by ", html.code("ensq worker"), "."
        )
        return Section(anchor=ANCHOR, title=TITLE, body=(text,))
    return Section(anchor=ANCHOR, title=TITLE, body=(_figure(known, shown), *_rates(known)))


def _rates(known: Known) -> list[Content]:
    if not any(np.isnan(one.val_loss) for member in known.members for one in member.history):
        return []
    return [html.paragraph("Gaps are epochs whose loss was not a finite number.")]


def _figure(known: Known, members: list[Member]) -> Figure:
    best, middle = known.best, band(known.members)
    lines = [(one.seed, one.state, *_row(record)) for one in members for record in one.history]
    return drawing.figure(
        "loss",
        lambda canvas, narrow: _draw(canvas, narrow, known, members, middle),
        alt=_alt(known, members, best),
        caption=_caption(known, members, middle),
        csv=drawing.as_csv(_head(known), lines),
        height=380,
        slim_height=620,
    )


def _head(known: Known) -> tuple[str, ...]:
    return (
        *("seed", "state", "epoch"),
        drawing.with_unit("train_loss", known.loss_unit),
        drawing.with_unit("val_loss", known.loss_unit),
        drawing.with_unit("val_rmse_force", known.force_unit),
        drawing.with_unit("val_rmse_energy", f"{known.energy_unit} per bead"),
        "learning_rate",
    )


def _row(record: Any) -> tuple[Any, ...]:
    return (
        record.epoch,
        record.train_loss,
        record.val_loss,
        record.val_rmse_force,
        record.val_rmse_energy,
        record.learning_rate,
    )


def _alt(known: Known, members: Sequence[Member], best: Member | None) -> str:
    text = f"Validation loss of {len(members)} members against the epoch, all epochs and the last"
    if best is None or best.best_loss is None:
        return text
    lowest = f"{plain(best.best_loss)} of seed {best.seed}, epoch {best.best_epoch}"
    return f"{text}; the lowest is {lowest}"


def _caption(known: Known, members: Sequence[Member], middle: Band | None) -> Content:
    parts = ["Validation loss after each epoch"]
    if known.loss_unit:
        parts.append(f", in {known.loss_unit}")
    else:
        gammas = known.config.training.gammas
        parts.append(
            f", {gammas.F:g} times the mean square error of forces in {known.force_unit} plus "
            f"{gammas.U:g} times that of energies in {known.energy_unit}"
        )
    parts.append(": all epochs, and the last ones enlarged. ")
    if len(members) > FEW:
        parts.append(f"Thin lines are the {len(members)} members. ")
    if middle is not None:
        parts.append(
            f"The band is the mean ± one standard deviation (ddof 0) of {len(middle.seeds)} "
            "members, at "
            "the epochs that all of them have. "
        )
    if any(one.is_stopped for one in members):
        parts.append("Black squares are where a rule of early stopping ended a member. ")
    if any(_is_broken(one) for one in members):
        parts.append("Crosses are the last epochs of members that failed or were cancelled. ")
    best = known.best
    if best is not None and best.best_epoch is not None:
        parts.append(
            f"The star is the lowest loss of seed {best.seed}; the dotted line its training loss, "
            "which is averaged over the epoch while parameters change."
        )
    return html.join(parts)


def _draw(
    canvas: Any, narrow: bool, known: Known, members: list[Member], middle: Band | None
) -> None:
    left, right = drawing.panels(canvas, narrow, 2)
    last = max(one.last_epoch for one in members)
    begin = _begin_of_end(members, last)
    for axes in (left, right):
        _lines(axes, known, members)
        if middle is not None:
            _shade(axes, middle)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", lw=0.6)
        axes.set_axisbelow(True)
    every = [record.val_loss for one in members for record in one.history]
    unit = f" / {known.loss_unit}" if known.loss_unit else ""
    left.set_ylabel(f"validation loss{unit}")
    left.set_title("all epochs")
    right.set_title(f"from epoch {begin}")
    if drawing.is_log(every):
        drawing.log_axis(left.yaxis)
    left.set_xlim(min(1, last - 0.5), last + max(0.5, 0.015 * last))
    _enlarge(right, members, begin, last)
    handles, labels = left.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=2 if narrow else 5)


def _shade(axes: Any, middle: Band) -> None:
    axes.fill_between(
        middle.epochs,
        middle.mean - middle.std,
        middle.mean + middle.std,
        color=BLUE,
        alpha=0.16,
        lw=0,
        zorder=2.5,
        label=f"mean ± std of {len(middle.seeds)}",
    )
    style: dict[str, Any] = {"color": SOFT, "lw": 1.4, "ls": (0, (6, 2)), "zorder": 3}
    axes.plot(middle.epochs, middle.mean, label="mean", **style)


def _lines(axes: Any, known: Known, members: list[Member]) -> None:
    best, few = known.best, len(members) <= FEW
    points = sum(len(one.history) for one in members)
    for place, one in enumerate(members):
        epochs = [record.epoch for record in one.history]
        losses = [record.val_loss for record in one.history]
        style: dict[str, Any] = {"color": GREY, "lw": 0.9 if len(members) <= 20 else 0.6}
        style["alpha"] = max(0.12, min(0.8, 14 / len(members)))
        if few:
            style = {
                "color": SERIES[place],
                "ls": LINES[place],
                "marker": MARKERS[place],
                "markevery": max(1, len(epochs) // 8),
                "ms": 3.5,
                "lw": 2.2 if one is best else 1.3,
                "label": _label(one, best),
            }
        elif one is best:
            style = {"color": BLUE, "lw": 1.6, "zorder": 4, "label": f"seed {one.seed}, the best"}
        axes.plot(
            epochs, losses, rasterized=points > drawing.MANY_POINTS and one is not best, **style
        )
        if one.is_stopped:
            axes.plot(epochs[-1:], losses[-1:], "s", color=drawing.BLACK, ms=4.5, zorder=5)
        if _is_broken(one):
            axes.plot(epochs[-1:], losses[-1:], "x", color=drawing.BLACK, ms=7, mew=1.8, zorder=5)
    if best is not None and best in members:
        _mark_best(axes, best)  # last, so that its marks follow the members in the legend


def _is_broken(one: Member) -> bool:
    """Whether it ended without a result."""
    return one.state in (State.FAILED, State.CANCELLED)


def _label(one: Member, best: Member | None) -> str:
    if one is best:
        return f"seed {one.seed}, the best"
    if one.is_stopped:
        return f"seed {one.seed}, stopped early"
    return f"seed {one.seed}, {one.state}" if _is_broken(one) else f"seed {one.seed}"


def _mark_best(axes: Any, best: Member) -> None:
    epochs = [record.epoch for record in best.history]
    axes.plot(
        epochs,
        [record.train_loss for record in best.history],
        color=drawing.BLACK,
        lw=1.4,
        ls=":",
        label=f"training, seed {best.seed}",
    )
    if best.best_epoch is not None:
        axes.plot(
            [best.best_epoch],
            [best.best_loss],
            "*",
            color=drawing.BLACK,
            ms=10,
            mec="white",
            mew=0.8,
            zorder=6,
            label=f"lowest: {plain(best.best_loss)}",
        )


def _begin_of_end(members: Sequence[Member], last: int) -> int:
    """The epoch from which losses are drawn enlarged: the last half."""
    return max(1, last - max(last // 2, min(last - 1, 4)))


def _enlarge(axes: Any, members: Sequence[Member], begin: int, last: int) -> None:
    """Limits that the validation losses of the last epochs fill, without the worst of many."""
    late = np.array(
        [r.val_loss for one in members for r in one.history if r.epoch >= begin], np.float64
    )
    late = late[np.isfinite(late)]
    axes.set_xlim(begin - 0.02 * (last - begin), last + max(0.5, 0.02 * (last - begin)))
    if len(late) == 0:
        return
    low, high = float(late.min()), float(np.percentile(late, 97))
    room = 0.08 * (high - low) or 0.02 * abs(high) or 1.0
    axes.set_ylim(low - room, high + room)
