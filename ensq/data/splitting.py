"""Training data from NPZ files: loading, checks that name the place, and the split.

Keys: ``R`` [T,N,3] Angstrom; ``F`` [T,N,3] energy/Angstrom; ``U`` (or ``E``) [T] energy;
``species`` [T,N] or [N] (or ``Z``, atomic numbers); ``mask`` [T,N] or [N], 1 for a real bead;
``replica`` [T], the trajectory of each frame; ``aa_names`` or ``species_names``, a name for each
species. Other keys are ignored. Nothing is ever unpickled.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq.config.structs import DataConfig, GammasConfig, RunConfig
from ensq.errors import DataError
from ensq.rundir import sha256, sha256_file

Array = NDArray[Any]

ELEMENTS = (  # noqa: SIM905 (118 quoted symbols would be no easier to read)
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As "
    "Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd "
    "Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am "
    "Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
).split()
MIN_VALIDATION_FRAMES = 2


@dataclass(frozen=True, kw_only=True)
class Data:
    """Frames on the host. Padded beads have mask 0 and R = F = species = 0."""

    R: Array  # [T,N,3] float, Angstrom
    F: Array | None  # [T,N,3] float
    U: Array | None  # [T] float64
    species: Array  # [T,N] int32
    mask: Array  # [T,N] bool
    replica: Array | None  # [T] int
    species_names: tuple[str, ...]

    @property
    def n_frames(self) -> int:
        return int(self.R.shape[0])

    def take(self, frames: Array) -> Data:
        """The same data with the frames of these indices, in this order."""
        return replace(
            self,
            R=self.R[frames],
            F=None if self.F is None else self.F[frames],
            U=None if self.U is None else self.U[frames],
            species=self.species[frames],
            mask=self.mask[frames],
            replica=None if self.replica is None else self.replica[frames],
        )


@dataclass(frozen=True)
class Split:
    """Indices of frames, sorted; no frame is in both."""

    training: Array  # [n] int
    validation: Array  # [m] int


def data_files(path: Path) -> list[Path]:
    """The NPZ files of a data path, which may be a folder of them."""
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if not files:
            raise DataError(f"{path}: the folder holds no .npz file")
        return files
    if not path.exists():
        raise DataError(f"{path}: no such data file (data.path)")
    return [path]


def digest(path: Path) -> str:
    """SHA-256 of the data file, or of the names and digests of a folder's files."""
    files = data_files(path)
    try:
        if files == [path]:
            return sha256_file(path)
        return sha256("".join(f"{file.name} {sha256_file(file)}\n" for file in files).encode())
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error


def load(path: Path, gammas: GammasConfig) -> Data:
    """Load and check a data set.

    Args:
        path: An NPZ file or a folder of them, whose frames are joined and padded to one size.
        gammas: Weights of the loss; labels with a weight must be there.

    Raises:
        DataError: Naming file, key, frame and bead.
    """
    parts = [_load_file(file, gammas) for file in data_files(path)]
    return parts[0] if len(parts) == 1 else _join(path, parts)


def _load_file(path: Path, gammas: GammasConfig) -> Data:
    raw = _read(path)
    R = _floats(path, raw, "R", 3)
    T, N = R.shape[:2]
    if R.shape[2] != 3 or T == 0 or N == 0:
        raise DataError(f"{path}: R has shape {R.shape}; it must be [frames, beads, 3]")
    mask = _mask(path, raw, T, N)
    species, names = _species(path, raw, mask)
    F = _floats(path, raw, "F", 3) if gammas.F or "F" in raw else None
    if F is not None and F.shape != R.shape:
        raise DataError(f"{path}: F has shape {F.shape}, R has {R.shape}; they must be equal")
    U = _energies(path, raw, T, gammas.U > 0)
    replica = _replica(path, raw, T)
    for key, values in (("R", R), ("F", F)):
        if values is not None:
            values = np.where(mask[:, :, None], values, 0)
            _check_finite(path, key, values)
            if key == "R":
                R = values
            else:
                F = values
    return Data(
        R=R, F=F, U=U, species=species, mask=mask, replica=replica, species_names=tuple(names)
    )


# What NumPy, zipfile and zlib raise for a damaged archive.
_UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError, SyntaxError, TypeError,
    OverflowError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_NUMBERS = ("R", "F", "U", "E", "species", "Z", "mask", "replica")


