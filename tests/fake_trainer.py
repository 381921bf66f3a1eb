"""A trainer without JAX: it speaks the protocol, trains nothing, and misbehaves when told to.

The environment variable FAKE_TRAINER holds JSON: {"epoch_seconds": 0.002, "rules": [RULE, …]}.
A rule is {"do": WHAT, …} with the conditions "seed", "epoch" (it is about to be done) and
"attempt", each optional. WHAT: segv, kill, exit, rubbish, hang (answers nothing, but ends at end
of input), exception, diverge, mismatch, data, forget (TrainEnded without a result), hide_epoch
(says nothing of the epoch), slow (the epoch takes "slow_seconds", listening), slow_result (that
long before the result), deaf_start (never ready), no_start (ends before Ready).
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ensq.rundir import RESULT_NAME, checkpoint_name, sha256_file, write_atomic
from ensq.worker import protocol as say

SETTINGS: dict[str, Any] = json.loads(os.environ.get("FAKE_TRAINER", "{}"))
SLOW = SETTINGS.get("slow_seconds", 10.0)


def loss_of(seed: int, epoch: int) -> float:
    """The "validation loss" of a seed after an epoch: any worker must come to the same."""
    return 10.0 / epoch + 0.01 * seed


class Fake:
    def __init__(self, events_fd: int) -> None:
        self.events_fd = events_fd
        self.buffer = b""
        self.commands: list[say.Command] = []

    def tell(self, event: say.Message) -> None:
        data = say.encode(event)
        while data:
            data = data[os.write(self.events_fd, data) :]

    def listen(self, seconds: float) -> None:
        """Collect commands for ``seconds``, or until one comes; end at end of input."""
        until = time.monotonic() + seconds
        while not self.commands:
            ready, _, _ = select.select([0], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return
            data = os.read(0, 65536)
            if not data:
                os._exit(0)
            *lines, self.buffer = (self.buffer + data).split(b"\n")
            self.commands += [say.decode_command(line) for line in lines]

    def main(self) -> None:
        if rule("no_start", None, 0):
            print("ModuleNotFoundError: No module named 'jax'", flush=True)
            sys.exit(1)
        if rule("deaf_start", None, 0):
            while True:
                self.listen(10.0)
                self.commands.clear()
        self.tell(say.Ready(pid=os.getpid(), device="fake", versions={"fake": "1"}))
        while True:
            self.listen(3600.0)
            command = self.commands.pop(0)
            if isinstance(command, say.Quit):
                return
            if isinstance(command, say.Train):
                Training(self, command).run()
            elif isinstance(command, say.Stop):
                self.tell(say.Stopped(checkpoints={}))


def rule(do: str, member: say.MemberTask | None, epoch: int) -> dict[str, Any] | None:
    """The rule that says ``do`` here, or None."""
    facts = {"epoch": epoch}
    if member is not None:
        facts |= {"seed": member.seed, "attempt": member.attempt}
    for candidate in SETTINGS.get("rules", []):
        conditions = {key: candidate[key] for key in candidate if key != "do"}
        if candidate["do"] == do and all(facts.get(k) == v for k, v in conditions.items()):
            return dict(candidate)
    return None


class Training:
    def __init__(self, fake: Fake, command: say.Train) -> None:
        self.fake = fake
        self.epochs = json.loads(command.config)["epochs"]
        self.alive = {member.job_id: member for member in command.members}
        self.run_folder = Path(command.run_folder)

    def run(self) -> None:
        places = {job_id: self.resume(member) for job_id, member in self.alive.items()}
        everyone = self.alive
        for place in sorted(set(places.values()), reverse=True):
            self.alive = {j: member for j, member in everyone.items() if places[j] == place}
            if not self.train(place):
                return
        self.fake.tell(say.TrainEnded())

    def train(self, epoch: int) -> bool:
        """Train the members that stand at one epoch; False if told to stop."""
        while self.alive and epoch < self.epochs:
            epoch += 1
            self.misbehave(epoch)
            slow = any(rule("slow", member, epoch) for member in self.alive.values())
            if self.obey(SLOW if slow else SETTINGS.get("epoch_seconds", 0.002)):
                self.stop(epoch)
                return False
            if self.alive:
                self.tell_epoch(epoch)
        for member in list(self.alive.values()):
            if rule("slow_result", member, epoch) and self.obey(SLOW):
                self.stop(epoch + 1)
                return False
            if member.job_id in self.alive and not rule("forget", member, epoch):
                self.tell_result(member)
        return True

    def resume(self, member: say.MemberTask) -> int:
        """Where the member goes on; like the real trainer it tells of each that had a past."""
        rejected: list[str] = []
        for source in member.resume:
            path = Path(source.path)
            if path.is_file() and sha256_file(path) == source.digest:
                state = json.loads(path.read_text())
                assert state["seed"] == member.seed
                epoch = int(state["epoch"])
                self.fake.tell(say.Resumed(epoch=epoch, step=0, rejected=tuple(rejected)))
                return epoch
            rejected.append(path.name)
        if rejected:
            self.fake.tell(say.Resumed(epoch=0, step=0, rejected=tuple(rejected)))
        return 0

    def misbehave(self, epoch: int) -> None:
        for member in list(self.alive.values()):
            if rule("segv", member, epoch):
                print("about to \x1b[31mfail\x1b[0m", flush=True)
                # The supervisor holds some signals back for its child, but not this one.
                os.kill(os.getpid(), signal.SIGSEGV)
            if rule("kill", member, epoch):
                os.kill(os.getpid(), signal.SIGKILL)
            if rule("exit", member, epoch):
                print("Traceback: out of cheese", flush=True)
                os._exit(3)
            if rule("rubbish", member, epoch):
                os.write(self.fake.events_fd, b'{"type": "Nonsense"}\n')
            if rule("hang", member, epoch):
                while True:
                    self.fake.listen(10.0)
                    self.fake.commands.clear()
            for do, kind in (
                ("exception", "exception"),
                ("diverge", "diverged"),
                ("mismatch", "mismatch"),
                ("data", "data"),
            ):
                if rule(do, member, epoch):
                    del self.alive[member.job_id]
                    message = f"told to fail\nin epoch {epoch}"
                    self.fake.tell(
                        say.MemberFailed(job_id=member.job_id, kind=kind, message=message)  # type: ignore[arg-type]
                    )

    def obey(self, seconds: float) -> bool:
        """Wait for the epoch's time; True if told to stop."""
        until = time.monotonic() + seconds
        while True:
            self.fake.listen(max(0.0, until - time.monotonic()))
            if not self.fake.commands:
                return False
            command = self.fake.commands.pop(0)
            if isinstance(command, say.Stop):
                return True
            if isinstance(command, say.Drop):
                for job_id in command.job_ids:
                    self.alive.pop(job_id, None)
                if not self.alive:
                    return False
            if isinstance(command, say.Quit):
                os._exit(0)

    def save(self, member: say.MemberTask, epoch: int) -> say.Written:
        path = Path(member.folder) / checkpoint_name(epoch, 0)
        digest = write_atomic(path, json.dumps({"seed": member.seed, "epoch": epoch}).encode())
        return say.Written(path=str(path), digest=digest, epoch=epoch, step=0)

    def tell_epoch(self, epoch: int) -> None:
        self.fake.tell(say.StepDone(epoch=epoch, step=1, steps=1))
        records = []
        for member in self.alive.values():
            if rule("hide_epoch", member, epoch):
                continue
            often = SETTINGS.get("checkpoint_freq", 1)
            keep = epoch % often == 0 or epoch == self.epochs
            records.append(
                say.MemberEpoch(
                    job_id=member.job_id,
                    epoch=epoch,
                    train_loss=2 * loss_of(member.seed, epoch),
                    val_loss=loss_of(member.seed, epoch),
                    val_rmse_force=None,
                    val_rmse_energy=None,
                    learning_rate=0.001,
                    seconds=0.5,
                    best_epoch=epoch,
                    best_loss=loss_of(member.seed, epoch),
                    checkpoint=self.save(member, epoch) if keep else None,
                )
            )
        self.fake.tell(say.EpochDone(members=tuple(records)))

    def tell_result(self, member: say.MemberTask) -> None:
        path = Path(member.folder) / RESULT_NAME
        digest = write_atomic(path, f"result of seed {member.seed}".encode())
        final = loss_of(member.seed, self.epochs)
        self.fake.tell(
            say.MemberDone(
                job_id=member.job_id,
                best_epoch=self.epochs,
                best_loss=final,
                final_loss=final,
                path=str(path),
                digest=digest,
            )
        )

    def stop(self, epoch: int) -> None:
        done = epoch - 1
        written = {str(m.job_id): self.save(m, done) for m in self.alive.values()} if done else {}
        self.fake.tell(say.Stopped(checkpoints=written))
        self.fake.tell(say.TrainEnded())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events-fd", type=int, required=True)
    Fake(parser.parse_args().events_fd).main()
