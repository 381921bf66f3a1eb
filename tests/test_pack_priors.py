"""Priors in the training: fitted before the first stage, trained or left alone, never decayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_tools import Listener, settings, task

from ensq.config import RunConfig
from ensq.data import digest
from ensq.train import checkpoint, export, optimizers
from ensq.train.batches import batches_of_epoch
from ensq.train.dataset import Dataset, prepare
from ensq.train.pack import Program, lane, stack
from ensq.train.trainer import Trainer
from ensq.worker import protocol

# The data's own bonds are 1/2 3.0 (r - 1.5)^2: far from where the priors start.
PRIORS = "model.priors={r0: 1.8, kr: 1.0, weights: {bond: 1.0}}"


def made(*more: str) -> RunConfig:
    return settings(
        "model.use_priors=true",
        PRIORS,
        "training.gammas={F: 1.0, U: 0.0}",
        "training.stages=[{optimizer: adamw, epochs: 2}]",
        "optimizer.adamw={lr: 1.0e-2, weight_decay: 1.0}",
        *more,
    )


@pytest.fixture(scope="module")
def data(tiny: Path) -> Dataset:
    return prepare(tiny, digest(tiny), made(), lambda text: None)


def trained_epoch(program: Program, *seeds: int) -> tuple[Any, Any]:
    """The members before and after an epoch."""
    before = stack([program.new_member(seed) for seed in seeds])
    start = jax.tree.map(np.array, before.params)  # the state itself is given away
    batches = batches_of_epoch(program.dataset.sizes, program.batch, 0, 0)
    after = program.run_steps(before, 0, batches, 0, program.steps_per_epoch)
    return start, after.params


def test_priors_stay_as_they_are_unless_they_are_trained(data: Dataset) -> None:
    before, after = trained_epoch(Program(made(), data), 1)
    assert before["priors"].keys() == {"r0", "kr"}
    for key in ("r0", "kr"):
        assert np.array_equal(before["priors"][key], after["priors"][key])
    assert not np.array_equal(before["network"]["embed"]["w0"], after["network"]["embed"]["w0"])


def test_trained_priors_move_towards_the_datas(data: Dataset) -> None:
    before, after = trained_epoch(Program(made("model.train_priors=true"), data), 1)
    r0 = float(after["priors"]["r0"][0])
    assert 1.5 < r0 < float(before["priors"]["r0"][0])


def test_priors_do_not_decay_and_the_network_does() -> None:
    config = made()
    optimizer = optimizers.build(config.optimizer, config.training.stages[0], 10)
    params = {"network": {"w": jnp.ones(3)}, "priors": {"r0": jnp.ones(())}}
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    assert float(updates["priors"]["r0"]) == 0 and (np.asarray(updates["network"]["w"]) < 0).all()


def test_every_member_starts_from_the_fitted_priors(data: Dataset, tmp_path: Path) -> None:
    program = Program(made("training.pretrain_prior=true"), data)
    listener = Listener()
    Trainer(program, program.config, "d").train([task(tmp_path, s) for s in (1, 2)], listener)
    told = [message.text for message in listener.of(protocol.Phase)]
    assert sum(text.startswith("priors fitted") for text in told) == 1  # once for both
    results = [
        checkpoint.read_result(Path(done.path).read_bytes())
        for done in listener.of(protocol.MemberDone)
    ]
    for result in results:  # not trained further, so the fit is what they end with
        assert result.params["priors"]["r0"] == pytest.approx(1.5, abs=0.02)
        assert result.params["priors"]["kr"] == pytest.approx(3.0, rel=0.05)
    one, two = (result.params["network"]["embed"]["w0"] for result in results)
    assert not np.array_equal(one, two)


def test_averaged_parameters_start_from_the_fitted_priors_too(data: Dataset) -> None:
    program = Program(made("training.pretrain_prior=true", "training.ema_decay=0.9"), data)
    member = program.new_member(3)
    fitted = float(member.params["priors"]["r0"])
    assert fitted != pytest.approx(1.8)
    assert float(member.average["priors"]["r0"]) == float(member.best["priors"]["r0"]) == fitted


def test_a_prior_alone_trains_and_validates(data: Dataset) -> None:
    program = Program(made("model.prior_only=true", "model.train_priors=true"), data)
    before = program.validate(stack([program.new_member(1).params])).force.sum()
    _, after = trained_epoch(program, 1)
    assert after.keys() == {"priors"}
    assert program.validate(after).force.sum() < before


def test_a_fixed_prior_alone_is_evaluated(data: Dataset, tmp_path: Path) -> None:
    """Nothing to train: what comes out is the error of the prior."""
    program = Program(made("model.prior_only=true"), data)
    listener = Listener()
    Trainer(program, program.config, "d").train([task(tmp_path, 1)], listener)
    [done] = listener.of(protocol.MemberDone)
    result = checkpoint.read_result(Path(done.path).read_bytes())
    assert result.best_loss == result.final_loss == done.best_loss
    expected = program.validate(stack([program.new_member(1).params]))
    assert np.array_equal(expected.force[0], result.force_errors)
    assert lane(stack([result.params]), 0).keys() == {"priors"}


SPLINES = (
    "model.priors={use_spline_priors: true, weights: {bond: 1.0}, splines: {bond: {knots: "
    "[1.0, 1.5, 2.0], coeffs: [[0.4, -1.6, 1.6, 0.0], [0.0, 0.0, 1.6, 0.0]]}}}"
)


@pytest.mark.parametrize("only", ["true", "false"])
def test_priors_without_parameters_train_and_are_written_and_exported(
    data: Dataset, tmp_path: Path, only: str
) -> None:
    config = made(
        SPLINES, f"model.prior_only={only}", "training.stages=[{optimizer: adam, epochs: 1}]"
    )
    program, listener = Program(config, data), Listener()
    Trainer(program, config, "d").train([task(tmp_path, 1)], listener)
    [done] = listener.of(protocol.MemberDone)
    result = checkpoint.read_result(Path(done.path).read_bytes())
    assert result.params["priors"].keys() == {"nothing"}
    assert export.to_bytes([result], embed_priors=True)
