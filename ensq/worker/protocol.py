"""What the supervisor and its trainer child say to each other: one JSON object per line.

Commands go down the child's standard input, events come up a pipe of their own, so that nothing
a library prints can be mistaken for an event. The child ends at once when its input closes.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Base of all messages; the JSON object's ``type`` is the class's name."""


class ResumeFrom(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint to go on from: absolute path, and the SHA-256 that the queue recorded.

    Without one the file was never recorded (its worker died, or the database was away): it counts
    if its own seal is whole, see ``ensq.seal``.
    """

    path: str
    digest: str | None = None


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A decision to stop a member early that stands: it ends once it has so many epochs."""

    rule: str
    epoch: int


class MemberTask(msgspec.Struct, frozen=True, kw_only=True):
    """One member of the pack to train."""

    job_id: int
    seed: int
    attempt: int
    folder: str  # absolute: the only folder this attempt may write to
    resume: tuple[ResumeFrom, ...] = ()  # newest first; the first that verifies is used
    results: tuple[str, ...] = ()  # absolute paths of results that were never recorded
    order: Order | None = None
    exempt: bool = False  # a person wants it trained to the end: no rule stops it


class Plateau(msgspec.Struct, frozen=True, kw_only=True):
    """When a member stops by itself; see ``ensq.early.plateau``."""

    patience: int
    min_delta: float
    min_epochs: int
    stops: bool  # else it is only told of


class Train(Message, frozen=True):
    """Train these members as one pack."""

    members: tuple[MemberTask, ...]
    config: str  # the full configuration as JSON
    run_folder: str  # absolute
    data_path: str  # absolute
    data_digest: str
    log: str = ""  # absolute: where standard output and error go from now on
    plateau: Plateau | None = None


class Prepare(Message, frozen=True):
    """Load the data and build the program that the next ``Train`` will use; say ``Prepared``."""

    config: str
    run_folder: str
    data_path: str
    data_digest: str
    log: str = ""


class Probe(Message, frozen=True):
    """Measure with what was prepared how many members train together at best; say ``Probed``."""

    most: int  # no more than so many


class Stop(Message, frozen=True):
    """Finish the step, write a checkpoint, say ``Stopped``."""

    reason: str


class Drop(Message, frozen=True):
    """The lease of these members is lost: write nothing more for them."""

    job_ids: tuple[int, ...]


class Finish(Message, frozen=True):
    """A rule has stopped these members: finish the step, write a checkpoint of each and its result
    with the epochs that it has, say ``MemberDone``. The others of the pack go on."""

    job_ids: tuple[int, ...]
    rule: str


class Quit(Message, frozen=True):
    """No more work: end."""


Command = Train | Prepare | Probe | Stop | Drop | Finish | Quit


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint file on disk, flushed and renamed; ``path`` is absolute."""

    path: str
    digest: str
    epoch: int
    step: int


class MemberEpoch(msgspec.Struct, frozen=True, kw_only=True):
    """One member's epoch. Losses are of the batch passes (train) and of the evaluated
    parameters over the whole validation set (val)."""

    job_id: int
    epoch: int
    train_loss: float
    val_loss: float
    val_rmse_force: float | None
    val_rmse_energy: float | None
    learning_rate: float
    seconds: float
    best_epoch: int
    best_loss: float
    checkpoint: Written | None
    blocks: tuple[float, ...] = ()  # the validation loss by blocks of frames, whose mean it is
    plateau: str | None = None  # the evidence, as JSON, that the member is on one


class Ready(Message, frozen=True):
    """The child has imported JAX and waits for commands."""

    pid: int
    device: str
    platform: str  # as JAX names it: cpu, gpu, …
    memory: int | None  # bytes of the device that it may use; None if the device does not say
    versions: dict[str, str]


class Phase(Message, frozen=True):
    """What happens now: loading data, neighbour lists, compiling …"""

    text: str


class Prepared(Message, frozen=True):
    """What is trained, in words: frames, beads and neighbours of the data's groups.

    None if it could not be prepared: ``Train`` will fail, and say why.
    """

    shape: str | None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A pack of one size, in a few steps."""

    members: int
    seconds: float  # per step and member
    bytes: int | None  # of the device's memory at its peak; None if the device does not say


class Probed(Message, frozen=True):
    """How many members train together at best; 1 if nothing else is known."""

    size: int
    rows: tuple[Measured, ...]
    error: str | None = None  # why it was not finished; then it is not to be remembered


class EpochLosses(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The losses of one epoch out of a file's history."""

    epoch: int
    train_loss: float
    val_loss: float
    val_rmse_force: float | None
    val_rmse_energy: float | None
    learning_rate: float
    seconds: float


class Resumed(Message, frozen=True):
    """Where a member goes on, and by which file; sent once for each member, before it trains.

    ``rejected`` says of each file that did not verify why. A new member has no checkpoint.
    """

    job_id: int
    checkpoint: Written | None
    history: tuple[EpochLosses, ...] = ()  # epochs 1 to the checkpoint's
    rejected: tuple[str, ...] = ()


class StepDone(Message, frozen=True):
    """A sign of life inside an epoch."""

    epoch: int  # the epoch under way, from 1
    step: int
    steps: int


class EpochDone(Message, frozen=True):
    """An epoch of the pack; recorded in one transaction."""

    members: tuple[MemberEpoch, ...]


class Early(msgspec.Struct, frozen=True, kw_only=True):
    """How a member ended before its last epoch."""

    rule: str
    epoch: int  # epochs that it has trained
    evidence: str = ""  # JSON; '' where the supervisor has it
    checkpoint: Written | None = None  # from which it can go on after all


class MemberDone(Message, frozen=True):
    """A member is trained; its result file is on disk."""

    job_id: int
    best_epoch: int
    best_loss: float
    final_loss: float
    path: str  # absolute
    digest: str
    # Of a result that an earlier attempt left unrecorded: all its epochs. It is not trained again.
    adopted: tuple[EpochLosses, ...] = ()
    early: Early | None = None


class MemberFailed(Message, frozen=True):
    """A member can't go on; the others of its pack do."""

    job_id: int
    kind: Literal["diverged", "exception", "mismatch", "data", "checkpoint", "memory", "disk"]
    message: str


class Stopped(Message, frozen=True):
    """Answer to ``Stop``: the checkpoints written (none if nothing new was to be saved)."""

    checkpoints: dict[str, Written]  # by job id


class TrainEnded(Message, frozen=True):
    """Nothing is left to do of the last ``Train``."""


Event = (
    Ready
    | Phase
    | Prepared
    | Probed
    | Resumed
    | StepDone
    | EpochDone
    | MemberDone
    | MemberFailed
    | Stopped
    | TrainEnded
)

_encoder = msgspec.json.Encoder()
_commands = msgspec.json.Decoder(Command)
_events = msgspec.json.Decoder(Event)


def encode(message: Message) -> bytes:
    """The message as one line."""
    return _encoder.encode(message) + b"\n"


def decode_command(line: bytes) -> Command:
    command: Command = _commands.decode(line)
    return command


def decode_event(line: bytes) -> Event:
    event: Event = _events.decode(line)
    return event
