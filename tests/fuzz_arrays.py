"""Mutated NPZ files: damaged archives, lying headers, odd arrays."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from fuzz_text import HOSTILE_NAMES, Mutator, flips_of, one_of
from fuzz_tools import bytes_mutated

Arrays = dict[str, Any]


class Canary:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch canary",)


def data_arrays() -> Arrays:
    """A small valid data set."""
    rng = np.random.default_rng(1)
    T, N = 8, 5
    mask = np.ones((T, N), np.float32)
    mask[3, 3:] = 0
    return {
        "R": 4 * rng.normal(size=(T, N, 3)).astype(np.float32),
        "F": rng.normal(size=(T, N, 3)).astype(np.float32),
        "U": rng.normal(size=T),
        "species": np.tile(np.array([0, 1, 2, 1, 0]), (T, 1)),
        "mask": mask,
        "replica": np.repeat([0, 1], T // 2),
        "species_names": np.array(["A", "B", "C"]),
        "cell": np.array([30.0, 30.0, 30.0]),
        "pbc": np.array([True, True, False]),
        "protein": np.repeat(["x", "y"], T // 2),
    }


def spline_arrays() -> Arrays:
    """A small valid file of splines."""
    knots = np.linspace(0.5, 3.0, 6)
    coeffs = np.arange(20.0).reshape(5, 4)
    return {
        **{f"{term}_knots": knots for term in ("bond", "angle", "dih")},
        **{f"{term}_coeffs": coeffs for term in ("bond", "angle", "dih")},
        "angle_type_knots": np.stack([knots] * 3),
        "angle_type_coeffs": np.stack([coeffs] * 3),
        "angle_type_mask": np.array([1, 0, 1]),
        "energy_unit": np.array("kcal/mol"),
        "dihedral_convention": np.array("IUPAC"),
        "temperature_K": np.array(300.0),
    }


def archive(
    members: Mapping[str, bytes], kind: int = zipfile.ZIP_STORED, twice: bool = False
) -> bytes:
    """A ZIP file of these members."""
    import warnings

    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(out, "w", kind) as file:
            for name, content in [*members.items(), *(list(members.items())[:2] if twice else ())]:
                file.writestr(zipfile.ZipInfo(name), content, compress_type=kind)
    return out.getvalue()


def npy(values: Any, pickled: bool = False) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asanyarray(values), allow_pickle=pickled)
    return out.getvalue()


def packed(arrays: Arrays, kind: int = zipfile.ZIP_STORED) -> bytes:
    return archive({f"{name}.npy": npy(values) for name, values in arrays.items()}, kind)


def lying(header: str | bytes, body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """An .npy member with any header."""
    text = header if isinstance(header, bytes) else header.encode("latin-1", "replace")
    length = struct.pack("<H" if version == (1, 0) else "<I", min(len(text), 65535))
    return b"\x93NUMPY" + bytes(version) + length + text + body


_SHAPES = (
    "()", "(0,)", "(8, 5, 3)", "(1000000000,)", "(99999999999999999999,)",
    "(2, 9223372036854775807)", "(-1,)", "(-1, -1)", "(8, 5, 3, 1)", "(4294967296, 4294967296)",
    "(0, 9223372036854775807)", "8", "[8, 5]", "None", "(8.0, 5)", "(True, 5, 3)", "('a',)",
    "(8, (5, 3))", "(10000000, 1, 3)", "(1, 4000000, 3)", "(1,) * 9", "(" + "1, " * 70 + ")",
)  # fmt: skip
_DTYPES = (
    "'<f4'", "'<f8'", "'>f4'", "'<f2'", "'<f16'", "'<c16'", "'|O'", "'O'", "'<U3'", "'<U0'",
    "'<U100000000'", "'|S0'", "'|S5'", "'|V8'", "'|V0'", "'<M8[s]'", "'<m8[ns]'", "'|b1'", "'<i8'",
    "'<u8'", "'|i1'", "[('a', '<f4')]", "[('a', '|O')]", "[('a', [('b', '<f4')])]", "'x'", "None",
    "''", "1", "('<f4', (3,))", "('<f4', (1000000000,))", "[]", "'<f4,<f4'",
    "[('\\x1b[2J', '<f4')]", "{'names': ['a'], 'formats': ['O']}", "'<U9999999999999'",
)  # fmt: skip
_HEADERS = (
    "{}", "", "[]", "None", "{" * 3000, "(" * 3000, "[" * 90 + "]" * 90, "-" * 9000 + "1",
    "__import__('os').system('touch canary')",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'extra': 1}", "\x00" * 50, "é" * 20,
    "{'a':" * 400, "'" * 3, "{'descr': '<f4', 'fortran_order': 1, 'shape': (1,)}", "1L" * 20,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1L,)}", "not " * 2000 + "1",
    "+".join("1" * 4000), "{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os'),)}",
    "\\", "\n" * 100, "#", "lambda: 0", "f'{1}'", "9" * 5000, "{'shape': ...}", " " * 20000,
    "b'\\xff'", '"""',
)  # fmt: skip


