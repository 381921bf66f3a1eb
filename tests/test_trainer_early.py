"""Members that end before their last epoch: what they leave, and what the others notice of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from train_tools import DATA, Listener, settings, task, write_tiny

from ensq import data
from ensq.train import checkpoint, finishing
from ensq.train import trainer as trainer_module
from ensq.train.costs import Costs
from ensq.train.dataset import prepare
from ensq.train.pack import Program
from ensq.train.trainer import Trainer
from ensq.worker import protocol

STEPS = 4  # of an epoch
PLATEAU = protocol.Plateau(patience=1, min_delta=0.9, min_epochs=1, stops=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    path = write_tiny(tmp_path_factory.mktemp("data") / "tiny.npz")
    return Program(settings(), prepare(path, data.digest(path), settings(), lambda text: None))


@pytest.fixture(autouse=True)
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One step for each call; and packs keep their size, so that bits can be compared."""
    monkeypatch.setattr(trainer_module, "SECONDS_PER_CALL", 0)
    monkeypatch.setattr(Costs, "smaller_pays", lambda *arguments, **other: False)
    yield


def train(program: Program, listener: Listener, *tasks: protocol.MemberTask, **how: Any) -> None:
    Trainer(program, settings(), DATA).train(tasks, listener, **how)


def done(listener: Listener, seed: int) -> protocol.MemberDone:
    (found,) = [one for one in listener.of(protocol.MemberDone) if one.job_id == seed]
    return found  # type: ignore[no-any-return]


def result(listener: Listener, seed: int) -> checkpoint.MemberResult:
    told = done(listener, seed)
    return checkpoint.read_result(checkpoint.read_verified(Path(told.path), told.digest))


def same_bits(found: checkpoint.MemberResult, wanted: checkpoint.MemberResult) -> None:
    """All of it, but for how long its epochs took."""

    def untimed(one: checkpoint.MemberResult) -> bytes:
        history = one.history.copy()
        history[:, 5] = 0
        return checkpoint.result_bytes(replace(one, history=history))

    assert untimed(found) == untimed(wanted)


