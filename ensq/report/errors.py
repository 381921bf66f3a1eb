"""How far predictions are from the labels: in all, of each member, point by point."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.calibration.results import PerBead, Quantity
from ensq.evaluation import Evaluation, Report
from ensq.report import drawing, evaluated, html
from ensq.report.drawing import BLACK, BLUE
from ensq.report.evaluated import Found, cell, text, unit
from ensq.report.html import Content
from ensq.report.known import Known
from ensq.report.numbers import percent, plain
from ensq.report.page import Figure, Section

Array = NDArray[Any]
ANCHOR, TITLE = "errors", "Errors"
FEW = 1500  # points that are drawn one by one
CELLS = 70  # of a density, along each axis


def section(known: Known, found: Found) -> Section:
    parts: list[Content | Figure] = [
        html.paragraph(html.prose(note), class_="note") for note in found.notes
    ]
    for stem, report in found.reports:
        parts += _one(known, report, stem)
    if not found.reports:
        parts.append(evaluated.missing(known, "Errors of forces and energies"))
    return Section(anchor=ANCHOR, title=TITLE, body=tuple(parts))


def _one(known: Known, report: Report, stem: str) -> list[Content | Figure]:
    made = report.evaluation
    parts: list[Content | Figure] = [evaluated.title(made), html.paragraph(_about(made))]
    parts += [html.paragraph(f"{note[:1].upper()}{note[1:]}.") for note in made.notes]
    if made.forces is not None:
        parts.append(_table(known, made.forces, "forces", "per component"))
    if made.energy is not None:
        parts.append(_table(known, made.energy, "energies", "per frame"))
    if made.energy_per_bead is not None:
        parts.append(_per_bead(made.energy_per_bead))
    if "scatter_force_predicted" in report.arrays:
        parts.append(_parity(report, stem))
    return parts


def _about(made: Evaluation) -> str:
    blocks = made.resampling
    if blocks.blocks < 2:
        return f"{len(made.seeds)} members."
    frames = str(blocks.shortest)
    if blocks.longest != blocks.shortest:
        frames += f" to {blocks.longest}"
    of = "one trajectory" if blocks.trajectories == 1 else f"{blocks.trajectories} trajectories"
    return (
        f"Small numbers and those in parentheses are {percent(blocks.level)} intervals by "
        f"bootstrap over {blocks.blocks} "
        "blocks "
        f"of {frames} consecutive frames of {of}."
    )


def _table(known: Known, found: Quantity, what: str, per: str) -> Content:
    sign = unit(found.unit)
    rows = [("mean of the members", cell(found.rmse), cell(found.mae))]
    rows += [(f"seed {one.seed}", cell(one.rmse), cell(one.mae)) for one in found.members]
    scale = "their rms" if what == "forces" else "their standard deviation"
    return html.table(
        (f"{what}, {per}", f"rmse / {sign}", f"mae / {sign}"),
        rows,
        left=(0,),
        marked=(0,),
        caption=f"{found.count:,} {found.samples}; labels: {scale} is {plain(found.reference_rms)} "
        f"{sign}",
        label=f"errors of {what}",
    )


def _per_bead(found: PerBead) -> Content:
    return html.paragraph(
        f"Energies per bead, mean of the members: rmse {text(found.rmse)}, mae {text(found.mae)} "
        f"{unit(found.unit)}."
    )


# -- point by point -----------------------------------------------------------------------------


def _parity(report: Report, stem: str) -> Figure:
    arrays, made = report.arrays, report.evaluation
    kinds = [name for name in ("force", "energy") if f"scatter_{name}_predicted" in arrays]
    shown = [f"{len(arrays[f'scatter_{name}_label']):,} {_WORDS[name]}" for name in kinds]
    moved = " Then the errors, and a normal distribution that is as wide."
    if "energy" in kinds:
        moved = " Energies are taken against the mean of the labels."
    return drawing.figure(
        f"parity-{stem}",
        lambda canvas, narrow: _draw(canvas, narrow, report, kinds),
        alt=f"Predictions of the mean of {len(made.seeds)} members against labels, "
        f"{' and '.join(shown)}",
        caption=f"What the mean of the members predicts against the label, {' and '.join(shown)}. "
        f"On the dashed line they are equal; where there are many points the colour is their "
        f"number.{moved}",
        csv=drawing.as_csv(
            ("quantity", "unit", "label", "predicted", "sigma"), _points(made, arrays, kinds)
        ),
        height=430,
        slim_height=680,
    )


_WORDS = {"force": "components of forces", "energy": "energies"}


def _points(made: Evaluation, arrays: dict[str, Array], kinds: list[str]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for name in kinds:
        sign = f"{made.energy_unit}/{made.length_unit}" if name == "force" else made.energy_unit
        label, predicted = arrays[f"scatter_{name}_label"], arrays[f"scatter_{name}_predicted"]
        sigma = arrays.get(f"scatter_{name}_sigma")
        for place in range(len(label)):
            spread = None if sigma is None else float(sigma[place])
            rows.append((name, sign, float(label[place]), float(predicted[place]), spread))
    return rows


def _draw(canvas: Any, narrow: bool, report: Report, kinds: list[str]) -> None:
    panels = drawing.panels(canvas, narrow, 2)
    for axes, name in zip(panels, kinds, strict=False):
        label = np.asarray(report.arrays[f"scatter_{name}_label"], np.float64)
        predicted = np.asarray(report.arrays[f"scatter_{name}_predicted"], np.float64)
        made = report.evaluation
        sign = unit(
            f"{made.energy_unit}/{made.length_unit}" if name == "force" else made.energy_unit
        )
        if name == "energy":
            middle = label.mean()
            label, predicted = label - middle, predicted - middle
        _parity_panel(canvas, axes, label, predicted)
        word = "force component" if name == "force" else "energy"
        axes.set_xlabel(f"label: {word} / {sign}")
        axes.set_ylabel(f"mean of the members / {sign}")
    if len(kinds) == 1:
        error = report.arrays["scatter_force_predicted"] - report.arrays["scatter_force_label"]
        made = report.evaluation
        sign = unit(f"{made.energy_unit}/{made.length_unit}")
        _histogram(panels[1], np.asarray(error, np.float64), sign)


def _histogram(axes: Any, error: Array, sign: str) -> None:
    """Errors beside a normal distribution that is as wide."""
    rms = float(np.sqrt(np.mean(error**2))) or 1.0
    counts, edges = np.histogram(error, 60, (-4 * rms, 4 * rms))
    shares = counts / (len(error) * (edges[1] - edges[0]))
    axes.stairs(shares, edges, fill=True, color="#9ec5e0", label="errors")
    x = np.linspace(-4 * rms, 4 * rms, 241)
    normal = np.exp(-0.5 * (x / rms) ** 2) / (rms * np.sqrt(2 * np.pi))
    axes.plot(x, normal, color=BLACK, ls="--", lw=1.2, label="normal")
    axes.set_xlabel(f"error of a force component / {sign}")
    axes.set_ylabel("probability density")
    axes.set_ylim(0, 1.2 * max(shares.max(), normal.max()))
    axes.legend(loc="upper right")


def _parity_panel(canvas: Any, axes: Any, label: Array, predicted: Array) -> None:
    low, high = drawing.limits(np.concatenate([label, predicted]))
    if len(label) > FEW:
        mesh = drawing.density(axes, label, predicted, (low, high), (low, high), CELLS)
        bar = canvas.colorbar(mesh, ax=axes, shrink=0.7, pad=0.01, aspect=25)
        bar.outline.set_visible(False)
        drawing.log_axis(bar.ax.yaxis, subs=(1.0,))
        bar.ax.set_title("points in\na cell", loc="left", size="small")  # not beside another label
    else:
        axes.plot(label, predicted, "o", ms=3, color=BLUE, alpha=0.5, mec="none")
    axes.plot([low, high], [low, high], color=BLACK, ls="--", lw=1.0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
