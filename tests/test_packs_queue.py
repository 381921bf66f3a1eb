"""Members that trained together are claimed together again, and a pack takes a fair share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import golden_tools as golden
import pytest
import store_tools as tools
from sqlalchemy import literal, select, true

from ensq import schema
from ensq.jobs import Claim, Outcome, Probe, ProbeKey, ProbeRow
from ensq.store import Store, packs
from ensq.store.checks import check
from ensq.store.engine import Database

SEEDS = list(range(1, 9))
KEY = ProbeKey(model="m" * 64, shape="30 x 6 x 5", device="H200, 139 GiB", versions="jax 0.4.37")
PROBE = Probe(
    key=KEY,
    size=4,
    most=8,
    rows=(
        ProbeRow(members=1, seconds=0.02, bytes=2**30),
        ProbeRow(members=2, seconds=0.01, bytes=None),
    ),
    worker="w1",
)


@pytest.fixture
def store(engine_url: str) -> Iterator[Store]:
    with tools.open_by_hand(engine_url) as opened:
        tools.add(opened, seeds=SEEDS, epochs=9)
        tools.register(opened, "w1", "w2", "w3")
        yield opened
    assert check(engine_url) == []


def seeds(store: Store, claims: list[Claim]) -> list[int]:
    return [store.job(claim.job_id).seed for claim in claims]


def url_of(store: Store) -> str:
    return store.target.url.render_as_string(hide_password=False)


def pack_of(store: Store, seed: int) -> str | None:
    return store.job_of("chignolin", seed).pack


def to_epoch(store: Store, claims: list[Claim], epoch: int) -> None:
    """All of a pack train on, together."""
    began = store.job(claims[0].job_id).epoch
    for number in range(began + 1, epoch + 1):
        rows = [
            tools.write(claim, number, tools.point(number, folder=f"attempt-{claim.attempt}"))
            for claim in claims
        ]
        assert store.record_epochs(rows) == []


def interrupted(store: Store, claims: list[Claim], epoch: int = 1) -> list[Claim]:
    if epoch:
        to_epoch(store, claims, epoch)
    assert store.release(claims, Outcome.INTERRUPTED, "time limit") == []
    return claims


# The same pack again


def test_a_pack_that_was_interrupted_is_claimed_as_the_same_pack(store: Store) -> None:
    first = tools.take(store, limit=3)
    name = pack_of(store, 1)
    assert name is not None
    assert {pack_of(store, seed) for seed in (1, 2, 3)} == {name}
    interrupted(store, first)
    assert pack_of(store, 1) == name
    assert seeds(store, tools.take(store, "w2", limit=8)) == [1, 2, 3]


def test_others_at_the_same_checkpoint_are_not_mixed_in(store: Store) -> None:
    first, second = tools.take(store, limit=3), tools.take(store, "w2", limit=2)
    (alone,) = tools.take(store, "w3")
    for claims in (first, second, [alone]):
        interrupted(store, claims)
    assert seeds(store, tools.take(store, limit=8)) == [1, 2, 3]
    assert seeds(store, tools.take(store, limit=8)) == [4, 5]
    # Without a pack: those that have none; the last two have no checkpoint at all.
    assert seeds(store, tools.take(store, limit=8)) == [6]
    assert seeds(store, tools.take(store, limit=8)) == [7, 8]


def test_without_the_binding_they_would_be(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test before."""
    made_anew = packs._take_statement.__wrapped__
    monkeypatch.setattr(packs, "_take_statement", made_anew)
    monkeypatch.setattr(packs, "_is_free", true)
    for claims in (tools.take(store, limit=3), tools.take(store, "w2", limit=2)):
        interrupted(store, claims)
    golden.execute(url_of(store), "UPDATE jobs SET pack = NULL WHERE seed = 1")
    assert seeds(store, tools.take(store, limit=8)) == [1, 2, 3, 4, 5]


def test_the_limit_cuts_a_pack_unless_the_whole_is_wanted(store: Store) -> None:
    interrupted(store, tools.take(store, limit=4))
    whole = pack_of(store, 1)
    part = tools.take(store, limit=2)
    assert seeds(store, part) == [1, 2]
    assert pack_of(store, 1) == pack_of(store, 2) not in (None, whole)
    assert pack_of(store, 3) == pack_of(store, 4) == whole
    interrupted(store, part, epoch=2)
    # What was cut off stays apart from then on, also where it gets to the same place.
    rest = tools.take(store, limit=1, whole_pack=True)
    assert seeds(store, rest) == [1, 2]
    more = tools.take(store, "w2", limit=1, whole_pack=True)
    assert seeds(store, more) == [3, 4]
    interrupted(store, rest, epoch=0)
    interrupted(store, more, epoch=2)
    assert seeds(store, tools.take(store, limit=1, whole_pack=True)) == [1, 2]


