"""Files that were never recorded: the next attempt verifies them and goes on from them."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from train_tools import DATA, Undisturbed, settings, task

from ensq import config as configuration
from ensq import seal
from ensq.errors import CheckpointError, DiskError
from ensq.rundir import sha256, sha256_file
from ensq.train import checkpoint, resuming, sealed
from ensq.train.checkpoint import Identity
from ensq.worker import protocol


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, program: Any) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("run"), program)


def flipped(path: Path, where: Path) -> Path:
    """A copy with one bit of its last array changed."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_bytes(data)
    return where


def rewritten(path: Path, where: Path, **changes: Any) -> Path:
    """A sealed copy with other metadata."""
    tensors = safetensors.numpy.load(path.read_bytes())
    kind = "result" if path.name.startswith("result") else "checkpoint"
    meta = {**sealed.metadata(path.read_bytes(), kind), **changes}
    del meta[seal.KEY]
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_bytes(sealed.to_bytes(tensors, meta))
    return where


# -- checkpoints -------------------------------------------------------------------------------


def test_a_checkpoint_that_was_never_recorded_leads_to_the_same_bits(run: Undisturbed) -> None:
    path = run.checkpoint(2)
    told = run.train(task(run.folder, 1, 2, [path]))
    [resumed] = told.of(protocol.Resumed)
    assert resumed.checkpoint == protocol.Written(
        path=str(path), digest=sha256_file(path), epoch=2, step=0
    )
    assert [m.epoch for m in told.epochs(1)] == [3]
    before = run.told.epochs(1)[:2]
    assert [(h.epoch, h.val_loss, h.seconds) for h in resumed.history] == [
        (m.epoch, m.val_loss, m.seconds) for m in before
    ]
    run.assert_equal(2)


def test_a_new_member_is_told_of_as_well_and_once(run: Undisturbed) -> None:
    assert run.told.of(protocol.Resumed) == [protocol.Resumed(job_id=1, checkpoint=None)]


def test_a_damaged_one_is_passed_over_for_the_next(run: Undisturbed, tmp_path: Path) -> None:
    bad = flipped(run.checkpoint(2), tmp_path / "bad.safetensors")
    told = run.train(task(run.folder, 1, 3, [bad, tmp_path / "gone", run.checkpoint(1)]))
    [resumed] = told.of(protocol.Resumed)
    assert resumed.checkpoint.path == str(run.checkpoint(1))
    assert [text.partition(": ")[2][:17] for text in resumed.rejected] == [
        "damaged (it has n", "can't be read: No",
    ]  # fmt: skip
    run.assert_equal(3)


