"""The file of spline priors (NPZ), read into the configuration so that it stands alone.

``bond_knots`` [K], ``bond_coeffs`` [K-1,4], the same for ``angle`` and ``dih`` (Angstrom or rad;
kcal/mol); by species of the central bead ``angle_type_knots`` [S,K], ``angle_type_coeffs``
[S,K-1,4] and ``angle_type_mask`` [S], 0 where the angle's own spline counts; ``energy_unit`` and
``dihedral_convention`` where it says so. Other arrays are not read. NumPy is imported when a file
is read, not before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ensq.config.model import SplineConfig, SplinesConfig
from ensq.config.structs import RunConfig
from ensq.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ensq.units import EnergyUnit

    Array = NDArray[np.float64]

_TERMS = ("bond", "angle", "dih")
_PARTS = ("knots", "coeffs")
_TYPES = ("angle_type_knots", "angle_type_coeffs", "angle_type_mask")
_SAYS = ("energy_unit", "dihedral_convention")
_MAX_BYTES = 64 * 1024 * 1024
# Of one array: they all become part of the configuration, which is text.
_MAX_NUMBERS = 50_000


def filled_in(config: RunConfig, source: Path) -> RunConfig:
    """The configuration with the splines of its ``spline_file``, if it uses one.

    Args:
        config: Left as it is if splines are off, or stand in it already.
        source: The configuration's file; the splines are looked up in its folder, then in the
            working one.

    Raises:
        ConfigError: The file is missing, damaged or holds something else.
    """
    priors = config.model.priors
    if not priors.use_spline_priors or priors.splines is not None or priors.spline_file is None:
        return config
    path = _find(priors.spline_file, source)
    splines, unit, convention = read(path, types=priors.residue_specific_angles)
    if splines.dih is not None and priors.dihedral_sign == -1 and convention == "IUPAC":
        raise ConfigError(
            f"{source}: model.priors.dihedral_sign is -1 (the sign of older files), but {path} "
            "says that its dihedrals are after IUPAC; set model.priors.dihedral_sign: 1"
        )
    splines = _in_unit(splines, unit, config.unit, path)
    replace = msgspec.structs.replace
    model = replace(config.model, priors=replace(priors, splines=splines))
    return replace(config, model=model)


def _in_unit(splines: SplinesConfig, unit: str, wanted: EnergyUnit, path: Path) -> SplinesConfig:
    """The splines with energies in the run's unit; a file that names none is in kcal/mol."""
    from ensq.units import ENERGY, conversion

    if unit not in ENERGY:
        raise ConfigError(f"{path}: energy_unit is {unit!r}; expected one of {', '.join(ENERGY)}")
    factor = conversion(unit, "Angstrom", wanted).energy
    if factor == 1.0:
        return splines

    def scaled(spline: SplineConfig | None) -> SplineConfig | None:
        if spline is None:
            return None
        rows: Any = tuple(tuple(c * factor for c in row) for row in spline.coeffs)
        return SplineConfig(knots=spline.knots, coeffs=rows)

    return SplinesConfig(
        bond=scaled(splines.bond),
        angle=scaled(splines.angle),
        dih=scaled(splines.dih),
        angle_types=tuple(map(scaled, splines.angle_types)),
    )


def _find(name: str, source: Path) -> Path:
    places = [source.parent / name, Path(name)]
    try:
        for place in places:
            if place.is_file():
                return place
    except ValueError as error:  # a NUL in the name
        raise ConfigError(
            f"{source}: model.priors.spline_file: {name!r} is no file name"
        ) from error
    looked = " and ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise ConfigError(f"{source}: model.priors.spline_file: no such file; looked for {looked}")


def read(path: Path, types: bool) -> tuple[SplinesConfig, str, str]:
    """The splines of a file, its unit of energy, and its convention of dihedrals ("": not said).

    With ``types`` those by species, too. Raises ConfigError.
    """
    arrays, said = _arrays(path, types)
    unit = _text(path, said.get("energy_unit"), "kcal/mol")
    return _splines(path, arrays, types), unit, _text(path, said.get("dihedral_convention"), "")


