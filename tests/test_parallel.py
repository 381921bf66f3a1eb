"""Side by side, the tests have a core each, every one runs once, and no failure is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import parallel
import pytest

HERE = Path(__file__).parent
TWO = ("-p", "xdist", "-n", "2", "--dist", "loadfile", "--max-worker-restart", "0")
CONFTEST = """
from pathlib import Path
import parallel
parallel.pin()
def pytest_addoption(parser):
    parser.addoption("--account", type=Path)
def pytest_configure(config):
    if config.getoption("account") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(parallel.Account(config.getoption("account")))
"""
PASSING = """
import os, pytest
from pathlib import Path
@pytest.mark.parametrize("x", ["ü", "a\\nb"])
def test_core(x):
    file = Path(__file__).with_suffix(f".{os.getpid()}")
    file.write_text(f"{os.environ.get('PYTEST_XDIST_WORKER')} {sorted(os.sched_getaffinity(0))}")
@pytest.mark.skip
def test_skipped():
    pass
"""
FAILING = PASSING + "def test_wrong(): assert False, 'told at the end'\n"
DYING = PASSING + "def test_that_dies(): os._exit(0)\n"


@pytest.fixture
def all_cores() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, parallel.CORES)
    yield
    os.sched_setaffinity(0, before)


def run(folder: Path, *options: str, **files: str) -> tuple[int, str]:
    """Exit code and output of a test run of its own."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    kept = {key: text for key, text in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(HERE), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


@pytest.mark.usefixtures("all_cores")
@pytest.mark.skipif(len(parallel.CORES) < 2, reason="needs two cores")
def test_two_workers_have_a_core_each(tmp_path: Path) -> None:
    code, output = run(tmp_path, *TWO, **dict.fromkeys("abcd", PASSING))
    assert code == 0, output
    found = {file.read_text() for file in tmp_path.glob("test_?.[0-9]*")}
    one, *_, other = sorted(found)
    assert (one, other) == (f"gw0 [{parallel.CORES[0]}]", f"gw1 [{parallel.CORES[1]}]")


@pytest.mark.parametrize(
    ("worker", "workers", "core"),
    [("gw0", 2, 3), ("gw1", 2, 7), ("gw2", 2, 3), ("gw0", 1, 3), ("gw0", 3, None), ("", 1, None)],
)
def test_a_worker_is_bound_where_there_is_a_core_for_each(
    monkeypatch: pytest.MonkeyPatch, worker: str, workers: int, core: int | None
) -> None:
    bound: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(parallel, "CORES", [3, 7])
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: bound.append((pid, cores)))
    monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", str(workers))
    parallel.pin()
    assert bound == ([] if core is None else [(0, {core})])


def test_without_workers_nothing_is_bound(tmp_path: Path) -> None:
    code, output = run(tmp_path, a=PASSING)
    assert code == 0, output
    (file,) = tmp_path.glob("test_a.[0-9]*")
    assert file.read_text() == f"None {sorted(os.sched_getaffinity(0))}"


@pytest.mark.parametrize("how", [(), TWO], ids=["one", "two"])
def test_the_account_names_every_test_once_and_failures_show(
    tmp_path: Path, how: tuple[str, ...]
) -> None:
    files = {"a": PASSING, "b": FAILING, "c": PASSING}
    code, output = run(tmp_path, "--account=ran", *how, **files)
    assert code == 1
    assert "told at the end" in output and "1 failed, 6 passed, 3 skipped" in output
    assert run(tmp_path, "--collect-only", "-qq", "--account=there", **files)[0] == 0
    there, ran = lines(tmp_path / "there"), lines(tmp_path / "ran")
    assert len(there) == 10
    assert parallel.compare(there, ran) == []
    assert parallel.main(tmp_path / "there", tmp_path / "ran") == 0


def test_a_worker_that_dies_is_a_failure(tmp_path: Path) -> None:
    code, output = run(tmp_path, *TWO, "--account=ran", a=PASSING, b=DYING)
    assert code == 1
    assert "crashed while running 'test_b.py::test_that_dies'" in output
    assert set(lines(tmp_path / "ran")) >= {"test_a.py::test_skipped", "test_b.py::test_skipped"}


def test_tests_that_did_not_run_or_ran_twice_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["a::x", "a::y", "b::x[1]"]
    assert parallel.compare(there, ["b::x[1]", "a::y", "a::x"]) == []
    assert parallel.compare(there, ["a::x", "b::x[1]", "a::x", "c::z"]) == [
        "did not run: a::y",
        "ran 2 times: a::x",
        "ran, but is not one of the tests: c::z",
    ]
    (tmp_path / "there").write_text("\n".join(f"t{number}" for number in range(30)))
    (tmp_path / "ran").write_text("t0\nt1\n")
    assert parallel.main(tmp_path / "there", tmp_path / "ran") == 1
    assert capsys.readouterr().out.splitlines()[19:] == [
        "did not run: t21",
        "and 8 more",
        "30 tests, 2 of them ran",
    ]


def test_an_account_of_no_tests_is_a_failure(tmp_path: Path) -> None:
    for name in ("there", "ran"):
        (tmp_path / name).touch()
    assert parallel.main(tmp_path / "there", tmp_path / "ran") == 1
