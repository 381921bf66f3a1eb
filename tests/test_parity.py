"""Parity with chemtrain's ForceMatching trainer: model, batches and optimiser are the same."""

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


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both trainers' batch losses over three epochs, from a process of their own, since the
    precision of JAX is one for the process."""
    folder = tmp_path_factory.mktemp("parity")
    done = subprocess.run(
        [sys.executable, str(HERE / "parity_program.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads((folder / "losses.json").read_text())
    return told


def difference(one: list[float], two: list[float]) -> float:
    """Largest relative difference."""
    return float(np.max(np.abs(np.divide(one, two) - 1)))


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_every_batch_has_the_loss_that_chemtrains_trainer_finds(
    losses: dict[str, Any], precision: str, tolerance: float
) -> None:
    told = losses[precision]
    assert set(told["dtypes"]) == {precision}
    assert len(told["ensq"]) == len(told["chemtrain"]) == 9
    found = difference(told["ensq"], told["chemtrain"])
    print(f"{precision}: largest relative difference {found:.1e}")
    assert found < tolerance
    assert np.mean(told["ensq"][-3:]) < 0.9 * np.mean(told["ensq"][:3])  # something was learned


def test_another_learning_rate_would_be_seen(losses: dict[str, Any]) -> None:
    told = losses["float64"]
    assert difference(told["other"][:1], told["chemtrain"][:1]) < 1e-12  # before the first step
    assert difference(told["other"], told["chemtrain"]) > 1e-3
