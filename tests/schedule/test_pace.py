"""How many requests a Backend gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.schedule.pace import DOUBTS, TRIAL_PATIENCE, Pace
from batchmill.schedule.retry import Done, GaveUp, Later, Verdict
from batchmill.schedule.window import Gauges

GOOD = Done(succeeded=True)
REFUSED = Done(succeeded=False)
PRESSURE = Later(after=1.0, attempt_used=False, pressure=True, unwell=False)
UNWELL = Later(after=1.0, attempt_used=False, pressure=False, unwell=True)
ATTEMPT = Later(after=1.0, attempt_used=True, pressure=False, unwell=False)
GAVE_UP = GaveUp(code="request_timeout", message="late")
DOUBT = Later(after=1.0, doubt=True)
FELLED = GaveUp(code="upstream_unavailable", message="felled", doubt=True)

BAD_GATEWAY = Done(succeeded=False, doubt=True)


def send(pace: Pace, count: int, now: float = 0.0) -> None:
    """Send as many requests."""
    for _ in range(count):
        assert pace.may_send(now)
        pace.sent(now)


def opened(now: float = 100.0) -> Pace:
    """Return a pace whose circuit opened at `now`."""
    pace = Pace()
    send(pace, 1, now)
    pace.answered(UNWELL, now)
    return pace


def test_the_window_bounds_what_is_in_flight() -> None:
    """A full window lets nothing more out until an answer comes."""
    pace = Pace(window=3)
    send(pace, 3)
    assert not pace.may_send(0.0)
    pace.answered(GOOD, 1.0)
    assert pace.may_send(1.0)
    assert pace.in_flight == 2


def test_the_window_is_eight_by_default() -> None:
    """Without a setting eight requests are in flight."""
    assert Pace().window == Pace().most == 8
    assert (Pace(most=64).window, Pace(most=64).most) == (8, 64)


def test_a_withdrawn_request_frees_its_slot() -> None:
    """A request given up before its answer says nothing but that it is gone."""
    pace = Pace(window=1)
    send(pace, 1)
    pace.withdrawn()
    assert pace.may_send(0.0)
    assert pace.in_flight == 0


def test_pressure_halves_the_window_at_most_once_a_second() -> None:
    """A burst of 429s counts once; the window never falls below one."""
    pace = Pace(window=8)
    windows = []
    for now in (0.0, 0.1, 0.9, 1.0, 2.0, 3.0):
        pace.sent(now)
        pace.answered(PRESSURE, now)
        windows.append(pace.window)
    assert windows == [4, 4, 4, 2, 1, 1]
    assert pace.unwell_since is None


def test_each_full_window_of_successes_grows_it_by_one() -> None:
    """Two, then three successes bring a window of two back to four, and no further."""
    pace = Pace(window=4)
    pace.sent(0.0)
    pace.answered(PRESSURE, 0.0)
    windows = []
    for _ in range(8):
        pace.sent(1.0)
        pace.answered(GOOD, 1.0)
        windows.append(pace.window)
    assert windows == [2, 3, 3, 3, 4, 4, 4, 4]


@pytest.mark.parametrize("verdict", [REFUSED, ATTEMPT, GAVE_UP])
def test_only_successes_grow_the_window(verdict: Verdict) -> None:
    """An answer that is no success says nothing about room."""
    pace = Pace(window=4)
    pace.sent(0.0)
    pace.answered(PRESSURE, 0.0)
    for _ in range(9):
        pace.sent(1.0)
        pace.answered(verdict, 1.0)
    assert pace.window == 2
    assert pace.unwell_since is None


def test_an_unwell_verdict_stops_all_sending() -> None:
    """While the circuit is open nothing is sent, and the outage has a beginning."""
    pace = opened(now=100.0)
    assert pace.unwell_since == 100.0
    assert not pace.may_send(1e9)


def test_a_circuit_is_open_until_a_probe_succeeds() -> None:
    """Only an open circuit is open: a backend on trial may be claimed for, or its trial would never be sent."""
    assert not Pace().is_open
    pace = opened(100.0)
    assert pace.is_open
    pace.probed(ok=True, now=101.0)
    assert not pace.is_open
    assert pace.unwell_since == 100.0


def test_probes_back_off_from_half_a_second_to_five() -> None:
    """Each failed probe doubles the wait for the next, up to 5 s."""
    pace, now = opened(now=100.0), 100.0
    for wait in (0.5, 1.0, 2.0, 4.0, 5.0, 5.0):
        assert not pace.probe_due(now + wait - 0.01)
        assert pace.probe_due(now + wait)
        now += wait
        pace.probed(ok=False, now=now)
    assert pace.unwell_since == 100.0


def test_a_good_probe_lets_one_request_out() -> None:
    """Half-open means one request in flight, and no more probes."""
    pace = opened()
    pace.probed(ok=True, now=101.0)
    assert not pace.probe_due(1e9)
    send(pace, 1, 101.0)
    assert not pace.may_send(101.0)
    assert pace.unwell_since == 100.0


@pytest.mark.parametrize("verdict", [GOOD, REFUSED, PRESSURE, ATTEMPT, GAVE_UP])
def test_any_other_verdict_of_the_trial_makes_it_well(verdict: Verdict) -> None:
    """A backend that does anything but what felled it is well again."""
    pace = opened()
    pace.probed(ok=True, now=101.0)
    send(pace, 1, 101.0)
    pace.answered(verdict, 102.0, sent_at=101.0)
    assert pace.unwell_since is None
    assert pace.may_send(102.0)


def test_a_trial_that_fails_keeps_the_backoff_growing() -> None:
    """A backend that lists its models but answers nothing is probed ever more slowly, in one and the same outage."""
    pace = opened(now=100.0)
    pace.probed(ok=True, now=100.5)
    send(pace, 1, 100.5)
    pace.answered(UNWELL, 101.0, sent_at=100.5)
    assert not pace.may_send(101.0)
    assert not pace.probe_due(101.9)
    assert pace.probe_due(102.0)
    assert pace.unwell_since == 100.0


def test_a_new_outage_starts_with_a_short_backoff() -> None:
    """Once well, the next outage is probed from half a second again."""
    pace = opened(now=100.0)
    pace.probed(ok=False, now=100.5)
    pace.probed(ok=True, now=101.5)
    send(pace, 1, 101.5)
    pace.answered(GOOD, 102.0)
    send(pace, 1, 102.0)
    pace.answered(UNWELL, 200.0)
    assert pace.unwell_since == 200.0
    assert pace.probe_due(200.5)


def test_the_other_requests_of_the_same_fall_change_nothing() -> None:
    """Answers to requests sent before the circuit opened neither grow the backoff nor close it."""
    pace = Pace()
    send(pace, 3, 99.0)
    pace.answered(UNWELL, 100.0, sent_at=99.0)
    pace.answered(UNWELL, 100.1, sent_at=99.0)
    pace.answered(GOOD, 100.2, sent_at=99.0)
    assert pace.in_flight == 0
    assert not pace.may_send(100.2)
    assert pace.probe_due(100.5)


@pytest.mark.parametrize("verdict", [UNWELL, GOOD])
def test_stragglers_do_not_stand_in_for_the_trial(verdict: Verdict) -> None:
    """An answer to a request from before the probe leaves the trial as it is."""
    pace = Pace()
    send(pace, 2, 99.0)
    pace.answered(UNWELL, 100.0, sent_at=99.0)
    pace.probed(ok=True, now=100.5)
    send(pace, 1, 100.5)
    pace.answered(verdict, 101.0, sent_at=99.0)
    assert not pace.may_send(101.0)
    assert not pace.probe_due(1e9)
    assert pace.unwell_since == 100.0


@pytest.mark.parametrize("doubt", [DOUBT, FELLED])
def test_doubts_in_a_row_open_the_circuit(doubt: Verdict) -> None:
    """When nothing but doubts comes back it is the backend, and the outage keeps the words of the last one."""
    pace = Pace()
    send(pace, DOUBTS, 100.0)
    for _ in range(DOUBTS - 1):
        pace.answered(doubt, 101.0)
    assert pace.unwell_since is None
    pace.answered(doubt, 102.0, sent_at=100.0, why="it hung up")
    assert (pace.unwell_since, pace.unwell_why) == (102.0, "it hung up")
    assert pace.is_open


@pytest.mark.parametrize("between", [GOOD, REFUSED])
def test_an_answer_between_doubts_means_that_the_backend_lives(between: Verdict) -> None:
    """One line that always fails among others that do not never opens the circuit."""
    pace = Pace()
    for now in range(20):
        send(pace, 1, now)
        pace.answered(DOUBT if now % DOUBTS else between, now)
    assert pace.unwell_since is None
    assert pace.answered_since(17.5)
    assert not pace.answered_since(18.0)


@pytest.mark.parametrize("doubt", [DOUBT, FELLED])
def test_a_doubt_about_the_trial_keeps_the_circuit_open(doubt: Verdict) -> None:
    """Suspects go one by one: after a trial's fall the next waits for the next probe."""
    pace = opened(100.0)
    pace.probed(ok=True, now=101.0)
    assert pace.sent(101.0)
    pace.answered(doubt, 102.0, sent_at=101.0)
    assert pace.is_open
    assert pace.unwell_since == 100.0


