"""Hostile inputs for the loaders, made from good ones by seed and number, and a judge of each.

An input is judged in a forked process: it may be accepted, or refused by an EnsqError. Anything
else is bad: another exception, a warning, more than the limits of time and memory, a dead process.
"""

from __future__ import annotations

import os
import pickle
import random
import resource
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ensq.errors import EnsqError

SECONDS, MEGABYTES = 2.0, 512  # of one input, whose file is smaller than 1 MB
_STUCK = 120.0  # seconds without a sign of life: it hangs where no signal is handled
_BATCH = 250  # inputs of one process


@dataclass(frozen=True)
class Loader:
    """A loader under test."""

    name: str
    suffix: str  # of the input's file
    make: Callable[[random.Random], bytes]
    load: Callable[[Path], object]
    prepare: Callable[[], object] = lambda: None  # imports, before a process is forked


@dataclass(frozen=True)
class Verdict:
    """What became of one input."""

    number: int
    kind: str  # "accepted", the name of an EnsqError, or "BAD: …"
    text: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def bad(self) -> bool:
        return self.kind.startswith("BAD")


class TooSlow(BaseException):
    """The time of an input is up. No Exception, so that no loader takes it for its own."""


def content(loader: Loader, seed: int, number: int) -> bytes:
    """The input of this number, the same at every call."""
    return loader.make(random.Random(f"{loader.name}-{seed}-{number}"))


def run(loader: Loader, numbers: Iterable[int], seed: int, folder: Path) -> Iterator[Verdict]:
    """Judge the inputs of these numbers in forked processes."""
    loader.prepare()
    left = list(numbers)
    while left:
        batch = left[:_BATCH]
        done = 0
        for verdict in _judged(loader, batch, seed, folder):
            done += 1
            yield verdict
        left = left[done:]


def _judged(loader: Loader, batch: list[int], seed: int, folder: Path) -> Iterator[Verdict]:
    """The verdicts of one process; if it dies or hangs, that is the verdict of its last input."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 1
        try:
            _work(loader, batch, seed, folder, writing)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)  # nothing of the parent's is to be cleaned up here
    os.close(writing)
    why, place = "", 0
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while place < len(batch):
            if not select.select([pipe], [], [], _STUCK)[0]:
                os.kill(pid, signal.SIGKILL)
                why = f"hangs for {_STUCK:g} s in code that no signal interrupts"
                break
            size = pipe.read(4)
            if not size:
                break
            yield pickle.loads(_exactly(pipe, int.from_bytes(size)))
            place += 1
    _, status = os.waitpid(pid, 0)
    if place < len(batch):
        yield Verdict(batch[place], "BAD: died", why or f"status {status}")


def _exactly(pipe: object, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += pipe.read(size - len(data))  # type: ignore[attr-defined]
    return data


def _work(loader: Loader, batch: list[int], seed: int, folder: Path, pipe: int) -> None:
    # The rest of the machine is not at stake, whatever is asked for.
    limit = _status("VmSize") * 1024 + 4 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    path = folder / f"input-{os.getpid()}{loader.suffix}"
    try:
        for number in batch:
            path.write_bytes(content(loader, seed, number))
            data = pickle.dumps(judge(loader, number, path))
            os.write(pipe, len(data).to_bytes(4) + data)
    finally:
        path.unlink(missing_ok=True)


def judge(loader: Loader, number: int, path: Path, seconds: float = SECONDS) -> Verdict:
    """Load one file in this process."""
    before = _peak_from_here()
    old = signal.signal(signal.SIGPROF, _too_slow)
    try:
        # Processor time, so that a busy machine is no finding.
        signal.setitimer(signal.ITIMER_PROF, seconds * 2)
        started = time.process_time()
        kind, text = _outcome(loader, path)
        used = time.process_time() - started
    except TooSlow:
        kind, text, used = "BAD: too slow", f"over {seconds * 2:g} s", seconds * 2
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
    megabytes = (_status("VmHWM") - before) / 1024
    if not kind.startswith("BAD"):
        if used > seconds:
            kind, text = "BAD: too slow", f"{kind}: {text}"
        elif megabytes > MEGABYTES:
            kind, text = "BAD: too much memory", f"{kind}: {text}"
    return Verdict(number, kind, text[:2000], used, megabytes)


def _too_slow(*_: object) -> None:
    raise TooSlow


def _outcome(loader: Loader, path: Path) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loader.load(path)
    except EnsqError as error:
        return _clear(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-6:]
        frames = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(where))
        return f"BAD: {type(error).__name__}", f"{str(error)[:300]!r} at {frames}"
    return "accepted", ""


def _clear(error: EnsqError) -> tuple[str, str]:
    """An error that a person can read: short, and text of the input can't drive a terminal."""
    text = str(error)
    if not text or len(text) > 2000:
        return "BAD: unclear error", f"{len(text)} characters: {text[:200]!r}"
    if "MemoryError" in text or "RecursionError" in text or "Traceback" in text:
        return "BAD: unclear error", text
    return type(error).__name__, text


def _status(key: str) -> int:
    """A value of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


def _peak_from_here() -> int:
    """Forget the peak of the past (where the kernel lets us), and give the present use."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status("VmHWM")
    return _status("VmRSS")


# -- bytes -------------------------------------------------------------------------------------

_TOKENS = (
    b"\0", b"\xff", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"\x1b[2J", b"\x9b", "\u202e".encode(),
    b"\r", b"\n", b"-1", b"0", b"1e999", b"99999999999999999999", b"nan", b"../../x", b"$(touch x)",
    b"'", b'"', b"{", b"[", b":", b"%s", b"\\",
)  # fmt: skip


def bytes_mutated(rng: random.Random, data: bytes, times: int | None = None) -> bytes:
    """A few flips, cuts, copies and insertions."""
    out = bytearray(data)
    for _ in range(times or rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(out) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 64, 1000))
        what = rng.randrange(8)
        if what <= 1 and out:
            out[min(place, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif what == 2 and out:
            out[min(place, len(out) - 1)] = rng.choice((0, 1, 127, 128, 255))
        elif what == 3:
            del out[place : place + size]
        elif what == 4:
            out[place:place] = out[place : place + size] * rng.choice((1, 1, 3))
        elif what == 5:
            out[place:place] = rng.choice(_TOKENS)
        elif what == 6:
            out[place : place + size] = rng.randbytes(size)
        elif rng.random() < 0.3:
            del out[place:]
    return bytes(out)
