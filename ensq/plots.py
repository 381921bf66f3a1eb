"""Pictures of fitted priors. matplotlib is imported when one is drawn; it need not be installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ensq.boltzmann import Array, Fit, Term, volume
from ensq.errors import UsageError

BINS = 90
COLUMNS = 4  # of the picture of all species
# What the axes say; angles are drawn in degrees.
LABELS = {
    "bond": ("bond length r", "Angstrom"),
    "angle": ("angle theta", "degrees"),
    "dihedral": ("dihedral phi", "degrees"),
}
DATA, FITTED = "#9db4c8", "#c0392b"


def draw(fit: Fit, folder: Path) -> list[Path]:
    """One PNG for each term: histogram and density of the fit, and the potential. One more has the
    potentials of the angles of each species, if these were fitted.

    Raises UsageError if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            f"pictures need matplotlib: pip install matplotlib, or leave out --plots ({error})"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--plots {folder}: can't be made: {error.strerror}") from error
    written = []
    for term in fit.terms:
        figure = Figure(figsize=(9.6, 3.8), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _distribution(left, term, fit)
        _potential(right, term, fit)
        figure.suptitle(_title(term, fit), fontsize=10)
        path = folder / f"prior_{term.name}.png"
        figure.savefig(path)
        written.append(path)
    if types := [number for number, term in enumerate(fit.angle_terms) if term is not None]:
        rows = -(-len(types) // COLUMNS)
        figure = Figure(figsize=(9.6, 0.5 + 2.1 * rows), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        _by_species(figure.subplots(rows, COLUMNS, squeeze=False), types, fit)
        figure.suptitle(
            f"{fit.source}: angle potentials by the species of the central bead, "
            f"{fit.temperature:g} K",
            fontsize=10,
        )
        path = folder / "prior_angle_by_species.png"
        figure.savefig(path)
        written.append(path)
    return written


def _by_species(panels: Any, types: list[int], fit: Fit) -> None:
    """Small multiples: each species' potential and inverted histogram, and what all angles have."""
    general = next(term for term in fit.terms if term.name == "angle")
    x = _midpoints(general)
    of_all = general.potential(x)
    top = 0.0
    for axes, number in zip(panels.flat, types, strict=False):
        term = fit.angle_terms[number]
        assert term is not None
        points, inverted = _inverted(term, fit)
        own = _midpoints(term)
        energy = term.potential(own)
        axes.plot(points, inverted, "o", ms=2, color="#5d7a93", label="-kT ln(p/J) of the bins")
        axes.plot(_shown(term, x), of_all - of_all.min(), color="0.6", lw=0.9, label="all angles")
        axes.plot(_shown(term, own), energy - energy.min(), color=FITTED, lw=1.2, label="fit")
        named = number < len(fit.species_names)
        name = fit.species_names[number] if named else f"species {number}"
        axes.set_title(f"{name}, {term.samples.size:,}", fontsize=8)
        top = max(top, float(inverted.max()))
    for place, axes in enumerate(panels.flat):
        axes.set_xlim(*_shown(general, np.array(general.range)))
        axes.set_ylim(-0.05 * top, 1.1 * top)
        axes.tick_params(labelsize=7)
        _ticks(axes, general)
        if place >= len(types):
            axes.set_axis_off()
    figure = panels.flat[0].figure
    figure.supxlabel(f"{LABELS['angle'][0]} ({LABELS['angle'][1]})", fontsize=9)
    figure.supylabel(f"potential ({fit.unit})", fontsize=9)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=3, frameon=False, fontsize=8)


def _title(term: Term, fit: Fit) -> str:
    form = "cubic spline"
    if term.name == "bond" and term.spline is None:
        form = f"harmonic, r0 = {term.numbers['r0']:.4f}, kr = {term.numbers['kr']:.4g}"
    elif term.spline is None:
        numbers = term.numbers["a" if term.name == "angle" else "k_dih"]
        form = f"Fourier series of order {len(numbers)}"
    return f"{fit.source}: {term.samples.size:,} {term.name}s at {fit.temperature:g} K; {form}"


def _histogram(term: Term) -> tuple[Array, Array]:
    """Density [BINS] and edges [BINS + 1]."""
    density, edges = np.histogram(term.samples, BINS, term.range, density=True)
    return density, edges


def density_of(term: Term, x: Array, kT: float) -> Array:
    """The distribution J exp(-U/kT) that a term alone implies, normalised over evenly spaced x."""
    energy = term.potential(x)
    density = volume(term.name, x) * np.exp(-(energy - energy.min()) / kT)
    scaled: Array = density / (density.sum() * (x[1] - x[0]))
    return scaled


def _shown(term: Term, x: Array) -> Array:
    return x if term.name == "bond" else np.rad2deg(x)


def _distribution(axes: Any, term: Term, fit: Fit) -> None:
    name, unit = LABELS[term.name]
    density, edges = _histogram(term)
    per = _shown(term, np.ones(1))[0]  # densities are per unit of the axis
    axes.stairs(density / per, _shown(term, edges), fill=True, color=DATA, label="data")
    x = _midpoints(term)
    axes.plot(_shown(term, x), density_of(term, x, fit.kT) / per, color=FITTED, label="fit")
    axes.set(
        xlabel=f"{name} ({unit})", ylabel=f"probability density (per {unit.removesuffix('s')})"
    )
    axes.set_xlim(*_shown(term, np.array(term.range)))
    axes.set_ylim(0.0, None)
    axes.legend(frameon=False)
    _ticks(axes, term)


def _midpoints(term: Term) -> Array:
    low, high = term.range
    points: Array = low + (np.arange(1200) + 0.5) / 1200 * (high - low)
    return points


def _inverted(term: Term, fit: Fit) -> tuple[Array, Array]:
    """Centres of the bins as the axis shows them, and their potential; the fit's minimum is 0."""
    density, edges = _histogram(term)
    centre = 0.5 * (edges[1:] + edges[:-1])
    some = density > 0
    inverted = -fit.kT * np.log(density[some] / volume(term.name, centre[some]))
    x = _midpoints(term)
    energy = term.potential(x)
    energy = energy - energy.min()
    # both are known up to a constant: where most samples are they shall agree
    at, weight = np.interp(centre[some], x, energy), density[some] / density.sum()
    inverted += weight @ (at - inverted)
    return _shown(term, centre[some]), inverted


def _potential(axes: Any, term: Term, fit: Fit) -> None:
    name, unit = LABELS[term.name]
    points, inverted = _inverted(term, fit)
    x = _midpoints(term)
    energy = term.potential(x)
    energy = energy - energy.min()
    axes.plot(points, inverted, "o", ms=3, color="#5d7a93", label="-kT ln(p/J) of the bins")
    axes.plot(_shown(term, x), energy, color=FITTED, label="fit")
    axes.axhline(fit.kT, color="0.6", lw=0.8, ls=":", label="kT")
    axes.set(xlabel=f"{name} ({unit})", ylabel=f"potential ({fit.unit})")
    axes.set_xlim(*_shown(term, np.array(term.range)))
    top, bottom = float(inverted.max()), min(0.0, float(inverted.min()))
    axes.set_ylim(bottom - 0.05 * top, 1.45 * top)
    axes.legend(frameon=False, loc="upper center")
    _ticks(axes, term)


def _ticks(axes: Any, term: Term) -> None:
    if term.name == "dihedral":
        axes.set_xticks(range(-180, 181, 60))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
