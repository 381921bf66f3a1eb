"""The simulation of docs/early_stopping.md: its tables are what it prints, and what they mean."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "early_stopping_simulation.py"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("early_stopping_simulation", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_two_sigma_rule_stops_one_of_equal_members_in_every_run(simulation: ModuleType) -> None:
    found = simulation.shares(simulation.TIGHT, [0.0] * 3, 3)
    at_once = [name for name, _ in simulation.RULES].index("`sigma: 2`, at once")
    assert found[at_once][0] == 1.0


def test_paired_rule_stops_the_member_that_is_worse_and_no_other(simulation: ModuleType) -> None:
    found = simulation.shares(simulation.TIGHT, [0.0] * 4 + [0.05], 2)
    paired = [name for name, _ in simulation.RULES].index("`paired`")
    assert found[paired] == (0.0, 1.0)


def test_what_is_drawn_is_as_wide_as_it_says_and_the_same_each_time(
    simulation: ModuleType,
) -> None:
    rng = np.random.default_rng(0)
    drawn = simulation.ar1(rng, (4000, 8), 5.0)
    assert drawn.std() == pytest.approx(1.0, abs=0.03)
    assert (drawn[1:] * drawn[:-1]).mean() == pytest.approx(np.exp(-1 / 5), abs=0.03)
    frames = simulation.ar1(rng, (20, 20000), 5.0).mean(axis=0)
    assert simulation._spread(5.0) == pytest.approx(frames.std(), rel=0.03)
    one, two = (
        simulation.blocks_in(np.random.default_rng(3), simulation.LOOSE, [0.0, 0.1])
        for _ in range(2)
    )
    assert np.array_equal(one, two) and one.shape == (2, simulation.EPOCHS, 32)


@pytest.mark.slow
def test_tables_of_the_documentation_are_those_of_the_simulation(
    simulation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(ROOT / "docs" / "early_stopping.md")
    monkeypatch.setattr(sys, "argv", ["simulation", "--check", file])
    assert simulation.main() == 0
