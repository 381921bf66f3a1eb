"""Validation losses over seeds: chemtrain's EnsembleOfModels against an ensemble of ensq.

Both train the same energy function with the same optimiser for the same number of steps. chemtrain
shuffles the frames by itself, with another order for every member, validates and keeps the best
parameters by itself. The losses of both sides' best parameters are then computed by the same code
here, which is neither trainer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax
import numpy as np
from chemtrain.trainers import EnsembleOfModels
from numpy.typing import NDArray
from scipy import stats

from ensq.train.labelled import Labelled
from ensq.train.models import EnergyModel
from ensq.train.pack import Program
from parity_checks import steps

Losses = NDArray[np.float64]


class Comparison(NamedTuple):
    """Two sets of losses, of the same seeds."""

    means: tuple[float, float]
    stds: tuple[float, float]  # with n - 1
    difference: float  # of the means, second less first
    error: float  # standard error of the difference, as if the sets were independent
    mann_whitney: float  # two-sided p-values
    kolmogorov_smirnov: float
    permutation: float  # of the difference of the means, members exchanged between the sets
    paired: float  # the same, exchanged within each seed only
    levene: float  # of the difference of the spreads


def compare(one: Losses, two: Losses) -> Comparison:
    """How far two sets of losses are told apart. One and two: [n], by seed."""

    def difference(a: Losses, b: Losses, axis: int = -1) -> Losses:
        return np.mean(b, axis=axis) - np.mean(a, axis=axis)

    def permuted(kind: str) -> float:
        told = stats.permutation_test(
            (one, two), difference, permutation_type=kind, vectorized=True, n_resamples=20_000
        )
        return float(told.pvalue)

    variances = one.var(ddof=1) / len(one) + two.var(ddof=1) / len(two)
    return Comparison(
        means=(float(one.mean()), float(two.mean())),
        stds=(float(one.std(ddof=1)), float(two.std(ddof=1))),
        difference=float(two.mean() - one.mean()),
        error=float(np.sqrt(variances)),
        mann_whitney=float(stats.mannwhitneyu(one, two).pvalue),
        kolmogorov_smirnov=float(stats.ks_2samp(one, two).pvalue),
        permutation=permuted("independent"),
        paired=permuted("samples"),
        levene=float(stats.levene(one, two).pvalue),
    )


class Trained(NamedTuple):
    """chemtrain's ensemble."""

    params: list[Any]  # of each member's best epoch
    own_losses: Losses  # what chemtrain found for them


def train_by_chemtrain(program: Program, seeds: Sequence[int], folder: Path) -> Trained:
    """An ensemble the way chemtrain does it, from the initial parameters of ensq's members."""
    trainers = [_trainer(program, seed, folder / str(seed)) for seed in seeds]
    ensemble = _ensemble(trainers)
    ensemble.train(program.config.epochs)
    for trainer in trainers:
        assert not trainer._diverged
        assert len(trainer.val_losses) == program.config.epochs
    losses = np.asarray([trainer._early_stop.best_loss for trainer in trainers], np.float64)
    return Trained(ensemble.list_of_params, losses)


def _ensemble(trainers: list[Any]) -> Any:
    """EnsembleOfModels without its ``__init__``, which fails: it makes a path of None."""
    ensemble = EnsembleOfModels.__new__(EnsembleOfModels)
    ensemble.trainers = trainers
    return ensemble


def _trainer(program: Program, seed: int, folder: Path) -> Any:
    """chemtrain's trainer with its data, whose order is by the seed."""
    folder.mkdir(parents=True)
    [training], [validation] = program.dataset.training, program.dataset.validation
    told = steps.same_function(program.model, training)
    trainer = steps.trainer_of(program, told, folder, steps.optimizer_of(program), seed)
    trainer.set_dataset(_arrays(program, training), stage="training", seed=seed)
    trainer.set_dataset(
        _arrays(program, validation), stage="validation", include_all=True, seed=seed
    )
    return trainer


def _arrays(program: Program, part: Labelled) -> dict[str, Any]:
    told = steps.same_function(program.model, part).dataset
    left_out = () if program.config.training.gammas.U else ("U",)
    return {key: np.asarray(told[key]) for key in told if key not in left_out}


def validation_losses(program: Program, members: Sequence[Any]) -> Losses:
    """The loss [n] of each member's parameters over all validation frames, in float64."""
    [part] = program.dataset.validation
    gammas = program.config.training.gammas
    predict = jax.jit(lambda params: _predict(program.model, params, part))
    losses = []
    for params in members:
        energy, force = (np.asarray(found, np.float64) for found in predict(params))
        in_force = np.mean((force - np.asarray(part.F, np.float64)) ** 2)
        in_energy = np.mean((energy - np.asarray(part.U, np.float64)) ** 2)
        losses.append(gammas.F * in_force + gammas.U * in_energy)
    return np.asarray(losses, np.float64)


def _predict(model: EnergyModel, params: Any, part: Labelled) -> tuple[Any, Any]:
    """Energies [V] and forces [V, N, 3], one frame at a time."""

    def one(frame: Any) -> tuple[Any, Any]:
        def energy(position: Any) -> Any:
            frames = jax.tree_util.tree_map(lambda leaf: leaf[None], frame._replace(R=position))
            return model.per_bead_energy(params, frames).sum()

        value, gradient = jax.value_and_grad(energy)(frame.R)
        return value, -gradient

    return jax.lax.map(one, part.frames)
