"""scripts/benchmark in a form of seconds: its table, its JSON, and what a failure does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from train_tools import BEADS, SETTINGS, tiny_arrays

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchmarks import rows  # noqa: E402
from benchmarks.run import Run, in_turns, measured  # noqa: E402
from benchmarks.side import Side, SideError  # noqa: E402

QUICK = "--xla_backend_optimization_level=0"  # to compile; no time matters here
PAIR = {"type": "array", "minItems": 2, "maxItems": 2}
NUMBERS = {**PAIR, "items": {"type": "number", "exclusiveMinimum": 0}}
TEXT = {"type": "string", "minLength": 1}
ABOUT = {
    "row": {"enum": list("abcdefg")},
    "only": {"enum": ["ensemble", "pack", "step", "queue", "overhead", "start", "growth"]},
    "what": TEXT,
    "names": {**PAIR, "items": TEXT},
    "repeats": {"type": "integer", "minimum": 0},
    "device": TEXT,
    "command": {"type": "string", "pattern": "^scripts/benchmark --"},
    "versions": {"type": "object", "required": ["python", "ensq", "jax", "chemtrain", "sqlite"]},
}
MEASURED = {
    "type": "object",
    "required": [*ABOUT, "seconds", "spread", "ratio", "ratio_spread", "aim", "met", "error"],
    "properties": {
        **ABOUT,
        "seconds": NUMBERS,
        "spread": {**PAIR, "items": NUMBERS},
        "ratio": {"type": "number", "exclusiveMinimum": 0},
        "repeats": {"type": "integer", "minimum": 1},
        "aim": {"type": ["string", "null"]},
        "met": {"type": ["boolean", "null"]},
        "error": {"type": "null"},
    },
}
FAILED = {
    "type": "object",
    "required": [*ABOUT, "seconds", "ratio", "error"],
    "properties": {**ABOUT, "seconds": {"type": "null"}, "ratio": {"type": "null"}, "error": TEXT},
}


def benchmark(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    """The script itself, and what it has written."""
    written = folder / "rows.json"
    done = subprocess.run(
        [str(SCRIPTS / "benchmark"), "--json", str(written), "--folder", str(folder), *arguments],
        env={**os.environ, "ENSQ_BENCHMARK_PYTHON": sys.executable, "XLA_FLAGS": QUICK},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, json.loads(written.read_text())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A tiny network of the kind that both sides have."""
    np.savez(tmp_path / "tiny.npz", **tiny_arrays(fewest=BEADS))
    path = tmp_path / "tiny.yaml"
    stages = "stages: [{optimizer: adam, epochs: 2}, {optimizer: lion, epochs: 1}]"
    assert stages in SETTINGS
    text = SETTINGS.replace(stages, "stages: [{optimizer: adam, epochs: 2}]")
    path.write_text(text.replace("max_ell: 0", "max_ell: 1, symmetry: so3"))
    return path


def test_rows_have_both_times_and_the_table_fits_a_terminal(tmp_path: Path, config: Path) -> None:
    parts = ("--only", "queue", "--only", "step", "--only", "start")
    tiny = ("--short", "--set", "training.gammas.U=0", "--config", str(config))
    short = ("--jobs", "1200", "--repeats", "1", "--function", "own")
    # the settings of --short are those of another network
    keep = [f"--set=model.allegro.{key}" for key in ("n_channels=4", "mlp_n_hidden=8")]
    done, found = benchmark(tmp_path, *parts, *tiny, *short, *keep)
    assert done.returncode == 0, done.stderr
    for row in found:
        jsonschema.validate(row, MEASURED)
        assert row["ratio"] == pytest.approx(row["seconds"][1] / row["seconds"][0])
        assert row["command"].startswith("scripts/benchmark --json")
    assert [row["row"] for row in found] == ["d", "c", *"ffff"]
    table = [line for line in done.stdout.splitlines() if line[:2].strip() in list("cdf")]
    assert len(table) == len(found)
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80  # the last one names the file
    queue, step, status = found[0], found[1], found[-2]
    assert queue["detail"]["processes"] == 4
    assert queue["detail"]["claims_per_second"][0] == pytest.approx(1 / queue["seconds"][0])
    assert step["names"][1] == "ForceMatching, edge list, scatter"
    assert status["detail"]["jobs"] == 1200
    assert status["seconds"][0] > found[-3]["seconds"][0]  # it does more than --help


def test_a_row_that_fails_is_recorded_and_the_next_one_measured(tmp_path: Path) -> None:
    parts = ("--only", "growth", "--only", "start")
    done, found = benchmark(tmp_path, *parts, "--budget", "1", "--jobs", "16", "--repeats", "1")
    assert done.returncode == 1
    failed, *others = found
    jsonschema.validate(failed, FAILED)
    assert failed["row"] == "g" and "no time left for this row" in failed["error"]
    assert "failed" in done.stdout and "no time left" in done.stdout
    assert [row["row"] for row in others] == list("ffff")  # a round is always made
    for row in others:
        jsonschema.validate(row, MEASURED)