def _read(path: Path) -> dict[str, Array]:
    """All arrays of an NPZ file; what holds pickled objects is not read."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path}: a single array, not an NPZ file with R, F, species")
            return {key: _array(path, key, archive) for key in archive.files}
    except _UNREADABLE as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a readable NPZ file: {text}") from error


def _array(path: Path, key: str, archive: Mapping[str, Array]) -> Array:
    """One array; for pickled objects an empty one, as long as the key is not of the data."""
    try:
        return np.asarray(archive[key])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
    if key in _NUMBERS:
        raise DataError(
            f"{path}: {key} holds pickled objects, which are never read: store plain numbers, "
            "frames of different sizes padded with mask 0"
        )
    return np.empty(0, object)


def _floats(path: Path, raw: Mapping[str, Array], key: str, ndim: int) -> Array:
    if key not in raw:
        raise DataError(f"{path}: key {key} is missing; the file has {', '.join(raw) or 'none'}")
    values = raw[key]
    if values.dtype.kind != "f":
        raise DataError(f"{path}: {key} has dtype {values.dtype}; it must be float32 or float64")
    if values.ndim != ndim:
        raise DataError(f"{path}: {key} has shape {values.shape}; it must have {ndim} axes")
    return values


def _per_bead(path: Path, key: str, values: Array, T: int, N: int) -> Array:
    """[T,N] from [T,N] or [N]."""
    if values.shape not in ((T, N), (N,)):
        raise DataError(f"{path}: {key} has shape {values.shape}; it must be [{T},{N}] or [{N}]")
    return np.broadcast_to(values, (T, N))


def _mask(path: Path, raw: Mapping[str, Array], T: int, N: int) -> Array:
    if "mask" not in raw:
        return np.ones((T, N), bool)
    values = _per_bead(path, "mask", raw["mask"], T, N)
    if values.dtype.kind not in "fiub" or not np.isin(values, (0, 1)).all():
        raise DataError(f"{path}: mask must hold 1 for real beads and 0 for padding, nothing else")
    mask = np.asarray(values != 0)
    empty = np.flatnonzero(~mask.any(axis=1))
    if empty.size:
        raise DataError(f"{path}: mask: frame {empty[0]} has no real bead ({empty.size} such)")
    return mask


def _species(path: Path, raw: Mapping[str, Array], mask: Array) -> tuple[Array, list[str]]:
    """Species as indices into their names; every frame is looked at."""
    T, N = mask.shape
    key = "species" if "species" in raw else "Z"
    if key not in raw:
        raise DataError(f"{path}: key species is missing (Z, atomic numbers, would do as well)")
    values = _per_bead(path, key, raw[key], T, N)
    if values.dtype.kind not in "iu":
        raise DataError(f"{path}: {key} has dtype {values.dtype}; it must be an integer type")
    values = np.where(mask, values, 0)
    if key == "Z":
        return _species_of_elements(path, values, mask)
    given = next((raw[name] for name in ("species_names", "aa_names") if name in raw), None)
    names = [] if given is None else [str(name) for name in np.atleast_1d(given)]
    limit = len(names) if names else 1000
    wrong = np.argwhere((values < 0) | (values >= limit))
    if wrong.size:
        frame, bead = wrong[0]
        raise DataError(
            f"{path}: species: frame {frame}, bead {bead} has {values[frame, bead]}; species go "
            f"from 0 to {limit - 1}" + (" (the names in the file)" if names else "")
        )
    if not names:
        names = [str(number) for number in range(int(values.max()) + 1)]
    return values.astype(np.int32), names


def _species_of_elements(path: Path, Z: Array, mask: Array) -> tuple[Array, list[str]]:
    wrong = np.argwhere(mask & ((Z < 1) | (len(ELEMENTS) <= Z)))
    if wrong.size:
        frame, bead = wrong[0]
        raise DataError(
            f"{path}: Z: frame {frame}, bead {bead} has {Z[frame, bead]}, no atomic number"
        )
    present = np.unique(Z[mask])
    species = np.where(mask, np.searchsorted(present, Z), 0)
    return species.astype(np.int32), [ELEMENTS[number] for number in present]


def _energies(path: Path, raw: Mapping[str, Array], T: int, needed: bool) -> Array | None:
    key = "U" if "U" in raw else "E"
    if key not in raw:
        if needed:
            raise DataError(f"{path}: key U (or E) is missing; training.gammas.U asks for energies")
        return None
    values = raw[key]
    if values.dtype.kind != "f" or values.shape not in ((T,), (T, 1)):
        raise DataError(
            f"{path}: {key} has shape {values.shape} and dtype {values.dtype}; it must be "
            f"floating-point [{T}]"
        )
    values = values.reshape(T).astype(np.float64)
    _check_finite(path, key, values)
    return values


def _replica(path: Path, raw: Mapping[str, Array], T: int) -> Array | None:
    if "replica" not in raw:
        return None
    values = raw["replica"]
    if values.shape != (T,) or values.dtype.kind not in "iu":
        raise DataError(
            f"{path}: replica has shape {values.shape} and dtype {values.dtype}; it must be one "
            f"integer per frame, [{T}]"
        )
    return values


def _check_finite(path: Path, key: str, values: Array) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        frame = bad[0][0]
        where = f"frame {frame}" + (f", bead {bad[0][1]}" if values.ndim > 1 else "")
        raise DataError(f"{path}: {key}: {where} holds NaN or infinity ({len(bad)} such values)")


def _join(path: Path, parts: list[Data]) -> Data:
    """The frames of several files, padded to the largest number of beads."""
    names = parts[0].species_names
    for key in ("F", "U", "replica"):
        if len({getattr(part, key) is None for part in parts}) > 1:
            raise DataError(f"{path}: some of its files have {key} and some have not")
    if any(part.species_names != names for part in parts):
        raise DataError(
            f"{path}: its files name their species differently; store the same species_names in all"
        )
    N = max(part.R.shape[1] for part in parts)

    def join(key: str) -> Any:
        values = [getattr(part, key) for part in parts]
        if values[0] is None:
            return None
        return np.concatenate([_pad(value, N) if value.ndim > 1 else value for value in values])

    keys = ("R", "F", "U", "species", "mask", "replica")
    return Data(**{key: join(key) for key in keys}, species_names=names)


def _pad(values: Array, N: int) -> Array:
    widths = [(0, 0)] * values.ndim
    widths[1] = (0, N - values.shape[1])
    return np.pad(values, widths)


def split(data: Data, config: RunConfig, source: str) -> Split:
    """Choose training and validation frames by ``data.split``, with the data seed.

    A frame that occurs twice is never on both sides: copies of training frames leave validation.
    """
    frames = _chosen(data, config.data)
    chosen = data.take(frames)
    is_validation = _is_validation(chosen, config, source)
    training, validation = frames[~is_validation], frames[is_validation]
    validation, copies = _without_copies(data.R, training, validation)
    training = np.sort(np.concatenate([training, copies]))
    if len(training) == 0 or len(validation) < MIN_VALIDATION_FRAMES:
        raise DataError(
            f"{source}: {len(training)} training and {len(validation)} validation frames; at least "
            f"1 and {MIN_VALIDATION_FRAMES} are needed: change training.val_fraction, data.split "
            "or data.max_frames"
        )
    return Split(training, validation)


def _chosen(data: Data, config: DataConfig) -> Array:
    """At most ``max_frames`` frames, drawn with the data seed, in their order."""
    if config.max_frames is None or config.max_frames >= data.n_frames:
        return np.arange(data.n_frames)
    rng = np.random.default_rng([config.seed, 1])
    return np.sort(rng.permutation(data.n_frames)[: config.max_frames])


def _is_validation(data: Data, config: RunConfig, source: str) -> Array:
    how, fraction, T = config.data.split, config.training.val_fraction, data.n_frames
    if how.by == "frame":
        order = np.random.default_rng([config.data.seed, 0]).permutation(T)
        flags = np.zeros(T, bool)
        flags[order[: round(fraction * T)]] = True
        return flags
    if how.by == "replica":
        if data.replica is None:
            raise DataError(f"{source}: data.split by replica needs the key replica in the file")
        for replica in how.validation:
            if replica not in data.replica:
                present = ", ".join(map(str, np.unique(data.replica)))
                raise DataError(
                    f"{source}: data.split.validation names trajectory {replica}; there are "
                    f"{present}"
                )
        return np.isin(data.replica, how.validation)
    trajectory = np.zeros(T, int) if data.replica is None else data.replica
    flags = np.zeros(T, bool)
    for number in np.unique(trajectory):
        members = np.flatnonzero(trajectory == number)
        flags[members[len(members) - round(fraction * len(members)) :]] = True
    return flags


def _without_copies(R: Array, training: Array, validation: Array) -> tuple[Array, Array]:
    """Validation frames that are no copies of training frames, and those that are."""
    seen = {R[frame].tobytes() for frame in training}
    copy = np.array([R[frame].tobytes() in seen for frame in validation], bool)
    return validation[~copy], validation[copy]
