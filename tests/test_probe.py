"""How many members train together at best: what is tried, when that ends, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train_tools import Listener, settings, task, train_command, write_tiny

from ensq.rundir import RESULT_NAME
from ensq.train import child, environment, probe
from ensq.train.pack import Lanes, Program
from ensq.train.trainer import Trainer
from ensq.worker import protocol
from ensq.worker.protocol import Measured

GIB = 2**30


def costs(
    *seconds: float, bytes: Callable[[int], int] | None = None
) -> tuple[list[int], Callable[[int], Measured | None]]:
    """A device on which packs of 1, 2, 4 … take so long per member; what was tried is listed.

    There is no memory for larger ones.
    """
    tried: list[int] = []

    def measure(members: int) -> Measured | None:
        tried.append(members)
        place = (members - 1).bit_length()
        if place >= len(seconds):
            return None
        used = None if bytes is None else bytes(members)
        return Measured(members=members, seconds=seconds[place], bytes=used)

    return tried, measure


@pytest.mark.parametrize(
    ("seconds", "most", "tried", "best"),
    [
        ((8.0, 4.0, 2.0, 1.9, 0.1), 64, [1, 2, 4, 8], 4),  # less than 10 % gained
        ((8.0, 7.9), 64, [1, 2], 1),  # a CPU
        ((8.0, 9.0), 64, [1, 2], 1),
        ((8.0, 7.1), 64, [1, 2, 4], 2),  # then there is no memory
        ((8.0, 4.0, 2.0, 1.0), 6, [1, 2, 4, 6], 6),  # no more members
        ((8.0,), 1, [1], 1),
        ((), 64, [1], 1),
    ],
)
def test_sizes_are_doubled_as_long_as_that_pays(
    seconds: tuple[float, ...], most: int, tried: list[int], best: int
) -> None:
    asked, measure = costs(*seconds)
    size, rows = probe.search(measure, most=most, limit=None)
    assert (asked, size) == (tried, best)
    assert [row.members for row in rows] == tried[: len(seconds)]


def test_without_the_rule_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: it is the gain that ends it."""
    monkeypatch.setattr(probe, "LEAST_GAIN", -10.0)
    asked, measure = costs(8.0, 4.0, 2.0, 1.9, 0.1)
    assert probe.search(measure, most=64, limit=None)[0] == 16
    assert asked == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("limit", "tried"),
    [(None, [1, 2, 4, 8, 16]), (100, [1, 2, 4, 8, 16]), (40, [1, 2, 4, 8]), (13, [1]), (12, [1])],
)
def test_what_is_expected_not_to_fit_is_not_tried(limit: int | None, tried: list[int]) -> None:
    """5 GiB for the program, and 2 for each member: 7, 9, 13, 21 and 37."""
    asked, measure = costs(
        *(1.0 / 2**place for place in range(5)), bytes=lambda members: (5 + 2 * members) * GIB
    )
    most = 16 if limit is None or limit > 40 else 64
    size, _ = probe.search(measure, most=most, limit=None if limit is None else limit * GIB)
    assert asked == tried and size == tried[-1]


# What is measured


@pytest.fixture
def heard() -> list[str]:
    return []


def train_alone(program: Program, folder: Path) -> bytes:
    Trainer(program, settings(), "d" * 64).train([task(folder, 1)], Listener())
    from ensq.train import checkpoint

    found = checkpoint.read_result((folder / "seed-1/attempt-1" / RESULT_NAME).read_bytes())
    arrays = checkpoint.flatten(found.params)
    return b"".join(arrays[name].tobytes() for name in sorted(arrays))


def test_a_pack_is_timed_and_nothing_of_it_stays(
    program: Program, tmp_path: Path, heard: list[str]
) -> None:
    before = train_alone(program, tmp_path / "before")
    measuring = probe.Measuring(program, heard.append)
    one, two = measuring.measure(1), measuring.measure(2)
    assert one is not None and two is not None
    assert (one.members, two.members) == (1, 2)
    assert 0 < one.seconds < 1 and 0 < two.seconds < 1
    assert any("2 together: " in line for line in heard)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before"]
    assert train_alone(program, tmp_path / "after") == before


@pytest.mark.parametrize(
    ("words", "passes"), [("RESOURCE_EXHAUSTED: Out of memory", True), ("INTERNAL: bug", False)]
)
def test_no_memory_ends_the_search_and_other_errors_pass(
    program: Program, monkeypatch: pytest.MonkeyPatch, heard: list[str], words: str, passes: bool
) -> None:
    run_steps = Program.run_steps

    def full(self: Program, lanes: Lanes, *other: Any) -> Lanes:
        if lanes.alive.shape[0] > 2:
            raise RuntimeError(words)
        return run_steps(self, lanes, *other)

    monkeypatch.setattr(Program, "run_steps", full)
    monkeypatch.setattr(probe, "LEAST_GAIN", -10.0)
    measuring = probe.Measuring(program, heard.append)
    if passes:
        size, rows = probe.search(measuring.measure, most=8, limit=None)
        assert (size, [row.members for row in rows]) == (2, [1, 2])
        assert heard[-1] == "there is no memory for 4 members"
    else:
        with pytest.raises(RuntimeError, match=words):
            probe.search(measuring.measure, most=8, limit=None)


# In the trainer's process


class Heard:
    def __init__(self) -> None:
        self.messages: list[Any] = []

    def send(self, message: Any) -> None:
        self.messages.append(message)


def prepare_of(command: protocol.Train) -> protocol.Prepare:
    return protocol.Prepare(
        config=command.config,
        run_folder=command.run_folder,
        data_path=command.data_path,
        data_digest=command.data_digest,
    )


def test_the_program_that_was_probed_is_the_one_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line: Any = Heard()
    workshop = child.Workshop(line)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "use_compile_cache", lambda folder: None)
    command = train_command(tmp_path, write_tiny(tmp_path / "t.npz"), settings(), task(tmp_path, 1))
    workshop.prepare(prepare_of(command))
    assert line.messages[-1] == protocol.Prepared(shape="30 x 6 x 5; 10 x 6 x 5")
    prepared = workshop._trainer
    workshop.probe(protocol.Probe(most=2))
    probed = line.messages[-1]
    assert isinstance(probed, protocol.Probed) and probed.error is None
    assert [row.members for row in probed.rows] == [1, 2] and probed.size in (1, 2)
    assert workshop._trainer_for(command) is prepared


def test_data_that_changed_are_left_for_the_training_to_tell(tmp_path: Path) -> None:
    line: Any = Heard()
    workshop = child.Workshop(line)
    command = train_command(tmp_path, write_tiny(tmp_path / "t.npz"), settings(), task(tmp_path, 1))
    (tmp_path / "t.npz").write_bytes(b"other")
    workshop.prepare(prepare_of(command))
    assert line.messages[-1] == protocol.Prepared(shape=None)


def test_an_error_of_a_probe_is_told_and_the_program_is_made_anew() -> None:
    line: Any = Heard()
    workshop = child.Workshop(line)
    workshop.probe(protocol.Probe(most=2))  # nothing was prepared
    [probed] = line.messages
    assert (probed.size, probed.rows) == (1, ()) and probed.error.startswith("AssertionError")
    assert workshop._trainer is None
