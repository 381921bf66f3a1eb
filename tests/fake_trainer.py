"""A trainer without JAX: it speaks the protocol, trains nothing, and misbehaves when told to.

The environment variable FAKE_TRAINER holds JSON: {"epoch_seconds": 0.002, "rules": [RULE, …]}.
A rule is {"do": WHAT, …} with the conditions "seed", "epoch" (it is about to be done) and
"attempt", each optional. WHAT: segv, kill, exit, rubbish, hang (answers nothing, but ends at end
of input), silent (never reads its input again and ignores SIGTERM, for "silent_seconds" at most),
exception, diverge, mismatch, data, memory, disk, forget (TrainEnded without a result), hide_epoch
(says nothing of the epoch), slow (the epoch takes "slow_seconds", listening), slow_result (that
long before the result), deaf_start (never ready), no_start (ends before Ready).

"compile_seconds": so long it hears nothing before its first step.
"platform" is what it says that it computes on ("cpu"). Its probes find that "best" (4) members
train together at best; see ``Fake.probe`` for what they do on the way.
With "keeps_its_log" it does not turn to the log of each claim.

Losses come in 16 blocks, of which seeds that are worse are so in each. Members end early as orders,
``Finish`` and the rule plateau say.

Its checkpoints and results are sealed JSON files with the losses so far, under the names of the
real ones. It passes the fault points of the real trainer (see ``ensq.faults``), each once for the
whole pack.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ensq import faults, seal
from ensq.early import plateau
from ensq.errors import DiskError
from ensq.rundir import RESULT_NAME, checkpoint_name, disk_error, sha256, write_atomic
from ensq.worker import protocol as say

SETTINGS: dict[str, Any] = json.loads(os.environ.get("FAKE_TRAINER", "{}"))
SLOW = SETTINGS.get("slow_seconds", 10.0)
SILENT = SETTINGS.get("silent_seconds", 60.0)
KINDS = {
    "exception": "exception",
    "diverge": "diverged",
    "mismatch": "mismatch",
    "data": "data",
    "memory": "memory",
    "disk": "disk",
}


def loss_of(seed: int, epoch: int) -> float:
    """The "validation loss" of a seed after an epoch: any worker must come to the same."""
    return 10.0 / epoch + 0.01 * seed


def losses_of(seed: int, epoch: int) -> say.EpochLosses:
    """A row of the history."""
    return say.EpochLosses(
        epoch=epoch,
        train_loss=2 * loss_of(seed, epoch),
        val_loss=loss_of(seed, epoch),
        val_rmse_force=None,
        val_rmse_energy=None,
        learning_rate=0.001,
        seconds=0.5,
    )


def blocks_of(seed: int, epoch: int) -> tuple[float, ...]:
    """The same loss by blocks, with noise of one in a thousand."""
    loss = loss_of(seed, epoch)
    noise = [((7 * k + 3 * seed + epoch) % 16 - 7.5) / 7500 for k in range(16)]
    return tuple(loss * (1.0 + 0.3 * (-1) ** k + noise[k]) for k in range(16))


class Fake:
    def __init__(self, events_fd: int) -> None:
        self.events_fd = events_fd
        self.buffer = b""
        self.commands: list[say.Command] = []
        self.compiled = False
        self.told_to_stop = False  # once and for all, as the real trainer takes it

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

    def compile(self) -> None:
        """Take "compile_seconds" before the first step of this process, deaf, as XLA is."""
        if not self.compiled and SETTINGS.get("compile_seconds"):
            self.tell(say.Phase(text="compiling"))
            be_deaf(SETTINGS["compile_seconds"])
        self.compiled = True

    def probe(self, command: say.Probe) -> None:
        """Measure for "probe_seconds", or die of it with "probe_kills"."""
        self.tell(say.Phase(text="measuring"))
        if SETTINGS.get("probe_kills"):
            os.kill(os.getpid(), signal.SIGKILL)
        be_deaf(SETTINGS.get("probe_seconds", 0.0))
        sizes = [2**n for n in range(8) if 2**n <= min(command.most, SETTINGS.get("best", 4))]
        rows = tuple(say.Measured(members=n, seconds=0.1 / n, bytes=None) for n in sizes)
        self.tell(say.Probed(size=sizes[-1], rows=rows, error=SETTINGS.get("probe_error")))

    def main(self) -> None:
        faulthandler.enable(all_threads=True)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        faults.point("trainer.imported")
        if rule("no_start", None, 0):
            print("ModuleNotFoundError: No module named 'jax'", flush=True)
            sys.exit(1)
        if rule("deaf_start", None, 0):
            while True:
                self.listen(10.0)
                self.commands.clear()
        device = {"device": "fake", "platform": SETTINGS.get("platform", "cpu"), "memory": None}
        self.tell(say.Ready(pid=os.getpid(), versions={"fake": "1"}, **device))
        faults.point("trainer.ready")
        while True:
            self.listen(3600.0)
            command = self.commands.pop(0)
            if isinstance(command, say.Quit):
                return
            if isinstance(command, say.Train):
                turn_to_log(command.log)
                Training(self, command).run()
            elif isinstance(command, say.Prepare):
                turn_to_log(command.log)
                self.tell(say.Prepared(shape=SETTINGS.get("shape", "40 x 6 x 5")))
            elif isinstance(command, say.Probe):
                self.probe(command)
            elif isinstance(command, say.Stop):
                self.tell(say.Stopped(checkpoints={}))


def be_deaf(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and os.getppid() != 1:
        time.sleep(0.02)


def turn_to_log(path: str) -> None:
    """As the real trainer does: see ``ensq.train.child``."""
    if SETTINGS.get("keeps_its_log"):
        return
    with suppress(OSError):
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)


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
        self.run_of = [sha256(command.config.encode()), command.data_digest]
        self.alive = {member.job_id: member for member in command.members}
        self.history: dict[int, list[say.EpochLosses]] = {}
        self.plateau = command.plateau
        self.finishing: dict[int, str] = {}
        self.evidence: dict[int, str] = {}  # of members on a plateau

    def run(self) -> None:
        """Train the pack; an error fails what is left of it."""
        try:
            if self.train_all():
                self.fake.tell(say.TrainEnded())
        except (OSError, DiskError) as error:
            disk = isinstance(error, DiskError) or disk_error(error, Path()) is not None
            for job_id in self.history:
                kind: Any = "disk" if disk else "exception"
                self.fake.tell(say.MemberFailed(job_id=job_id, kind=kind, message=str(error)))
            self.fake.tell(say.TrainEnded())

    def train_all(self) -> bool:
        self.history = {job_id: [] for job_id in self.alive}
        everyone = {j: member for j, member in self.alive.items() if not self.adopt(member)}
        places = {job_id: self.resume(member) for job_id, member in everyone.items()}
        self.fake.compile()
        faults.point("trainer.compiled")
        for place in sorted(set(places.values()), reverse=True):
            self.alive = {j: member for j, member in everyone.items() if places[j] == place}
            if not self.train(place):
                return False
        return True

    def train(self, epoch: int) -> bool:
        """Train the members that stand at one epoch; False if told to stop."""
        if self.plateau is not None and self.plateau.stops and epoch:
            left = [j for j, member in self.alive.items() if self.on_plateau(member)]
            self.finishing |= dict.fromkeys(left, "plateau")
            self.finish_early(epoch, *left)
        while self.alive and epoch < self.epochs:
            epoch += 1
            self.misbehave(epoch)
            slow = any(rule("slow", member, epoch) for member in self.alive.values())
            if self.obey(SLOW if slow else SETTINGS.get("epoch_seconds", 0.002)):
                self.stop(epoch)
                return False
            self.finish_early(epoch - 1)
            if self.alive:
                self.tell_epoch(epoch)
                if self.plateau is not None and self.plateau.stops:
                    self.finishing |= dict.fromkeys(self.evidence, "plateau")
                    self.finish_early(epoch, *self.evidence)
        for member in list(self.alive.values()):
            if rule("slow_result", member, epoch) and self.obey(SLOW):
                self.stop(epoch + 1)
                return False
            if member.job_id in self.alive and not rule("forget", member, epoch):
                self.tell_result(member)
        return True

    def read(self, path: Path, digest: str | None, member: say.MemberTask) -> dict[str, Any]:
        """A file's content. Raises ValueError if it is not whole or not this member's."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path.name}: {error.strerror}") from error
        whole = seal.is_whole(data) if digest is None else sha256(data) == digest
        if not whole:
            raise ValueError(f"{path.name}: damaged")
        content: dict[str, Any] = json.loads(data)
        if content["seed"] != member.seed or content["run"] != self.run_of:
            raise ValueError(f"{path.name}: of another seed or run")
        content["digest"] = sha256(data)
        content["history"] = msgspec.convert(content["history"], tuple[say.EpochLosses, ...])
        return content

    def resume(self, member: say.MemberTask) -> int:
        """Where the member goes on, and by which file; it is told of every member."""
        rejected: list[str] = []
        for source in member.resume:
            try:
                found = self.read(Path(source.path), source.digest, member)
            except ValueError as error:
                rejected.append(str(error))
                continue
            epoch, history, digest = found["epoch"], found["history"], found["digest"]
            self.history[member.job_id] = list(history)
            written = say.Written(path=source.path, digest=digest, epoch=epoch, step=0)
            self.tell_resumed(member, written, rejected)
            return int(epoch)
        self.tell_resumed(member, None, rejected)
        return 0

    def tell_resumed(
        self, member: say.MemberTask, written: say.Written | None, rejected: list[str]
    ) -> None:
        self.fake.tell(
            say.Resumed(
                job_id=member.job_id,
                checkpoint=written,
                history=tuple(self.history[member.job_id]),
                rejected=tuple(rejected),
            )
        )

    def adopt(self, member: say.MemberTask) -> bool:
        """Whether an earlier attempt left the member's result, which is told of then."""
        for path in map(Path, member.results):
            try:
                found = self.read(path, None, member)
            except ValueError as error:
                self.fake.tell(say.Phase(text=f"not used: {error}"))
                continue
            early = found.get("early")
            if (len(found["history"]) == self.epochs) == (early is None) and not (
                early and member.exempt
            ):
                end = early and say.Early(epoch=len(found["history"]), **early)
                self.tell_done(member, path, found["digest"], found["history"], end)
                return True
        return False

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
            if rule("silent", member, epoch):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(SILENT)  # not for ever: whoever started it may be gone
                os._exit(4)
            for do, kind in KINDS.items():
                if rule(do, member, epoch):
                    del self.alive[member.job_id]
                    message = f"told to fail\nin epoch {epoch}"
                    self.fake.tell(
                        say.MemberFailed(job_id=member.job_id, kind=kind, message=message)  # type: ignore[arg-type]
                    )

    def obey(self, seconds: float) -> bool:
        """Wait for the epoch's time; True if told to stop."""
        until = time.monotonic() + seconds
        while not self.fake.told_to_stop:
            self.fake.listen(max(0.0, until - time.monotonic()))
            if not self.fake.commands:
                return False
            command = self.fake.commands.pop(0)
            if isinstance(command, say.Stop):
                self.fake.told_to_stop = True
            if isinstance(command, say.Drop):
                for job_id in command.job_ids:
                    self.alive.pop(job_id, None)
                if not self.alive:
                    return False
            if isinstance(command, say.Finish):
                self.finishing |= dict.fromkeys(command.job_ids, command.rule)
            if isinstance(command, say.Quit):
                os._exit(0)
        return True

    def finish_early(self, epoch: int, *only: int) -> None:
        """End the members that are to, if they have an epoch."""
        for job_id, member in list(self.alive.items()):
            order = member.order
            if order is not None and epoch >= order.epoch:
                self.finishing[job_id] = order.rule
            stops = job_id in self.finishing and not member.exempt and (not only or job_id in only)
            if stops and 0 < epoch < self.epochs:
                written = self.save(member, epoch)
                faults.point("trainer.early", member.folder)
                early = say.Early(
                    rule=self.finishing[job_id],
                    epoch=epoch,
                    evidence=self.evidence.get(job_id, ""),
                    checkpoint=written,
                )
                path = Path(member.folder) / RESULT_NAME
                digest = self.write(path, member, epoch, early)
                faults.point("trainer.result")
                self.tell_done(member, path, digest, (), early)
                del self.alive[job_id]

    def on_plateau(self, member: say.MemberTask) -> str | None:
        if self.plateau is None or member.exempt:
            return None
        losses = [row.val_loss for row in self.history[member.job_id]]
        found = plateau(losses, self.plateau)
        if found is None or len(losses) == self.epochs:
            return None
        self.evidence[member.job_id] = json.dumps(found)
        return self.evidence[member.job_id]

    def write(
        self, path: Path, member: say.MemberTask, epoch: int, early: say.Early | None = None
    ) -> str:
        content = {
            seal.KEY: seal.PLACEHOLDER,
            "seed": member.seed,
            "run": self.run_of,
            "epoch": epoch,
            "history": msgspec.to_builtins(self.history[member.job_id]),
        }
        if early is not None:
            content["early"] = {"rule": early.rule, "evidence": early.evidence}
        return write_atomic(path, seal.seal(json.dumps(content).encode()))

    def save(self, member: say.MemberTask, epoch: int) -> say.Written:
        path = Path(member.folder) / checkpoint_name(epoch, 0)
        digest = self.write(path, member, epoch)
        return say.Written(path=str(path), digest=digest, epoch=epoch, step=0)

    def tell_epoch(self, epoch: int) -> None:
        self.fake.tell(say.StepDone(epoch=epoch, step=1, steps=1))
        faults.point("trainer.step")
        for member in self.alive.values():
            self.history[member.job_id].append(losses_of(member.seed, epoch))
        faults.point("trainer.validated")
        often = SETTINGS.get("checkpoint_freq", 1)
        written: dict[int, say.Written] = {}
        if epoch % often == 0 or epoch == self.epochs:
            written = {j: self.save(member, epoch) for j, member in self.alive.items()}
            faults.point("trainer.checkpointed")
        records = [
            say.MemberEpoch(
                job_id=job_id,
                best_epoch=epoch,
                best_loss=loss_of(member.seed, epoch),
                checkpoint=written.get(job_id),
                blocks=blocks_of(member.seed, epoch),
                plateau=self.on_plateau(member),
                **{name: getattr(row, name) for name in row.__struct_fields__},
            )
            for job_id, member in self.alive.items()
            if not rule("hide_epoch", member, epoch)
            for row in self.history[job_id][-1:]
        ]
        self.fake.tell(say.EpochDone(members=tuple(records)))
        faults.point("trainer.told")

    def tell_result(self, member: say.MemberTask) -> None:
        path = Path(member.folder) / RESULT_NAME
        digest = self.write(path, member, self.epochs)
        faults.point("trainer.result")
        self.tell_done(member, path, digest)

    def tell_done(
        self,
        member: say.MemberTask,
        path: Path,
        digest: str,
        adopted: tuple[say.EpochLosses, ...] = (),
        early: say.Early | None = None,
    ) -> None:
        epochs = self.epochs if early is None else early.epoch
        final = loss_of(member.seed, epochs)
        self.fake.tell(
            say.MemberDone(
                job_id=member.job_id,
                best_epoch=epochs,
                best_loss=final,
                final_loss=final,
                path=str(path),
                digest=digest,
                adopted=adopted,
                early=early,
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
