"""Packs: members that train together without touching each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from train_tools import Listener, settings, task

from ensq.rundir import checkpoint_name
from ensq.train import checkpoint, statistics
from ensq.train import trainer as trainer_module
from ensq.train.batches import batches_of_epoch
from ensq.train.costs import Costs
from ensq.train.dataset import Dataset
from ensq.train.pack import Lanes, Program, lane, stack
from ensq.train.trainer import Trainer
from ensq.worker import protocol

SEEDS = (1, 2)
DATA_DIGEST = "d" * 64


def identical(first: Any, second: Any) -> bool:
    """Whether two trees hold the same bits."""
    one, two = jax.tree.leaves(first), jax.tree.leaves(second)
    return len(one) == len(two) and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(one, two, strict=True)
    )


def new_pack(program: Program, *seeds: int) -> Lanes:
    return stack([program.new_member(seed) for seed in seeds])


def run(program: Program, lanes: Lanes, epoch: int, *cuts: int) -> Lanes:
    """One epoch, in calls that end at ``cuts`` and at its end."""
    batches = batches_of_epoch(program.dataset.sizes, program.batch, 0, epoch)
    bounds = [0, *cuts, program.steps_per_epoch]
    for start, stop in itertools.pairwise(bounds):
        lanes = program.run_steps(lanes, epoch, batches, start, stop)
    return lanes


# -- members -----------------------------------------------------------------------------------


def test_members_start_from_their_seeds(program: Program) -> None:
    assert identical(program.new_member(1), program.new_member(1))
    assert not identical(program.new_member(1).params, program.new_member(2).params)


def test_a_pack_of_two_is_two_packs_of_one(program: Program) -> None:
    together = run(program, new_pack(program, *SEEDS), 0)
    for place, seed in enumerate(SEEDS):
        alone = lane(run(program, new_pack(program, seed), 0), 0)
        mine = lane(together, place)
        for one, two in zip(jax.tree.leaves(mine), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(one, two, rtol=2e-4, atol=1e-5)
        start = program.new_member(seed).params
        moved = [
            float(np.abs(a - b).max())
            for a, b in zip(jax.tree.leaves(mine.params), jax.tree.leaves(start), strict=True)
        ]
        assert max(moved) > 1e-2  # the tolerance is far below what training changes


def test_cutting_an_epoch_into_calls_changes_no_bit(program: Program) -> None:
    whole = run(program, new_pack(program, *SEEDS), 0)
    assert identical(run(program, new_pack(program, *SEEDS), 0, 1, 2, 3), whole)
    assert identical(run(program, new_pack(program, *SEEDS), 0, 3), whole)


def test_a_lane_that_is_not_finite_is_frozen_and_the_other_keeps_its_bits(
    program: Program,
) -> None:
    healthy, sick = program.new_member(1), program.new_member(2)
    sick = sick._replace(params=jax.tree.map(lambda leaf: leaf * 1e30, sick.params))
    with_sick = run(program, stack([healthy, sick]), 0)
    without = run(program, new_pack(program, *SEEDS), 0)
    assert with_sick.alive.tolist() == [True, False]
    assert identical(lane(with_sick, 0), lane(without, 0))
    frozen = lane(with_sick, 1)
    losses = frozen.batch_losses
    assert not np.isfinite(losses).any()
    assert identical(
        frozen._replace(batch_losses=0, alive=0), sick._replace(batch_losses=0, alive=0)
    )


def test_a_lane_once_dead_stays_dead(program: Program) -> None:
    dead = program.new_member(1)._replace(alive=np.zeros((), bool))
    after = run(program, stack([dead, program.new_member(2)]), 0)
    assert after.alive.tolist() == [False, True]
    assert identical(lane(after, 0).params, dead.params)


# -- validation --------------------------------------------------------------------------------


Errors = Callable[[Any], tuple[Any, Any]]


@pytest.fixture(scope="module")
def numpy_errors(program: Program) -> Errors:
    """Errors of each validation frame from the model's forces, all frames at once, in NumPy."""
    part = program.dataset.validation[0]
    predict = jax.jit(program.model.energy_and_forces)

    def errors(params: Any) -> tuple[Any, Any]:
        energy, force = map(np.asarray, predict(params, part.frames))
        real = np.asarray(part.frames.mask)[..., None] > 0
        squares = np.where(real, (force - np.asarray(part.F)).astype(np.float64) ** 2, 0)
        return squares.sum(axis=(1, 2)), (energy - np.asarray(part.U)).astype(np.float64)

    return errors


