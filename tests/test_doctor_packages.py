"""``ensq doctor`` and packages: of versions, by folders of metadata that come first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ensq import __version__
from ensq.doctor import Finding, packages
from ensq.doctor.packages import check_packages


def install(folder: Path, name: str, version: str, *wanted: str) -> None:
    """Metadata of a package, as pip leaves them."""
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    place.joinpath("METADATA").write_text(
        "\n".join([*lines, *(f"Requires-Dist: {one}" for one in wanted)]) + "\n"
    )


def look(folder: Path) -> dict[str, Finding]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return {finding.key: finding for finding in check_packages(environment)}


def test_the_packages_here_are_those_that_ensq_asks_for() -> None:
    found = {finding.key: finding for finding in check_packages()}
    assert {"python", "ensq", *packages.SHOWN} <= set(found)
    assert {finding.state for finding in found.values()} == {"ok"}, found


def test_a_version_that_does_not_fit_is_a_problem_with_the_one_to_install(tmp_path: Path) -> None:
    install(tmp_path, "jax", "0.4.30", "jaxlib<=0.4.30,>=0.4.30")
    found = look(tmp_path)
    assert found["jax"].state == "problem"
    assert found["jax"].seen == "jax 0.4.30; needed: >=0.4.35"
    assert found["jax"].advice == 'pip install "jax>=0.4.35"'
    assert found["jaxlib"].state == "problem", "jax asks for another one"


def test_a_package_that_is_asked_for_and_missing_is_a_problem(tmp_path: Path) -> None:
    wanted = ("jax>=0.4", "nobody-has-this>=2", "nor-this; extra == 'dev'")
    install(tmp_path, "ensq", __version__, *wanted)
    found = look(tmp_path)
    assert found["nobody-has-this"].state == "problem"
    assert found["nobody-has-this"].seen == "nobody-has-this is not installed; needed: >=2"
    assert "nor-this" not in found


def test_what_two_packages_ask_for_fits_only_if_both_are_content(tmp_path: Path) -> None:
    install(tmp_path, "ensq", __version__, "jax>=0.4", "numpy>=3")
    assert look(tmp_path)["numpy"].state == "problem"
    install(tmp_path, "jax", "0.4.36", "numpy>=1")
    assert look(tmp_path)["numpy"].state == "problem"


def test_metadata_of_another_ensq_are_a_warning(tmp_path: Path) -> None:
    install(tmp_path, "ensq", "0.0.1", "jax>=0.4")
    assert look(tmp_path)["ensq"].state == "warning"


def test_an_ensq_that_is_not_installed_is_unknown() -> None:
    assert packages._ensq(None).state == "unknown"


@pytest.mark.parametrize("module", ["raise ImportError('broken')", "import time; time.sleep(60)"])
def test_versions_that_cannot_be_compared_are_unknown(module: str, tmp_path: Path) -> None:
    (tmp_path / "packaging").mkdir()
    (tmp_path / "packaging/__init__.py").write_text(module)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = {finding.key: finding for finding in check_packages(environment, 0.5)}
    assert found["packages"].state == "unknown"
    assert found["ensq"].state == "ok"


def test_another_python_is_a_problem() -> None:
    assert packages._python((3, 14)).state == "problem"
    assert packages._python((3, 10)).state == "problem"
    assert packages._python(sys.version_info[:2]).state == "ok"