def test_without_the_seal_the_flipped_bit_would_go_unnoticed(
    run: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = flipped(run.checkpoint(2), tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read_verified(bad, None)
    monkeypatch.setattr(seal, "is_whole", lambda data: True)
    told = run.train(task(run.folder, 1, 4, [bad]))
    [resumed] = told.of(protocol.Resumed)
    assert (resumed.checkpoint.path, resumed.rejected) == (str(bad), ())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"seed": 2}, "of seed 2, not of seed 1"),
        ({"config_digest": "x"}, "another run: its config_digest is x"),
        ({"data_digest": "x"}, "another run: its data_digest is x"),
        ({"step": 10**6}, "no place of a training of 3"),
        ({"epoch": 4}, "no place of a training of 3"),
        ({"epoch": 3, "step": 1}, "no place of a training of 3"),
        ({"epoch": -1}, "epoch is int, not an integer from 0"),
        ({"epoch": 1, "best_epoch": 1}, "history is float64"),
    ],
)
def test_a_whole_file_of_something_else_is_rejected_and_said_why(
    run: Undisturbed, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    path = rewritten(run.checkpoint(2), tmp_path / "other.safetensors", **changes)
    identity = Identity(configuration.digest(settings()), DATA)
    restored, told = resuming.newest(task(run.folder, 1, 5, [path]), run.program, 3, identity)
    assert restored is None
    [text] = told.rejected
    assert text.startswith(str(path))
    assert why in text


def test_a_file_of_the_format_before_is_read_by_its_recorded_digest_only(
    run: Undisturbed, tmp_path: Path
) -> None:
    tensors = safetensors.numpy.load(run.checkpoint(2).read_bytes())
    meta = {**sealed.metadata(run.checkpoint(2).read_bytes(), "checkpoint"), "format": 2}
    del meta[seal.KEY]
    data = safetensors.numpy.save(tensors, {"ensq": json.dumps(meta)})
    path = tmp_path / "old.safetensors"
    path.write_bytes(data)
    recorded = protocol.Written(path=str(path), digest=sha256(data), epoch=2, step=0)
    told = run.train(task(run.folder, 1, 6, [path, recorded]))
    [resumed] = told.of(protocol.Resumed)
    assert resumed.checkpoint == recorded
    assert "it has no seal" in resumed.rejected[0]
    run.assert_equal(6)


def test_a_file_server_that_is_away_is_no_reason_to_give_a_checkpoint_up(
    run: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(path: Path) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(checkpoint, "_read", away)
    with pytest.raises(DiskError, match="can't be read: Stale file handle; repair or mount"):
        run.train(task(run.folder, 1, 7, [run.checkpoint(2)]))


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_files_that_cannot_be_read_now_are_no_reason_to_begin_again(
    code: int, run: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that can is still used, as one sector may be bad; a file that is gone is gone."""
    bad, read = run.checkpoint(2), checkpoint._read

    def failing(path: Path) -> bytes:
        if path == bad:
            raise OSError(code, os.strerror(code))
        return read(path)

    monkeypatch.setattr(checkpoint, "_read", failing)
    told = run.train(task(run.folder, 1, 2, [bad, run.checkpoint(1)]))
    [resumed] = told.of(protocol.Resumed)
    assert resumed.checkpoint is not None and resumed.checkpoint.epoch == 1
    with pytest.raises(DiskError, match="no older checkpoint can be used either"):
        run.train(task(run.folder, 1, 3, [bad, tmp_path / "gone.safetensors"]))


def test_losses_that_are_not_trained_on_are_nothing_in_the_history() -> None:
    [first] = resuming.losses([(1.0, 2.0, math.nan, 0.5, 1e-3, 4.0)])
    assert (first.epoch, first.val_rmse_force, first.val_rmse_energy) == (1, None, 0.5)
    message = protocol.Resumed(job_id=1, checkpoint=None, history=(first,))
    assert protocol.decode_event(protocol.encode(message)) == message


# -- results -----------------------------------------------------------------------------------


def test_a_result_that_was_never_recorded_is_adopted_and_the_others_are_trained(
    run: Undisturbed,
) -> None:
    path = run.path(1)
    told = run.train(task(run.folder, 1, 8, results=[path]), task(run.folder, 2, 8))
    adopted, trained = told.of(protocol.MemberDone)
    assert (adopted.job_id, adopted.path, adopted.digest) == (1, str(path), sha256_file(path))
    [done] = run.told.of(protocol.MemberDone)
    for name in ("best_epoch", "best_loss", "final_loss", "path", "digest"):
        assert getattr(adopted, name) == getattr(done, name)
    assert [(row.epoch, row.val_loss, row.train_loss) for row in adopted.adopted] == [
        (m.epoch, m.val_loss, m.train_loss) for m in run.told.epochs(1)
    ]
    assert (trained.job_id, trained.adopted) == (2, ())
    assert [r.job_id for r in told.of(protocol.Resumed)] == [2]
    assert not run.path(8).exists()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda run, path: flipped(run.path(1), path), "damaged"),
        (lambda run, path: rewritten(run.path(1), path, seed=2), "another run or seed"),
        (lambda run, path: rewritten(run.path(1), path, data_digest="x"), "another run or seed"),
        (lambda run, path: rewritten(run.path(1), path, best_epoch=4), "not of 3 epochs"),
        (lambda run, path: rewritten(run.path(1), path, final_loss="0x1p1"), "not those of its"),
        (lambda run, path: run.checkpoint(2), "not a result"),
        (lambda run, path: path, "No such file"),
    ],
    ids=["flipped bit", "seed", "data", "epoch", "losses", "checkpoint", "missing"],
)
def test_what_is_not_the_members_whole_result_is_not_adopted(
    run: Undisturbed, tmp_path: Path, make: Callable[..., Path], why: str
) -> None:
    path = make(run, tmp_path / "result.safetensors")
    said: list[str] = []
    identity = Identity(configuration.digest(settings()), DATA)
    wanted = task(run.folder, 1, 9, results=[path])
    assert resuming.adopted(wanted, 3, identity, said.append) is None
    [text] = said
    assert why in text
    assert resuming.adopted(task(run.folder, 1, 9, results=[path, run.path(1)]), 3, identity, print)


def test_a_result_of_too_few_epochs_is_not_adopted(run: Undisturbed, tmp_path: Path) -> None:
    path = tmp_path / "result.safetensors"
    checkpoint.write_result(path, dataclasses.replace(run.result, history=run.result.history[:2]))
    identity = Identity(configuration.digest(settings()), DATA)
    said: list[str] = []
    wanted = task(run.folder, 1, 9, results=[path])
    assert resuming.adopted(wanted, 3, identity, said.append) is None
    assert "its history is not of 3 epochs" in said[0]


def test_the_same_member_gives_the_same_bytes(run: Undisturbed) -> None:
    assert checkpoint.result_bytes(run.result) == run.path(1).read_bytes()
    assert seal.is_whole(run.path(1).read_bytes())


def test_a_text_of_a_users_that_looks_like_a_seal_does_no_harm(run: Undisturbed) -> None:
    names = (seal.PLACEHOLDER, *run.result.species_names[1:])
    data = checkpoint.result_bytes(dataclasses.replace(run.result, species_names=names))
    assert seal.is_whole(data)
    assert checkpoint.read_result(data).species_names == names
