"""What people do to the queue: add ensembles and seeds, cancel, retry; and what they may read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import store_tools as tools
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensq.errors import LeaseLost, MismatchError, UsageError
from ensq.jobs import FOLLOWS, Claim, Outcome, State
from ensq.store import EventKind, Store, check, worker_info


@pytest.fixture
def store(engine_url: str) -> Iterator[Store]:
    with tools.open_by_hand(engine_url) as opened:
        tools.register(opened, "w1")
        yield opened
    assert check(engine_url) == []


def test_adding_twice_is_the_same_as_once(store: Store, engine_url: str) -> None:
    added = tools.add(store)
    assert (added.new_seeds, added.existing_seeds) == ((42, 43, 44), ())
    assert added.ensemble == store.ensemble("chignolin") == store.ensembles()[0]
    assert added.ensemble.created_at == store.now()
    before = tools.dump(engine_url)
    store.clock.move(99)  # type: ignore[attr-defined]
    again = tools.add(store)
    assert (again.new_seeds, again.existing_seeds) == ((), (42, 43, 44))
    assert again.ensemble == added.ensemble
    assert tools.dump(engine_url) == before


def test_more_seeds_get_the_next_places(store: Store) -> None:
    tools.add(store)
    added = tools.add(store, seeds=[7, 43, 9])
    assert (added.new_seeds, added.existing_seeds) == ((7, 9), (43,))
    assert [(job.index, job.seed) for job in store.jobs(1)] == [
        *((0, 42), (1, 43), (2, 44)),
        *((3, 7), (4, 9)),
    ]
    assert {job.state for job in store.jobs(1)} == {State.QUEUED}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"config_digest": "e" * 64}, "with another configuration; choose another name"),
        ({"data_digest": "e" * 64}, "with other data: SHA-256 dddddddddddd… of data/set.npz, now"),
    ],
)
def test_other_configuration_or_data_is_refused(
    store: Store, engine_url: str, other: dict[str, str], words: str
) -> None:
    tools.add(store)
    before = tools.dump(engine_url)
    with pytest.raises(MismatchError, match=words):
        tools.add(store, seeds=[1], **other)
    assert tools.dump(engine_url) == before
    tools.add(store, name="another", seeds=[1], **other)


def test_seed_that_stands_twice_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="a seed stands twice"):
        tools.add(store, seeds=[1, 2, 1])
    with pytest.raises(UsageError, match="at least one seed"):
        tools.add(store, seeds=[])
    assert store.ensembles() == []


def in_each_state(store: Store) -> None:
    """Seed 1 queued, 2 running, 3 done, 4 failed, 5 cancelled, 6 held."""
    tools.add(store, seeds=[2, 3, 4, 5, 1, 6], epochs=1)
    store.hold("chignolin", [6])
    _, done, failed, _ = tools.take(store, limit=4)
    tools.train(store, done, range(1, 2))
    store.finish(done, tools.result())
    store.fail(failed, Outcome.FAILURE, "why", retry=False)
    store.cancel("chignolin", [5])


def test_cancel_takes_all_that_is_not_done(store: Store) -> None:
    in_each_state(store)
    running = tools.claim_of(store.jobs(1)[0])
    assert store.cancel("chignolin") == [2, 4, 1, 6]
    assert store.counts() == dict.fromkeys(State, 0) | {State.CANCELLED: 5, State.DONE: 1}
    with pytest.raises(LeaseLost):
        store.fail(running, Outcome.FAILURE, "late", retry=True)
    job = store.job(running.job_id)
    assert (job.owner, job.lease_seconds, job.error) == (None, None, None)
    assert store.attempts(job.id)[0].outcome is Outcome.CANCELLED
    assert store.cancel("chignolin") == []


def test_retry_queues_failed_and_cancelled_members_with_fresh_counts(store: Store) -> None:
    in_each_state(store)
    assert store.retry("chignolin") == [4, 5]
    for job in store.jobs(1)[2:4]:
        assert (job.state, job.error, job.not_before) == (State.QUEUED, None, 0.0)
        assert (job.failures, job.crashes, job.losses, job.interruptions) == (0, 0, 0, 0)
        assert (job.strikes, job.stalls) == (0, 0)
        assert job.attempt == 1  # attempts are never counted anew: the number is the fence
    assert store.retry("chignolin") == []


def test_cancel_and_retry_touch_only_the_seeds_that_are_named(store: Store) -> None:
    tools.add(store)
    assert store.cancel("chignolin", [44, 42]) == [42, 44]
    assert [job.state for job in store.jobs(1)] == ["cancelled", "queued", "cancelled"]
    assert store.retry("chignolin", [44, 43]) == [44]
    assert [job.state for job in store.jobs(1)] == ["cancelled", "queued", "queued"]


@pytest.mark.parametrize("act", ["cancel", "retry", "hold", "unhold"])
def test_unknown_names_and_seeds_are_named(store: Store, act: str) -> None:
    with pytest.raises(UsageError, match="'nothing'; there are: none"):
        getattr(store, act)("nothing")
    tools.add(store)
    with pytest.raises(UsageError, match="no ensemble is called 'x'; there are: 'chignolin'"):
        getattr(store, act)("x")
    with pytest.raises(UsageError, match="has no seed 1, 2; its seeds: 42, 43, 44"):
        getattr(store, act)("chignolin", [2, 42, 1])
    assert store.counts()[State.QUEUED] == 3


def test_cancelled_member_goes_on_from_its_checkpoint_after_retry(store: Store) -> None:
    tools.add(store, seeds=[42])
    (claim,) = tools.take(store)
    tools.train(store, claim, range(1, 3))
    store.cancel("chignolin")
    store.retry("chignolin")
    (job,) = store.claim("w1", limit=1, lease_seconds=tools.LEASE)
    assert (job.attempt, job.epoch, job.checkpoint) == (2, 2, tools.point(2))


def test_every_change_of_state_is_an_event(store: Store) -> None:
    in_each_state(store)
    tools.add(store, name="other", seeds=[1])
    kinds = [event.kind for event in store.events(1)]
    assert kinds == ["added", "held", *["claimed"] * 4, "done", "failed", "cancelled"]
    assert [event.kind for event in store.events(limit=2)] == ["cancelled", "added"]
    assert all(isinstance(event.kind, EventKind) for event in store.events())
    assert store.events(2)[0].message == "seeds 1"


def test_states_change_only_as_the_table_of_states_says(store: Store) -> None:
    """Every act on every state: what follows is what ``FOLLOWS`` allows, or nothing changes."""
    acts: dict[str, Callable[[], object]] = {
        "claim": lambda: tools.take(store, limit=9),
        "cancel": lambda: store.cancel("chignolin"),
        "retry": lambda: store.retry("chignolin"),
        "hold": lambda: store.hold("chignolin"),
        "unhold": lambda: store.unhold("chignolin"),
        "reap": lambda: fall_silent(),
        "release": lambda: store.release(held(), asked=True),
        "fail": lambda: [
            store.fail(claim, Outcome.FAILURE, "why", retry=False) for claim in held()
        ],
    }

    def held() -> list[Claim]:
        return [tools.claim_of(job) for job in store.jobs(1) if job.owner]

    def fall_silent() -> None:
        store.renew(held())
        tools.fall_silent(store)

    in_each_state(store)
    for order in itertools.permutations(acts, 2):
        for name in order:
            before = [job.state for job in store.jobs(1)]
            acts[name]()
            for old, new in zip(before, [job.state for job in store.jobs(1)], strict=True):
                assert old == new or new in FOLLOWS[old], name


def test_counts_have_every_state(store: Store) -> None:
    assert store.counts() == dict.fromkeys(State, 0)
    in_each_state(store)
    tools.add(store, name="other", seeds=[1])
    assert store.counts(1) == dict.fromkeys(State, 1)
    assert store.counts()[State.QUEUED] == 2


def test_what_is_not_there_is_said(store: Store) -> None:
    assert store.ensemble("x") is None
    assert not (store.jobs(1) or store.attempts(1) or store.epochs(1) or store.events(1))
    assert store.workers(["x"]) == {} and store.result(1) is None
    with pytest.raises(UsageError, match="there is no job 1"):
        store.job(1)


STRANGE = ["it's", '"; DROP TABLE jobs; --', "100%s %(x)s :name", "a\nb\tc", "é漢🧪", "", "\\", "?"]


@pytest.mark.parametrize("text", STRANGE)
def test_strange_text_is_data_everywhere(store: Store, text: str) -> None:
    added = tools.add(
        store, name=text, seeds=[1], config=text, data_path=text, run_path=text, epochs=1
    )
    assert store.ensemble(text) == added.ensemble
    ensemble = added.ensemble
    assert {ensemble.name, ensemble.config, ensemble.data_path, ensemble.run_path} == {text}
    store.register_worker(worker_info(f"w{text}", slurm_job=text, device=text))
    (claim,) = tools.take(store, f"w{text}", ensemble=text, log_path=text)
    assert store.workers([claim.owner])[claim.owner].device == text
    store.fail(claim, Outcome.FAILURE, text, retry=False)
    assert store.attempts(claim.job_id)[0].reason == text
    assert store.retry(text) == [1]


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_comes_back_as_it_was(store: Store, text: str) -> None:
    added = tools.add(store, name=text, seeds=[1], config=text)
    assert store.ensemble(text) == added.ensemble
    assert added.ensemble.config == text


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**63 - 1])
def test_large_seeds_are_kept(store: Store, seed: int) -> None:
    tools.add(store, seeds=[seed])
    assert store.jobs(1)[0].seed == seed
