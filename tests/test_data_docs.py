"""What docs/data.md shows a newcomer works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from data_tools import FORCES, load

from ensq.config.structs import DataConfig
from ensq.data import npz, xyz
from ensq.data.checks import MIN_SPACING
from ensq.units import ENERGY, LENGTH

DOCS = (Path(__file__).parent.parent / "docs" / "data.md").read_text()


def blocks(mark: str) -> list[str]:
    """Indented blocks of the page that hold a mark, without their indentation."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", DOCS, re.MULTILINE)
    return [re.sub("^    ", "", block, flags=re.MULTILINE) for block in found if mark in block]


def test_every_section_on_data_is_valid() -> None:
    sections = [yaml.safe_load(block)["data"] for block in blocks("data:")]
    assert len(sections) >= 6
    for section in sections:
        msgspec.convert({"path": "x", **section}, DataConfig)


def chain(beads: int, spacing: float) -> Any:
    steps = np.random.default_rng(0).normal(size=(5, beads, 3))
    return np.cumsum(spacing * steps / np.linalg.norm(steps, axis=-1, keepdims=True), axis=1)


def test_the_code_that_makes_an_npz_file_makes_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("positions.npy", chain(10, 0.15))
    np.save("forces.npy", np.full((5, 10, 3), 41.84))
    given = {"positions": chain(4, 1.5), "forces": chain(4, 1.0), "energies": np.arange(5.0)}
    programs = blocks("np.savez")
    assert len(programs) == 2
    for program in programs:
        exec(program, dict(given))
    assert load(tmp_path / "train.npz").species_names == ("CH3", "C", "N")
    units = {"energy": "kJ/mol", "length": "nm"}
    loaded = load(tmp_path / "ala2_cg.npz", FORCES, units=units)
    assert len(loaded.species_names) == 10 and not loaded.elements
    assert loaded.F is not None
    np.testing.assert_allclose(loaded.F, 1.0)


def test_every_name_and_unit_is_told() -> None:
    names = [
        name for table in (npz.USUAL, npz.ALIASES) for names in table.values() for name in names
    ]
    for name in [*names, *ENERGY, *LENGTH, ".npz", ".xyz", ".extxyz"]:
        assert f"`{name}`" in DOCS, name
    told = DOCS.lower()
    for name in (*xyz.FORCES, *xyz.ENERGIES, xyz.LAST_RESORT):
        if not name.endswith("_force"):  # singular forms are understood, too
            assert f"`{name}`" in told, name
    assert f"less than {MIN_SPACING} Angstrom" in DOCS
    assert f"2 to {xyz.MAX_CONFIG_TYPES} different" in DOCS
