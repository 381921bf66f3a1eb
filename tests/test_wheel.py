"""The wheel holds all that ensq needs, and works away from the checkout."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

import ensq
from ensq.schema import REVISION

ROOT = Path(__file__).parent.parent


def build(source: Path, folder: Path) -> Path:
    """Build the wheel with the installed hatchling; nothing is downloaded."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    """Run a command that must succeed; ``path`` is where Python looks for packages first."""
    environment = {key: value for key, value in os.environ.items() if key != "ENSQ_DB"}
    environment |= {"PIP_NO_INDEX": "1", "PYTHONPATH": "" if path is None else str(path)}
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def test_the_wheel_holds_every_module_the_migrations_and_the_licence(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ensq").rglob("*.py")}
    assert modules <= files
    migrations = {
        f"ensq/_migrations/{path.relative_to(ROOT / 'migrations')}"
        for path in (ROOT / "migrations").rglob("*")
        if path.suffix in (".py", ".mako")
    }
    versions = {Path(file).name[:4] for file in migrations if "/versions/" in file}
    assert versions == {f"{number:04}" for number in range(1, int(REVISION) + 1)}
    assert migrations <= files
    assert any(re.fullmatch(r"ensq-.*\.dist-info/licenses/LICENSE", file) for file in files)
    assert not [file for file in files if "__pycache__" in file or file.startswith("tests/")]


def test_the_metadata_names_the_command_the_pythons_and_the_pins(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"ensq-{ensq.__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert "ensq = ensq.cli:main" in scripts
    assert "Requires-Dist: chemtrain==0.2.0" in metadata
    assert re.search(r"^Requires-Python: <3\.14,>=3\.11$", metadata, re.MULTILINE)


def test_a_wheel_without_the_migrations_would_be_noticed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ensq", source / "ensq", ignore=ignore)
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    text = (ROOT / "pyproject.toml").read_text()
    assert 'migrations = "ensq/_migrations"' in text
    (source / "pyproject.toml").write_text(text.replace('migrations = "ensq/_migrations"', ""))
    wheel = build(source, tmp_path / "dist")
    with pytest.raises(AssertionError):
        test_the_wheel_holds_every_module_the_migrations_and_the_licence(wheel)


def test_the_installed_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """Into a folder of its own, which comes before the checkout's ensq on the path."""
    target, elsewhere = tmp_path / "site", tmp_path / "else where"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile")
    run(*pip, "--target", str(target), str(wheel), cwd=elsewhere)

    command = (sys.executable, "-m", "ensq.cli")
    assert ensq.__version__ in run(*command, "--version", cwd=elsewhere, path=target)
    where = "import ensq, ensq.migrate; print(ensq.__file__)"
    printed = run(sys.executable, "-c", where, cwd=elsewhere, path=target)
    assert Path(printed.strip()).is_relative_to(target)
    make_a_database(command, elsewhere, target)


def make_a_database(command: tuple[str, ...], folder: Path, path: Path | None = None) -> None:
    """Make a database through the migrations in the wheel, and check it."""
    code = "from ensq.migrate import create_or_upgrade; create_or_upgrade('ensq.db')"
    run(command[0] if path else str(folder / "venv/bin/python"), "-c", code, cwd=folder, path=path)
    run(*command, "db", "check", cwd=folder, path=path)
    run(*command, "db", "upgrade", cwd=folder, path=path)
    upgrade_an_old_database(command, folder, path)


def upgrade_an_old_database(
    command: tuple[str, ...], folder: Path, path: Path | None = None
) -> None:
    """By the migrations in the wheel, and copied before."""
    old = folder / "old.db"
    shutil.copy(ROOT / "tests" / "golden" / "0001.db", old)
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("UPDATE workers SET ended_at = 1.0")  # or they would be watched
    said = run(*command, "db", "upgrade", "--db", "old.db", cwd=folder, path=path)
    assert f"at revision {REVISION}, was 0001" in said
    assert (folder / "old.db.backup-0001").is_file()
    run(*command, "db", "check", "--db", "old.db", cwd=folder, path=path)
    run(*command, "db", "backup", "--db", "old.db", "copy.db", cwd=folder, path=path)
    run(*command, "db", "check", "--db", "copy.db", cwd=folder, path=path)


@pytest.mark.slow
def test_the_wheel_in_a_virtual_environment_has_the_command(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", str(venv), cwd=tmp_path)
    python = str(venv / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel), cwd=tmp_path)
    # The packages that ensq needs are those of this interpreter; the checkout's ensq comes later.
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = (str(venv / "bin" / "ensq"),)
    assert ensq.__version__ in run(*command, "--version", cwd=tmp_path)
    make_a_database(command, tmp_path)
