"""What a Reply means for a Request."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.schedule.retry import ATTEMPTS, FALLS, Done, Fault, GaveUp, Later, Verdict, judge

DOUBTFUL: list[tuple[int | None, Fault | None]] = [
    (502, None),
    (504, None),
    (None, Fault.RESET),
    (None, Fault.TIMEOUT),
    (200, Fault.GARBLED),
]


def judged(
    status: int | None = None,
    fault: Fault | None = None,
    retry_after: float | None = None,
    *,
    attempts: int = 1,
    draw: float = 0.5,
    falls: int | None = None,
    once: bool = False,
) -> Verdict:
    """Judge with the usual values."""
    return judge(
        status=status, fault=fault, retry_after=retry_after, attempts=attempts, draw=draw, falls=falls, once=once
    )


def wait_of(verdict: Verdict) -> float:
    """Return the wait of a verdict that must be Later."""
    assert isinstance(verdict, Later)
    return verdict.after


@pytest.mark.parametrize("status", [200, 201, 204])
def test_every_2xx_is_a_success(status: int) -> None:
    """A 2xx is a line of the output file, on whatever attempt it comes."""
    assert judged(status, attempts=ATTEMPTS) == Done(succeeded=True)


@pytest.mark.parametrize("status", [400, 402, 405, 409, 413, 415, 422, 451])
def test_other_4xx_are_the_lines_own_result(status: int) -> None:
    """A 4xx that the line itself caused goes to the error file at once."""
    assert judged(status) == Done(succeeded=False)


def test_429_is_pressure() -> None:
    """A 429 uses up no attempt and asks for a smaller window."""
    verdict = judged(429, draw=0.5)
    assert verdict == Later(after=1.0, attempt_used=False, pressure=True, unwell=False)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 401, 403, 404, 503, 529])
@pytest.mark.parametrize("attempts", [1, 50])
def test_operators_faults_make_the_backend_unwell(status: int, attempts: int) -> None:
    """A refusal that is not the line's fault never costs it an attempt, however often it comes."""
    assert judged(status, attempts=attempts) == Later(after=1.0, attempt_used=False, pressure=False, unwell=True)


def test_an_unreachable_backend_is_unwell() -> None:
    """A request that was never sent costs no attempt."""
    verdict = judged(fault=Fault.UNREACHABLE, attempts=99)
    assert verdict == Later(after=1.0, attempt_used=False, pressure=False, unwell=True)


@pytest.mark.parametrize("status", [100, 408, 425, 500, 501, 505, 599, 600])
def test_failures_of_a_living_backend_use_up_an_attempt(status: int) -> None:
    """A backend that says itself that it failed uses up one of five attempts; the last answer is the line."""
    verdict = judged(status)
    assert isinstance(verdict, Later)
    assert verdict == Later(after=verdict.after, attempt_used=True)
    assert judged(status, attempts=ATTEMPTS) == Done(succeeded=False)


@pytest.mark.parametrize(("status", "fault"), DOUBTFUL)
def test_what_may_be_either_is_a_doubt_and_costs_nothing_by_itself(status: int | None, fault: Fault | None) -> None:
    """A reset, a gateway's error, a late or garbled reply costs an attempt only once others have succeeded."""
    verdict = judged(status, fault)
    assert isinstance(verdict, Later)
    assert verdict == Later(after=verdict.after, doubt=True)


@pytest.mark.parametrize(("status", "fault"), DOUBTFUL)
def test_a_line_that_fells_the_backend_three_times_alone_is_given_up(status: int | None, fault: Fault | None) -> None:
    """Alone, attempts do not count but falls do: at the third the line ends, with a code that says how it fell."""
    verdicts = [judged(status, fault, attempts=99, falls=falls) for falls in range(1, FALLS + 1)]
    assert [isinstance(verdict, Later) for verdict in verdicts] == [True, True, False]
    assert isinstance(verdicts[-1], GaveUp)
    codes = {None: "upstream_unavailable", Fault.RESET: "upstream_unavailable", Fault.TIMEOUT: "request_timeout"}
    assert (verdicts[-1].code, verdicts[-1].doubt) == (codes.get(fault, "invalid_backend_response"), True)


