"""The priors of a trained member as LAMMPS input, for a model file that holds the network alone.

Every term is a bonded interaction, so that it follows the beads wherever they are stored, and the
network stays the only pair style:

- bonds of the chain as ``harmonic``, angles and dihedrals as ``lepton`` formulas: exact;
- repulsion and excluded volume, which depend on |i - j|, as bonds with a ``lepton`` formula between
  all pairs of beads that they act on: pair styles can't tell how far apart in the chain two beads
  are;
- splines as tables with linear interpolation.
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

POINTS = 8001  # of a table; linear between them

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
        f"fix 1 all langevin 300 300 {'1000' if style == 'real' else '1.0'} 42",
        "fix 2 all nve",
        "run 10000",
    )
    yield f"# The priors of {model_file}, which holds {rest}; by ensq {__version__}."
    yield f"# Energies in {config.unit}, lengths in Angstrom: units {style}."
    yield f"# LAMMPS packages: {', '.join(packages)}."
    yield "# A whole input, with this file in its place:"
    yield "#"
    yield from (f"#   {line}" for line in whole_input)
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
    options = {"harmonic": "", "lepton": " no_offset", "table": f" linear {POINTS}"}
    styles = dict.fromkeys(kind.style for kind in kinds)
    yield "bond_style hybrid " + " ".join(style + options[style] for style in styles)
    for number, kind in enumerate(kinds, 1):
        yield f"bond_coeff {number} {kind.style} {kind.coefficients}"


def _lines(what: str, kinds: tuple[Kind, ...]) -> Iterator[str]:
    if not kinds:
        return
    options = {"table": f"table linear {POINTS}", "lepton": "lepton"}
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
            table=_bond_table(splines.bond, weights.bond),
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
        for number, spline in enumerate(of_species, 1):
            central = f" with a bead of type {number} in the middle" if types else ""
            yield Kind(
                style="table",
                coefficients=f"{table} ANGLE{number}",
                comment=f"beads i, i+1 and i+2{central}",
                table=_angle_table(f"ANGLE{number}", spline or splines.angle, weight),
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
            table=_dihedral_table(splines.dih, weight, config.dihedral_sign),
        )
    elif "k_dih" in values:
        terms = [
            f"{_signed(weight * k)}*(1+cos({n}*phi{_signed(-config.dihedral_sign * gamma)}))"
            for n, (k, gamma) in enumerate(
                zip(values["k_dih"], values["gamma_dih"], strict=True), 1
            )
        ]
        yield Kind(style="lepton", coefficients=f'"{"".join(terms).lstrip("+")}"', comment=comment)


def _number(value: Any) -> str:
    return f"{float(value):.10g}"


def _signed(value: Any) -> str:
    return f"{float(value):+.10g}"


# -- tables ------------------------------------------------------------------------------------


def _bond_table(spline: SplineConfig, weight: float) -> str:
    """From nearly 0 to three times the last knot: LAMMPS stops at a bond that leaves its table."""
    r = np.linspace(0.01, 3.0 * spline.knots[-1], POINTS)
    energy, slope = evaluate(spline, r)
    return _table("BOND", "", r, weight * energy, -weight * slope)


def _angle_table(name: str, spline: SplineConfig | None, weight: float) -> str:
    degrees = np.linspace(0.0, 180.0, POINTS)
    if spline is None:
        return _table(name, "", degrees, 0 * degrees, 0 * degrees)
    energy, slope = evaluate(spline, np.radians(degrees))
    return _table(name, "", degrees, weight * energy, -weight * np.radians(slope))


def _dihedral_table(spline: SplineConfig, weight: float, sign: int) -> str:
    degrees = -180.0 + 360.0 / POINTS * np.arange(POINTS)
    phi = sign * np.radians(degrees)
    first = spline.knots[0]
    energy, slope = evaluate(spline, first + np.mod(phi - first, 2 * np.pi))
    force = -sign * weight * np.radians(slope)
    return _table("DIHEDRAL", " DEGREES", degrees, weight * energy, force)


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
