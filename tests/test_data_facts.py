"""What is told of a data set, and the cutoff and splines that do not fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from data_tools import BOTH, T, arrays, load, run_config, save

from ensq import data
from ensq.config import RunConfig
from ensq.config.model import SplineConfig, SplinesConfig
from ensq.errors import DataError


def told(loaded: data.Data, config: RunConfig) -> data.Facts:
    return data.facts(loaded, data.split(loaded, config, "d.npz"), config, "d.npz")


def test_facts_are_of_real_beads_and_training_frames(tmp_path: Path) -> None:
    protein = np.repeat(["x", "y"], T // 2)
    loaded = load(save(tmp_path / "d.npz", {**arrays(), "protein": protein}), BOTH)
    config = run_config(training__gammas__U=1.0, training__batch_per_device=4)
    split = data.split(loaded, config, "d.npz")
    facts = told(loaded, config)
    assert loaded.F is not None and loaded.U is not None
    real = loaded.F[split.training][loaded.mask[split.training]]
    assert facts.force_rms == pytest.approx(np.sqrt(np.mean(np.float64(real) ** 2)))
    assert facts.energy_min == loaded.U[split.training].min()
    assert (facts.beads_min, facts.beads_max) == (3, 4)
    assert facts.proteins == {"x": 6, "y": 6}
    assert facts.steps_per_epoch == 3  # 9 frames in batches of 4
    counts = [
        (np.linalg.norm(x[:, None] - x[None], axis=-1) < 5.0).sum(axis=1) - 1
        for x in (loaded.R[frame][loaded.mask[frame]] for frame in split.training)
    ]
    assert facts.neighbours == pytest.approx(np.concatenate(counts).mean())
    assert told(loaded, run_config(training__gammas="{F: 0, U: 1}")).force_rms is None


def test_a_cutoff_below_all_distances_is_refused(tmp_path: Path) -> None:
    loaded = load(save(tmp_path / "d.npz", arrays()), BOTH)
    with pytest.raises(DataError, match=r"cutoff is 0\.01 Angstrom and no pair .*\(nearest 0\.\d"):
        told(loaded, run_config(model__cutoff=0.01))
    alone = data.Data(**{**vars(loaded), "mask": loaded.mask & (np.arange(4) == 0)})
    with pytest.raises(DataError, match="no pair of beads is nearer: cutoffs are in Angstrom"):
        told(alone, run_config())
    priors = {"model__use_priors": True, "model__prior_only": True}
    assert told(alone, run_config(**priors)).neighbours is None


def test_the_trainer_looks_at_every_frame_once_more(tmp_path: Path) -> None:
    from ensq.train.dataset import lay_out

    loaded = load(save(tmp_path / "d.npz", arrays()), BOTH)
    few = loaded.take(np.arange(2))
    assert lay_out(loaded, few, np.arange(2), run_config()).n_training == T
    with pytest.raises(DataError, match=r"training frames: model\.cutoff is 0\.01 Angstrom and no"):
        lay_out(loaded, few, np.arange(2), run_config(model__cutoff=0.01))


def cubic(edge: float, far: float) -> dict[str, Any]:
    """Two beads on the cube's opposite faces, 1 Angstrom apart by an image, ``far`` cells away."""
    R = np.zeros((T, 2, 3)) + np.arange(T)[:, None, None] * 0.01
    R[:, 1, 0] += edge * (1 + far) - 1.0
    return {"R": R, "F": R, "species": np.zeros(2, int), "box": np.array(edge)}


@pytest.mark.parametrize("far", [0, -3])
def test_periodic_images_are_neighbours(tmp_path: Path, far: float) -> None:
    loaded = load(save(tmp_path / "d.npz", cubic(10.0, far)), run_config().training.gammas)
    assert told(loaded, run_config(model__cutoff=2.0)).neighbours == 1
    assert told(loaded, run_config(model__cutoff=2.0)).periodic
    # the other's images at 1, 9 and sqrt(101); a bead's own six at 10, nothing else below 10.02
    assert told(loaded, run_config(model__cutoff=10.02)).neighbours == 8
    with pytest.raises(DataError, match=r"nearest 1\)"):
        told(loaded, run_config(model__cutoff=0.9))


def test_angle_splines_of_another_number_of_species_are_refused(tmp_path: Path) -> None:
    loaded = load(save(tmp_path / "d.npz", arrays()), BOTH)
    spline = SplineConfig(knots=(0.0, 4.0), coeffs=((0.0, 0.0, 0.0, 0.0),))
    config = run_config(
        model__use_priors=True,
        model__priors="{use_spline_priors: true, spline_file: x, residue_specific_angles: true}",
    )

    def of(types: int) -> RunConfig:
        splines = SplinesConfig(angle=spline, angle_types=(spline,) * types)
        priors = msgspec.structs.replace(config.model.priors, splines=splines)
        model = msgspec.structs.replace(config.model, priors=priors)
        return msgspec.structs.replace(config, model=model)

    assert told(loaded, of(3)).species == ("A", "B", "C")
    with pytest.raises(DataError, match=r"the data have 3 species, but the splines .* are of 2"):
        told(loaded, of(2))
