"""The exported model file is the trained model: read back, run, compared; and the control."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ensemble_tools import _result, write_config

from ensq import data
from ensq.enqueue import check
from ensq.errors import ExportError
from ensq.train import export

PRIORS = (
    "model.use_priors=true",
    "model.priors={r0: 1.5, kr: 3.0, a: [0.3], b: [0.1], k_dih: [0.2], gamma_dih: [0.4], "
    "epsilon_ex: 0.1, sigma_ex: 1.0}",
)


@pytest.fixture(scope="module", params=[(), PRIORS], ids=["network", "with priors"])
def trained(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, data.Data, bytes]:
    """A member, its data, and its model file."""
    checked = check(write_config(tmp_path_factory.mktemp("export")), request.param)
    result = _result(checked, 42, 1.0)
    frames = data.load(checked.data_path, checked.config.training.gammas)
    return result, frames.take(np.arange(6)), export.to_bytes(result)


def compare(content: bytes, result: Any, frames: data.Data) -> export.Agreement:
    return export.compare(content, result, frames.R, frames.species, frames.mask)


def test_module_gives_energies_and_forces_of_the_trained_model(trained: Any) -> None:
    result, frames, content = trained
    found = compare(content, result, frames)
    assert found.frames == 6
    assert found.energy_error < 1e-4
    assert found.force_error < 1e-4


def test_module_of_other_parameters_is_refused(trained: Any) -> None:
    result, frames, content = trained
    other = jax.tree_util.tree_map(lambda leaf: leaf * np.float32(1.01), result.params)
    with pytest.raises(ExportError, match="is not the trained one"):
        compare(content, dataclasses.replace(result, params=other), frames)


def test_energy_that_is_off_by_a_constant_is_refused(trained: Any) -> None:
    result, frames, content = trained
    shifted = [value + 0.5 for value in result.statistics["energy_shift"]]
    other = {**result.statistics, "energy_shift": shifted}
    with pytest.raises(ExportError, match=r"difference .* in energies"):
        compare(content, dataclasses.replace(result, statistics=other), frames)


def test_file_says_what_the_engine_must_know(trained: Any) -> None:
    loaded = export.LoadedModel(trained[2])
    assert loaded.cutoff == 4.0
    assert loaded.neighbour_order == (1, 2)
    assert loaded.unit_style == "real"


def test_file_is_the_same_each_time_and_tells_nothing_of_this_machine(trained: Any) -> None:
    result, _, content = trained
    assert export.to_bytes(result) == content
    assert str(Path(export.__file__).parent).encode() not in content
    assert b"loc(" not in content


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 50])
def test_file_that_is_no_model_is_an_error(trained: Any, content: bytes) -> None:
    result, frames, _ = trained
    with pytest.raises(ExportError):
        compare(content, result, frames)


def test_padding_slots_of_the_engine_change_nothing(trained: Any) -> None:
    """Engines hand over arrays with spare atoms at the end, full of rubbish."""
    _, frames, content = trained
    loaded = export.LoadedModel(content)
    real = frames.mask[0]
    system = export.System(frames.R[0][real], frames.species[0][real])
    energy, force = loaded.energy_and_forces(system, newton=True)
    n = int(real.sum())
    spare = export.System(
        np.concatenate([system.position, np.full((3, 3), 0.1)]),
        np.concatenate([system.species, np.zeros(3, int)]),
    )
    padded_energy, padded_force = loaded.energy_and_forces(spare, newton=True, n_local=n)
    assert padded_energy == pytest.approx(energy, rel=1e-5)
    np.testing.assert_allclose(padded_force[:n], force, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(padded_force[n:], 0)
