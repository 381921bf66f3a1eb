"""Converted sets that were interrupted, changed or made by somebody else are found out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from convert_tools import KEYS, UNITS, convert, load, small_pieces  # noqa: F401
from data_tools import T, arrays, save
from numpy.typing import NDArray

from ensq import data
from ensq.cli import cli
from ensq.data import index
from ensq.data.examining import examine
from ensq.data.rows import Rows
from ensq.errors import DataError, MismatchError, UsageError
from ensq.rundir import sha256_file

# -- interrupted and changed -------------------------------------------------------------------

STOPPED = """
import os, signal, sys
from ensq.data import stored, writing
stored._BEADS_AT_ONCE = 12
number, whole = int(sys.argv[1]), writing.Writers.write
def write(self, piece):
    whole(self, piece)
    os.kill(os.getpid(), number)
writing.Writers.write = write
sys.argv = ["ensq", "data", "convert", "d.npz", "set"]
from ensq.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_conversion_leaves_no_set(tmp_path: Path, number: int) -> None:
    save(tmp_path / "d.npz", arrays())
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(int(number))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    left = sorted(os.listdir(tmp_path))
    if number == signal.SIGKILL:  # nobody is left to remove it; its name says what it is
        assert len(left) == 2 and left[0].startswith(".set.") and left[0].endswith(".tmp")
    else:
        assert done.returncode == 75, done.stderr
        assert left == ["d.npz"]
    convert(tmp_path / "d.npz")  # and the next conversion goes as if there had been none


def flip(path: Path, keep_time: bool) -> None:
    """Change one bit in the middle of a file."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_a_changed_array_is_found(tmp_path: Path) -> None:
    made = convert(save(tmp_path / "d.npz", arrays()))
    assert examine(made.path, lambda *told: None) == made.index
    flip(made.path / "F.npy", keep_time=False)
    for find in (data.digest, lambda path: examine(path, lambda *told: None)):
        with pytest.raises(MismatchError, match=r"F\.npy: the array has changed"):
            find(made.path)


def test_a_change_that_hides_its_time_is_found_by_the_full_check_alone(tmp_path: Path) -> None:
    made = convert(save(tmp_path / "d.npz", arrays()))
    flip(made.path / "F.npy", keep_time=True)
    assert data.digest(made.path) == made.digest  # the price of not reading it all every time
    with pytest.raises(MismatchError, match=r"F\.npy: the array has changed"):
        examine(made.path, lambda *told: None)


def test_a_copied_set_is_read_in_full_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = convert(save(tmp_path / "d.npz", arrays()))
    read: list[Path] = []
    monkeypatch.setattr(index, "check_arrays", lambda path, found: read.append(path))
    assert data.digest(made.path) == made.digest
    assert read == []
    os.utime(made.path / "R.npy", ns=(1, 1))
    for _ in range(2):
        assert data.digest(made.path) == made.digest
    assert read == [made.path]


def test_another_index_is_another_set(tmp_path: Path) -> None:
    made = convert(save(tmp_path / "d.npz", arrays()))
    plain = json.loads((made.path / index.NAME).read_text())
    plain["species_names"][0] = "other"
    (made.path / index.NAME).write_text(json.dumps(plain))
    assert data.digest(made.path) != made.digest


def _edited(plain: dict[str, Any], *keys: str, to: Any) -> dict[str, Any]:
    node = plain
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = to
    return plain


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("version",), 2),
        (("frames",), 10**30),
        (("beads",), -1),
        (("units", "energy"), "cal"),
        (("arrays", "R", "dtype"), "|O"),
        (("arrays", "R", "shape"), [1, 4, 3]),
        (("arrays", "../R"), {}),
        (("arrays",), {}),
        (("species_names",), ["\x1b[2J"]),
        (("arrays", "R", "path"), "/etc/passwd"),
    ],
)
def test_an_index_of_somebody_elses_making_is_refused(
    tmp_path: Path, keys: tuple[str, ...], value: Any
) -> None:
    made = convert(save(tmp_path / "d.npz", arrays()))
    file = made.path / index.NAME
    file.write_text(json.dumps(_edited(json.loads(file.read_text()), *keys, to=value)))
    with pytest.raises(DataError, match="not a readable index"):
        data.digest(made.path)


def test_values_that_convert_would_refuse_are_found_by_the_full_check(tmp_path: Path) -> None:
    """A set whose digests are right and whose species have no names."""
    made = convert(save(tmp_path / "d.npz", arrays()))
    species = np.load(made.path / "species.npy")
    species[2, 1] = 7
    np.save(made.path / "species.npy", species)
    file = made.path / index.NAME
    plain = json.loads(file.read_text())
    plain["arrays"]["species"]["sha256"] = sha256_file(made.path / "species.npy")
    file.write_text(json.dumps(plain))
    with pytest.raises(DataError, match=r"numbers from 0 to 7, and the set has 3 names"):
        examine(made.path, lambda *told: None)


# -- rows --------------------------------------------------------------------------------------


def test_rows_are_those_of_the_array(tmp_path: Path) -> None:
    values: NDArray[Any] = np.random.default_rng(0).normal(size=(20, 3, 2)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    rows = Rows(tmp_path / "a.npy")
    for frames in ([], [0], [19, 3, 4, 5, 5, 0], list(range(20)), [7, 6, 5]):
        np.testing.assert_array_equal(rows[np.array(frames, int)], values[frames])
    for wrong in ([-1], [20]):
        with pytest.raises(IndexError):
            rows[np.array(wrong)]


def test_a_file_that_has_become_shorter_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1000, 30)))
    rows = Rows(tmp_path / "a.npy")
    os.truncate(tmp_path / "a.npy", 5000)
    with pytest.raises(DataError, match="has become shorter"):
        rows[np.array([900])]
    with pytest.raises(DataError, match="not the array that its header promises"):
        Rows(tmp_path / "a.npy")


# -- commands ----------------------------------------------------------------------------------


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = arrays()
    raw["pull"] = raw.pop("F")
    save(tmp_path / "d.npz", raw)
    options = ["--key", "F=pull", "--energy-unit", "eV", "--json"]
    done = CliRunner().invoke(cli, ["data", "convert", "d.npz", "set", *options])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["frames"], told["beads"], told["units"]["energy"]) == (T, 4, "eV")
    assert "converting: 12 of 12 frames" in done.stderr
    assert told["digest"] == data.digest(tmp_path / "set")
    again = CliRunner().invoke(cli, ["data", "convert", "d.npz", "other", "--key", "F=pull"])
    assert again.stdout.startswith("other: 12 frames of 4 beads, 2.35 kB: R, F, U, species, mask")
    done = CliRunner().invoke(cli, ["data", "check", "set"])
    assert done.stdout == "set: whole; 12 frames of 4 beads\n"
    flip(tmp_path / "set" / "R.npy", keep_time=True)
    failed = CliRunner().invoke(cli, ["data", "check", "set"])
    assert isinstance(failed.exception, MismatchError)
    for wrong in (["check", "d.npz"], ["convert", "d.npz", "new", "--key", "Q=x"]):
        assert isinstance(CliRunner().invoke(cli, ["data", *wrong]).exception, UsageError)


def test_progress_in_a_log_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ensq.cli.data import Ticker

    now = iter([0.0, *(float(second) for second in range(41))])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    ticker = Ticker()
    for second in range(41):
        ticker.say("converting", 100 * second, 4000)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[-1] == "converting: 4000 of 4000 frames, 100 per s, 0 s left"
    assert all("\r" not in line for line in lines)