def test_a_trial_is_alone_only_when_nothing_else_is_out() -> None:
    """A fall counts against a line only if nothing but it can have felled the backend."""
    pace = Pace()
    send(pace, 2, 99.0)
    pace.answered(UNWELL, 100.0, sent_at=99.0)
    pace.probed(ok=True, now=101.0)
    assert not pace.sent(101.0)
    assert not Pace().sent(0.0)


def test_a_straggler_that_is_withdrawn_leaves_the_trial_out() -> None:
    """A call from before the outage that is given up does not let a second trial go."""
    pace = Pace()
    send(pace, 2, 99.0)
    pace.answered(UNWELL, 100.0, sent_at=99.0)
    pace.probed(ok=True, now=101.0)
    pace.sent(101.0)
    pace.withdrawn(sent_at=99.0)
    assert not pace.may_send(102.0)


def test_a_withdrawn_trial_may_be_repeated() -> None:
    """A trial without an answer decides nothing: another takes its place."""
    pace = opened()
    pace.probed(ok=True, now=101.0)
    send(pace, 1, 101.0)
    pace.withdrawn()
    assert pace.may_send(101.0)


def test_a_late_probe_changes_nothing() -> None:
    """The answer to a second probe, after the first has counted, is ignored."""
    pace = opened()
    pace.probed(ok=True, now=101.0)
    pace.probed(ok=False, now=101.1)
    assert pace.may_send(101.1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["send", "probe", GOOD, REFUSED, PRESSURE, UNWELL, ATTEMPT, DOUBT, FELLED]), st.booleans()
        )
    )
)
def test_a_pace_always_finds_its_way_back(moves: list[tuple[str | Verdict, bool]]) -> None:
    """Whatever happened, a good probe and a good answer make it well, and the window is never left."""
    pace, now = Pace(window=4), 0.0
    for move, ok in moves:
        now += 0.3
        if move == "send" and pace.may_send(now):
            pace.sent(now)
        elif move == "probe" and pace.probe_due(now):
            pace.probed(ok=ok, now=now)
        elif not isinstance(move, str) and pace.in_flight:
            pace.answered(move, now)
        assert 0 <= pace.in_flight <= 5  # a full window of stragglers, and the trial
        assert 1 <= pace.window <= 4
    while pace.in_flight:
        pace.answered(GOOD, now)
    if pace.unwell_since is not None:
        now += 5.0
        if pace.probe_due(now):
            pace.probed(ok=True, now=now)
        send(pace, 1, now)
        pace.answered(GOOD, now)
    assert pace.unwell_since is None
    assert pace.may_send(now)