def test_time_for_all_parts_is_shared(tmp_path: Path) -> None:
    began = time.monotonic()
    done, found = benchmark(tmp_path, "--only", "growth", "--only", "pack", "--within", "1")
    assert done.returncode == 1
    assert time.monotonic() - began < 20
    assert [row["row"] for row in found] == ["g", "b"]
    assert all("no time left" in row["error"] for row in found)


def test_a_python_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(SCRIPTS / "benchmark")],
        env={**os.environ, "ENSQ_BENCHMARK_PYTHON": str(tmp_path / "python")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "is no program" in done.stderr


def on_gpu(tmp_path: Path, wheels: Path, *arguments: str) -> tuple[int, Any]:
    written = tmp_path / "gpu.json"
    command = [SCRIPTS / "benchmark_gpu", wheels, "--json", written, "--python", sys.executable]
    done = subprocess.run(
        [*map(str, command), *arguments], capture_output=True, text=True, timeout=300
    )
    return done.returncode, json.loads(written.read_text())


def test_the_gpu_script_writes_its_file_even_if_nothing_can_be_installed(tmp_path: Path) -> None:
    code, found = on_gpu(tmp_path, tmp_path)
    assert code == 1
    assert "no wheels in" in found[0]["error"]


def test_the_gpu_script_installs_and_runs_its_four_parts(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    write_wheel(wheels)
    code, found = on_gpu(tmp_path, wheels, "--seconds", "3")
    assert code == 1  # nothing is measured in so short a time
    assert [row["row"] for row in found] == ["c", "b", "a", "g"]
    for row in found:
        jsonschema.validate(row, FAILED)
        assert "time" in row["error"]


def write_wheel(folder: Path) -> None:
    """A package without anything in it."""
    import zipfile

    folder.mkdir()
    about = "carried-1.dist-info"
    with zipfile.ZipFile(folder / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def test_an_aim_is_met_from_its_own_side() -> None:
    least, most = rows.Aim(2.5, unit=" x"), rows.Aim(1.0, least=False, unit=" %")
    assert (least.text(), most.text()) == (">= 2.5 x", "<= 1 %")
    assert least.met(2.5) and not least.met(2.4)
    assert most.met(1.0) and not most.met(1.1)


def test_the_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    about: Any = {"row": "c", "only": "step", "what": "x", "names": ("a", "b")}
    row = rows.pair([(1.0, 2.0), (10.0, 30.0), (2.0, 8.0)], aim=rows.Aim(3.5), **about)
    assert row.ratio == 3.0 and row.ratio_spread == (2.0, 4.0)
    assert row.seconds == (2.0, 8.0) and row.spread == ((1.0, 10.0), (2.0, 30.0))
    assert row.repeats == 3 and row.met is False
    [line] = rows.table_lines(row)
    assert ">= 3.5 NO" in line
    with pytest.raises(ValueError, match="no round"):
        rows.pair([], **about)


def test_sides_take_turns_to_be_first_and_rounds_end_with_the_time(tmp_path: Path) -> None:
    order: list[str] = []

    def one(number: int) -> tuple[float, float]:
        own, other = in_turns(
            number, lambda: order.append("own") or 1.0, lambda: order.append("other") or 2.0
        )
        return own, other

    run = Run(config=tmp_path, folder=tmp_path)
    assert measured(2, run, one) == [(1.0, 2.0)] * 2
    assert order == ["own", "other", "other", "own"]
    run.deadline = time.monotonic()
    assert len(measured(5, run, one)) == 1  # one at least


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    run = Run(config=tmp_path, folder=tmp_path)
    with pytest.raises(SideError, match="no side 'other'"):
        Side("other", run.environment(), tmp_path / "log", float("inf"))


def test_a_side_that_dies_is_told_by_its_last_words(tmp_path: Path) -> None:
    nowhere = {"PYTHONPATH": str(tmp_path)}
    with pytest.raises(SideError, match=r"ended|No module named 'benchmarks'"):
        Side("ensq", nowhere, tmp_path / "log", float("inf"))


def test_a_function_that_is_not_the_models_is_refused(config: Path) -> None:
    """The right ones are checked before each of their rows, above."""
    from benchmarks import edgelist, programs

    program = programs.program_of(str(config))
    right = edgelist.listed(program.model)

    def wrong(params: Any) -> Any:
        return lambda *given, **more: 1.001 * right(params)(*given, **more)

    with pytest.raises(ValueError, match="is off by"):
        edgelist.check(program, wrong, "listed")
