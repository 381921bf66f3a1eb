"""Several devices: members and frames are divided, and the numbers stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train_tools import write_tiny

from ensq.train.grid import Devices, shape_for

PROGRAM = Path(__file__).parent / "grid_program.py"
# Sums over parts of a batch are taken in another order: in float64 the last digits differ, and
# two epochs of Adam carry that up.
RTOL = 1e-9


def run(folder: Path, precision: str, psum: str, *names: str) -> Any:
    write_tiny(folder / "tiny.npz")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), precision, psum, *names],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=PROGRAM.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    names = ("1x1", "4x1", "1x4", "2x2", "4x2", "2x2 in parts")
    return run(tmp_path_factory.mktemp("grid"), "float64", "psum", *names)


@pytest.mark.parametrize("name", ["4x1", "1x4", "2x2", "4x2", "2x2 in parts"])
def test_losses_of_a_grid_are_those_of_one_device(found: Any, name: str) -> None:
    members = len(found[name]["losses"])
    for what in ("losses", "force", "energy", "species", "params"):
        expected = np.asarray(found["1x1"][what][:members])
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(
            found[name][what], expected, rtol=RTOL, atol=RTOL * np.abs(expected).max()
        )
    assert found[name]["alive"] == [True] * members


def test_members_of_a_grid_differ(found: Any) -> None:
    losses = np.asarray(found["4x2"]["losses"])
    assert losses.shape[:2] == (4, 2)
    assert len(np.unique(losses[:, -1, -1])) == 4


def test_a_member_that_is_not_finite_leaves_the_others_of_a_grid_their_bits(found: Any) -> None:
    sick, well = found["2x2 spoilt"], found["2x2"]
    assert sick["alive"] == [False, True]
    for what in ("losses", "force", "energy", "params"):
        assert sick[what][1] == well[what][1]


def test_without_the_exchange_between_devices_the_losses_differ(tmp_path: Path) -> None:
    alone = run(tmp_path, "float64", "no-psum", "1x1", "1x4")
    one, four = (np.asarray(alone[name]["losses"][0]) for name in ("1x1", "1x4"))
    assert np.abs(one - four).max() > 1e-3 * np.abs(one).max()


@pytest.mark.parametrize(
    ("devices", "members", "shape"),
    [
        (8, 4, (4, 2)),
        (4, 4, (4, 1)),
        (4, 1, (1, 4)),
        (4, 2, (2, 2)),
        (8, 3, (1, 8)),
        (6, 4, (2, 3)),
        (4, 16, (4, 1)),
    ],
)
def test_devices_are_divided_among_members_first(
    devices: int, members: int, shape: tuple[int, int]
) -> None:
    assert shape_for(devices, members) == shape


def test_one_device_has_no_grid() -> None:
    import jax

    one = Devices(jax.devices()[:1])
    tree = {"a": np.zeros(3)}
    assert one.grid(4) is None
    assert one.everywhere(tree) is tree
