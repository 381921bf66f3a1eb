"""The priors of a trained member as LAMMPS input, for a model file that holds the network alone.

Every term is a bonded interaction, so that it follows the beads wherever they are stored, and the
network stays the only pair style:

- bonds of the chain as ``harmonic``, angles and dihedrals as ``lepton`` formulas: exact;
- repulsion and excluded volume, which depend on |i - j|, as bonds with a ``lepton`` formula between
  all pairs of beads that they act on: pair styles can't tell how far apart in the chain two beads
  are;
- splines as tables: rows at the knots and between them, which LAMMPS turns into ``POINTS`` evenly
  spaced points with linear interpolation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq import __version__
from ensq import config as configuration
from ensq.config import RunConfig
from ensq.config.model import ModelConfig, PriorsConfig, SplineConfig, SplinesConfig
from ensq.train.checkpoint import MemberResult
from ensq.train.export import UNIT_STYLES
from ensq.train.models.priors import FAR, NEAR

# That LAMMPS makes of a table's rows, linear between them; bonds have the narrowest splines.
POINTS = {"bond": 120001, "angle": 30001, "dihedral": 30001}
ROWS, FEWEST = 24000, 400  # of all tables together, and of one table at least
BESIDE = 12  # close rows on each side of a spline, where its force may jump to 0

Values = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One type of bond, angle or dihedral; its place in a list, from 1, is its number in LAMMPS."""

    style: str  # lepton, harmonic or table
    coefficients: str  # after the number and the style
    nearest: int = 1  # bonds: the smallest and the largest |i - j|
    farthest: int | None = 1
    comment: str
    table: str = ""  # the section of the table file, if it takes one


@dataclass(frozen=True)
class Kinds:
    """All kinds of terms of one configuration."""

    bonds: tuple[Kind, ...]
    angles: tuple[Kind, ...]  # one, or one for each species of the central bead
    dihedrals: tuple[Kind, ...]

    @property
    def tables(self) -> str:
        """The contents of the table file; empty if none is needed."""
        every = (*self.bonds, *self.angles, *self.dihedrals)
        return "\n".join(kind.table for kind in every if kind.table)


def prior_files(result: MemberResult, stem: str, model_file: str, data_file: str) -> dict[str, str]:
    """``<stem>_priors.in``, and ``<stem>_priors.table`` if there are splines, by name.

    Args:
        result: A member; the values are those of its parameters, the weights its configuration's.
        stem: The first part of the names.
        model_file: The network's file, for the example in the comments.
        data_file: A data file that fits, for the same.
    """
    config = configuration.loads(result.config)
    table = f"{stem}_priors.table"
    kinds = kinds_of(config.model, result.params["priors"], len(result.species_names), table)
    lines = [
        *_comments(config, kinds, stem, model_file, data_file),
        "",
        "# Without this LAMMPS keeps bonded beads out of the neighbour list that the network gets.",
        "special_bonds lj/coul 1.0 1.0 1.0",
        *_bond_lines(kinds.bonds),
        *_lines("angle", kinds.angles),
        *_lines("dihedral", kinds.dihedrals),
    ]
    files = {f"{stem}_priors.in": "\n".join(lines) + "\n"}
    if kinds.tables:
        files[table] = kinds.tables
    return files


def _comments(
    config: RunConfig, kinds: Kinds, stem: str, model_file: str, data_file: str
) -> Iterator[str]:
    """What the file is, what it needs, and how it is used."""
    style = UNIT_STYLES[config.unit]
    rest = "reference energies alone" if config.model.prior_only else "the network alone"
    dihedral_table = any(kind.style == "table" for kind in kinds.dihedrals)
    packages = ("MOLECULE", "LEPTON", *(["EXTRA-MOLECULE"] if dihedral_table else []))
    whole_input = (
        f"units {style}",
        "atom_style molecular",
        "boundary s s s",
        f"read_data {data_file}",
        "pair_style chemtrain_deploy cuda12 0.95",
        f"pair_coeff * * {model_file} 1.1 1.1",
        f"include {stem}_priors.in",
        f"timestep {'2.0' if style == 'real' else '0.002'}",
        "velocity all create 300 42",
        f"fix 1 all langevin 300 300 {'1000' if style == 'real' else '1.0'} 42",
        "fix 2 all nve",
        "thermo 1000",
        "run 10000",
    )
    yield f"# The priors of {model_file}, which holds {rest}; by ensq {__version__}."
    yield f"# Energies in {config.unit}, lengths in Angstrom: units {style}."
    yield f"# LAMMPS packages: {', '.join(packages)}."
    yield "# A whole input, with this file in its place:"
    yield "#"
    yield from (f"#   {line}" for line in whole_input)
    yield "#"
    yield "# cuda12 0.95: the device (or cpu), and the part of its memory that the model may take."
    yield "# 1.1 1.1: room to spare for ghost atoms, and for neighbours."
    yield "#"
    yield from _warning(kinds)
    yield "# A topology of your own needs these types:"
    yield from _told("bond", kinds.bonds)
    yield from _told("angle", kinds.angles)
    yield from _told("dihedral", kinds.dihedrals)