def test_validation_is_the_numpy_computation_from_the_models_forces(
    program: Program, numpy_errors: Errors
) -> None:
    lanes = new_pack(program, *SEEDS)
    found = program.validate(lanes.params)
    assert found.force.shape == (2, 10)  # every frame of the set, none of the fill
    for place in range(2):
        force, energy = numpy_errors(lane(lanes, place).params)
        np.testing.assert_allclose(found.force[place], force, rtol=1e-4)
        np.testing.assert_allclose(found.energy[place], energy, rtol=1e-4, atol=1e-5)


def test_padding_is_not_counted_among_the_components(dataset: Dataset) -> None:
    beads = np.asarray(dataset.validation[0].frames.mask).sum(axis=1)
    assert dataset.validated.beads.tolist() == beads.tolist()
    assert dataset.validated.components.tolist() == (3 * beads).tolist()
    assert beads.min() < dataset.validation[0].F.shape[1]


# -- whole trainings ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(
    program: Program, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Listener, dict[int, checkpoint.MemberResult]]:
    """Both members trained to the end, what was said, and their results."""
    folder, listener = tmp_path_factory.mktemp("run"), Listener()
    Trainer(program, settings(), DATA_DIGEST).train([task(folder, s) for s in SEEDS], listener)
    results = {
        done.job_id: checkpoint.read_result(checkpoint.read_verified(Path(done.path), done.digest))
        for done in listener.of(protocol.MemberDone)
    }
    return folder, listener, results


Trained = tuple[Path, Listener, dict[int, checkpoint.MemberResult]]


def test_every_epoch_of_every_member_is_told_once(trained: Trained) -> None:
    _, listener, results = trained
    assert set(results) == set(SEEDS)
    for seed in SEEDS:
        epochs = listener.epochs(seed)
        assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
        history = results[seed].history
        np.testing.assert_array_equal(history[:, 0], [epoch.train_loss for epoch in epochs])
        np.testing.assert_array_equal(history[:, 1], [epoch.val_loss for epoch in epochs])


def test_the_best_parameters_are_those_whose_loss_is_reported(
    program: Program, trained: Trained, numpy_errors: Errors
) -> None:
    dataset, gammas = program.dataset, program.config.training.gammas
    for seed, result in trained[2].items():
        force, energy = numpy_errors(result.params)
        loss = statistics.scores(
            force, energy, dataset.validated.components, dataset.validated.beads, gammas
        ).loss
        losses = result.history[:, 1]
        assert result.best_epoch == 2, seed  # so that best and last can be told apart
        assert result.best_loss == losses.min() == losses[1]
        assert result.final_loss == losses[2] > 1.05 * result.best_loss
        assert loss == pytest.approx(result.best_loss, rel=1e-4)
        np.testing.assert_allclose(result.force_errors, force, rtol=1e-3)


def test_the_train_loss_weighs_batches_by_their_frames(program: Program, trained: Trained) -> None:
    lanes = run(program, program.begin_stage(new_pack(program, *SEEDS), 0), 0)
    losses = np.asarray(lanes.batch_losses, np.float64)
    for place, seed in enumerate(SEEDS):
        told = trained[1].epochs(seed)[0].train_loss
        assert told == pytest.approx(losses[place] @ [8, 8, 8, 6] / 30, rel=1e-12)
        assert abs(told - losses[place].mean()) > 1e-6 * told


def restored(program: Program, folder: Path, seed: int, epoch: int) -> Any:
    path = folder / f"seed-{seed}" / "attempt-1" / checkpoint_name(epoch, 0)
    identity = Trainer(program, settings(), DATA_DIGEST).identity
    return checkpoint.restore(path.read_bytes(), program.template(epoch, 0), identity).state