def test_the_whole_of_what_is_no_pack_is_the_limit(store: Store) -> None:
    assert seeds(store, tools.take(store, limit=2, whole_pack=True)) == [1, 2]


def test_a_pack_without_a_checkpoint_is_free_again(store: Store) -> None:
    interrupted(store, tools.take(store, limit=3), epoch=0)
    before = pack_of(store, 1)
    assert before is not None
    assert seeds(store, tools.take(store, limit=5)) == [1, 2, 3, 4, 5]
    assert pack_of(store, 5) == pack_of(store, 1) != before


def test_a_member_that_is_claimed_alone_has_no_pack(store: Store) -> None:
    claims = tools.take(store, limit=2)
    to_epoch(store, claims, 1)
    store.cancel("chignolin", [2])
    interrupted(store, claims[:1], epoch=0)
    assert pack_of(store, 1) is not None
    assert seeds(store, tools.take(store, limit=8)) == [1]
    assert pack_of(store, 1) is None


def test_members_that_crashed_together_wait_together(store: Store) -> None:
    """Their pauses end at slightly different times: each crash is written on its own."""
    store.policy = replace(store.policy, pause=10.0)
    claims = tools.take(store, limit=3)
    to_epoch(store, claims, 1)
    for claim in claims:
        store.fail(claim, Outcome.CRASH, "SIGSEGV", retry=True)
        store.clock.move(0.5)  # type: ignore[attr-defined]
    assert seeds(store, tools.take(store, limit=3)) == [4, 5, 6]
    store.clock.move(8.6)  # type: ignore[attr-defined]
    assert seeds(store, tools.take(store, limit=3)) == [1, 2, 3]


def test_on_its_last_try_a_member_is_tried_without_its_pack(store: Store) -> None:
    claims = tools.take(store, limit=2)
    to_epoch(store, claims, 1)
    for _ in range(2):
        for claim in claims:
            store.fail(claim, Outcome.CRASH, "SIGSEGV", retry=True)
        claims = tools.take(store, limit=1, whole_pack=True)
    assert seeds(store, claims) == [1]
    assert pack_of(store, 1) is None and pack_of(store, 2) is None


SPLIT = """
from ensq.store import Store
def work(number, meet):
    with Store.open(path) as store:
        meet()
        jobs = store.claim(f"w{number}", limit=1, lease_seconds=60, whole_pack=True)
        print(",".join(str(job.seed) for job in jobs), flush=True)
"""


def test_packs_stay_whole_however_many_claim_at_once(engine_url: str) -> None:
    """Four packs of three for eight processes that claim at the same moment."""
    with tools.open_by_hand(engine_url) as store:
        tools.add(store, seeds=range(12), epochs=9)
        tools.register(store, *(f"w{number}" for number in range(8)))
        held = [tools.take(store, f"w{number}", limit=3) for number in range(4)]
        for claims in held:
            interrupted(store, claims)
    said = tools.in_processes(8, engine_url, SPLIT).split("\n")
    assert sorted(filter(None, said)) == ["0,1,2", "3,4,5", "6,7,8", "9,10,11"]