def test_a_trial_that_takes_its_time_is_joined_by_others() -> None:
    """A sound call may take half an hour: after each TRIAL_PATIENCE one more goes, up to the window."""
    pace = Pace(window=3)
    pace.sent(99.0)
    pace.answered(UNWELL, 100.0)
    pace.probed(ok=True, now=101.0)
    now = 101.0
    for _ in range(3):
        send(pace, 1, now)
        assert not pace.may_send(now + TRIAL_PATIENCE - 0.01)
        now += TRIAL_PATIENCE
    assert not pace.may_send(1e9)


def test_a_trial_that_was_joined_is_no_line_of_its_own() -> None:
    """Only the first trial goes alone, so only its fall counts against the line."""
    pace = opened(100.0)
    pace.probed(ok=True, now=101.0)
    assert pace.sent(101.0)
    assert not pace.sent(101.0 + TRIAL_PATIENCE)


def test_a_gateways_last_word_is_no_sound_answer() -> None:
    """A doubtful Done does not end a row of doubts, and says nothing good of the backend."""
    pace = Pace()
    send(pace, DOUBTS, 100.0)
    for _ in range(DOUBTS):
        pace.answered(BAD_GATEWAY, 101.0)
    assert not pace.answered_since(99.0)
    assert pace.is_open


