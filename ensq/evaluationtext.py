"""An evaluation as lines of text, at most 80 columns wide."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from ensq.calibration.figures import Figure
from ensq.calibration.results import (
    CalibrationReport,
    Coverage,
    Fitted,
    Group,
    Member,
    PerBead,
    Quantity,
    Spread,
)
from ensq.evaluation import Evaluation
from ensq.text import table

MOST_MEMBERS, MOST_GROUPS, MOST_DECIMALS = 12, 24, 6
LARGE = 1e5  # as powers of ten
_NONE = "sigma as it is"
_WAYS = {"none": _NONE, "global": "global", "imbalzano": "Imbalzano", "noise": "with noise"}


def lines(found: Evaluation) -> list[str]:
    """All that is shown."""
    blocks = found.resampling
    seeds = len(found.seeds)
    text = _wrapped(
        f"{found.ensemble}: {seeds} member{'s' * (seeds > 1)} on {found.data.frames} frames, "
        f"{found.data.which}: {found.data.path}"
    )
    for note in found.notes:
        text += _wrapped(f"note: {note}")
    if blocks.blocks > 1:
        text += _wrapped(
            f"in brackets: {100 * blocks.level:g} % intervals, bootstrap of {blocks.blocks} blocks "
            f"of {_span(blocks.shortest, blocks.longest)} frames from {blocks.trajectories} "
            f"trajector{'ies' if blocks.trajectories > 1 else 'y'}"
        )
    if found.forces is not None:
        text += ["", f"FORCES, {found.forces.unit} per component"]
        text += _quantity(found.forces, found.ddof)
    if found.energy is not None:
        text += ["", f"ENERGIES, {found.energy.unit} per frame"]
        text += _quantity(found.energy, found.ddof)
    if found.energy_per_bead is not None:
        text += _per_bead(found.energy_per_bead)
    if found.calibration is not None:
        text += ["", *_calibration(found.calibration)]
    return text


def number(figure: Figure | None) -> str:
    """A value with its interval, rounded to two figures of half the interval's width."""
    if figure is None:
        return "-"
    return f"{_rounded(figure.value, _width(figure))} {interval(figure)}".rstrip()


