"""Parity with chemtrain's ForceMatching and EnsembleOfModels, in small.

``scripts/parity.py`` makes the same comparisons on real data; docs/parity.md holds its figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parent / "scripts"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both trainers' losses, from a process of their own, since the precision of JAX is one for
    the process."""
    folder = tmp_path_factory.mktemp("parity")
    done = subprocess.run(
        [sys.executable, str(HERE / "parity_program.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE, SCRIPTS)))},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return found


def difference(one: list[float], two: list[float]) -> float:
    """Largest relative difference."""
    return float(np.max(np.abs(np.divide(one, two) - 1)))


@pytest.mark.parametrize(
    ("part", "precision", "tolerance"),
    [("float64", "float64", 1e-12), ("float32", "float32", 1e-5), ("dimenet", "float32", 1e-5)],
)
def test_every_batch_has_the_loss_that_chemtrains_trainer_finds(
    told: dict[str, Any], part: str, precision: str, tolerance: float
) -> None:
    """Allegro in both precisions in chemtrain's trainer; its own DimeNet++ on its own lists."""
    losses = told[part]
    assert set(losses["dtypes"]) == {precision}
    assert len(losses["ensq"]) == len(losses["chemtrain"]) == 9
    found = difference(losses["ensq"], losses["chemtrain"])
    print(f"{part}: largest relative difference {found:.1e}")
    assert found < tolerance
    assert np.mean(losses["ensq"][-3:]) < 0.9 * np.mean(losses["ensq"][:3])  # it has learned


def test_another_learning_rate_would_be_seen(told: dict[str, Any]) -> None:
    losses = told["float64"]
    assert difference(losses["other"][:1], losses["chemtrain"][:1]) < 1e-12  # before any step
    assert difference(losses["other"], losses["chemtrain"]) > 1e-3


def test_dimenet_with_parameters_a_thousandth_larger_would_be_seen(told: dict[str, Any]) -> None:
    losses = told["dimenet"]
    assert difference(losses["other"], losses["chemtrain"]) > 1e-4  # ten times the tolerance


def test_both_ensembles_reach_the_losses_that_they_report(told: dict[str, Any]) -> None:
    losses = told["ensemble"]
    for side in ("chemtrain", "ensq"):
        assert difference(losses[side], losses[f"{side}_own"]) < 1e-5
        assert len(set(losses[side])) == 4


def test_losses_over_seeds_are_those_of_chemtrains_ensemble(told: dict[str, Any]) -> None:
    losses = told["ensemble"]
    chemtrain, ensq = np.asarray(losses["chemtrain"]), np.asarray(losses["ensq"])
    spread = np.sqrt((chemtrain.var(ddof=1) + ensq.var(ddof=1)) / 2)
    assert abs(chemtrain.mean() - ensq.mean()) < 2 * spread
    assert max(chemtrain.min(), ensq.min()) < min(chemtrain.max(), ensq.max())  # they overlap
    # A learning rate of a twentieth would be told apart by the same measure: no overlap.
    assert min(losses["slow"]) > max(*chemtrain, *ensq)


def test_members_of_a_pack_of_four_have_the_losses_of_a_pack_of_one_to_the_end(
    told: dict[str, Any],
) -> None:
    assert told["ensemble"]["alone"]["first"] < 1e-6
    assert told["ensemble"]["alone"]["last"] < 1e-5
    assert told["ensemble"]["another_seed"]["last"] > 1e-2  # so that the bound means something


@pytest.mark.slow
@pytest.mark.parametrize("part", ["allegro", "dimenet", "ensemble", "restart", "pack"])
def test_rows_of_the_table_hold_on_real_data(part: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "parity.py"), "--part", part, "--json"],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    rows = json.loads(done.stdout)["rows"]
    assert rows
    assert all(row["holds"] and row["part"] == part for row in rows)
