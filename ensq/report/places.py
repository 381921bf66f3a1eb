"""Where the errors are: by residue type or element, by protein, and by the bead's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensq.calibration.results import Group
from ensq.evaluation import Report
from ensq.report import drawing, evaluated
from ensq.report.drawing import BLUE, ORANGE
from ensq.report.evaluated import Found, text, unit
from ensq.report.html import Content
from ensq.report.known import Known
from ensq.report.page import Figure, Section

ANCHOR, TITLE = "places", "Where the errors are"
NAMED = 26  # beads that have their names below the axis
MOST = 6  # proteins that are drawn; the numbers have all


def section(known: Known, found: Found) -> Section:
    parts: list[Content | Figure] = []
    for stem, report in found.reports:
        parts += _one(report, stem)
    if not parts:
        what = "Errors by residue type or element, and by bead,"
        parts = [evaluated.missing(known, what)]
    return Section(anchor=ANCHOR, title=TITLE, body=tuple(parts))


def _one(report: Report, stem: str) -> list[Content | Figure]:
    forces = report.evaluation.forces
    if forces is None:
        return []
    parts: list[Content | Figure] = [evaluated.title(report.evaluation)]
    sign = unit(forces.unit)
    for name, groups in (("proteins", forces.proteins), ("species", forces.species)):
        if len(groups) > 1:
            parts.append(_by_kind(f"{name}-{stem}", groups, sign))
    if forces.positions:
        parts.append(_by_place(stem, forces.positions, sign))
    return parts


def _rows(groups: Sequence[Group]) -> list[tuple[Any, ...]]:
    return [
        (
            one.protein,
            one.position,
            one.name,
            one.count,
            one.rmse.value,
            one.rmse.low,
            one.rmse.high,
            None if one.sharpness is None else one.sharpness.value,
        )
        for one in groups
    ]


def _columns(sign: str) -> tuple[str, ...]:
    numbers = (drawing.with_unit(name, sign) for name in ("rmse", "low", "high", "sigma"))
    return ("protein", "position", "name", "components", *numbers)


def _by_kind(stem: str, groups: Sequence[Group], sign: str) -> Figure:
    ordered = sorted(groups, key=lambda one: (-one.rmse.value, one.name))
    worst, best = ordered[0], ordered[-1]
    return drawing.figure(
        stem,
        lambda canvas, narrow: _draw_kinds(canvas, narrow, ordered, sign),
        alt=f"Force error: largest {worst.name}, {text(worst.rmse)}; smallest {best.name}, "
        f"{text(best.rmse)} {sign}",
        caption="Root mean square error of force components (circles, with intervals), and the "
        "rms of "
        "sigma (diamonds).",
        csv=drawing.as_csv(_columns(sign), _rows(groups)),
        height=80 + 22 * len(groups),
        slim_height=100 + 22 * len(groups),
    )


def _draw_kinds(canvas: Any, narrow: bool, groups: Sequence[Group], sign: str) -> None:
    (axes,) = drawing.panels(canvas, narrow, 1)
    places = range(len(groups))
    for place, one in zip(places, groups, strict=True):
        if one.rmse.low is not None and one.rmse.high is not None:
            axes.plot([one.rmse.low, one.rmse.high], [place, place], color=BLUE, lw=1.6)
    axes.plot([one.rmse.value for one in groups], places, "o", color=BLUE, label="rms error")
    sigma = [np.nan if one.sharpness is None else one.sharpness.value for one in groups]
    if np.isfinite(sigma).any():
        axes.plot(sigma, places, "D", color=ORANGE, mfc="white", mew=1.5, label="rms of sigma")
    axes.set_yticks(places, [f"{one.name}" for one in groups])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, None)
    axes.set_xlabel(f"force component / {sign}")
    axes.grid(axis="x", lw=0.6)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=2)


def _by_place(stem: str, positions: Sequence[Group], sign: str) -> Figure:
    proteins = list(dict.fromkeys(one.protein or "" for one in positions))
    shown = proteins[:MOST]
    more = (
        f" {len(proteins) - MOST} more proteins are in the numbers." if len(proteins) > MOST else ""
    )
    rows = len(shown)
    return drawing.figure(
        f"beads-{stem}",
        lambda canvas, narrow: _draw_places(canvas, narrow, positions, shown, sign),
        alt=f"Force error by the place of the bead, {len(positions)} places"
        + (f" of {len(proteins)} proteins" if len(proteins) > 1 else ""),
        caption="Root mean square error of force components by the bead's place in the molecule, "
        "from 0 "
        f"(circles, the band is the interval), and the rms of sigma (diamonds).{more}",
        csv=drawing.as_csv(_columns(sign), _rows(positions)),
        height=60 + 260 * rows,
        slim_height=60 + 240 * rows,
    )


def _draw_places(
    canvas: Any, narrow: bool, positions: Sequence[Group], proteins: Sequence[str], sign: str
) -> None:
    panels = drawing.rows(canvas, narrow, len(proteins), 1)
    for axes, protein in zip(panels, proteins, strict=True):
        groups = [one for one in positions if (one.protein or "") == protein]
        _draw_chain(axes, groups, narrow)
        axes.set_ylabel(f"force / {sign}")
        if len(proteins) > 1:
            axes.set_title(protein)
    panels[-1].set_xlabel("bead")
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=2)


def _draw_chain(axes: Any, groups: Sequence[Group], narrow: bool) -> None:
    places = [one.position or 0 for one in groups]
    values = [one.rmse.value for one in groups]
    low = [one.rmse.value if one.rmse.low is None else one.rmse.low for one in groups]
    high = [one.rmse.value if one.rmse.high is None else one.rmse.high for one in groups]
    few = len(groups) <= 80
    axes.fill_between(places, low, high, color=BLUE, alpha=0.2, lw=0)
    axes.plot(places, values, "o-" if few else "-", color=BLUE, ms=4, lw=1.2, label="rms error")
    sigma = [np.nan if one.sharpness is None else one.sharpness.value for one in groups]
    if np.isfinite(sigma).any():
        style = {"color": ORANGE, "ms": 4, "lw": 1.2, "mfc": "white"}
        axes.plot(places, sigma, "D--" if few else "--", label="rms of sigma", **style)
    if len(groups) <= (14 if narrow else NAMED):
        names = [f"{one.name}\n{one.position}" for one in groups]
        axes.set_xticks(places, names)
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, None)
    axes.grid(axis="y", lw=0.6)
    axes.set_axisbelow(True)
