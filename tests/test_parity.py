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


def losses(folder: Path, precision: str) -> dict[str, Any]:
    """Both trainers' batch losses over three epochs, from a process in that precision."""
    done = subprocess.run(
        [sys.executable, str(HERE / "parity_program.py"), precision, "1", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert set(told["dtypes"]) == {precision}
    assert len(told["ensq"]) == len(told["chemtrain"]) == len(told["other"]) == 9
    return told


def difference(one: list[float], two: list[float]) -> float:
    """Largest relative difference."""
    return float(np.max(np.abs(np.divide(one, two) - 1)))


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
def test_every_batch_has_the_loss_that_chemtrains_trainer_finds(
    tmp_path: Path, precision: str, tolerance: float
) -> None:
    told = losses(tmp_path, precision)
    found = difference(told["ensq"], told["chemtrain"])
    print(f"{precision}: largest relative difference {found:.1e}")
    assert found < tolerance
    assert told["ensq"][-1] < 0.9 * told["ensq"][0]  # something was learned
    # Another learning rate is seen, though its first loss must agree.
    assert difference(told["other"][:1], told["chemtrain"][:1]) < tolerance
    assert difference(told["other"], told["chemtrain"]) > 1e-3