@pytest.mark.parametrize("engine_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("lock", [True, False], ids=["one by one", "at once"])
def test_a_claim_waits_for_one_that_is_under_way(
    store: Store, engine_url: str, monkeypatch: pytest.MonkeyPatch, lock: bool
) -> None:
    """Else it would leave out the row that the other one has locked, and take the rest."""
    interrupted(store, tools.take(store, limit=3))
    if not lock:
        monkeypatch.setattr(packs, "one_by_one", lambda connection: None)
    other = Database(store.target)
    taken: list[list[int]] = []
    claim = threading.Thread(target=lambda: taken.append(seeds(store, tools.take(store, limit=3))))
    with other.write() as connection:
        packs.one_by_one(connection)
        first = select(schema.jobs.c.id).where(schema.jobs.c.seed == 1)
        connection.execute(first.with_for_update())
        claim.start()
        claim.join(0.5)
        assert claim.is_alive() is lock
    claim.join()
    other.close()
    assert taken == [[1, 2, 3] if lock else [2, 3]]


# Beside a member


def test_members_are_claimed_beside_one_and_share_its_pack(store: Store) -> None:
    (head,) = tools.take(store)
    joined = tools.take(store, limit=3, beside=head, log_path="logs/x.log")
    assert seeds(store, joined) == [2, 3, 4]
    assert len({pack_of(store, seed) for seed in (1, 2, 3, 4)}) == 1
    assert pack_of(store, 1) is not None
    assert store.attempts(joined[0].job_id)[-1].log_path == "logs/x.log"
    interrupted(store, [head, *joined])
    assert seeds(store, tools.take(store, whole_pack=True)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("workers", "taken"), [(1, 7), (2, 3), (3, 1)], ids=["alone", "two share", "three share"]
)
def test_a_pack_takes_no_more_than_its_share(store: Store, workers: int, taken: int) -> None:
    """Eight members: 1 + 7; then 2 heads and ceil(7/2) = 4 each; 3 heads and ceil(6/3) = 2."""
    heads = [tools.take(store, f"w{number + 1}")[0] for number in range(workers)]
    assert store.could_join(heads[0]) == taken
    assert len(tools.take(store, limit=8, beside=heads[0])) == taken
    for number, head in enumerate(heads[1:], start=2):
        tools.take(store, f"w{number}", limit=8, beside=head)
    counts = [sum(job.owner == f"w{n + 1}" for job in store.jobs(1)) for n in range(workers)]
    assert sum(counts) == 8 and max(counts) - min(counts) <= 1


def test_without_a_look_at_the_others_it_would_take_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the test before."""
    monkeypatch.setattr(packs, "_alone_statement", lambda: select(literal(1)))
    (head,) = tools.take(store)
    tools.take(store, "w2")
    assert len(tools.take(store, limit=8, beside=head)) == 6


def test_only_free_members_at_the_same_place_join(store: Store) -> None:
    pack, single = tools.take(store, limit=2), tools.take(store, "w2")
    for claims in (pack, single):
        interrupted(store, claims)
    taken = tools.take(store, "w2", limit=2, whole_pack=True)
    assert seeds(store, taken) == [1, 2]
    (head,) = tools.take(store)  # seed 3, after epoch 1
    assert seeds(store, [head]) == [3]
    # Of those at epoch 1 none is free; the others stand at the beginning.
    interrupted(store, taken, epoch=0)
    assert store.could_join(head) == 0
    assert tools.take(store, limit=8, beside=head) == []
    assert pack_of(store, 3) is None


def test_a_member_that_has_one_try_left_joins_nobody(store: Store) -> None:
    for _ in range(2):
        store.fail(tools.take(store)[0], Outcome.CRASH, "SIGSEGV", retry=True)
    store.hold("chignolin", [1])
    (head,) = tools.take(store)
    store.unhold("chignolin", [1])
    assert seeds(store, tools.take(store, limit=8, beside=head)) == [3, 4, 5, 6, 7, 8]


def test_a_member_that_is_lost_takes_nobody_along(store: Store) -> None:
    (head,) = tools.take(store)
    store.cancel("chignolin", [1])
    assert store.could_join(head) == 0
    assert tools.take(store, limit=8, beside=head) == []


def test_a_claim_beside_whose_answer_is_lost_is_made_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (head,) = tools.take(store)
    write = store._write

    def twice(work):  # type: ignore[no-untyped-def]
        write(work)
        return write(work)

    monkeypatch.setattr(store, "_write", twice)
    assert seeds(store, tools.take(store, limit=3, beside=head)) == [2, 3, 4]
    assert [job.state for job in store.jobs(1)].count("running") == 4  # type: ignore[comparison-overlap]


# Probes


def test_a_probe_is_remembered_once_and_replaced(store: Store, engine_url: str) -> None:
    assert store.probe(KEY) is None
    store.remember_probe(PROBE)
    before = tools.dump(engine_url)["probes"]
    store.remember_probe(PROBE)
    assert tools.dump(engine_url)["probes"] == before
    assert store.probe(KEY) == PROBE
    store.remember_probe(replace(PROBE, size=8, worker="w2"))
    assert store.probe(KEY) == replace(PROBE, size=8, worker="w2")
    assert len(tools.dump(engine_url)["probes"]) == 1


@pytest.mark.parametrize("part", ["model", "shape", "device", "versions"])
def test_a_probe_holds_for_its_key_alone(store: Store, part: str) -> None:
    store.remember_probe(PROBE)
    assert store.probe(replace(KEY, **{part: "other"})) is None


@pytest.mark.parametrize("rows", ["", "[1]", '[{"members": "x"}]', "null"])
def test_a_probe_that_ensq_did_not_write_is_none(store: Store, rows: str) -> None:
    store.remember_probe(PROBE)
    golden.execute(url_of(store), "UPDATE probes SET rows = :rows", rows=rows)
    assert store.probe(KEY) is None
