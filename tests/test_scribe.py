"""Checkpoints written while the training goes on: order, safety, errors."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train_tools import Listener, settings, task

from ensq.train import checkpoint
from ensq.train import trainer as trainer_module
from ensq.train.child import Line
from ensq.train.scribe import Scribe
from ensq.train.trainer import Trainer
from ensq.worker import protocol

DATA = "d" * 64


class Watching(Listener):
    """Calls a function with each message before it is kept."""

    def __init__(self, seen: Callable[[protocol.Message], None]) -> None:
        super().__init__()
        self.seen = seen

    def send(self, message: protocol.Message) -> None:
        self.seen(message)
        super().send(message)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def test_the_next_epoch_runs_while_a_checkpoint_is_written_and_changes_nothing_in_it(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(program, settings(), DATA)
    trainer.train([task(tmp_path / "usual", 1)], Listener())
    went_on = threading.Event()  # the second epoch has made its last step

    def seen(message: protocol.Message) -> None:
        if isinstance(message, protocol.StepDone) and (message.epoch, message.step) == (2, 4):
            went_on.set()

    write = checkpoint.write_checkpoint

    def late(path: Path, *arguments: Any) -> str:
        if "epoch-000001" in path.name:
            assert went_on.wait(60), "the training waited for its checkpoint"
        return write(path, *arguments)

    monkeypatch.setattr(trainer_module.checkpoint, "write_checkpoint", late)
    listener = Watching(seen)
    trainer.train([task(tmp_path / "late", 1)], listener)
    assert listener.epochs(1)[0].checkpoint is not None
    usual, found = files(tmp_path / "usual"), files(tmp_path / "late")
    assert found.keys() == usual.keys()
    for name in usual:
        if "epoch-000001" in name:
            told = checkpoint.read_position(found[name])
            assert told == checkpoint.read_position(usual[name]) == (1, 0)
            assert same_state(program, found[name], usual[name])


def same_state(program: Any, one: bytes, other: bytes) -> bool:
    import jax

    identity = Trainer(program, settings(), DATA).identity
    states = [
        jax.tree.leaves(checkpoint.restore(data, program.template(1, 0), identity).state)
        for data in (one, other)
    ]
    return all(a.tobytes() == b.tobytes() for a, b in zip(*states, strict=True))


def test_an_epoch_is_told_only_when_its_checkpoint_is_on_disk(program: Any, tmp_path: Path) -> None:
    missing = []

    def seen(message: protocol.Message) -> None:
        if isinstance(message, protocol.EpochDone):
            for member in message.members:
                assert member.checkpoint is not None
                missing.extend([p for p in [member.checkpoint.path] if not Path(p).exists()])

    listener = Watching(seen)
    Trainer(program, settings(), DATA).train([task(tmp_path, 1)], listener)
    assert len(listener.of(protocol.EpochDone)) == 3
    assert missing == []


def test_a_checkpoint_that_cannot_be_written_ends_the_training_and_nothing_is_told_of_it(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trainer_module.checkpoint, "write_checkpoint", full)
    listener = Listener()
    with pytest.raises(OSError, match="No space left") as raised:
        Trainer(program, settings(), DATA).train([task(tmp_path, 1)], listener)
    assert raised.value.errno == errno.ENOSPC
    assert listener.of(protocol.EpochDone) == []
    assert listener.of(protocol.MemberDone) == []


def test_a_stop_answers_when_all_is_written(program: Any, tmp_path: Path) -> None:
    listener = Listener(stop_after=1)
    Trainer(program, settings(), DATA).train([task(tmp_path, 1)], listener)
    (stopped,) = listener.of(protocol.Stopped)
    (written,) = stopped.checkpoints.values()
    assert checkpoint.read_verified(Path(written.path), written.digest)
    assert isinstance(listener.messages[-1], protocol.Stopped)


def test_what_follows_a_failure_is_left_undone() -> None:
    done: list[str] = []

    def fails() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"), Scribe(Listener()) as scribe:
        scribe.do(lambda: done.append("before"))
        scribe.do(fails)
        scribe._work.put(lambda: done.append("after"))
        scribe.settle()
    assert done == ["before"]


def test_the_error_of_the_training_itself_is_the_one_that_is_raised() -> None:
    def fails() -> None:
        raise ValueError("of the scribe")

    with pytest.raises(KeyError, match="training"), Scribe(Listener()) as scribe:
        scribe.do(fails)
        raise KeyError("training")


def test_messages_of_two_threads_stay_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer ones than a pipe takes at once."""
    read, write = os.pipe()
    monkeypatch.setattr(Line, "_listen", lambda self: None)
    line = Line(write)
    texts = [letter * 200_000 for letter in "ab"]
    threads = [
        threading.Thread(target=lambda t=text: [line.send(protocol.Phase(text=t)) for _ in "123"])
        for text in texts
    ]
    for thread in threads:
        thread.start()
    with os.fdopen(read, "rb") as source:
        events = [protocol.decode_event(source.readline()) for _ in range(6)]
    for thread in threads:
        thread.join()
    os.close(write)
    assert sorted(event.text for event in events if isinstance(event, protocol.Phase)) == sorted(
        3 * texts
    )