def _splines(path: Path, arrays: dict[str, Array], types: bool) -> SplinesConfig:
    splines: dict[str, SplineConfig] = {}
    for term in _TERMS:
        knots, coeffs = arrays.get(f"{term}_knots"), arrays.get(f"{term}_coeffs")
        if (knots is None) != (coeffs is None):
            raise ConfigError(f"{path}: {term}_knots and {term}_coeffs go together")
        if knots is not None and coeffs is not None:
            splines[term] = _spline(path, term, knots, coeffs)
    if not splines:
        raise ConfigError(
            f"{path}: no splines in it: expected bond_knots, bond_coeffs, angle_knots, "
            "angle_coeffs, dih_knots, dih_coeffs"
        )
    angle_types = _by_species(path, arrays) if types else ()
    return SplinesConfig(**splines, angle_types=angle_types)


def _arrays(path: Path, types: bool) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays that the file has, as float64, and what it says of itself."""
    import numpy as np

    from ensq import npzfile

    numbers = [f"{term}_{part}" for term in _TERMS for part in _PARTS] + list(_TYPES) * types
    found, said = {}, {}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than 64 MiB, so not a file of splines")
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise ConfigError(f"{path}: holds one array; an NPZ file of splines is expected")
            with npzfile.Npz(file) as archive:
                for name in archive.names:
                    if name in numbers:
                        values = archive.read(name)
                        if values.dtype.kind not in "biuf" or values.size > _MAX_NUMBERS:
                            raise npzfile.Unreadable(
                                f"{name} has shape {values.shape} and dtype {values.dtype}; it "
                                f"must hold at most {_MAX_NUMBERS} numbers"
                            )
                        with np.errstate(over="ignore"):  # of more than 64 bits
                            found[name] = values.astype(np.float64)
                    elif name in _SAYS:
                        said[name] = archive.read(name)
    except npzfile.Pickled as error:
        raise ConfigError(
            f"{path}: not a readable NPZ file of splines: pickled data, which ensq never loads; "
            "write plain arrays with numpy.savez"
        ) from error
    except (OSError, npzfile.Unreadable) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: not a readable NPZ file of splines: {what}") from error
    return found, said


def _text(path: Path, values: Any, unsaid: str) -> str:
    """What a file says in one word."""
    if values is None:
        return unsaid
    if values.size != 1 or values.dtype.kind not in "US" or values.dtype.itemsize > 400:
        raise ConfigError(
            f"{path}: energy_unit and dihedral_convention must be one word each, as text"
        )
    word = values.reshape(()).item()
    return word.decode("ascii", "replace") if isinstance(word, bytes) else str(word)


def _spline(path: Path, name: str, knots: Array, coeffs: Array) -> SplineConfig:
    if knots.ndim != 1 or coeffs.shape != (len(knots) - 1, 4):
        raise ConfigError(
            f"{path}: {name}_knots has shape {list(knots.shape)} and {name}_coeffs "
            f"{list(coeffs.shape)}; expected [K] and [K-1, 4]"
        )
    rows: Any = tuple(tuple(row) for row in coeffs.tolist())
    try:
        return SplineConfig(knots=tuple(knots.tolist()), coeffs=rows)
    except ValueError as error:
        raise ConfigError(f"{path}: {name}: {error}") from error


def _by_species(path: Path, arrays: dict[str, Array]) -> tuple[SplineConfig | None, ...]:
    missing = [name for name in _TYPES if name not in arrays]
    if missing:
        raise ConfigError(
            f"{path}: {', '.join(missing)} missing, which model.priors.residue_specific_angles "
            "needs"
        )
    knots, coeffs, mask = (arrays[name] for name in _TYPES)
    if mask.ndim != 1 or not mask.shape == knots.shape[:1] == coeffs.shape[:1]:
        raise ConfigError(
            f"{path}: angle_type_knots, angle_type_coeffs and angle_type_mask must have one entry "
            f"per species; shapes {list(knots.shape)}, {list(coeffs.shape)}, {list(mask.shape)}"
        )
    return tuple(
        _spline(path, f"angle_type {s}", knots[s], coeffs[s]) if mask[s] else None
        for s in range(len(mask))
    )
