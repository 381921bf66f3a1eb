"""Early stopping by workers: who is stopped, what is left of it, and what a crash does to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from worker_tools import NAME, Queue, finish, wait_until

from ensq.config.early import EarlyStoppingConfig, PlateauConfig, dumps
from ensq.jobs import State
from ensq.store import EventKind, check, check_files

EPOCHS = 12
# Of the fake trainer's members a seed is worse by a hundredth: from epoch 6 on by 0.6 % and more.
PAIRED = EarlyStoppingConfig(
    mode="stop", margin=0.005, min_epochs=2, patience=2, min_members=2, confidence=0.95
)


def queue_with(folder: Path, section: EarlyStoppingConfig | None, seeds: int = 4) -> Queue:
    queue = Queue(folder, seeds=0, epochs=EPOCHS)
    enqueue(queue, section, seeds)
    return queue


def enqueue(queue: Queue, section: EarlyStoppingConfig | None, seeds: int = 4) -> None:
    queue.store.add_ensemble(
        name=NAME,
        config=json.dumps({"epochs": EPOCHS}),
        config_digest="c" * 64,
        data_path="data.npz",
        data_digest="d" * 64,
        run_path=f"runs/{NAME}",
        seeds=list(range(1, seeds + 1)),
        epochs=EPOCHS,
        early_stopping=None if section is None else dumps(section),
    )


def ends(queue: Queue) -> list[tuple[State, str | None, int]]:
    assert check(queue.url) == check_files(queue.url) == []
    return [(job.state, job.early, job.epoch) for job in queue.jobs]


def said(queue: Queue) -> list[tuple[int, str, str]]:
    seeds = {job.id: job.seed for job in queue.jobs}
    return [(seeds[d.job_id], d.rule, str(d.verdict)) for d in queue.store.decisions(1)]


def test_worse_members_are_stopped_and_the_others_train_on(tmp_path: Path) -> None:
    queue = queue_with(tmp_path, PAIRED)
    code, lines = queue.work(pack=4, settings={"epoch_seconds": 0.05})
    assert code == 0
    found = ends(queue)
    assert found[:2] == [(State.DONE, None, EPOCHS)] * 2
    assert [(state, early) for state, early, _ in found[2:]] == [(State.DONE, "paired")] * 2
    assert all(2 < epoch < EPOCHS for *_, epoch in found[2:])
    assert said(queue)[:1] == [(4, "paired", "stop")]  # the worst one first
    assert sorted(said(queue)) == [
        (2, "paired", "kept"), (3, "paired", "stop"), (4, "paired", "stop")
    ]  # fmt: skip
    assert any("seed 4: is stopped by the rule paired: at epoch" in line for line in lines)
    assert any("seed 4 is done, stopped early by the rule paired" in line for line in lines)
    for job in queue.jobs:
        assert queue.losses(job) == queue.expected(job)[: job.epoch]
        assert job.best_epoch == job.epoch


@pytest.mark.parametrize("section", [None, EarlyStoppingConfig(plateau=PlateauConfig(patience=1))])
def test_nobody_is_stopped_unless_asked_for(
    tmp_path: Path, section: EarlyStoppingConfig | None
) -> None:
    queue = queue_with(tmp_path, section)
    assert queue.work(pack=4, settings={})[0] == 0
    assert said(queue) == []
    queue.require_sound()


@pytest.mark.parametrize("rule", ["paired", "sigma"])
def test_report_says_once_for_each_member_what_would_be_and_changes_nothing(
    tmp_path: Path, rule: Any
) -> None:
    section = EarlyStoppingConfig(
        mode="report", rule=rule, sigma=1.0, margin=0.005, min_epochs=2, patience=2
    )
    queue = queue_with(tmp_path, section)
    _, lines = queue.work(pack=4, settings={"epoch_seconds": 0.02})
    queue.require_sound()
    found = said(queue)
    assert len(set(found)) == len(found) and (4, rule, "would stop") in found
    assert {verdict for *_, verdict in found} == {"would stop"}
    assert sum("seed 4: would be stopped" in line for line in lines) == 1
    decided = [d for d in queue.store.decisions(1) if d.job_id == queue.jobs[3].id]
    evidence = json.loads(decided[0].evidence)
    window = {record.epoch: record.val_loss for record in queue.store.epochs(queue.jobs[3].id)}
    assert evidence["loss"] == window[evidence["epoch"]]
    assert list(evidence["losses"]) == ["1", "2", "3", "4"] and evidence["best_seed"] == 1


def test_members_trained_one_after_the_other_are_compared_at_the_same_epoch(
    tmp_path: Path,
) -> None:
    queue = queue_with(tmp_path, PAIRED)
    assert queue.work(pack=1, settings={"epoch_seconds": 0.03})[0] == 0
    # Who comes first is stopped first; two are never stopped.
    assert [early for _, early, _ in ends(queue)] == [None, "paired", "paired", None]
    stopped = [d for d in queue.store.decisions(1) if d.verdict == "stop"]
    assert [list(json.loads(d.evidence)["losses"]) for d in stopped] == [
        ["1", "2"],
        ["1", "2", "3"],
    ]
    assert all(json.loads(d.evidence)["epoch"] <= d.epoch for d in stopped)


def test_worker_that_trains_alone_compares_nothing_until_others_got_there(tmp_path: Path) -> None:
    queue = queue_with(tmp_path, PAIRED, seeds=1)
    assert queue.work(settings={})[0] == 0
    queue.require_sound()


PLATEAU = PlateauConfig(patience=3, min_delta=0.4, min_epochs=2)


def test_plateau_ends_a_member_by_itself_and_is_recorded_with_its_result(tmp_path: Path) -> None:
    """The losses are 10/epoch: those of epochs 1, 2, 4 and 7 improve by 0.4 and more."""
    queue = queue_with(tmp_path, EarlyStoppingConfig(mode="stop", plateau=PLATEAU, patience=90), 2)
    assert queue.work(pack=2, settings={})[0] == 0
    assert ends(queue) == [(State.DONE, "plateau", 10)] * 2
    assert said(queue) == [(1, "plateau", "stop"), (2, "plateau", "stop")]
    evidence = json.loads(queue.store.decisions(1)[0].evidence)
    assert (evidence["since"], evidence["epoch"]) == (7, 10)


def test_plateau_is_reported_once(tmp_path: Path) -> None:
    queue = queue_with(tmp_path, EarlyStoppingConfig(mode="report", plateau=PLATEAU), 2)
    assert queue.work(pack=2, settings={})[0] == 0
    queue.require_sound()
    assert said(queue) == [(1, "plateau", "would stop"), (2, "plateau", "would stop")]


SLOWLY = {"epoch_seconds": 0.05}
CRASHES: list[tuple[Mapping[str, Any], EarlyStoppingConfig, Mapping[str, Any]]] = [
    ({"point": "worker.decided", "do": "kill", "hit": 1}, PAIRED, SLOWLY),
    ({"point": "worker.decided", "do": "kill", "hit": 1}, PAIRED,
     SLOWLY | {"checkpoint_freq": 5}),  # it stands at an epoch before that of the decision
    ({"point": "trainer.early", "do": "kill", "match": "attempt-1"}, PAIRED, SLOWLY),
    ({"point": "write.done", "do": "kill", "match": "seed-4/attempt-1/result"}, PAIRED, SLOWLY),
    ({"point": "write.done", "do": "kill", "match": "seed-1/attempt-1/result"},
     EarlyStoppingConfig(mode="stop", plateau=PLATEAU), SLOWLY),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "section", "settings"), CRASHES)
def test_crash_between_decision_and_result_changes_nothing_of_it(
    tmp_path: Path,
    fault: Mapping[str, Any],
    section: EarlyStoppingConfig,
    settings: Mapping[str, Any],
) -> None:
    queue = queue_with(tmp_path, section)
    with queue.worker(pack=4, settings=settings, faults=[fault], drain=True) as worker:
        finish(worker)
    before = {d.job_id: d for d in queue.store.decisions(1)}
    if any(job.state is not State.DONE for job in queue.jobs):
        assert queue.work(pack=4, settings=settings)[0] == 0
    found = ends(queue)
    crashed = queue.jobs[0] if section is not PAIRED else queue.jobs[3]
    assert crashed.early == ("plateau" if section is not PAIRED else "paired")
    assert all(state is State.DONE for state, *_ in found)
    attempts = queue.store.attempts(crashed.id)
    assert len(attempts) >= 2 and attempts[-1].outcome == "early"
    if section is PAIRED:  # the decision is that of the first attempt, and obeyed
        assert before[crashed.id].attempt == 1
        assert crashed.epoch >= before[crashed.id].epoch
        assert len([d for d in queue.store.decisions(1) if d.job_id == crashed.id]) == 1
    for job in queue.jobs:
        assert queue.losses(job) == queue.expected(job)[: job.epoch]


def test_members_that_were_stopped_train_on_when_resumed(tmp_path: Path) -> None:
    queue = queue_with(tmp_path, PAIRED)
    queue.work(pack=4, settings=SLOWLY)
    stopped = queue.jobs[3].epoch
    assert queue.store.resume(NAME, [4]) == [4]
    assert queue.work(pack=4, settings={})[0] == 0
    assert queue.jobs[3].early is None and queue.jobs[3].exempt
    assert queue.starts(queue.jobs[3]) == [0, stopped]
    assert queue.losses(queue.jobs[3]) == queue.expected(queue.jobs[3])
    assert len(queue.events(EventKind.RESUMED, queue.jobs[3])) == 1
    assert queue.jobs[2].early == "paired"
    assert check(queue.url) == check_files(queue.url) == []


def test_report_becomes_stop_for_members_in_training(tmp_path: Path) -> None:
    queue = queue_with(tmp_path, msgspec.structs.replace(PAIRED, mode="report"))
    with queue.worker(pack=4, settings={"epoch_seconds": 0.3}) as worker:
        queue.wait(lambda job: job.epoch >= 3)
        enqueue(queue, PAIRED)
        code, text = finish(worker)
    assert code == 0
    assert queue.jobs[3].early == "paired", text


def test_member_that_was_kept_may_go_once_fewer_are_asked_for(tmp_path: Path) -> None:
    queue = queue_with(tmp_path, msgspec.structs.replace(PAIRED, min_members=4))
    with queue.worker(pack=4, settings={"epoch_seconds": 0.15}) as worker:
        wait_until(lambda: len(said(queue)) == 3, "all but the best are kept")
        assert {verdict for *_, verdict in said(queue)} == {"kept"}
        enqueue(queue, PAIRED)
        code, text = finish(worker)
    assert code == 0
    assert queue.jobs[3].early == "paired", text


def test_nobody_is_compared_with_a_member_that_has_failed(tmp_path: Path) -> None:
    """Seed 1 was the best, and is none of the ensemble any more."""
    queue = queue_with(tmp_path, PAIRED)
    queue.work({"do": "diverge", "seed": 1, "epoch": 9}, pack=1, settings={"epoch_seconds": 0.03})
    assert queue.jobs[0].state is State.FAILED
    found = [json.loads(decision.evidence)["losses"] for decision in queue.store.decisions(1)]
    assert found and all("1" not in losses for losses in found)


@pytest.mark.parametrize("text", ['{"mode":"shop"}', "{", '{"mode":"stop","patience":0}'])
def test_section_that_can_not_be_read_stops_nobody_and_is_told_once(
    tmp_path: Path, text: str
) -> None:
    queue = Queue(tmp_path, seeds=3)
    queue.store.add_ensemble(
        name=NAME, config="", config_digest="c" * 64, data_path="", data_digest="d" * 64,
        run_path="", seeds=[1], epochs=5, early_stopping=text,
    )  # fmt: skip
    code, lines = queue.work(pack=3, settings={})
    assert code == 0
    queue.require_sound()
    assert sum("early_stopping can't be read" in line for line in lines) == 1