def interval(figure: Figure) -> str:
    """The interval alone; nothing where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    width = _width(figure)
    return f"[{_rounded(figure.low, width)}, {_rounded(figure.high, width)}]"


def _width(figure: Figure) -> float | None:
    if figure.low is None or figure.high is None or figure.high <= figure.low:
        return None
    return (figure.high - figure.low) / 2


def _rounded(value: float, width: float | None) -> str:
    """With two figures of ``width``, or four of the value itself."""
    if width is None:
        return f"{value:.4g}"
    if max(abs(value), width) >= LARGE:
        return f"{value:.3g}"
    decimals = 1 - math.floor(math.log10(width))
    if decimals > MOST_DECIMALS:
        return f"{value:.2e}"
    return f"{value:.{max(0, decimals)}f}"


def percent(figure: Figure) -> str:
    """A share in percent with its interval."""
    text = f"{100 * figure.value:.1f}"
    if figure.low is None or figure.high is None:
        return text
    return f"{text} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, 80, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _quantity(found: Quantity, ddof: int) -> list[str]:
    rows = [["their mean", number(found.rmse), number(found.mae)]]
    rows += _members(found.members)
    text = table(["", "RMSE", "MAE"], rows, left=(0,))
    text.append(f"  {found.count:,} {found.samples}; rms of the labels {found.reference_rms:.4g}")
    for title, groups in (
        ("protein", found.proteins if len(found.proteins) > 1 else ()),
        ("species", found.species if len(found.species) > 1 else ()),
        ("position", found.positions),
    ):
        text += _groups(title, groups)
    if found.spread is None:
        return [*text, *_wrapped(f"  no uncertainty: {found.no_spread}", "    ")]
    return [*text, *_spread(found.spread, ddof)]


def _members(members: Sequence[Member]) -> list[list[str]]:
    rows = [
        [f"seed {member.seed}", number(member.rmse), number(member.mae)]
        for member in members[:MOST_MEMBERS]
    ]
    if len(members) > MOST_MEMBERS:
        rows.append([f"and {len(members) - MOST_MEMBERS} more", "", ""])
    return rows


def _groups(title: str, groups: Sequence[Group]) -> list[str]:
    if not groups:
        return []
    several = len({group.protein for group in groups}) > 1
    rows = []
    for group in groups[:MOST_GROUPS]:
        name = group.name
        if group.position is not None:
            name = f"{group.protein} " * several + f"{group.position} {group.name}"
        rows.append([name[:20], number(group.rmse), number(group.mae), _value(group.sharpness)])
    text = table([f"by {title}", "RMSE", "MAE", "sigma"], rows, left=(0,))
    if len(groups) > MOST_GROUPS:
        text.append(f"  and {len(groups) - MOST_GROUPS} more, which are in the file")
    return text


def _value(figure: Figure | None) -> str:
    return "-" if figure is None else f"{figure.value:.3g}"


def _spread(found: Spread, ddof: int) -> list[str]:
    scores = found.scores
    rows = [
        [f"rms of sigma (over members, ddof {ddof})", number(scores.sharpness)],
        ["rms error / rms sigma", number(scores.ratio)],
        ["negative log likelihood, mean", number(scores.nll)],
        ["miscalibration area (0 to 0.5)", number(scores.miscalibration_area)],
        *[[_within(one), percent(one.observed)] for one in scores.coverage],
        *[
            [f"Spearman of sigma and |error|, by {name}", number(figure)]
            for name, figure in found.spearman.items()
        ],
    ]
    text = table(["uncertainty", ""], rows, left=(0,))
    if found.left_out:
        text += _wrapped(
            f"  {found.left_out:,} without any spread are left out of these figures", "  "
        )
    return text


def _within(one: Coverage) -> str:
    if one.sigmas not in (1.0, 2.0):
        return f"errors in the {100 * one.nominal:g} % interval, %"
    drawn = "" if one.like_members is None else f", like members {100 * one.like_members:.1f}"
    return f"within {one.sigmas:g} sigma, % (normal {100 * one.nominal:.2f}{drawn})"


def _per_bead(found: PerBead) -> list[str]:
    rows = [["their mean", number(found.rmse), number(found.mae)]]
    rows += _members(found.members)
    return table([found.unit, "RMSE", "MAE"], rows, left=(0,))


def _calibration(found: CalibrationReport) -> list[str]:
    text = [
        "FACTORS: sigma_calibrated^2 = alpha^2 sigma^2 + noise^2",
        *_wrapped(
            f"  fitted on {found.fitted_frames} frames in {found.fitted_blocks} blocks: "
            f"{found.fitted_on}",
            "    ",
        ),
        *_wrapped(f"  judged on {found.judged_frames} frames: {found.judged_on}", "    "),
    ]
    if found.gap_frames:
        text.append(f"  {found.gap_frames} frames between the two are in neither")
    for name, fitted in (("forces", found.forces), ("energies", found.energy)):
        if fitted is not None:
            text += _fitted(name, fitted)
    return text


def _fitted(name: str, found: Fitted) -> list[str]:
    rows, refused = [], []
    for factor in found.factors:
        way = _WAYS[factor.how]
        if factor.alpha is None:
            refused += _wrapped(f"  no factor {way!r}: {factor.refused}", "    ")
            continue
        noise = number(factor.noise)
        rows.append([way, str(factor.ddof), number(factor.alpha), noise])
    text = table([name, "ddof", "alpha", f"noise, {found.unit}"], rows, left=(0,)) + refused
    for factor in found.factors:
        if factor.by_species is not None:
            species = [[key, number(one)] for key, one in factor.by_species.noise.items()]
            title = f"noise by species, alpha {number(factor.by_species.alpha)}"
            text += table([title, found.unit], species, left=(0,))
    if not found.judged:
        return text
    rows = []
    for judged in found.judged:
        scores = judged.scores
        cover = {one.sigmas: one.observed for one in scores.coverage}
        change = "" if judged.nll_change is None else interval(judged.nll_change)
        rows.append(
            [
                _WAYS[judged.how],
                _rounded(scores.nll.value, _width(scores.nll)),
                change,
                f"{scores.miscalibration_area.value:.3f}",
                f"{100 * cover[1.0].value:.1f}",
                f"{100 * cover[2.0].value:.1f}",
                f"{scores.ratio.value:.3g}",
            ]
        )
    head = ["judged", "NLL", "its change", "area", "1 sigma", "2 sigma", "err/sigma"]
    return text + table(head, rows, left=(0,))
