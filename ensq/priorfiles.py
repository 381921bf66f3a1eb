"""Files of fitted priors: the data they are fitted to, and what a configuration takes from them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensq import data, npzfile
from ensq.boltzmann import BOLTZMANN, Array, Chains, Fit, Term
from ensq.config.structs import DataConfig, UnitsConfig
from ensq.errors import DataError, DiskError, UsageError
from ensq.rundir import write_atomic

Length = Literal["Angstrom", "nm", "Bohr"]
_MAX_FRAMES = 10_000_000  # a temperature for each
# What the loader's advice is called here, where there is no configuration.
_HERE = (
    (r"set data\.units\.length: ", "--length-unit "),
    (r"data\.units\.length", "--length-unit"),
    (r"say which in data\.keys\.(\w+)", r"keep one of them, or name it \1"),
    (r"data\.keys\.species may name another", "call it species in the file"),
    (r"\(data\.keys\.(\w+) may name another\)", r"(call it \1 in the file)"),
)


def read(path: Path, *, length: Length = "Angstrom", protein: str | None = None) -> Chains:
    """Frames of a data file or folder, of all proteins or of one, by its name or number.

    Positions are all that is needed. Raises DataError for data that can't be read or are periodic,
    UsageError for an unknown protein.
    """
    settings = DataConfig(path=str(path), units=UnitsConfig(length=length))
    try:
        found = data.load(path, settings, None, "kcal/mol")
    except DataError as error:
        message = str(error)
        for theirs, ours in _HERE:
            message = re.sub(theirs, ours, message)
        raise DataError(message) from error
    if isinstance(found, data.Stored):  # all frames are looked at together
        found = found.take(np.arange(found.n_frames))
    if found.cell is not None:
        frame = int(np.argmax(found.cell.any(axis=(1, 2))))
        raise DataError(
            f"{path}: frame {frame} has a periodic cell; priors are fitted to whole molecules with "
            "open boundaries: unwrap the molecules if the cell cuts any, then leave the cell out "
            "(or set pbc to false)"
        )
    source = path.name
    if protein is not None:
        found = found.take(_frames_of(found, protein, path))
        source += f" (protein {protein})"
    elif len(found.protein_names) > 1:
        source += f" ({len(found.protein_names)} proteins together)"
    temperature = temperature_of(data.data_files(path))
    R = np.asarray(found.R, np.float64)
    names = found.species_names
    return Chains(R, found.mask, found.species, len(names), temperature, source, names)


def _frames_of(found: data.Data, protein: str, path: Path) -> Array:
    names = found.protein_names
    if found.protein is None:
        raise UsageError(f"--protein {protein}: {path} has no key protein: it holds one only")
    if protein in names:
        number = names.index(protein)
    elif protein.isdecimal() and int(protein) < len(names):
        number = int(protein)
    else:
        raise UsageError(f"--protein {protein}: {path} has {', '.join(names)}")
    frames: Array = np.flatnonzero(found.protein == number)
    return frames


def temperature_of(files: list[Path]) -> float | None:
    """``temperature_K`` of the files, if all agree on one."""
    found: set[float] = set()
    for path in files:
        if path.suffix.lower() != ".npz":
            return None
        try:
            with path.open("rb") as file, npzfile.Npz(file) as archive:
                if "temperature_K" not in archive.names:
                    return None
                found |= _numbers_in(archive.read("temperature_K"))
        except (OSError, npzfile.Unreadable) as error:
            raise DataError(f"{path}: temperature_K can't be read: {error}") from error
    if len(found) > 1:
        listed = ", ".join(f"{value:g}" for value in sorted(found))
        raise DataError(f"{files[0].parent}: frames of several temperatures: {listed} K")
    return found.pop() if found else None


def _numbers_in(values: Array) -> set[float]:
    """The different temperatures of an array. Raises npzfile.Unreadable."""
    if values.dtype.kind not in "iuf" or values.size > _MAX_FRAMES:
        raise npzfile.Unreadable(
            f"it has shape {values.shape} and dtype {values.dtype}; a number is expected"
        )
    different = np.unique(values).astype(np.float64)
    if not (np.isfinite(different) & (different > 0)).all():
        raise npzfile.Unreadable("it must be a positive number")
    return set(different.tolist())


def write(option: str, path: Path, content: bytes) -> None:
    try:
        write_atomic(path, content)
    except DiskError as error:
        raise UsageError(f"{option} {error}") from error
    except OSError as error:  # which names the temporary file
        raise UsageError(f"{option} {path}: can't be written: {error.strerror}") from error


def splines_of(fit: Fit) -> bytes:
    """The NPZ file that ``model.priors.spline_file`` names; see ``config.splines``."""
    names = {"bond": "bond", "angle": "angle", "dihedral": "dih"}
    arrays: dict[str, Any] = {
        "temperature": fit.temperature,
        "kB": BOLTZMANN[fit.unit],
        "grid_points": fit.grid,
        "kde_bandwidth_factor": fit.bandwidth,
        "energy_unit": fit.unit,
        "dihedral_convention": "IUPAC",
    }
    for term in fit.terms:
        assert term.spline is not None
        arrays[f"{names[term.name]}_knots"] = term.spline.knots
        arrays[f"{names[term.name]}_coeffs"] = term.spline.coeffs
    if any(fit.angle_types):
        general = next(term.spline for term in fit.terms if term.name == "angle")
        assert general is not None
        own = [general if spline is None else spline for spline in fit.angle_types]
        arrays["angle_type_knots"] = np.stack([spline.knots for spline in own])
        arrays["angle_type_coeffs"] = np.stack([spline.coeffs for spline in own])
        mask = [spline is not None for spline in fit.angle_types]
        arrays["angle_type_mask"] = np.array(mask, np.int32)
        arrays["angle_type_counts"] = np.array(fit.angle_counts)
        arrays["angle_n_types"] = len(own)
        arrays["residue_specific_angles"] = True
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def as_yaml(fit: Fit, spline_file: str | None, residue_specific_angles: bool = False) -> str:
    """Lines for a configuration, with where they come from.

    Args:
        fit: Fitted priors.
        spline_file: Its splines, as the configuration shall call them.
        residue_specific_angles: Whether angles shall take the splines of their species.
    """
    counts = ", ".join(f"{term.samples.size} {term.name}s" for term in fit.terms)
    shown = fit.source.encode("unicode_escape").decode()  # a line break would end the comment
    lines = [
        f"# Boltzmann inversion by `ensq priors fit`: {shown}, {fit.frames} frames,",
        f"# {counts}; {fit.temperature:g} K, kT = {fit.kT:.5g} {fit.unit}.",
        f"# Angstrom, rad and {fit.unit}. Put these keys into the model section of a configuration",
        f"# whose energies are in {fit.unit}.",
        "model:",
        "  use_priors: true",
        "  priors:",
        "    # The terms below are whole free energies: they count fully. Without this line the",
        "    # defaults would weaken them (bond 0.5, angle 0.1, dihedral 0.15, repulsive 0.25).",
        f"    weights: {{{', '.join(f'{name}: 1.0' for name in _weights(fit))}}}",
    ]
    for term in fit.terms:
        lines += [f"    {key}: {_number(value)}" for key, value in term.numbers.items()]
    if spline_file is not None:
        lines += [
            "    use_spline_priors: true",
            f"    spline_file: {_quoted(spline_file)} # beside the configuration",
            f"    residue_specific_angles: {str(residue_specific_angles).lower()}",
        ]
    if fit.pairs:
        lines.append("    # kT at the distance that one pair in a thousand is nearer than")
        lines += [f"    {key}: {_number(value)}" for key, value in fit.pairs.items()]
    return "\n".join(lines) + "\n"


def _weights(fit: Fit) -> list[str]:
    names: list[str] = [term.name for term in fit.terms]
    names += ["repulsive"] if "epsilon" in fit.pairs else []
    return [*names, "excluded_volume"] if "epsilon_ex" in fit.pairs else names


def _number(value: float | list[float]) -> str:
    """A number, or a list of them, as YAML reads them back: an exponent needs a point."""
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    text = f"{value:.6g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa}{'' if '.' in mantissa else '.0'}e{exponent}"
    return text if "." in text else f"{text}.0"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def numbers_of(fit: Fit) -> dict[str, Any]:
    """What was fitted, for JSON."""
    terms: list[Term] = list(fit.terms)
    return {
        "temperature_K": fit.temperature,
        "kT": fit.kT,
        "energy_unit": fit.unit,
        "frames": fit.frames,
        "kind": fit.kind,
        "samples": {term.name: int(term.samples.size) for term in terms},
        "spline_error": {term.name: term.spline_error for term in terms if term.spline is not None},
        "priors": {key: value for term in terms for key, value in term.numbers.items()} | fit.pairs,
    }