def _warning(kinds: Kinds) -> Iterator[str]:
    if any(kind.farthest is None or kind.farthest > 1 for kind in kinds.bonds):
        yield "# Bonds between beads that are far apart: on several ranks LAMMPS stops with"
        yield '# "Bond atoms missing" when a molecule is longer than ghosts reach; use one rank.'
        yield "#"


def _told(what: str, kinds: tuple[Kind, ...]) -> Iterator[str]:
    for number, kind in enumerate(kinds, 1):
        yield f"#   {what} type {number}: {kind.comment}"


def _bond_lines(kinds: tuple[Kind, ...]) -> Iterator[str]:
    if not kinds:
        return
    options = {"harmonic": "", "lepton": " no_offset", "table": f" linear {POINTS['bond']}"}
    styles = dict.fromkeys(kind.style for kind in kinds)
    yield "bond_style hybrid " + " ".join(style + options[style] for style in styles)
    for number, kind in enumerate(kinds, 1):
        yield f"bond_coeff {number} {kind.style} {kind.coefficients}"


def _lines(what: str, kinds: tuple[Kind, ...]) -> Iterator[str]:
    if not kinds:
        return
    options = {"table": f"table linear {POINTS[what]}", "lepton": "lepton"}
    no_offset = " no_offset" if kinds[0].style == "lepton" and what == "angle" else ""
    yield f"{what}_style {options[kinds[0].style]}{no_offset}"
    for number, kind in enumerate(kinds, 1):
        yield f"{what}_coeff {number} {kind.coefficients}"


# -- terms -------------------------------------------------------------------------------------


def kinds_of(config: ModelConfig, params: Values, n_species: int, table: str) -> Kinds:
    """The terms that ``ChainPriors`` computes with these parameters, in LAMMPS' words."""
    priors = config.priors
    splines = (priors.splines if priors.use_spline_priors else None) or SplinesConfig()
    values = {key: np.asarray(value, np.float64) for key, value in params.items()}
    return Kinds(
        tuple(_bonds(priors, values, splines, table)),
        tuple(_angles(priors, values, splines, table, n_species)),
        tuple(_dihedrals(priors, values, splines, table)),
    )


def _bonds(
    config: PriorsConfig, values: Values, splines: SplinesConfig, table: str
) -> Iterator[Kind]:
    weights = config.weights
    if splines.bond is not None and weights.bond:
        yield Kind(
            style="table",
            coefficients=f"{table} BOND",
            comment="beads i and i+1",
            table=_bond_table(splines.bond, weights.bond, _rows(1)),
        )
    elif "r0" in values:
        stiffness = 0.5 * weights.bond * float(values["kr"])
        yield Kind(
            style="harmonic",
            coefficients=f"{_number(stiffness)} {_number(values['r0'])}",
            comment="beads i and i+1",
        )
    for one, two, weight, nearest, farthest, name in (
        ("epsilon_ex", "sigma_ex", weights.excluded_volume, NEAR, FAR - 1, "excluded volume"),
        ("epsilon", "sigma", weights.repulsive, FAR, None, "repulsion"),
    ):
        if one in values:
            factor = weight * float(values[one]) * float(values[two]) ** 4
            upper = f" and at most {farthest}" if farthest else ""
            yield Kind(
                style="lepton",
                coefficients=f'0.0 "{_number(factor)}/r^4"',
                nearest=nearest,
                farthest=farthest,
                comment=f"{name}: all beads i and j with |i-j| at least {nearest}{upper}",
            )


def _angles(
    config: PriorsConfig, values: Values, splines: SplinesConfig, table: str, n_species: int
) -> Iterator[Kind]:
    weight = config.weights.angle
    types = splines.angle_types if config.residue_specific_angles else ()
    if weight and any((splines.angle, *types)):
        of_species = [*types, *[None] * n_species][:n_species] if types else [None]
        rows = _rows(len(of_species))
        for number, spline in enumerate(of_species, 1):
            central = f" with a bead of type {number} in the middle" if types else ""
            yield Kind(
                style="table",
                coefficients=f"{table} ANGLE{number}",
                comment=f"beads i, i+1 and i+2{central}",
                table=_angle_table(f"ANGLE{number}", spline or splines.angle, weight, rows),
            )
    elif "a" in values:
        terms = [
            f"{_signed(weight * factor)}*{function}({n}*theta)"
            for function, key in (("cos", "a"), ("sin", "b"))
            for n, factor in enumerate(values[key], 1)
        ]
        yield Kind(
            style="lepton",
            coefficients=f'0.0 "{"".join(terms).lstrip("+")}"',
            comment="beads i, i+1 and i+2",
        )


