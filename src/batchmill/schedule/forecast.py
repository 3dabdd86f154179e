"""How fast a batch goes, when it will be done, and by how much it will miss its deadline; silent while nobody knows.

A rate is lines by the seconds that they took. Both are sums that fade: each group commit adds its own to them and
multiplies them by `FADE_SECONDS / (FADE_SECONDS + gap)`, where `gap` is the time since the last one. The quotient of
two sums that fade alike is right from the start, moves by no more than what has come in weighs, and needs no other
state.

What stands before a batch is in its rate already: lines of batches that share a backend are sent in turn. So the
forecast is what comes true if all stays as it is; a batch that others will make room for is done sooner.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

FADE_SECONDS = (
    300.0  # what is so old counts half or less: no burst of lines is as long, and no batch much shorter waits
)

_FEWEST_SECONDS = 10.0  # a forecast from less would be noise
_FEWEST_LINES = 10.0  # the same, for as long as a slow batch may still prove to be a fast one
_SLOW_SECONDS = FADE_SECONDS / 2  # after so long it is a slow one
_USUAL_GAPS = 10.0  # no line in so many times the usual, and it stands still
_SLOWEST = 1 / 86_400  # lines a second; slower than a line a day is no pace
_DIGITS = 4  # of a rate, behind the point


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """What group commits counted of a batch lately, as faded sums.

    `age` is the time in seconds since the last of them; None if nobody knows, as after a restart. Of the tokens,
    `prompt` and `completion` say how they divide: versions of the code that know only their sum may count beside.
    """

    lines: float
    tokens: float
    seconds: float
    age: float | None
    prompt: float = 0.0
    completion: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is known of a batch's course; None is what nobody can know.

    `eta` is the Unix second at which its last line will be done, `misses_by` how many seconds after its deadline that
    is, None if it is not after it.
    """

    lines_per_second: float | None = None
    tokens_per_second: float | None = None
    eta: int | None = None
    misses_by: int | None = None
    prompt_tokens_per_second: float | None = None
    completion_tokens_per_second: float | None = None


UNKNOWN = Forecast()


def forecast(recent: Recent, *, left: int, waits: bool, now: float, expires_at: int | None) -> Forecast:
    """Say how a batch in progress will go on.

    Args:
        recent: What was counted of it.
        left: Its lines without a Result.
        waits: There is a reason why it does not move on.
        now: Unix seconds.
        expires_at: Its deadline in Unix seconds, if it has one.
    """
    if waits or not _is_known(recent) or not _moves(recent):
        return UNKNOWN
    rate = recent.lines / recent.seconds
    eta = math.ceil(now + left / rate)
    late = 0 if expires_at is None else max(0, eta - expires_at)
    tokens = recent.tokens / recent.seconds
    divided = recent.prompt + recent.completion
    return Forecast(
        lines_per_second=round(rate, _DIGITS),
        tokens_per_second=round(tokens, _DIGITS) if tokens else None,
        eta=eta,
        misses_by=late or None,
        prompt_tokens_per_second=round(tokens * recent.prompt / divided, _DIGITS) if divided else None,
        completion_tokens_per_second=round(tokens * recent.completion / divided, _DIGITS) if divided else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of how a batch would go that is not there yet; None is what nobody can know.

    `margin` is the time in seconds from its end to its deadline, negative if it would miss it.
    """

    tokens_per_second: float | None = None
    eta: int | None = None
    margin: int | None = None


def outlook(
    running: Iterable[Recent],
    *,
    last: Recent | None,
    ahead: float,
    tokens: float | None,
    now: float,
    expires_at: int,
) -> Outlook:
    """Say when a new batch would be done, if all that is there already were done before it: it is no later.

    Args:
        running: What was counted of each batch in progress on the same models; they go side by side.
        last: The same of the last one that was completed, for the time when none is running.
        ahead: Tokens of all batches that are there already.
        tokens: Its own, by the same estimate; None if it would never run.
        now: Unix seconds.
        expires_at: Its deadline in Unix seconds.
    """
    rate = sum(each.tokens / each.seconds for each in running if _is_known(each) and _moves(each))
    if not rate and last is not None and _is_known(last):
        rate = last.tokens / last.seconds
    if not rate:
        return Outlook()
    told = round(rate, _DIGITS)
    if tokens is None:
        return Outlook(tokens_per_second=told)
    eta = math.ceil(now + (ahead + tokens) / rate)
    return Outlook(tokens_per_second=told, eta=eta, margin=expires_at - eta)


def _is_known(recent: Recent) -> bool:
    fewest = _FEWEST_SECONDS if recent.lines >= _FEWEST_LINES else _SLOW_SECONDS
    return recent.seconds >= fewest and recent.lines / recent.seconds >= _SLOWEST


def _moves(recent: Recent) -> bool:
    usual = recent.seconds / recent.lines
    return recent.age is not None and recent.age <= max(FADE_SECONDS, _USUAL_GAPS * usual)