def test_a_stage_begins_with_a_new_optimiser_and_the_old_parameters(
    program: Program, trained: Trained
) -> None:
    before = stack([restored(program, trained[0], seed, 2) for seed in SEEDS])
    begun = program.begin_stage(before, 2)
    assert identical(begun.params, before.params)
    assert identical(begun.best, before.best)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(begun.optimizer))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(before.optimizer))
    after = run(program, begun, 2)
    for place, seed in enumerate(SEEDS):
        kept = restored(program, trained[0], seed, 3)
        assert identical(lane(after, place).params, kept.params)
        assert identical(lane(after, place).optimizer, kept.optimizer)


def test_a_stage_with_the_same_optimiser_as_before_restarts_too(program: Program) -> None:
    assert [program.starts_stage(epoch) for epoch in range(3)] == [True, False, True]
    begun = program.begin_stage(run(program, new_pack(program, *SEEDS), 0), 0)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(begun.optimizer))


@pytest.mark.parametrize("steps", range(1, 12))
def test_a_stop_after_any_step_and_a_resume_change_no_bit(
    program: Program,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    monkeypatch.setattr(trainer_module, "SECONDS_PER_CALL", 0)  # one step for each call
    stopped, resumed = Listener(stop_after=steps), Listener()
    trainer = Trainer(program, settings(), DATA_DIGEST)
    trainer.train([task(tmp_path, seed) for seed in SEEDS], stopped)
    [answer] = stopped.of(protocol.Stopped)
    assert stopped.of(protocol.MemberDone) == []
    written = {seed: answer.checkpoints[str(seed)] for seed in SEEDS}
    assert {(w.epoch, w.step) for w in written.values()} == {divmod(steps, 4)}
    tasks = [task(tmp_path, seed, 2, [written[seed]]) for seed in SEEDS]
    Trainer(program, settings(), DATA_DIGEST).train(tasks, resumed)
    for done in resumed.of(protocol.MemberDone):
        found = checkpoint.read_result(Path(done.path).read_bytes())
        expected = trained[2][done.job_id]
        assert identical(found.params, expected.params)
        assert identical(found.history[:, :5], expected.history[:, :5])
        assert identical(found.force_errors, expected.force_errors)
        assert found.best_loss == expected.best_loss
        assert found.best_epoch == expected.best_epoch
    assert len(resumed.of(protocol.MemberDone)) == 2


def resume_from(
    program: Program, folder: Path, seed: int, change: Callable[[Lanes], Lanes]
) -> protocol.MemberTask:
    """A member that goes on from its checkpoint of epoch 1, changed."""
    source = folder / f"seed-{seed}" / "attempt-1" / checkpoint_name(1, 0)
    trainer = Trainer(program, settings(), DATA_DIGEST)
    found = checkpoint.restore(source.read_bytes(), program.template(1, 0), trainer.identity)
    path = folder / f"seed-{seed}" / "changed.safetensors"
    digest = checkpoint.write_checkpoint(
        path, change(found.state), found.record, 1, 0, trainer.identity
    )
    written = protocol.Written(path=str(path), digest=digest, epoch=1, step=0)
    return task(folder, seed, attempt=2, resume=[written])


def train_with_one_that_diverges(
    program: Program, folder: Path, trainer: Trainer
) -> tuple[Listener, checkpoint.MemberResult]:
    """Seeds 1 and 2 from epoch 1 on; seed 1 is spoilt. What was told, and the result of seed 2."""

    def spoil(state: Lanes) -> Lanes:
        return state._replace(params=jax.tree.map(lambda leaf: leaf * 1e30, state.params))

    tasks = [
        resume_from(program, folder, 1, spoil),
        resume_from(program, folder, 2, lambda state: state),
    ]
    listener = Listener()
    trainer.train(tasks, listener)
    [failed] = listener.of(protocol.MemberFailed)
    assert (failed.job_id, failed.kind) == (1, "diverged")
    assert "seed 1: the loss was not finite in epoch 2; lower the learning rate" in failed.message
    assert listener.epochs(1) == []
    [done] = listener.of(protocol.MemberDone)
    assert done.job_id == 2
    return listener, checkpoint.read_result(Path(done.path).read_bytes())


def shrunk(listener: Listener) -> bool:
    return "the pack goes on with 1 of its 2 members" in [
        phase.text for phase in listener.of(protocol.Phase)
    ]


def test_a_member_that_diverges_fails_and_the_other_reaches_the_same_bits(
    program: Program, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, results = trained
    trainer = Trainer(program, settings(), DATA_DIGEST)
    monkeypatch.setattr(trainer.costs, "smaller_pays", lambda *_, **__: False)
    listener, result = train_with_one_that_diverges(program, folder, trainer)
    assert not shrunk(listener)
    assert identical(result.params, results[2].params)
    np.testing.assert_array_equal(result.history[:, :5], results[2].history[:, :5])


def test_a_pack_that_shrinks_goes_on_with_the_members_that_are_left(
    program: Program, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, results = trained
    trainer = Trainer(program, settings(), DATA_DIGEST)
    asked = []

    def pays(now: int, then: int, *, steps: int, is_compiled: bool) -> bool:
        asked.append((now, then, steps))
        return True

    monkeypatch.setattr(trainer.costs, "smaller_pays", pays)
    listener, result = train_with_one_that_diverges(program, folder, trainer)
    assert shrunk(listener)
    assert asked[0] == (2, 1, 4)  # after epoch 2 of 3
    assert result.seed == 2
    np.testing.assert_allclose(
        result.history[:2, :2], results[2].history[:2, :2], rtol=1e-6
    )  # together, and so to the last digits those of before
    # The last epoch's rate is far too large: what differs in the last digits grows in it.
    np.testing.assert_allclose(result.history[2, :2], results[2].history[2, :2], rtol=1e-2)


def test_a_smaller_pack_pays_when_it_saves_more_than_its_compilation() -> None:
    costs = Costs(proportional=True)
    assert not costs.smaller_pays(4, 2, steps=1000, is_compiled=True), "nothing was measured"
    costs.stepped(4, 10, 4.0)
    costs.stepped(4, 10, 8.0)  # disturbed
    assert costs.smaller_pays(4, 2, steps=1, is_compiled=True)
    assert not costs.smaller_pays(4, 2, steps=1000, is_compiled=False), "at an unknown price"
    costs.compiled(30.0)
    assert not costs.smaller_pays(4, 2, steps=150, is_compiled=False)
    assert costs.smaller_pays(4, 2, steps=151, is_compiled=False)
    costs.stepped(2, 10, 3.9)  # it was measured that the smaller one hardly saves
    assert not costs.smaller_pays(4, 2, steps=1000, is_compiled=False)


def test_on_an_accelerator_a_smaller_pack_pays_only_if_that_was_measured() -> None:
    costs = Costs(proportional=False)
    costs.stepped(4, 10, 4.0)
    costs.compiled(1.0)
    assert not costs.smaller_pays(4, 2, steps=10**6, is_compiled=True)
    costs.stepped(2, 10, 3.0)
    assert costs.smaller_pays(4, 2, steps=11, is_compiled=False)


# -- moving average ----------------------------------------------------------------------------


def test_averaged_parameters_follow_the_formula_and_are_the_evaluated_ones(
    dataset: Dataset,
) -> None:
    averaging = Program(settings("training.ema_decay=0.2"), dataset)
    lanes = new_pack(averaging, 1)
    expected = lane(lanes, 0).params
    batches = batches_of_epoch((30,), 8, 0, 0)
    for step in range(4):
        lanes = averaging.run_steps(lanes, 0, batches, step, step + 1)
        decay = min(0.2, (1 + step) / (10 + step))
        expected = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * new,
            expected,
            lane(lanes, 0).params,
        )
    evaluated = lane(averaging.evaluated(lanes), 0)
    for one, two in zip(jax.tree.leaves(evaluated), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
    assert not identical(evaluated, lane(lanes, 0).params)
    kept = averaging.keep_best(lanes, np.array([True]))
    assert identical(lane(kept.best, 0), evaluated)


def test_without_averaging_the_trained_parameters_are_evaluated(program: Program) -> None:
    lanes = new_pack(program, *SEEDS)
    assert program.evaluated(lanes) is lanes.params
    kept = program.keep_best(run(program, new_pack(program, *SEEDS), 0), np.array([True, False]))
    assert identical(lane(kept.best, 0), lane(kept.params, 0))
    assert not identical(lane(kept.best, 1), lane(kept.params, 1))
    assert identical(lane(kept.best, 1), program.new_member(2).params)
