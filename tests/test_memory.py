"""A converted set takes little memory, however large it is: measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BEADS = 50
FRAME_BYTES = 2 * BEADS * 3 * 4  # positions and forces
MIB = 1024 * 1024
LIMIT = 350 * MIB  # pieces for the device, those of a pass over the data, and the compiler
AT_ONCE = 20_000  # frames that are generated together


def generate(path: Path, frames: int) -> Path:
    """An NPZ file of chains, written without ever being in memory."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for key, scale in (("R", 1.0), ("F", 10.0)):
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (frames, BEADS, 3)}
                np.lib.format.write_array_header_1_0(member, header)  # type: ignore[no-untyped-call]
                for start in range(0, frames, AT_ONCE):
                    shape = (min(AT_ONCE, frames - start), BEADS, 3)
                    values = scale * rng.standard_normal(shape, np.float32)
                    if key == "R":
                        values[..., 0] += 1.5 * np.arange(BEADS, dtype=np.float32)
                    member.write(values.tobytes())
        with archive.open("species.npy", "w") as member:
            np.save(member, np.arange(BEADS) % 3)
    return path


def convert(source: Path, dest: Path) -> int:
    """Convert by the command. Returns the most resident memory that it took, in bytes."""
    code = (
        "import resource, sys; from ensq.cli import main\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    arguments = ["data", "convert", str(source), str(dest), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1]) * 1024


def measure(path: Path, cache: Path, place: str, seconds: float) -> dict[str, Any]:
    program = Path(__file__).with_name("memory_program.py")
    done = subprocess.run(
        [sys.executable, program, path, cache, place, str(seconds)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """A set of 200 MB on the host; of one of 60 MB, all on the device, as the control."""
    frames = 200_000_000 // FRAME_BYTES
    source = generate(tmp_path / "large.npz", frames)
    small = generate(tmp_path / "small.npz", frames * 3 // 10)
    grown = convert(source, tmp_path / "set") - convert(small, tmp_path / "small")
    assert grown < 40 * MIB
    found = measure(tmp_path / "set", tmp_path / "cache", "host", 2.0)
    assert found["frames"] == frames
    assert 0 < found["steps"] < found["steps_per_epoch"]
    assert found["peak"] - found["before"] < LIMIT
    control = measure(tmp_path / "small", tmp_path / "cache", "device", 0.0)
    assert control["peak"] - control["before"] > LIMIT


@pytest.mark.slow
def test_a_set_of_ten_gigabytes_takes_less_than_two(tmp_path: Path) -> None:
    """Needs 21 GB in the folder for temporary files. The figures are printed (-s)."""
    source = generate(tmp_path / "large.npz", 10_000_000_000 // FRAME_BYTES)
    converted = convert(source, tmp_path / "set")
    source.unlink()
    found = measure(tmp_path / "set", tmp_path / "cache", "auto", 60.0)
    print(json.dumps({"peak_of_conversion": converted, **found}, indent=1))
    size = sum(file.stat().st_size for file in (tmp_path / "set").iterdir())
    for file in (tmp_path / "set").iterdir():
        file.unlink()  # pytest keeps folders for a while
    assert size > 10_000_000_000
    assert converted < 1_000_000_000
    assert found["placement"] == "host"
    assert found["peak"] < 2_000_000_000
