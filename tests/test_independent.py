"""Energies, forces and losses from exported parameters, by code that shares nothing with ensq's."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ensq.train.compat import enable_x64

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from independent_model import Independent
from model_tools import (
    ALL_NETWORKS,
    CUTOFF,
    SHIFTS,
    chain,
    compile_fast,
    evaluate,
    frames_of,
    make_model,
    name_of,
    parameters,
)
from train_tools import Listener, settings, task

from ensq import config as configuration
from ensq.config.structs import DataConfig
from ensq.data import digest, load
from ensq.train import checkpoint
from ensq.train.dataset import prepare
from ensq.train.pack import Program
from ensq.train.trainer import Trainer
from ensq.worker import protocol


@pytest.mark.parametrize("network", [*ALL_NETWORKS, (2, 1, "so3"), (2, 3, "so3")], ids=name_of)
def test_the_documented_formulas_give_the_models_energies_and_forces(network: Any) -> None:
    with enable_x64():
        model = make_model(network)
        params = parameters(model)
        positions, species = chain(seed=3, beads=6)
        energy, forces = evaluate(model, params, frames_of(positions, species))
        allegro = msgspec.structs.asdict(model.network.config)
        formulas = Independent(allegro, CUTOFF, 4.0, so3=network[2] == "so3")

        def total(R: Any) -> Any:
            beads = 3.0 * formulas.beads(params["network"], R, species) + SHIFTS[species]
            return beads.sum()

        expected, gradient = compile_fast(jax.value_and_grad(total))(jnp.asarray(positions))
        assert float(energy[0]) == pytest.approx(float(expected), rel=1e-9)
        np.testing.assert_allclose(forces[0], -gradient, rtol=1e-7, atol=1e-9)
        without = Independent(allegro, CUTOFF, 5.0, so3=network[2] == "so3")
        other = sum(3.0 * without.beads(params["network"], jnp.asarray(positions), species))
        assert abs(float(other) + SHIFTS[species].sum() - float(expected)) > 1e-4  # would be seen


def independent_errors(result: Any, frames: Any) -> tuple[float, int, list[float]]:
    """Sum of squared force errors, components, and energy errors, one frame at a time."""
    config = configuration.loads(result.config)
    stats, prior = result.statistics, result.params["priors"]
    formulas = Independent(
        msgspec.structs.asdict(config.model.allegro),
        config.model.cutoff,
        stats["avg_num_neighbors"],
        so3=not stats["elements"],
    )

    def energy(R: Any, species: Any) -> Any:
        own = formulas.beads(result.params["network"], R, species).sum() * stats["energy_scale"]
        bonds = jnp.linalg.norm(R[1:] - R[:-1], axis=1)
        terms = 0.5 * prior["kr"] * (bonds - prior["r0"]) ** 2
        return own + config.model.priors.weights.bond * terms.sum()

    both = functools.cache(lambda n: compile_fast(jax.value_and_grad(energy)))
    squares, components, energies = 0.0, 0, []
    for frame in range(frames.n_frames):
        real = frames.mask[frame]
        R, species = frames.R[frame][real].astype(float), frames.species[frame][real]
        U, gradient = both(len(R))(jnp.asarray(R), jnp.asarray(species))
        squares += float(((-np.asarray(gradient) - frames.F[frame][real]) ** 2).sum())
        components += 3 * int(real.sum())
        shift = sum(stats["energy_shift"][s] for s in species)
        energies.append(float(U) + shift - frames.U[frame])
    return squares, components, energies


def test_the_reported_loss_is_that_of_the_parameters_in_the_result(
    tiny: Path, tmp_path: Path
) -> None:
    config = settings(
        "training.stages=[{optimizer: adam, epochs: 2}]",
        "model.allegro={n_channels: 4, mlp_n_hidden: 8, n_radial_basis: 4, max_ell: 1}",
        "model.use_priors=true",
        "model.train_priors=true",
        "model.priors={r0: 1.4, kr: 2.0}",
        "data.max_buckets=4",
    )
    dataset = prepare(tiny, digest(tiny), config, lambda text: None)
    listener = Listener()
    Trainer(Program(config, dataset), config, "d").train([task(tmp_path, 5)], listener)
    [done] = listener.of(protocol.MemberDone)
    result = checkpoint.read_result(Path(done.path).read_bytes())
    gammas = config.training.gammas
    frames = load(tiny, DataConfig(path=""), gammas, "kcal/mol").take(result.validation_index)
    with enable_x64():
        squares, components, energies = independent_errors(result, frames)
    loss = gammas.F * squares / components + gammas.U * float(np.mean(np.square(energies)))
    assert result.best_loss == pytest.approx(loss, rel=2e-5)
    assert done.best_loss == result.best_loss
