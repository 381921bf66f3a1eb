"""Checkpoints: what they hold, what is refused, and that stop + resume equals no stop."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from train_tools import Listener, settings, task, train_command, write_tiny

from ensq.config import RunConfig
from ensq.errors import CheckpointError
from ensq.rundir import sha256, sha256_file
from ensq.train import checkpoint
from ensq.train.checkpoint import Identity, Record
from ensq.train.child import EXIT_ORPHANED
from ensq.train.trainer import Trainer
from ensq.worker import protocol

IDENTITY = Identity("c" * 64, "d" * 64)
STATE = {
    "params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.float64)},
    "steps": np.array(7, np.int32),
    "alive": np.array(True),
}


def record() -> Record:
    return Record(
        seed=5,
        best_epoch=2,
        best_loss=0.1,
        best_force=np.array([0.1, 1 / 3]),
        best_energy=np.array([np.nan, -1.0]),
        history=[
            (1.0, 0.2, 0.3, float("nan"), 1e-3, 4.0),
            (0.5, 0.1, 0.2, float("nan"), 1e-4, 3.0),
        ],
    )


def written(path: Path, identity: Identity = IDENTITY, state: Any = STATE) -> bytes:
    digest = checkpoint.write_checkpoint(path, state, record(), 2, 3, identity)
    return checkpoint.read_verified(path, digest)


# -- files -------------------------------------------------------------------------------------


def test_a_checkpoint_gives_everything_back_bit_for_bit(tmp_path: Path) -> None:
    data = written(tmp_path / "c.safetensors")
    assert checkpoint.read_position(data) == (2, 3)
    found = checkpoint.restore(data, STATE, IDENTITY)
    assert (found.epoch, found.step) == (2, 3)
    mine, theirs = checkpoint.flatten(STATE), checkpoint.flatten(found.state)
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert (value.dtype, value.shape) == (theirs[key].dtype, theirs[key].shape)
        assert value.tobytes() == theirs[key].tobytes()
    for key, value in vars(record()).items():
        np.testing.assert_array_equal(vars(found.record)[key], value)


def test_a_member_without_an_epoch_keeps_its_infinite_best_loss(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.write_checkpoint(path, STATE, Record(seed=1), 0, 2, IDENTITY)
    found = checkpoint.restore(path.read_bytes(), STATE, IDENTITY).record
    assert (found.best_loss, found.best_epoch, found.history) == (float("inf"), 0, [])


def test_a_torn_file_and_every_kind_of_flipped_bit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    whole = written(path)
    digest = sha256(whole)
    damaged = [whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0"]
    for place in range(0, len(whole), 40):
        damaged.append(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.read_verified(path, digest)
    path.unlink()
    with pytest.raises(CheckpointError, match="can't be read: No such file"):
        checkpoint.read_verified(path, digest)


def test_a_checkpoint_of_another_configuration_or_data_is_refused(tmp_path: Path) -> None:
    data = written(tmp_path / "c.safetensors")
    for other, key in (
        (Identity("x" * 64, "d" * 64), "config_digest"),
        (Identity("c" * 64, "x" * 64), "data_digest"),
    ):
        with pytest.raises(CheckpointError, match=f"of another run: its {key}"):
            checkpoint.restore(data, STATE, other)


@pytest.mark.parametrize(
    "changed",
    [
        {"w": np.zeros((3, 2), np.float32), "b": np.zeros(0)},
        {"w": np.zeros((2, 3), np.float64), "b": np.zeros(0)},
        {"w": np.zeros((2, 3), np.float32)},
        {"v": np.zeros((2, 3), np.float32), "b": np.zeros(0)},
    ],
    ids=["shape", "dtype", "fewer arrays", "another name"],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, changed: Any) -> None:
    data = written(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="does not hold what it should"):
        checkpoint.restore(data, {**STATE, "params": changed}, IDENTITY)


def test_a_foreign_safetensors_file_is_refused() -> None:
    for data in (
        safetensors.numpy.save({"state": np.zeros(3)}),
        safetensors.numpy.save({"state": np.zeros(3)}, {"ensq": "[]"}),
        safetensors.numpy.save({"state": np.zeros(3)}, {"ensq": "not JSON"}),
        b"",
        b"\xff" * 64,
        b"PK\x03\x04 something else",
    ):
        with pytest.raises(CheckpointError, match="not a checkpoint of ensq"):
            checkpoint.restore(data, STATE, IDENTITY)
        with pytest.raises(CheckpointError, match="not a result of ensq"):
            checkpoint.read_result(data)


def test_another_format_and_a_checkpoint_in_a_results_place_are_refused(tmp_path: Path) -> None:
    data = written(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="a checkpoint of format 3, not a result of format 3"):
        checkpoint.read_result(data)
    newer = data.replace(rb"\"format\": 3", rb"\"format\": 4")
    assert newer != data
    with pytest.raises(CheckpointError, match="of format 4, not a checkpoint of format 3"):
        checkpoint.restore(newer, STATE, IDENTITY)


def test_a_pickle_in_a_checkpoints_place_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    data = pickle.dumps(Trap())
    with pytest.raises(CheckpointError):
        checkpoint.restore(data, STATE, IDENTITY)
    with pytest.raises(CheckpointError):
        checkpoint.read_result(data)
    assert not mark.exists()
    pickle.loads(data)  # a reader that unpickles would have run it
    assert mark.exists()


# -- the trainer's process ---------------------------------------------------------------------


class Child:
    """A trainer process and its two pipes."""

    def __init__(self, log: Path) -> None:
        read, write = os.pipe()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ensq.train.child", "--events-fd", str(write)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[write],
            )
        os.close(write)
        self.log = log
        self.events = os.fdopen(read, "rb")
        self.seen: list[Any] = []

    def send(self, message: protocol.Message) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(protocol.encode(message))
        self.process.stdin.flush()

    def until(self, wanted: Callable[[Any], bool]) -> list[Any]:
        """The events up to the first one that is wanted."""
        heard = []
        for line in self.events:
            heard.append(protocol.decode_event(line))
            if wanted(heard[-1]):
                self.seen += heard
                return heard
            assert not isinstance(heard[-1], protocol.TrainEnded), heard
        raise AssertionError(f"the child ended: {self.log.read_text()[-2000:]}")

    def train(self, command: protocol.Train) -> list[Any]:
        self.send(command)
        return self.until(lambda event: isinstance(event, protocol.TrainEnded))


@contextmanager
def child(folder: Path) -> Iterator[Child]:
    made = Child(folder / "child.log")
    try:
        made.until(lambda event: isinstance(event, protocol.Ready))
        yield made
    finally:
        assert made.process.stdin is not None
        made.process.stdin.close()
        made.process.wait(30)
        made.events.close()


def of(events: list[Any], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


class Uninterrupted:
    """Seeds 1 and 2 trained as one pack to the end in one process, and the files that left."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, write_tiny(folder / "tiny.npz")
        self.config: RunConfig = settings()
        with child(folder) as process:
            self.events = process.train(self.command(*(task(folder, seed) for seed in (1, 2))))
            self.changed = self._with_changed_data(process)
            process.send(protocol.Quit())
            self.exit_code = process.process.wait(30)
            self.log = process.log.read_text()
        self.results = {seed: self.result(seed, 1) for seed in (1, 2)}

    def command(self, *members: protocol.MemberTask) -> protocol.Train:
        return train_command(self.folder, self.data, self.config, *members)

    def _with_changed_data(self, process: Child) -> list[Any]:
        """The same order after the data file has changed, and the file put back."""
        whole = self.data.read_bytes()
        self.config = settings("data.seed=5")  # so that nothing prepared before is used again
        command = self.command(task(self.folder, 1, attempt=9))
        arrays = dict(np.load(self.data))
        arrays["F"][0, 0, 0] += 1
        np.savez(self.data, **arrays)
        events = process.train(command)
        self.data.write_bytes(whole)
        self.config = settings()
        return events

    def result(self, seed: int, attempt: int) -> checkpoint.MemberResult:
        path = self.folder / f"seed-{seed}" / f"attempt-{attempt}" / "result.safetensors"
        return checkpoint.read_result(path.read_bytes())

    def assert_equal(self, seed: int, attempt: int) -> None:
        """The attempt's result has the same bits, but for how long its epochs took."""
        found, expected = self.result(seed, attempt), self.results[seed]
        mine, theirs = checkpoint.flatten(found.params), checkpoint.flatten(expected.params)
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert mine[key].tobytes() == value.tobytes(), key
        assert found.history[:, :5].tobytes() == expected.history[:, :5].tobytes()
        assert (found.best_epoch, found.best_loss) == (expected.best_epoch, expected.best_loss)
        assert found.force_errors.tobytes() == expected.force_errors.tobytes()
        assert found.energy_errors.tobytes() == expected.energy_errors.tobytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    return Uninterrupted(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def fresh(run: Uninterrupted) -> Iterator[Child]:
    """A process that has not trained yet when the module's first resume comes."""
    with child(run.folder) as process:
        yield process


def test_the_child_reports_files_with_their_digests_and_keeps_three_checkpoints(
    run: Uninterrupted,
) -> None:
    assert len(of(run.events, protocol.EpochDone)) == 3
    for epoch in of(run.events, protocol.EpochDone):
        for member in epoch.members:
            assert sha256_file(Path(member.checkpoint.path)) == member.checkpoint.digest
    done = of(run.events, protocol.MemberDone)
    assert {member.job_id for member in done} == {1, 2}
    assert all(sha256_file(Path(member.path)) == member.digest for member in done)
    assert len(list((run.folder / "seed-1" / "attempt-1").glob("epoch-*"))) == 3


def test_quit_ends_the_child_cleanly(run: Uninterrupted) -> None:
    assert run.exit_code == 0
    assert "Fatal" not in run.log


def test_data_changed_since_enqueue_fail_the_member_as_a_mismatch(run: Uninterrupted) -> None:
    [failed] = of(run.changed, protocol.MemberFailed)
    assert (failed.job_id, failed.kind) == (1, "mismatch")
    assert "the data have changed since the ensemble was enqueued" in failed.message
    assert not (run.folder / "seed-1" / "attempt-9").exists()


def stopped_inside_an_epoch(run: Uninterrupted) -> tuple[Child, protocol.Stopped]:
    """A process that heard a stop while it was busy with its first step, and its answer."""
    with child(run.folder) as process:
        process.send(run.command(*(task(run.folder, seed, attempt=2) for seed in (1, 2))))
        # Said after it last looked for a stop; it looks again after its first step.
        process.until(lambda event: event == protocol.Phase(text="compiling"))
        process.send(protocol.Stop(reason="test"))
        process.until(lambda event: isinstance(event, protocol.TrainEnded))
    [stopped] = of(process.seen, protocol.Stopped)
    return process, stopped


def test_stopped_inside_an_epoch_and_resumed_elsewhere_equals_no_stop(
    run: Uninterrupted, fresh: Child
) -> None:
    process, stopped = stopped_inside_an_epoch(run)
    assert set(stopped.checkpoints) == {"1", "2"}
    place = {(w.epoch, w.step) for w in stopped.checkpoints.values()}
    assert len(place) == 1
    told = of(process.seen, protocol.EpochDone)
    [(epoch, step)] = place
    assert epoch == len(told) < 3
    assert step > 0, "the stop fell between two epochs"
    sources = stopped.checkpoints
    members = [task(run.folder, seed, 3, [sources[str(seed)]]) for seed in (1, 2)]
    events = fresh.train(run.command(*members))
    resumed = of(events, protocol.Resumed)
    assert [r.job_id for r in resumed] == [1, 2]
    assert [r.checkpoint for r in resumed] == [sources["1"], sources["2"]]
    assert [r.rejected for r in resumed] == [(), ()]
    epochs = [member.epoch for done in told for member in done.members]
    epochs += [m.epoch for done in of(events, protocol.EpochDone) for m in done.members]
    assert sorted(epochs) == [1, 1, 2, 2, 3, 3]
    run.assert_equal(1, 3)
    run.assert_equal(2, 3)
    swapped = run.results[1], run.results[2]
    run.results[2], run.results[1] = swapped
    with pytest.raises(AssertionError):  # the comparison does tell two seeds apart
        run.assert_equal(2, 3)
    run.results[1], run.results[2] = swapped


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_to_the_same_bits(
    run: Uninterrupted, fresh: Child
) -> None:
    def checkpoints(seed: int) -> list[protocol.Written]:
        epochs = of(run.events, protocol.EpochDone)
        return [m.checkpoint for done in epochs for m in done.members if m.job_id == seed]

    members = []
    for seed in (1, 2):
        first, second, _ = checkpoints(seed)
        copy = Path(second.path).with_name("damaged.safetensors")
        data = bytearray(Path(second.path).read_bytes())
        data[len(data) // 2] ^= 1
        copy.write_bytes(data)
        newest = protocol.Written(path=str(copy), digest=second.digest, epoch=2, step=0)
        members.append(task(run.folder, seed, 4, [newest, first]))
    events = fresh.train(run.command(*members))
    resumed = of(events, protocol.Resumed)
    assert [(one.checkpoint.epoch, one.checkpoint.step) for one in resumed] == [(1, 0), (1, 0)]
    assert all("damaged" in one.rejected[0] for one in resumed)
    for one in resumed:
        [first] = one.history
        told = of(run.events, protocol.EpochDone)[0].members[one.job_id - 1]
        assert first == protocol.EpochLosses(
            **{name: getattr(told, name) for name in protocol.EpochLosses.__struct_fields__}
        )
    run.assert_equal(1, 4)
    run.assert_equal(2, 4)


def test_with_no_checkpoint_that_verifies_a_member_starts_anew_and_says_so(
    run: Uninterrupted, fresh: Child
) -> None:
    path = run.folder / "torn.safetensors"
    path.write_bytes(b"torn")
    torn = protocol.Written(path=str(path), digest="0" * 64, epoch=2, step=0)
    events = fresh.train(run.command(*(task(run.folder, seed, 5, [torn]) for seed in (1, 2))))
    resumed = of(events, protocol.Resumed)
    assert [(r.checkpoint, r.history, len(r.rejected)) for r in resumed] == 2 * [(None, (), 1)]
    run.assert_equal(1, 5)
    run.assert_equal(2, 5)


def test_the_end_of_the_input_ends_the_child_at_once_in_the_middle_of_its_work(
    run: Uninterrupted, fresh: Child
) -> None:
    long = settings("training.stages=[{optimizer: adam, epochs: 1000000}]")
    fresh.send(train_command(run.folder, run.data, long, task(run.folder, 1, 6)))
    fresh.until(lambda event: isinstance(event, protocol.StepDone))
    assert fresh.process.stdin is not None
    fresh.process.stdin.close()
    started = time.monotonic()
    fresh.events.read()  # a full pipe would hold it up
    assert fresh.process.wait(10) == EXIT_ORPHANED
    assert time.monotonic() - started < 5
    assert not list((run.folder / "seed-1").glob("attempt-6/result*"))


def test_every_second_epoch_and_the_last_have_a_checkpoint_with_checkpoint_freq_2(
    program: Any, tmp_path: Path
) -> None:
    listener = Listener()
    made = settings("training.checkpoint_freq=2")
    Trainer(program, made, "d").train([task(tmp_path, 1), task(tmp_path, 2)], listener)
    places = [w and (w.epoch, w.step) for w in (e.checkpoint for e in listener.epochs(1))]
    assert places == [None, (2, 0), (3, 0)]
