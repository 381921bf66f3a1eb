"""Packs on the devices of two processes: the leading one, run by tests/test_processes.py.

    processes_program.py FOLDER MEETING LISTENER

Results lie below FOLDER as a worker's do. It then trains until it is ended, and prints a line for
each epoch.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import jax
from msgspec import structs
from train_tools import Listener, settings, task

from ensq import config as configuration
from ensq import data
from ensq.train import channel, environment, gathering
from ensq.worker import protocol
from ensq.worker.protocol import MemberTask

STAGE = "training.stages=[{optimizer: adam, epochs: 3}]"
# Frames that are fed, from a thread of each process; tests/test_slurm_cluster_processes.py has
# them lie on the devices.
SETTINGS = ("training.precision=float64", "data.placement=host", STAGE)
SPOILT = 3  # the seed of a member whose losses are never finite


def prepared(folder: Path, company: channel.Company | None, *overrides: str) -> Any:
    """A program, and the same of the followers."""
    from ensq.train.child import Workshop
    from ensq.train.dataset import prepare

    config, path = settings(*overrides), folder / "tiny.npz"
    environment.set_precision(config.training.precision)
    digest = data.digest(path)
    dataset = prepare(path, digest, config, lambda text: None)
    run = folder / "run"
    command = protocol.Prepare(
        config=configuration.dumps(config),
        run_folder=str(run),
        data_path=str(path),
        data_digest=digest,
    )
    return Workshop(Listener(), company)._program(config, dataset, command)  # type: ignore[arg-type]


def train(program: Any, *tasks: MemberTask, stop_after: int | None = None) -> Listener:
    from ensq.train.trainer import Trainer

    told = Listener(stop_after)
    trainer = Trainer(program, program.config, "d" * 64)
    # One that has ended leaves the pack at once, whatever was measured.
    trainer.costs.smaller_pays = lambda *sizes, **more: True  # type: ignore[method-assign]
    trainer.train(tasks, told)
    return told


def stopped_and_resumed(program: Any, folder: Path) -> None:
    first = train(program, task(folder, 1), task(folder, 2), stop_after=3)
    (stop,) = first.of(protocol.Stopped)
    resume = {seed: [stop.checkpoints[str(seed)]] for seed in (1, 2)}
    train(program, *(task(folder, seed, attempt=2, resume=resume[seed]) for seed in (1, 2)))


def ended_early(program: Any, folder: Path) -> None:
    """The second member is to end after the first epoch; the first goes on alone."""
    order = protocol.Order(rule="sigma", epoch=1)
    told = train(program, task(folder, 1), structs.replace(task(folder, 2), order=order))
    assert sorted(one.job_id for one in told.of(protocol.MemberDone)) == [1, 2]


def spoil(program: Any) -> None:
    """Have one seed begin where no loss is finite."""
    fresh = program.new_member

    def new_member(seed: int) -> Any:
        member = fresh(seed)
        if seed != SPOILT:
            return member
        return member._replace(params=jax.tree.map(lambda leaf: leaf * 1e300, member.params))

    program.new_member = new_member


class Endless(Listener):
    """Prints a line for each epoch."""

    def send(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.EpochDone):
            print("epoch", flush=True)


def go_on(program: Any, folder: Path) -> None:
    from ensq.train.trainer import Trainer

    longer = ("training.stages.0.epochs=99999", "training.checkpoint_freq=999")
    config = settings(*SETTINGS, *longer)
    Trainer(program, config, "d" * 64).train([task(folder, 1), task(folder, 2)], Endless())


def packs(folder: Path, company: channel.Company | None) -> Any:
    """Train two members, two of which one ends early, and one beside one that diverges at once;
    the program."""
    program = prepared(folder, company, *SETTINGS)
    train(program, task(folder / "calm", 1), task(folder / "calm", 2))
    if company is not None:
        stopped_and_resumed(program, folder / "stopped")
    ended_early(program, folder / "early")
    spoil(program)
    sick = train(program, task(folder / "spoilt", 1), task(folder / "spoilt", SPOILT))
    assert [one.kind for one in sick.of(protocol.MemberFailed)] == ["diverged"]
    assert any("goes on with 1" in one.text for one in sick.of(protocol.Phase))
    return program


def main(folder: Path, meeting: Path, listener: int) -> None:
    company = gathering.lead(meeting, listener)
    assert len(jax.devices()) == 2 * len(jax.local_devices()) == 4
    program = packs(folder, company)
    print("trained", flush=True)
    go_on(program, folder / "endless")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        time.sleep(channel.CAUSE)  # as a trainer does: where another process is gone, that ends it
        os._exit(1)  # JAX would wait for the others
