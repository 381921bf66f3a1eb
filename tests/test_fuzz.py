"""Files that somebody else made: every loader takes them or refuses them, in words, at once.

The long form is ``scripts/fuzz.py``, or these tests with --slow.
"""

from __future__ import annotations

import gzip
import os
import random
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_tools import arrays, error_of, load, save
from fuzz_arrays import archive, lying, npy, packed
from fuzz_loaders import LOADERS
from fuzz_tools import Loader, content, judge, run

from ensq import npzfile
from ensq.errors import DataError

# JAX warns of forks where another test has imported it; the children use no device.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

NEEDS_JAX = ("checkpoint", "result")
LIGHT = [name for name in LOADERS if name not in NEEDS_JAX]
FEWER = {"database": 40}  # each is a database that was written anew


def bad(loader: Loader, inputs: int, seed: int, folder: Path) -> list[str]:
    """What went wrong; that both outcomes occur shows that the inputs reach the loader's inside."""
    verdicts = list(run(loader, range(inputs), seed, folder))
    assert [verdict.number for verdict in verdicts] == list(range(inputs))
    kinds = Counter(verdict.kind for verdict in verdicts)
    assert kinds["accepted"] and len(kinds) > 1, kinds
    return [f"{v.number}: {v.kind}: {v.text}" for v in verdicts if v.bad]


@pytest.mark.parametrize("name", LIGHT)
def test_mutated_files_are_taken_or_refused_in_words(name: str, tmp_path: Path) -> None:
    assert bad(LOADERS[name](), FEWER.get(name, 200), 1, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LOADERS))
def test_ten_thousand_mutated_files(name: str, tmp_path: Path) -> None:
    assert bad(LOADERS[name](), 10_000, 2, tmp_path) == []


# -- the judge itself ----------------------------------------------------------------------------


def _loader(name: str, load: object) -> Loader:
    return Loader(name, ".bin", lambda rng: rng.randbytes(4), load)  # type: ignore[arg-type]


def _crash(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _memory(path: Path) -> None:
    np.ones(80_000_000)


def _loop(path: Path) -> None:
    while True:
        pass


def _wordy(path: Path) -> None:
    raise DataError("x" * 5000)


@pytest.mark.parametrize(
    ("name", "load", "expected"),
    [
        ("error", lambda path: 1 / 0, "BAD: ZeroDivisionError"),
        ("crash", _crash, "BAD: died"),
        ("memory", _memory, "BAD: too much memory"),
        ("wordy", _wordy, "BAD: unclear error"),
        ("fine", lambda path: None, "accepted"),
    ],
)
def test_the_judge_notices(name: str, load: object, expected: str, tmp_path: Path) -> None:
    verdicts = list(run(_loader(name, load), range(2), 0, tmp_path))
    assert [verdict.kind for verdict in verdicts] == [expected] * 2


def test_the_judge_notices_a_loader_without_end(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    assert judge(_loader("loop", _loop), 0, path, seconds=0.05).kind == "BAD: too slow"


def test_inputs_are_the_same_at_every_call() -> None:
    loader = LOADERS["npz"]()
    first = [content(loader, 3, number) for number in range(20)]
    assert first == [content(loader, 3, number) for number in range(20)]
    assert first != [content(loader, 4, number) for number in range(20)]


# -- inputs that once went wrong -----------------------------------------------------------------


def _npz(path: Path, **members: bytes) -> str:
    """The error of a good file with other members."""
    good = {f"{key}.npy": npy(values) for key, values in arrays().items()}
    path.write_bytes(archive(good | {f"{key}.npy": value for key, value in members.items()}))
    return error_of(path)


@pytest.mark.parametrize(
    "header",
    [
        "{" * 3000,  # TokenError in NumPy
        "-" * 9000 + "1",  # RecursionError
        "(" * 3000,  # MemoryError
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1L,)}",  # a warning
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "__import__('os').system('touch canary')",
    ],
)
def test_a_header_that_is_none(
    header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "R h" in _npz(tmp_path / "d.npz", R=lying(header))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("<f4", "(1000000000, 1, 3)"),
        ("<f4", "(99999999999999999999,)"),
        ("<f8", "(4294967296, 4294967296)"),
        ("<U99999999", "(8,)"),
    ],
)
def test_a_header_that_announces_more_than_there_is(dtype: str, shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}"
    assert "bytes, and 100 are there" in _npz(tmp_path / "d.npz", R=lying(header, b"x" * 100))