def lying_members(arrays: Arrays) -> Mutator:
    """One member's header says what is not true, or is no header."""

    def mutate(rng: random.Random) -> bytes:
        members = {f"{name}.npy": npy(values) for name, values in arrays.items()}
        name = rng.choice(list(members))
        body = members[name][128:]
        if rng.random() < 0.7:
            values = np.asarray(arrays[name.removesuffix(".npy")])
            shape = rng.choice((str(values.shape), rng.choice(_SHAPES)))
            descr = rng.choice((repr(values.dtype.str), rng.choice(_DTYPES)))
            order = rng.choice(("False", "True"))
            header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
        else:
            header = rng.choice(_HEADERS)
        version = rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 0), (255, 255)))
        members[name] = lying(header + " " * rng.choice((0, 10)) + "\n", body, version)
        if rng.random() < 0.2:
            members[name] = members[name][: rng.randrange(len(members[name]) + 1)]
        return archive(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))

    return mutate


def _odd(values: np.ndarray, rng: random.Random) -> Any:
    """The same array with something wrong in it, or another."""
    nrng = np.random.default_rng(rng.randrange(2**32))
    values = np.array(values)
    number: tuple[Callable[[], Any], ...] = (
        lambda: values.astype(
            rng.choice(("f2", "f4", "f8", "f16", "c8", "i1", "i8", "u8", "b1", ">f4", ">i4"))
        ),
        lambda: values.astype(str),
        lambda: values.astype("S5"),
        lambda: values * rng.choice((0, -1, np.nan, np.inf, 1e30, 1e300, 1e-30, 1e-300)),
        lambda: np.where(
            nrng.random(values.shape) < 0.1,
            rng.choice((np.nan, np.inf, 1e38, -1e308, -1, 999)),
            values,
        ),
        lambda: nrng.integers(-(2**62), 2**62, values.shape),
        lambda: nrng.integers(0, 2**63, values.shape).astype("u8") * 2,
    )
    shape: tuple[Callable[[], Any], ...] = (
        lambda: values[None],
        lambda: values.reshape(-1),
        lambda: values.ravel()[:0],
        lambda: values.ravel()[0] if values.size else values,
        lambda: values.T,
        lambda: np.asfortranarray(values),
        lambda: np.concatenate([np.atleast_1d(values)] * 2),
        lambda: np.repeat(np.atleast_1d(values), 3, axis=-1),
        lambda: np.zeros((0, *values.shape[1:]), values.dtype),
        lambda: np.zeros((*values.shape[:1], 0), values.dtype),
        lambda: np.zeros(
            rng.choice(((), (1,), (3,), (3, 3), (8,), (8, 5), (8, 5, 3), (5,), (1, 1, 1)))
        ),
        lambda: np.array([rng.choice(HOSTILE_NAMES[:-5]) for _ in range(rng.choice((1, 3, 8)))]),
        lambda: np.array([b"\xff\xfe\x00", b"\x1b[2J", b"a"]),
        lambda: np.array(["2001-01-01"], "M8[s]"),
        lambda: np.zeros(8, [("a", "f4"), ("b", "i4")]),
    )
    text = values.dtype.kind in "US"
    try:
        with np.errstate(all="ignore"):
            return rng.choice(shape if text or rng.random() < 0.5 else number)()
    except (ValueError, OverflowError, TypeError, RuntimeError):
        return values


