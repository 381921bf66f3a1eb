"""What `ensq simulate` found: does the ensemble's mean keep a molecule together, and is it the
same molecule as in the data?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ensq import simulation
from ensq.progress import duration
from ensq.report import drawing, html
from ensq.report.analyses import read_all
from ensq.report.drawing import BLACK, BLUE, GREY, ORANGE
from ensq.report.html import Content
from ensq.report.known import Known
from ensq.report.numbers import NOTHING, interval, percent, plain, with_error
from ensq.report.page import Figure, Section
from ensq.simulation import Contacts, Distribution, Simulation

if TYPE_CHECKING:
    from ensq.dynamics.given import Given

ANCHOR, TITLE = "dynamics", "Dynamics"
UNITS = {"Angstrom": "Å", "degrees": "degrees"}
MOST = 12  # distributions that are drawn; the table has all


def section(known: Known, given: Sequence[Given] = ()) -> Section:
    """``given``: trajectories from elsewhere, compared with the data."""
    simulations, notes = _of_these_members(known)
    parts: list[Content | Figure] = [
        html.paragraph(html.prose(note), class_="note") for note in notes
    ]
    for stem, found in simulations.items():
        parts += _one(found, stem)
    if not parts:
        command = f"ensq simulate {known.name if known.from_queue else known.source}"
        parts = [
            html.missing(
                "No dynamics were run: ",
                html.code(command),
                " simulates short Langevin dynamics with the mean of the members and compares "
                "bonds, "
                "angles, dihedrals and the radius of gyration with the data.",
            )
        ]
    for number, one in enumerate(given, 1):
        parts += [
            html.tag("h3", f"The trajectory {one.source}"),
            html.paragraph(f"{one.frames:,} frames, made elsewhere, against those of the data."),
            _distributions(one.distributions, f"trajectory-{number}", "trajectory"),
            _distances(one.distributions),
        ]
    return Section(anchor=ANCHOR, title=TITLE, body=tuple(parts))


def _of_these_members(known: Known) -> tuple[dict[str, Simulation], list[str]]:
    """The simulations by their names, and notes on what can't be read or is of other members.

    Files of earlier versions do not tell of which members they are. Of two with one name the
    run's own counts, not the export folder's.
    """

    def stale(one: Simulation) -> str:
        if one.members in ((), known.digests):
            return ""
        return (
            "is a simulation by other members than those that are trained now; "
            f"`ensq simulate` with frames of {one.source} makes it anew"
        )

    read, notes = read_all(known, simulation.find, simulation.read, stale)
    found: dict[str, Simulation] = {}
    for path, one in read:
        found.setdefault(path.stem.removeprefix(simulation.PREFIX), one)
    return found, notes


def _one(found: Simulation, stem: str) -> list[Content | Figure]:
    parts: list[Content | Figure] = [
        html.tag("h3", f"From frames of {found.source}, {found.temperature:g} K"),
        html.paragraph(found.verdict, class_="note"),
        html.pairs(_facts(found)),
        _over_time(found, stem),
    ]
    stops = [(place, why) for place, why in enumerate(found.reasons) if why]
    if stops:
        rows = [
            (
                str(place),
                plain(float(found.time_done[place]), 3),
                html.tag("span", why, class_="long"),
            )
            for place, why in stops
        ]
        parts += [
            html.tag("h4", "Replicas that were stopped"),
            html.table(("replica", "after / ps", "why"), rows, left=(2,), label="stopped replicas"),
        ]
    if found.distributions:
        parts += [
            _distributions(found.distributions, stem, "simulation"),
            _distances(found.distributions),
        ]
    return parts


def _facts(found: Simulation) -> list[tuple[Content, Content]]:
    done = found.time_done
    kinetic = NOTHING
    if found.ensemble_temperature is not None:
        kinetic = f"{with_error(found.ensemble_temperature, found.temperature_error)} K"
    facts: list[tuple[Content, Content]] = [
        ("replicas that came through", f"{found.survived} of {found.n_replicas}"),
        (
            "simulated",
            f"{plain(float(done.sum()), 3)} ps in all, {plain(float(done.max()), 3)} ps at most",
        ),
        ("time step, friction", f"{found.timestep:g} fs, {found.friction:g}/ps"),
        ("temperature by velocities", kinetic),
        ("members", ", ".join(map(str, found.seeds))),
    ]
    if found.seconds:
        facts.append(("took", f"{duration(found.seconds)} without compiling"))
    if found.interrupted:
        facts.append(("note", "interrupted before its end"))
    if found.extrapolation is not None:
        text = f"{percent(found.extrapolation)} of beads; 1 % is what the data themselves have"
        facts.append(("epsilon above the data's 99th percentile", text))
    facts += [_near(one) for one in found.contacts]
    return facts


def _near(one: Contacts) -> tuple[Content, Content]:
    """How near beads without a bond came, and how near they do in the data."""
    text = f"{plain(one.smallest, 3)} Å at least, {plain(one.data_smallest, 3)} Å in the data"
    if one.closer is not None:
        text += f"; {percent(one.closer)} of frames are closer than 99 % of the data's"
    return f"contacts of {one.molecule}" if one.molecule else "contacts", text


def _over_time(found: Simulation, stem: str) -> Figure:
    rows = [
        (
            *(float(when), replica, *(float(part[look, replica]) for part in _series(found))),
            *(float(bond) for bond in found.bonds[look, replica]),
        )
        for look, when in enumerate(found.time)
        for replica in range(found.n_replicas)
        if found.recorded[look, replica]
    ]
    length = found.length_unit
    head = (
        *("time_ps", "replica"),
        drawing.with_unit("epsilon_max", f"{found.energy_unit}/{length}"),
        "kinetic_temperature_K",
        drawing.with_unit("potential", found.energy_unit),
        drawing.with_unit("shortest_bond", length),
        drawing.with_unit("longest_bond", length),
    )
    return drawing.figure(
        f"dynamics-{stem}",
        lambda canvas, narrow: _draw_time(canvas, narrow, found),
        alt=f"Epsilon and kinetic temperature of {found.n_replicas} replicas over time",
        caption="Thin lines are replicas, the thick ones their median; crosses are where a "
        "replica was "
        "stopped. Left or above: the largest epsilon of a replica's beads since the last look, the "
        "disagreement "
        "of the members about a force; dashed: the same quantile of single beads in the data. "
        "Right or below: "
        "the temperature by the velocities; dashed: that of the thermostat.",
        csv=drawing.as_csv(head, rows),
        height=320,
        slim_height=560,
    )


def _series(found: Simulation) -> tuple[Any, ...]:
    return found.epsilon_max, found.kinetic_temperature, found.potential


def _draw_time(canvas: Any, narrow: bool, found: Simulation) -> None:
    left, right = drawing.panels(canvas, narrow, 2)
    for axes, values in ((left, found.epsilon_max), (right, found.kinetic_temperature)):
        shown = np.where(found.recorded, values, np.nan)
        many = shown.size > drawing.MANY_POINTS
        alpha = max(0.1, min(0.6, 10 / found.n_replicas))
        axes.plot(found.time, shown, color=GREY, lw=0.6, alpha=alpha, rasterized=many)
        some = found.recorded.any(axis=1)
        axes.plot(found.time[some], np.nanmedian(shown[some], axis=1), color=BLUE, lw=1.6)
        for place, why in enumerate(found.reasons):
            looks = np.flatnonzero(found.recorded[:, place])
            if why and len(looks):
                axes.plot(found.time[looks[-1]], values[looks[-1], place], "x", color=BLACK, ms=6)
        axes.set_xlabel("time / ps")
        axes.grid(axis="y", lw=0.6)
        axes.set_axisbelow(True)
    force = f"{found.energy_unit}/{UNITS.get(found.length_unit, found.length_unit)}"
    left.set_ylabel(f"largest epsilon / {force}")
    right.set_ylabel("kinetic temperature / K")
    right.axhline(found.temperature, color=BLACK, ls="--", lw=1.0)
    if drawing.is_log([float(value) for value in found.epsilon_max[found.recorded]]):
        drawing.log_axis(left.yaxis)
    for level, value in zip(found.epsilon_levels, found.epsilon_data, strict=False):
        if level in (0.99, 1.0):
            left.axhline(value, color=ORANGE, ls="--", lw=1.0)
            name = "largest" if level == 1.0 else f"{100 * level:g} %"
            left.annotate(
                f"data: {name}",
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 2),
                textcoords="offset points",
                ha="right",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
            )


def _distributions(found: Sequence[Distribution], stem: str, what: str) -> Figure:
    """``what`` is held against the data, in a word."""
    shown = found[:MOST]
    rows = [
        (one.title, one.unit, float(one.edges[place]), float(one.edges[place + 1]), *pair)
        for one in found
        for place, pair in enumerate(_pairs(one))
    ]
    count = len(shown)
    more = len(found) - count
    rest = f" {more} more are in the table and the numbers." if more else ""
    return drawing.figure(
        f"distributions-{stem}",
        lambda canvas, narrow: _draw_distributions(canvas, narrow, shown, what),
        alt=f"Distributions in the {what} and in the data: "
        + ", ".join(one.title for one in shown),
        caption=f"Probability densities in the {what} (line) and in the data (filled).{rest}",
        csv=drawing.as_csv(("coordinate", "unit", "from", "to", what, "data"), rows),
        height=40 + 210 * -(-count // 3),
        slim_height=40 + 190 * count,
    )


def _pairs(one: Distribution) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(one.simulation, one.data, strict=True)]


def _draw_distributions(
    canvas: Any, narrow: bool, shown: Sequence[Distribution], what: str
) -> None:
    panels = drawing.rows(canvas, narrow, len(shown), 3)
    for axes, one in zip(panels, shown, strict=True):
        axes.stairs(one.data, one.edges, fill=True, color="#c9d1d9", label="data")
        axes.stairs(one.simulation, one.edges, color=BLUE, lw=1.5, label=what)
        axes.set_title(one.title)
        axes.set_xlabel(UNITS.get(one.unit, one.unit))
        axes.set_yticks([])
        axes.set_ylim(0, None)
        if one.kind == "dihedral":
            axes.set_xticks(range(-180, 181, 90))
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=2)


def _distances(found: Sequence[Distribution]) -> Content:
    head = (
        "coordinate",
        "JS divergence / bits",
        "95 %",
        "halves of the data",
        "moved by",
        "differs",
    )
    rows = []
    for one in found:
        unit = UNITS.get(one.unit, one.unit)
        noise = NOTHING
        if one.js_noise is not None:
            noise = f"{plain(one.js_noise[0], 2)}, at most {plain(one.js_noise[1], 2)}"
        word = {True: "yes", False: "no", None: "not known"}[one.differs]
        rows.append(
            (
                one.title,
                plain(one.js, 3),
                interval(*one.js_interval),
                noise,
                f"{plain(one.wasserstein, 3)} {unit}",
                word,
            )
        )
    note = html.paragraph(
        "The Jensen–Shannon divergence is 0 for equal distributions and 1 for those that share "
        "nothing; halves of the data are never equal either, and a distribution differs where the "
        "interval lies above all that those differ by. An interval may lie above its number: "
        "drawing frames anew adds noise, and noise makes distributions differ. The last but one "
        "column is the Wasserstein distance: the mean way by which values would have to be moved."
    )
    table = html.table(head, rows, left=(0, 5), label="distances of distributions")
    return html.join((table, note), "\n")