def test_a_better_window_is_sought_up_to_the_most() -> None:
    """With `most` the window doubles while throughput does; without, it stays what it was set to."""
    paces = Pace(window=8, most=20), Pace(window=8)
    for now in range(3):
        for pace in paces:
            size = pace.window
            send(pace, size, now)
            for _ in range(size):
                pace.answered(GOOD, now + 1, sent_at=now, work=10)
    assert [pace.window for pace in paces] == [20, 8]


def test_the_engines_gauges_lead() -> None:
    """What waits inside an engine that is ours is taken off the window."""
    pace = Pace(window=64, most=1024)
    send(pace, 64)
    pace.gauged(Gauges(40, 24), 1.0)
    for _ in range(64):
        pace.answered(GOOD, 2.0, sent_at=0.0)
    assert pace.window == 24 + 4
    pace.gauged(None, 3.0)


def test_prompts_are_paced() -> None:
    """A long prompt goes, the next waits for its tokens, and when it may go is told."""
    pace = Pace(window=8)
    pace.sent(0.0, prefill=8192)
    assert not pace.may_send(0.3)
    assert pace.opens_at(0.3) == pytest.approx(0.375)
    assert pace.may_send(0.4)
    assert pace.opens_at(0.4) is None


def test_an_engine_that_nobody_else_uses_is_not_paced() -> None:
    """Pacing is for others: where the gauges show none, prompts go at once."""
    pace = Pace(window=8)
    pace.sent(0.0, prefill=100_000)
    assert not pace.may_send(0.1)
    pace.gauged(Gauges(0, 1), 0.1)
    assert pace.may_send(0.1)
    assert pace.opens_at(0.1) is None


def test_somebody_who_comes_finds_no_debt() -> None:
    """What was sent while the engine was ours alone is not held against what is sent when it no longer is."""
    pace = Pace(window=8)
    pace.gauged(Gauges(0, 0), 0.0)
    pace.sent(0.1, prefill=1_000_000)
    pace.gauged(Gauges(0, 30), 1.0)
    assert pace.may_send(1.0)
    pace.sent(1.0, prefill=10_000)
    assert not pace.may_send(1.0)


def test_a_full_window_opens_at_no_known_time() -> None:
    """Only an answer opens a full window, so there is nothing to wake up for."""
    pace = Pace(window=1)
    pace.sent(0.0, prefill=10_000)
    assert pace.opens_at(0.0) is None


def test_a_backend_that_is_back_gets_its_prompts_gently() -> None:
    """After an outage prompts are paced as at a start, whatever was learned before."""
    pace = Pace(window=64)
    for second in range(40):
        send(pace, 8, float(second))
        for _ in range(8):
            pace.answered(GOOD, second + 0.5, sent_at=second, prefill=8192)
    pace.sent(40.0, prefill=0)
    pace.answered(UNWELL, 40.0)
    pace.probed(ok=True, now=41.0)
    pace.sent(41.0, prefill=0)
    pace.answered(GOOD, 41.5, sent_at=41.0)
    for _ in range(16):
        pace.sent(41.5, prefill=8192)
    assert pace.opens_at(41.5) == pytest.approx(43.5, abs=0.1)


def test_no_more_than_its_slots_go_to_an_engine_whose_slots_are_apart() -> None:
    """What waits in it would take any slot, and compute a beginning that another slot has."""
    pace = Pace(window=8)
    for _ in range(8):
        pace.sent(0.0)
    pace.gauged(Gauges(waiting=4, running=4, apart=True), 1.0)
    assert (pace.window, pace.side_by_side) == (4, 4)
    pace.gauged(Gauges(waiting=1, running=2, apart=True), 2.0)  # looked at between two requests of a slot
    assert (pace.window, pace.side_by_side) == (4, 4)
    pace.gauged(None, 3.0)
    pace.gauged(Gauges(waiting=1, running=6, apart=True), 4.0)
    assert (pace.window, pace.side_by_side) == (6, 6)


def test_engines_that_share_one_cache_get_a_window_and_no_turns() -> None:
    """Their queue is what keeps them busy."""
    pace = Pace(window=8)
    pace.gauged(Gauges(waiting=4, running=4), 1.0)
    assert (pace.window, pace.side_by_side) == (8, 1)