@pytest.mark.parametrize("falls", [None, 1])
@pytest.mark.parametrize(("status", "fault"), DOUBTFUL)
def test_a_line_that_may_run_once_only_ends_where_its_answer_was_lost(
    status: int | None, fault: Fault | None, falls: int | None
) -> None:
    """With on_unknown_outcome = fail a lost answer is the end; what surely did not run is sent again as ever."""
    verdict = judged(status, fault, falls=falls, once=True)
    assert isinstance(verdict, GaveUp)
    assert verdict.code == "outcome_unknown"
    for surely_not in (judged(429, once=True), judged(503, once=True), judged(fault=Fault.UNREACHABLE, once=True)):
        assert isinstance(surely_not, Later)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (None, "upstream_unavailable"),
        (Fault.RESET, "upstream_unavailable"),
        (Fault.TIMEOUT, "request_timeout"),
        (Fault.GARBLED, "invalid_backend_response"),
    ],
)
def test_faults_use_up_an_attempt_and_then_give_up(fault: Fault | None, code: str) -> None:
    """Without an HTTP answer the fifth attempt ends the line with a code of its own."""
    assert isinstance(judged(fault=fault, attempts=ATTEMPTS - 1), Later)
    verdict = judged(fault=fault, attempts=ATTEMPTS)
    assert isinstance(verdict, GaveUp)
    assert verdict.code == code


def test_a_garbled_success_is_no_http_answer() -> None:
    """A fault weighs more than the status that came with it."""
    verdict = judged(200, Fault.GARBLED, attempts=ATTEMPTS)
    assert isinstance(verdict, GaveUp)


def test_an_oversized_reply_ends_at_once() -> None:
    """A reply above the cap would be as large again."""
    verdict = judged(200, Fault.OVERSIZE)
    assert isinstance(verdict, GaveUp)
    assert verdict.code == "invalid_backend_response"


def test_the_backoff_doubles_from_half_a_second_with_jitter() -> None:
    """Each attempt waits between half of and the whole of 0.5 s, 1 s, 2 s, 4 s."""
    low = [wait_of(judged(500, attempts=n, draw=0.0)) for n in range(1, ATTEMPTS)]
    high = [wait_of(judged(500, attempts=n, draw=1.0)) for n in range(1, ATTEMPTS)]
    assert low == [0.25, 0.5, 1.0, 2.0]
    assert high == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("status", [429, 500, 502])
@pytest.mark.parametrize(("asked", "least", "most"), [(7.0, 7.0, 7.0), (1e9, 60.0, 60.0), (math.inf, 60.0, 60.0)])
def test_retry_after_is_honoured_up_to_a_minute(status: int, asked: float, least: float, most: float) -> None:
    """A backend's own wish is followed, but never for longer than 60 s."""
    assert least <= wait_of(judged(status, retry_after=asked)) <= most


def test_an_unwell_backends_wish_does_not_hold_the_line_back() -> None:
    """Its circuit waits for it: a line is ready within two seconds, whatever a 503 asked for."""
    assert wait_of(judged(503, retry_after=60.0)) < 2.0


@pytest.mark.parametrize("asked", [None, 0.0, -5.0, -math.inf, math.nan])
def test_a_useless_retry_after_is_no_hot_loop(asked: float | None) -> None:
    """Zero, a negative number or no number at all means our own wait."""
    assert wait_of(judged(429, retry_after=asked, draw=0.0)) == 0.5


@given(
    status=st.none() | st.integers(0, 1000),
    fault=st.none() | st.sampled_from(Fault),
    retry_after=st.none() | st.floats(),
    attempts=st.integers(1, 1000),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_every_reply_has_a_verdict_with_a_bounded_wait(
    status: int | None, fault: Fault | None, retry_after: float | None, attempts: int, draw: float
) -> None:
    """Whatever a backend does, a wait is above zero and at most a minute."""
    verdict = judge(status=status, fault=fault, retry_after=retry_after, attempts=attempts, draw=draw)
    if isinstance(verdict, Later):
        assert 0.0 < verdict.after <= 60.0
        assert not verdict.attempt_used or attempts < ATTEMPTS