def _dihedrals(
    config: PriorsConfig, values: Values, splines: SplinesConfig, table: str
) -> Iterator[Kind]:
    weight, comment = config.weights.dihedral, "beads i, i+1, i+2 and i+3"
    if splines.dih is not None and weight:
        yield Kind(
            style="table",
            coefficients=f"{table} DIHEDRAL",
            comment=comment,
            table=_dihedral_table(splines.dih, weight, config.dihedral_sign, _rows(1)),
        )
    elif "k_dih" in values:
        terms = [
            f"{_signed(weight * k)}*(1+cos({n}*phi{_signed(-config.dihedral_sign * gamma)}))"
            for n, (k, gamma) in enumerate(
                zip(values["k_dih"], values["gamma_dih"], strict=True), 1
            )
        ]
        yield Kind(style="lepton", coefficients=f'"{"".join(terms).lstrip("+")}"', comment=comment)


def _rows(tables: int) -> int:
    """Rows of each table of one kind: bonds, angles and dihedrals share ``ROWS`` equally."""
    return max(FEWEST, min(4000, ROWS // 3 // tables))


def _number(value: Any) -> str:
    return f"{float(value):.10g}"


def _signed(value: Any) -> str:
    return f"{float(value):+.10g}"


# -- tables ------------------------------------------------------------------------------------


def _bond_table(spline: SplineConfig, weight: float, rows: int) -> str:
    """From nearly 0 to three times the last knot, since LAMMPS stops at a bond that leaves its
    table; outside the knots the energy is constant."""
    r = _places(spline, 0.01, 3.0 * spline.knots[-1], rows)
    energy, slope = evaluate(spline, r)
    return _table("BOND", "", r, weight * energy, -weight * slope)


def _angle_table(name: str, spline: SplineConfig | None, weight: float, rows: int) -> str:
    if spline is None:
        degrees = np.linspace(0.0, 180.0, FEWEST)
        return _table(name, "", degrees, 0 * degrees, 0 * degrees)
    theta = _places(spline, 0.0, np.pi, rows)
    energy, slope = evaluate(spline, theta)
    degrees = np.degrees(theta)
    return _table(name, "", degrees, weight * energy, -weight * np.radians(slope))


def _dihedral_table(spline: SplineConfig, weight: float, sign: int, rows: int) -> str:
    first = spline.knots[0]
    phi = _places(spline, first, first + 2 * np.pi, rows)[:-1]  # the last is the first again
    energy, slope = evaluate(spline, phi)
    degrees = np.mod(sign * np.degrees(phi) + 180.0, 360.0) - 180.0
    order = np.argsort(degrees)
    force = -sign * weight * np.radians(slope)
    return _table("DIHEDRAL", " DEGREES", degrees[order], (weight * energy)[order], force[order])


def _places(spline: SplineConfig, low: float, high: float, rows: int) -> NDArray[Any]:
    """Where a table has its rows: about so many, dense where the spline lives.

    All knots inside are among them, with as many places between each two; LAMMPS' own curve
    through the rows can't follow a bend that lies between two of them.
    """
    knots = np.asarray(spline.knots)
    parts = max(2, round(rows / (len(knots) - 1)))
    step = np.diff(knots) / parts
    inner = knots[:-1, None] + step[:, None] * np.arange(parts)
    aside = np.arange(1, BESIDE + 1)
    flat = np.concatenate([knots[0] - step[0] * aside, knots[-1] + step[-1] * aside])
    every = np.concatenate([inner.ravel(), knots[-1:], flat, np.linspace(low, high, 20)])
    every = np.unique(every[(every > low) & (every < high)])
    apart = np.concatenate([[True], np.diff(every) > 1e-3 * step.min()])
    every = every[apart & (every - low > 1e-9) & (high - every > 1e-9)]
    return np.concatenate([[low], every, [high]])


def evaluate(spline: SplineConfig, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Value and slope of a spline; outside its knots x is clamped and the slope 0."""
    knots, coeffs = np.asarray(spline.knots), np.asarray(spline.coeffs)
    inside = (x >= knots[0]) & (x <= knots[-1])
    at = np.clip(x, knots[0], knots[-1])
    piece = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(coeffs) - 1)
    d = at - knots[piece]
    c0, c1, c2, c3 = coeffs[piece].T
    value = c0 + d * (c1 + d * (c2 + d * c3))
    return value, np.where(inside, c1 + d * (2 * c2 + 3 * d * c3), 0.0)


def _table(
    name: str, keywords: str, x: NDArray[Any], energy: NDArray[Any], force: NDArray[Any]
) -> str:
    rows = zip(x, energy, force, strict=True)
    lines = [f"{i} {a:.12g} {e:.10g} {f:.10g}" for i, (a, e, f) in enumerate(rows, 1)]
    return "\n".join([name, f"N {len(lines)}{keywords}", "", *lines, ""])
