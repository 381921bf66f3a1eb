"""Whether the spread over the members tells the error: against it, and as a calibration curve."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensq.calibration.results import CalibrationReport, Factor, Fitted, Quantity, Scores, Spread
from ensq.evaluation import Report
from ensq.report import drawing, evaluated, html
from ensq.report.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION
from ensq.report.evaluated import Found, cell, text, unit
from ensq.report.html import Content
from ensq.report.known import Known
from ensq.report.page import Figure, Section

ANCHOR, TITLE = "uncertainty", "Uncertainty"
WAYS = {
    "none": "sigma as it is",
    "global": "global",
    "imbalzano": "Imbalzano",
    "noise": "with noise",
}
# Of the curves of sigma as a factor makes it.
STYLES = {
    "global": (ORANGE, "--"),
    "imbalzano": (GREEN, "-."),
    "noise": (VERMILION, ":"),
}


def section(known: Known, found: Found) -> Section:
    parts: list[Content | Figure] = []
    for stem, report in found.reports:
        parts += _one(report, stem)
    if not parts:
        text_ = "Spread, calibration and scale factors"
        parts = [evaluated.missing(known, text_)]
    else:
        parts.insert(0, html.paragraph(_WHAT))
    return Section(anchor=ANCHOR, title=TITLE, body=tuple(parts))


_WHAT = (
    "Sigma is the standard deviation over the members of what they predict. Where it is a good "
    "uncertainty, errors lie on the diagonal of the first picture, and shares of errors within an "
    "interval "
    "on that of the second."
)


def _one(report: Report, stem: str) -> list[Content | Figure]:
    made = report.evaluation
    parts: list[Content | Figure] = [evaluated.title(made)]
    for name, word, quantity in (
        ("forces", "Forces", made.forces),
        ("energy", "Energies", made.energy),
    ):
        if quantity is None:
            continue
        if quantity.spread is None:
            parts.append(html.missing(f"{word}: {quantity.no_spread}."))
            continue
        fitted = None if made.calibration is None else getattr(made.calibration, name)
        parts += [
            html.tag("h4", word),
            html.paragraph(_said(quantity, quantity.spread), _noise(quantity.spread, fitted)),
            _figure(report, stem, name, quantity),
            _scores(quantity.spread, fitted, made.ddof),
        ]
        if fitted is not None and made.calibration is not None:
            parts += [_factors(fitted, made.calibration), html.paragraph(_FACTORS)]
    return parts


def _said(quantity: Quantity, spread: Spread) -> str:
    ratio, scores = spread.scores.ratio, spread.scores
    sign = unit(quantity.unit)
    if ratio.low is not None and ratio.low > 1.1:
        verdict = "the spread is too small for the errors"
    elif ratio.high is not None and ratio.high < 0.9:
        verdict = "the spread is too large for the errors"
    else:
        verdict = "spread and errors are of a size"
    ranks = ", ".join(f"{text(value)} by {name}" for name, value in spread.spearman.items())
    left = ""
    if spread.left_out:
        left = f" {spread.left_out:,} samples in which all members agree are left out."
    return (
        f"The rms of sigma is {text(scores.sharpness)} {sign}, that of the errors {text(ratio)} "
        "times as "
        f"large: {verdict}. Rank correlation (Spearman) of sigma and |error|: {ranks}.{left}"
    )


def _noise(spread: Spread, fitted: Fitted | None) -> str:
    """That the labels' noise hides the members' errors, where it does."""
    factors = () if fitted is None else fitted.factors
    noise = next((one.noise for one in factors if one.noise is not None), None)
    sharpness = spread.scores.sharpness.value
    if noise is None or noise.low is None or noise.low <= sharpness:
        return ""
    sign = unit(fitted.unit) if fitted is not None else ""
    return (
        f" A fit finds noise of {text(noise)} {sign} in the labels, more than the spread: most of "
        "these "
        "errors are not the models', as in labels of coarse-grained forces."
    )


def _figure(report: Report, stem: str, name: str, quantity: Quantity) -> Figure:
    assert quantity.spread is not None
    arrays = report.arrays
    area = text(quantity.spread.scores.miscalibration_area)
    rows: list[tuple[Any, ...]] = [
        ("bins", quantity.unit, *(float(arrays[f"{name}_bins_{key}"][place]) for key in _BINS))
        for place in range(len(arrays.get(f"{name}_bins_sigma", ())))
    ]
    for curve in ("", *(f"_{how}" for how in WAYS)):
        key = f"{name}_curve_observed{curve}"
        if key in arrays:
            rows += [
                (f"curve{curve}", "share", float(x), float(y), None, None)
                for x, y in zip(arrays["curve_expected"], arrays[key], strict=True)
            ]
    more = [how for how in STYLES if f"{name}_curve_observed_{how}" in arrays]
    after = ""
    if more:
        after = " Other lines: sigma as a factor makes it, on the frames that it was not fitted on."
    return drawing.figure(
        f"sigma-{name}-{stem}",
        lambda canvas, narrow: _draw(canvas, narrow, report, name, quantity),
        alt=f"Error against sigma, and calibration curve with a miscalibration area of {area}",
        caption="Left or above: samples in bins of sigma; the root mean square error of each with "
        "its interval. Right or below: the share of errors within the central interval that should "
        "hold the share on the axis; the area between the line of sigma as it is and the diagonal "
        f"is {area} (0 to 0.5).{after}",
        # of bins sigma and rms error in the unit, of curves expected and observed shares
        csv=drawing.as_csv(("what", "unit", "x", "y", "low", "high"), rows),
        height=400,
        slim_height=720,
    )


_BINS = ("sigma", "error", "error_low", "error_high")


def _draw(canvas: Any, narrow: bool, report: Report, name: str, quantity: Quantity) -> None:
    left, right = drawing.panels(canvas, narrow, 2)
    _against(left, report, name, unit(quantity.unit))
    _curves(right, report, name)
    handles, labels = right.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=2 if narrow else 5)


def _against(axes: Any, report: Report, name: str, sign: str) -> None:
    sigma, error, low, high = (report.arrays[f"{name}_bins_{key}"] for key in _BINS)
    axes.errorbar(
        sigma,
        error,
        yerr=[np.maximum(error - low, 0), np.maximum(high - error, 0)],
        fmt="o",
        color=BLUE,
        ms=4.5,
        elinewidth=1.2,
    )
    every = np.concatenate([sigma, low, high])
    least, most = 0.8 * every[every > 0].min(), 1.25 * every.max()
    axes.plot([least, most], [least, most], color=BLACK, ls="--", lw=1.0)
    if drawing.is_log([float(value) for value in (*sigma, *error)]):
        drawing.log_axis(axes.xaxis)
        drawing.log_axis(axes.yaxis)
        axes.set_xlim(0.8 * sigma[sigma > 0].min(), 1.25 * sigma.max())
        axes.set_ylim(least, most)
    else:
        axes.set_xlim(0, 1.05 * sigma.max())
        axes.set_ylim(0, 1.05 * max(high.max(), sigma.max()))
    axes.set_xlabel(f"sigma / {sign}")
    axes.set_ylabel(f"rms error / {sign}")
    axes.grid(lw=0.6)
    axes.set_axisbelow(True)


def _curves(axes: Any, report: Report, name: str) -> None:
    arrays = report.arrays
    expected = arrays["curve_expected"]
    observed = arrays[f"{name}_curve_observed"]
    axes.plot([0, 1], [0, 1], color=BLACK, ls="--", lw=1.0, label="calibrated")
    axes.fill_between(expected, expected, observed, color=GREY, alpha=0.15, lw=0)
    axes.fill_between(
        expected,
        arrays[f"{name}_curve_observed_low"],
        arrays[f"{name}_curve_observed_high"],
        color=BLUE,
        alpha=0.25,
        lw=0,
    )
    axes.plot(expected, observed, color=BLUE, lw=1.8, label=WAYS["none"])
    for how, (color, line) in STYLES.items():
        curve = arrays.get(f"{name}_curve_observed_{how}")
        if curve is not None:
            axes.plot(expected, curve, color=color, ls=line, lw=1.8, label=WAYS[how])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel("share that should be within")
    axes.set_ylabel("share that is")
    axes.grid(lw=0.6)
    axes.set_axisbelow(True)


# -- tables -------------------------------------------------------------------------------------


_FACTORS = (
    "A factor makes an uncertainty of the spread. Global: the likeliest factor for normal errors. "
    "Imbalzano: the same, free of the bias of few members. With noise: a factor, and noise of the "
    "labels that is the same everywhere. Judged: on frames that the factors were not fitted on."
)
_SCORES = (
    "NLL: mean negative log likelihood of the errors, lower is better; only its differences "
    "count, since its zero hangs on the unit. Area: between the calibration curve and the "
    "diagonal, 0 is best."
)


def _scores(spread: Spread, fitted: Fitted | None, ddof: int) -> Content:
    head = ("sigma", "NLL", "area", "within 1 sigma", "within 2 sigma", "rms error / rms sigma")
    rows = [_score(f"all frames, sigma as it is (ddof {ddof})", spread.scores)]
    if fitted is not None:
        rows += [
            _score(f"judged: {WAYS.get(one.how, one.how)}", one.scores) for one in fitted.judged
        ]
    normal = ("for normal errors", "", "0", "68.3 %", "95.4 %", "1")
    return html.table(
        head, [*rows, normal], left=(0,), caption=_SCORES, label="scores of the uncertainty"
    )


def _score(name: str, scores: Scores) -> tuple[Content, ...]:
    inside = {one.sigmas: one.observed for one in scores.coverage}
    shares = (inside.get(1.0), inside.get(2.0))
    return (
        name,
        cell(scores.nll),
        cell(scores.miscalibration_area),
        *(cell(one, 100.0, " %") for one in shares),
        cell(scores.ratio),
    )


def _factors(fitted: Fitted, report: CalibrationReport) -> Content:
    rows = [_factor(one, unit(fitted.unit)) for one in fitted.factors]
    table = html.table(
        ("factor", "alpha", "noise", "of sigma with ddof"),
        rows,
        left=(0,),
        caption=f"sigma_calibrated² = alpha² sigma² + noise², fitted on {report.fitted_on}; "
        "judged on "
        f"{report.judged_on} ({report.judged_frames:,} frames)",
        label="scale factors",
    )
    refused = [
        html.paragraph(f"No factor {WAYS.get(one.how, one.how)}: {one.refused}.")
        for one in fitted.factors
        if one.refused
    ]
    return html.join((table, *refused), "\n")


def _factor(one: Factor, sign: str) -> tuple[Content, ...]:
    noise = cell(one.noise, sign=f" {sign}")
    return WAYS.get(one.how, one.how), cell(one.alpha), noise, str(one.ddof)