def test_text_of_no_width_is_refused(tmp_path: Path) -> None:
    """A billion empty names take no byte in the file, and gigabytes as a list."""
    header = "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,)}"
    error = _npz(tmp_path / "d.npz", species_names=lying(header))
    assert "species_names holds neither plain numbers nor text" in error


def test_text_that_is_no_text_is_refused(tmp_path: Path) -> None:
    header = "{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}"
    body = (0x110000).to_bytes(4, "little")
    error = _npz(tmp_path / "d.npz", species_names=lying(header, body))
    assert "characters that do not exist" in error


@pytest.mark.parametrize("compressed", [True, False])
def test_an_archive_that_would_fill_the_memory(compressed: bool, tmp_path: Path) -> None:
    values = arrays()
    values["R"] = np.zeros((40, 200_000, 3), np.float32)  # 96 MB
    path = tmp_path / "d.npz"
    (np.savez_compressed if compressed else np.savez)(path, **values)
    error = error_of(path)
    assert ("unpack to over 64 times its size" in error) == compressed
    assert not compressed or path.stat().st_size < 1_000_000


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(archive({f"{k}.npy": npy(v) for k, v in arrays().items()}, twice=True))
    assert error_of(path) == "not a readable NPZ file: it holds 'R' twice"


def test_what_numpy_writes_is_read_as_numpy_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {
        "columns": np.asfortranarray(rng.normal(size=(5, 4, 3))),
        "text": np.array(["a", "bc", "é"]),
        "bytes": np.array([b"a", b"bc"]),
        "big_endian": np.arange(5, dtype=">i4"),
        "big_endian_text": np.array(["a", "bc"]).astype(">U2"),
        "scalar": np.float64(3.5),
        "empty": np.zeros((0, 3)),
        "half": np.arange(3, dtype=np.float16),
        "truth": np.array([True, False]),
        "date": np.array(["2001-01-01"], "M8[s]"),
        "complex": np.array([1 + 2j]),
    }
    for write in (np.savez, np.savez_compressed):
        path = tmp_path / f"{write.__name__}.npz"
        write(path, **values)
        with path.open("rb") as file, npzfile.Npz(file) as mine, np.load(path) as theirs:
            assert mine.names == tuple(theirs.files)
            for name in theirs.files:
                found, expected = mine.read(name), theirs[name]
                assert found.dtype == expected.dtype
                assert found.flags.f_contiguous == expected.flags.f_contiguous
                np.testing.assert_array_equal(found, expected)


def test_a_wrong_checksum_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    data = bytearray(packed(arrays()))
    data[200] ^= 1  # in the numbers of R
    path.write_bytes(data)
    assert "R: Bad CRC-32" in error_of(path)


@pytest.mark.parametrize(
    ("key", "value"), [("R", 1e30), ("F", 1e30), ("U", 1e300), ("cell", 1e300), ("R", -1e9)]
)
def test_numbers_beyond_all_reason_are_refused(key: str, value: float, tmp_path: Path) -> None:
    values = arrays()
    values["cell"] = np.array([30.0, 30.0, 30.0])
    values[key] = np.full_like(values[key], value)
    assert f"{key}" in error_of(save(tmp_path / "d.npz", values))


def test_many_proteins_take_no_quadratic_time(tmp_path: Path) -> None:
    count = 60_000
    values = {
        "R": np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3),
        "F": np.zeros((count, 2, 3), np.float32),
        "U": np.zeros(count),
        "species": np.zeros(2, int),
        "protein": np.arange(count),
        "protein_names": np.array([f"p{i}" for i in range(count)]),
    }
    loader = Loader("proteins", ".npz", lambda rng: b"", load)
    assert judge(loader, 0, save(tmp_path / "d.npz", values)).kind == "accepted"
    values["protein"] = values["protein_names"][::-1]
    assert judge(loader, 0, save(tmp_path / "d.npz", values)).kind == "accepted"


def test_one_huge_frame_takes_no_quadratic_memory(tmp_path: Path) -> None:
    beads = 80_000
    values = {
        "R": np.arange(beads * 3, dtype=np.float32).reshape(1, beads, 3),
        "F": np.zeros((1, beads, 3), np.float32),
        "U": np.zeros(1),
        "species": np.zeros(beads, np.int8),
    }
    loader = Loader("huge", ".npz", lambda rng: b"", load)
    assert judge(loader, 0, save(tmp_path / "d.npz", values)).kind == "accepted"