@pytest.fixture(scope="module")
def pair(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Listener:
    """Two members trained to the end as one pack."""
    listener, folder = Listener(), tmp_path_factory.mktemp("pair")
    train(program, listener, task(folder, 1), task(folder, 2))
    return listener


@pytest.fixture(scope="module")
def alone(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Listener:
    """Seed 1 trained to the end by itself."""
    listener = Listener()
    train(program, listener, task(tmp_path_factory.mktemp("alone"), 1))
    return listener


@pytest.mark.parametrize("at", [5, 2 * STEPS])
def test_member_that_a_rule_stops_leaves_its_result_and_disturbs_nobody(
    program: Program, pair: Listener, tmp_path: Path, at: int
) -> None:
    listener = Listener(finish={1: "paired"}, at=at)
    train(program, listener, task(tmp_path, 1), task(tmp_path, 2))
    told = done(listener, 1)
    epoch, step = divmod(at, STEPS)
    assert told.early is not None and told.early.checkpoint is not None
    assert (told.early.rule, told.early.epoch, told.early.evidence) == ("paired", epoch, "")
    assert (told.early.checkpoint.epoch, told.early.checkpoint.step) == (epoch, step)
    assert [one.epoch for one in listener.epochs(1)] == list(range(1, epoch + 1))
    found, whole = result(listener, 1), result(pair, 1)
    assert found.early == {"rule": "paired", "evidence": ""} and whole.early is None
    np.testing.assert_array_equal(found.history[:, :5], whole.history[:epoch, :5])
    assert found.best_loss == whole.history[:epoch, 1].min()
    assert told.final_loss == found.final_loss == whole.history[epoch - 1, 1]
    same_bits(result(listener, 2), result(pair, 2))
    kinds = [type(m) for m in listener.messages if not isinstance(m, protocol.StepDone)]
    assert kinds.index(protocol.MemberDone) < len(kinds) - 2  # at once, not at the end


@pytest.mark.parametrize("at", [5, 2 * STEPS])
def test_member_that_is_resumed_comes_to_the_same_bits_as_one_that_never_stopped(
    program: Program, alone: Listener, tmp_path: Path, at: int
) -> None:
    first, second = Listener(finish={1: "sigma"}, at=at), Listener(finish={1: "sigma"})
    train(program, first, task(tmp_path, 1))
    early = done(first, 1).early
    assert early is not None
    left = [tmp_path / "seed-1/attempt-1/result.safetensors"]
    again = task(tmp_path, 1, 2, [early.checkpoint], left)
    train(program, second, msgspec.structs.replace(again, exempt=True), plateau=PLATEAU)
    same_bits(result(second, 1), result(alone, 1))


def test_member_without_an_epoch_ends_after_its_first(program: Program, tmp_path: Path) -> None:
    listener = Listener(finish={1: "paired"})
    train(program, listener, task(tmp_path, 1))
    assert len(result(listener, 1).history) == 1
    assert len(listener.of(protocol.StepDone)) == STEPS


def test_losses_of_blocks_have_the_loss_as_their_mean(program: Program, pair: Listener) -> None:
    validated = program.dataset.validated
    count = int(validated.block.max()) + 1
    assert sorted(set(validated.block.tolist())) == list(range(count)) and count > 1
    for seed in (1, 2):
        for epoch in pair.epochs(seed):
            assert len(epoch.blocks) == count and min(epoch.blocks) > 0
            assert np.mean(epoch.blocks) == pytest.approx(epoch.val_loss, rel=1e-12)


def test_unequal_blocks_have_the_loss_as_their_mean_too() -> None:
    from ensq.train.statistics import block_losses

    losses, block = np.array([1.0, 2.0, 3.0, 10.0, 4.0]), np.array([0, 0, 0, 1, 2])
    found = block_losses(losses, block)
    np.testing.assert_allclose(found, [3.6, 6.0, 2.4])
    assert found.mean() == losses.mean()


def test_plateau_ends_a_member_after_the_epoch_and_its_evidence_is_in_the_result(
    program: Program, pair: Listener, tmp_path: Path
) -> None:
    """By nine tenths nothing improves: one epoch of patience is over after epoch 2."""
    listener = Listener()
    spared = msgspec.structs.replace(task(tmp_path, 2), exempt=True)
    train(program, listener, task(tmp_path, 1), spared, plateau=PLATEAU)
    found = result(listener, 1)
    assert found.early is not None and len(found.history) == 2
    evidence = json.loads(found.early["evidence"])
    assert (evidence["rule"], evidence["epoch"], evidence["since"]) == ("plateau", 2, 1)
    assert listener.epochs(1)[1].plateau == found.early["evidence"]
    assert [one.plateau for one in listener.epochs(2)] == [None] * 3
    same_bits(result(listener, 2), result(pair, 2))


def test_plateau_that_is_only_reported_stops_nobody(
    program: Program, alone: Listener, tmp_path: Path
) -> None:
    listener = Listener()
    told = msgspec.structs.replace(PLATEAU, stops=False)
    train(program, listener, task(tmp_path, 1), plateau=told)
    assert [one.plateau is not None for one in listener.epochs(1)] == [False, True, False]
    same_bits(result(listener, 1), result(alone, 1))


@pytest.mark.parametrize("exempt", [False, True])
def test_attempt_that_ended_after_the_checkpoint_of_a_plateau_is_not_trained_on(
    program: Program, alone: Listener, tmp_path: Path, exempt: bool
) -> None:
    """By nine tenths nothing improves: epoch 2 is the last, whenever the attempt before it died."""
    at = Path(done(alone, 1).path).parent / "epoch-000002-step-000000.safetensors"
    again = msgspec.structs.replace(task(tmp_path, 1, 2, [at]), exempt=exempt)
    listener = Listener()
    train(program, listener, again, plateau=PLATEAU)
    assert len(result(listener, 1).history) == (3 if exempt else 2)
    assert (done(listener, 1).early is None) == exempt
    assert len(listener.of(protocol.StepDone)) == (STEPS if exempt else 0)


@pytest.mark.parametrize(("ordered", "trained"), [(1, 2), (2, 2), (3, 3)])
def test_decision_of_an_earlier_attempt_is_carried_out(
    program: Program, alone: Listener, tmp_path: Path, ordered: int, trained: int
) -> None:
    """At once if the member has come so far; else once it has. The last epoch is no early end."""
    at = Path(done(alone, 1).path).parent / "epoch-000002-step-000000.safetensors"
    given = msgspec.structs.replace(
        task(tmp_path, 1, 2, [at]), order=protocol.Order(rule="paired", epoch=ordered)
    )
    listener = Listener()
    train(program, listener, given)
    assert len(result(listener, 1).history) == trained
    assert (done(listener, 1).early is None) == (trained == 3)
    assert len(listener.of(protocol.StepDone)) == (trained - 2) * STEPS


def test_early_result_that_was_never_told_of_is_taken_up(program: Program, tmp_path: Path) -> None:
    first, second, third = Listener(finish={1: "paired"}, at=5), Listener(), Listener()
    train(program, first, task(tmp_path, 1))
    left = [tmp_path / "seed-1/attempt-1/result.safetensors"]
    train(program, second, task(tmp_path, 1, 2, [], left))
    told = done(second, 1)
    assert (told.early, len(told.adopted)) == (protocol.Early(rule="paired", epoch=1), 1)
    exempt = msgspec.structs.replace(task(tmp_path, 1, 3, [], left), exempt=True)
    train(program, third, exempt)
    assert done(third, 1).early is None and len(result(third, 1).history) == 3
    assert any("it was resumed" in phase.text for phase in third.of(protocol.Phase))


def test_ending_is_by_orders_and_commands_and_never_of_exempt_members(tmp_path: Path) -> None:
    plain = task(tmp_path, 1)
    order = protocol.Order(rule="sigma", epoch=3)
    with_order = msgspec.structs.replace(plain, order=order)
    exempt = msgspec.structs.replace(with_order, exempt=True)
    assert finishing.ordered(plain, 9, {}) is None
    assert finishing.ordered(plain, 9, {1: "paired", 2: "sigma"}) == "paired"
    assert finishing.ordered(plain, 9, {2: "sigma"}) is None
    assert [finishing.ordered(with_order, epoch, {}) for epoch in (2, 3)] == [None, "sigma"]
    assert finishing.ordered(exempt, 9, {1: "paired"}) is None
