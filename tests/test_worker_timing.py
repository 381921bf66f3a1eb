"""What the worker measures, and what follows for its time limit: plain numbers."""

from __future__ import annotations

import pytest

from ensq.worker import timing
from ensq.worker.timing import Timing, too_late

DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def measured(clock: Clock, *, start: float = 30.0, step: float = 0.5, end: float = 2.0) -> Timing:
    """A timing that has seen two epochs of ten calls each."""
    times = Timing(clock)
    times.claimed(warm=False)
    clock.after(start)
    for _ in range(2):
        for _ in range(10):
            times.stepped()
            clock.after(step)
        clock.after(end - step)
        times.finished_epoch()
    return times


def test_what_the_trainer_says_is_measured(clock: Clock) -> None:
    times = measured(clock)
    assert (times.cold, times.warm, times.step, times.end) == (30.0, None, 0.5, 2.0)
    assert times.epoch == pytest.approx(6.5)  # nine waits and the end
    times.asked_to_stop()
    clock.after(1.25)
    times.stopped()
    assert times.stop == 1.25


def test_the_time_before_the_first_step_is_no_step(clock: Clock) -> None:
    """A claim, an epoch's end and the next claim may lie minutes apart."""
    times = measured(clock)
    clock.after(500.0)
    times.claimed(warm=True)
    clock.after(3.0)
    told = times.stepped()
    assert (
        told == "the first steps are done 3.0 s after the claim, by the trainer of the claim before"
    )
    assert times.stepped() is None
    assert (times.step, times.warm, times.cold) == (0.5, 3.0, 30.0)


def test_the_longest_counts(clock: Clock) -> None:
    times = measured(clock)
    times.stepped()
    clock.after(4.0)
    times.stepped()
    clock.after(9.0)
    times.finished_epoch()
    assert (times.step, times.end) == (4.0, 9.0)


def test_a_stop_lasts_a_call_and_the_end_of_an_epoch_and_a_checkpoint(clock: Clock) -> None:
    assert Timing(clock).stopping() is None
    assert measured(clock).stopping() == 0.5 + 2 * 2.0


def test_a_stop_that_was_slower_than_that_counts(clock: Clock) -> None:
    times = measured(clock)
    times.asked_to_stop()
    clock.after(40.0)
    times.stopped()
    assert times.stopping() == 40.0


@pytest.mark.parametrize(
    ("allocation", "margin"),
    [(60.0, 15.0), (120.0, 30.0), (3600.0, 60.0), (4 * DAY, 60.0)],
)
def test_the_margin_of_a_worker_that_knows_nothing(allocation: float, margin: float) -> None:
    assert Timing().margin(60.0, allocation) == margin


@pytest.mark.parametrize("allocation", [60.0, 3600.0, 4 * DAY])
def test_the_margin_follows_what_was_measured(clock: Clock, allocation: float) -> None:
    times = measured(clock)
    assert times.margin(60.0, allocation) == timing.SAFETY * 4.5 + timing.FIXED


def test_the_margin_follows_the_recorded_epochs_before_anything_was_measured(clock: Clock) -> None:
    times = Timing(clock)
    times.claimed(warm=False, usual=0.5)
    assert times.margin(60.0, 3600.0) == timing.SAFETY * 1.5 + timing.FIXED
    times.claimed(warm=False, usual=7.0)
    assert times.margin(60.0, 3600.0) == timing.SAFETY * 21.0 + timing.FIXED
    assert times.margin(60.0, 60.0) == 15.0  # a rough bound does not cost half a minute


def test_the_margin_is_bounded_by_the_option_and_half_the_allocation(clock: Clock) -> None:
    times = measured(clock, end=100.0)
    assert times.margin(60.0, DAY) == 60.0
    assert times.margin(600.0, DAY) == timing.SAFETY * 200.5 + timing.FIXED
    assert times.margin(600.0, 100.0) == 50.0


def test_a_member_needs_its_start_a_step_and_a_stop(clock: Clock) -> None:
    times = measured(clock)
    assert times.need(None, warm=False) == 30.0 + 0.5 + 4.5 + timing.FIXED
    assert times.need(None, warm=True) == 15.0 + 0.5 + 4.5 + timing.FIXED
    times.claimed(warm=True)
    clock.after(3.0)
    times.stepped()
    assert times.need(None, warm=True) == 3.0 + 0.5 + 4.5 + timing.FIXED


def test_without_measurements_the_recorded_epochs_bound_the_guess() -> None:
    # A small member fits into a limit of a minute; of a large one a step is guessed.
    assert Timing().need(0.2, warm=False) == pytest.approx(timing.FIRST + 0.4 + timing.FIXED)
    assert Timing().need(0.2, warm=False) < 45.0
    assert Timing().need(3600.0, warm=False) == timing.FIRST + 20.0 + timing.FIXED
    assert Timing().need(None, warm=False) < 60.0


def test_a_member_that_needs_longer_than_there_is_comes_too_late() -> None:
    assert too_late(12.0, 40.0, first=False)
    assert not too_late(41.0, 40.0, first=False)


def test_the_first_claim_is_tried_unless_it_is_hopeless() -> None:
    """Else workers under a limit that is too short would leave and come back for ever."""
    assert not too_late(50.0, 4000.0, first=True)
    assert too_late(timing.FIRST - 1, 4000.0, first=True)
    assert not too_late(10.0, 5.0, first=True)