# -- extended XYZ ------------------------------------------------------------------------------

HEAD = "Properties=species:S:1:pos:R:3:forces:R:3 energy=1.0"


def _xyz(path: Path, text: str) -> str:
    path.write_text(text)
    return error_of(path)


@pytest.mark.parametrize("count", ["9" * 5000, "9" * 30, "²", "1_0", "-1"])
def test_a_count_of_atoms_that_is_none(count: str, tmp_path: Path) -> None:
    assert "the number of its atoms should stand here" in _xyz(tmp_path / "d.xyz", f"{count}\n\n")


@pytest.mark.parametrize(
    "properties",
    [
        "species:S:1:pos:R:1000000000",
        "species:S:1:pos:R:" + "9" * 5000,
        "species:S:1:pos:R:-3",
        "species:S:1:pos:R:3:" + "a:R:1:" * 500 + "b:R:1",
    ],
)
@pytest.mark.parametrize("quote", ["", '"'])
def test_columns_without_number(properties: str, quote: str, tmp_path: Path) -> None:
    """ASE would make a field for each."""
    text = f"1\nProperties={quote}{properties}{quote}\nH 0 0 0\n"
    assert "Properties must announce 1 to 200" in _xyz(tmp_path / "d.xyz", text)


def test_text_from_json_is_bounded(tmp_path: Path) -> None:
    """ASE would make an array as wide as the longest text."""
    text = '"x' + "x" * 500_000 + '", ' + '"", ' * 50_000
    error = _xyz(tmp_path / "d.xyz", f"1\na='_JSON [{text}1]' {HEAD}\nH 0 0 0 0 0 0\n")
    assert "the comment line has 7" in error


def test_frames_that_would_be_nearly_all_padding(tmp_path: Path) -> None:
    small = f"2\n{HEAD}\nH 0 0 0 0 0 0\nH 1 0 0 0 0 0\n" * 2000
    large = f"3000\n{HEAD}\n" + "".join(f"H {i} 0 0 0 0 0\n" for i in range(3000))
    assert "frame 2000 has 3000 beads" in _xyz(tmp_path / "d.xyz", small + large)


def test_files_of_a_folder_that_would_be_nearly_all_padding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, frames, beads in (("a", 3000, 2), ("b", 1, 3000)):
        values = {
            "R": 9 * rng.normal(size=(frames, beads, 3)),
            "F": np.zeros((frames, beads, 3)),
            "U": np.zeros(frames),
            "species": np.zeros(beads, int),
            "species_names": np.array(["A"]),
        }
        save(tmp_path / f"{name}.npz", values)
    assert "frame 3000 has 3000 beads" in error_of(tmp_path)


def test_a_gzip_file_that_would_fill_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "d.xyz.gz"
    path.write_bytes(gzip.compress(b"\n" * 30_000_000))
    assert error_of(path).startswith("unpacks to over 16 times its size")


def test_a_long_name_of_an_element_is_shown_in_short(tmp_path: Path) -> None:
    error = _xyz(tmp_path / "d.xyz", f"1\n{HEAD}\n{'H' * 10_000} 0 0 0 0 0 0\n")
    assert "is no chemical element" in error
    assert len(error) < 500


@pytest.mark.parametrize(
    "info", ["energy=" + "9" * 400, "replica=" + "9" * 30, 'a="_JSON ' + "[" * 3000 + '"']
)
def test_numbers_that_no_float_holds(info: str, tmp_path: Path) -> None:
    text = f"1\n{HEAD} {info}\nH 0 0 0 0 0 0\n"
    assert "frame 0" in _xyz(tmp_path / "d.xyz", text)


# -- paths -----------------------------------------------------------------------------------------


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.npz")
    for path in (tmp_path / "d.npz", Path("/dev/zero")):
        assert error_of(path).startswith("no file with data in it")
    with pytest.raises(DataError, match="no file with data in it"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_path_that_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        load(tmp_path / name)


def test_random_bytes_are_refused_by_every_loader(tmp_path: Path) -> None:
    rng = random.Random(5)
    for name in LIGHT:
        loader = LOADERS[name]()
        path = tmp_path / f"x{loader.suffix}"
        path.write_bytes(rng.randbytes(300))
        verdict = judge(loader, 0, path)
        assert not verdict.bad, verdict
        assert verdict.kind != "accepted", name