def odd_arrays(arrays: Arrays) -> Mutator:
    """Arrays of wrong shapes, types and values; missing ones; other names."""

    def mutate(rng: random.Random) -> bytes:
        changed = dict(arrays)
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            name = rng.choice(list(changed))
            how = rng.randrange(12)
            if how == 0 and len(changed) > 1:
                del changed[name]
            elif how == 1:
                others = (
                    "Z",
                    "resname",
                    "coords",
                    "pos",
                    "forces",
                    "energies",
                    "box",
                    "protein_names",
                    "aa_names",
                    "E",
                )
                changed[rng.choice((*others, *HOSTILE_NAMES[:9]))] = changed[name]
            else:
                changed[name] = _odd(np.asarray(changed[name]), rng)
        try:
            return packed(
                {
                    k.replace("\x00", "0").replace("\ud800", "?") or "x": v
                    for k, v in changed.items()
                }
            )
        except ValueError:
            return packed(arrays)

    return mutate


def pickles(arrays: Arrays) -> Mutator:
    """Arrays of objects, which would have to be unpickled."""

    def mutate(rng: random.Random) -> bytes:
        members = {f"{name}.npy": npy(values) for name, values in arrays.items()}
        name = rng.choice(list(members))
        members[name] = npy(np.array([Canary()] * rng.choice((1, 3)), object), pickled=True)
        return archive(members)

    return mutate


def archives(arrays: Arrays) -> Mutator:
    """Archives with doubled members, odd methods, lying sizes and bombs."""
    members = {f"{name}.npy": npy(values) for name, values in arrays.items()}
    first = next(iter(arrays))

    def mutate(rng: random.Random) -> bytes:
        kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        match rng.randrange(6):
            case 0:
                return archive(members, rng.choice(kinds), twice=True)
            case 1:
                return bytes_mutated(rng, archive(members, rng.choice(kinds)))
            case 2:
                return _lying_sizes(archive(members, rng.choice(kinds[:2])), rng)
            case 3:
                return archive({first: b"x", **members, "deep/../../canary.npy": b"x"})
            case 4:
                return archive(dict.fromkeys((f"{i}.npy" for i in range(2000)), b""))
            case _:
                return bomb(arrays, rng)

    return mutate


def _lying_sizes(data: bytes, rng: random.Random) -> bytes:
    """Sizes, offsets, methods and flags of the central directory changed."""
    out = bytearray(data)
    places = [at for at in range(len(out) - 46) if out[at : at + 4] == b"PK\x01\x02"]
    for at in rng.sample(places, min(len(places), rng.choice((1, 2, 20)))):
        field, size = rng.choice(
            ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))
        )
        value = rng.choice((0, 1, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, rng.randrange(2**32)))
        out[at + field : at + field + size] = (value % 256**size).to_bytes(size, "little")
    return bytes(out)


def bomb(arrays: Arrays, rng: random.Random) -> bytes:
    """A small file with an array of up to 128 MB of zeros in it."""
    size = rng.choice((2**20, 2**24, 2**26, 2**27))
    name = rng.choice(list(arrays))
    values = np.asarray(arrays[name])
    count = max(1, size // max(1, values.dtype.itemsize))
    shape = rng.choice(((count,), (1, count // 3, 3), (count // 15, 5, 3), (count // 5, 5)))
    header = f"{{'descr': {values.dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}\n"
    return _with_zeros(arrays, name, header.encode(), size)


def _with_zeros(arrays: Arrays, name: str, header: bytes, size: int) -> bytes:
    """The archive with ``size`` zeros behind the header of ``name``, packed block by block."""
    start = lying(header)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for other, content in arrays.items():
            if other != name:
                file.writestr(f"{other}.npy", npy(content))
        with file.open(f"{name}.npy", "w") as member:
            member.write(start)
            block = b"\0" * 2**20
            for _ in range(size // len(block)):
                member.write(block)
    return out.getvalue()


def member_flips(arrays: Arrays) -> Mutator:
    """Bytes changed inside members, with checksums that fit."""
    members = {f"{name}.npy": npy(values) for name, values in arrays.items()}

    def mutate(rng: random.Random) -> bytes:
        changed = dict(members)
        name = rng.choice(list(changed))
        head = changed[name][:128]
        if rng.random() < 0.7:
            changed[name] = bytes_mutated(rng, head, 2) + changed[name][128:]
        else:
            changed[name] = bytes_mutated(rng, changed[name])
        return archive(changed)

    return mutate


def npz_mutator(arrays: Arrays) -> Mutator:
    seeds = [packed(arrays), packed(arrays, zipfile.ZIP_DEFLATED)]
    return one_of(
        flips_of(seeds),
        member_flips(arrays),
        lying_members(arrays),
        odd_arrays(arrays),
        pickles(arrays),
        archives(arrays),
        weights=(15, 20, 27, 32, 2, 4),
    )
