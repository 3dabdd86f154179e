"""Budgets: what goes beyond one, and how all are shown."""

from decimal import Decimal

import pytest

from batchmill.spec.budgets import cost_budget, cost_refusals, day_budget, day_refusal, queue_budgets, queue_refusals
from batchmill.spec.prices import Cost
from batchmill.spec.usage import DAY_SECONDS, day_end, day_of

NOW = 1_800_000_000.5
MIDNIGHT = day_end(day_of(NOW))


def test_a_day_is_used_up_when_the_limit_is_reached() -> None:
    """One token less and it is not; the 429 names both numbers and the end of the day, and tells clients to wait."""
    assert day_refusal(used=99, limit=100, now=NOW) is None
    refusal = day_refusal(used=101, limit=100, now=NOW)
    assert refusal is not None
    assert (refusal.status, refusal.type, refusal.code) == (429, "rate_limit_reached_error", "token_limit_exceeded")
    assert refusal.headers == {"Retry-After": str(MIDNIGHT - 1_800_000_000), "x-should-retry": "false"}
    for told in ("101 tokens", "of 100", "2027-01-16T00:00:00Z", "those that run go on"):
        assert told in refusal.message
    assert day_refusal(used=0, limit=0, now=NOW) is not None  # nothing at all is allowed


@pytest.mark.parametrize(
    ("now", "wait"), [(MIDNIGHT - 0.1, "1"), (float(MIDNIGHT), str(DAY_SECONDS)), (MIDNIGHT - 1.0, "1")]
)
def test_the_wait_is_until_midnight(now: float, wait: str) -> None:
    """Never nothing, and never more than a day."""
    refusal = day_refusal(used=1, limit=1, now=now)
    assert refusal is not None
    assert refusal.headers["Retry-After"] == wait


def test_each_model_has_a_queue_of_its_own() -> None:
    """What fits to the token passes; what does not is an error with three numbers, of the file as a whole."""
    enqueued = {"a": 60, "b": 10}
    assert queue_refusals(asked={"a": 40, "b": 90, "c": 100}, enqueued=enqueued, limit=100) == []
    (one, other) = queue_refusals(asked={"a": 41, "b": 90, "c": 101}, enqueued=enqueued, limit=100)
    assert (one.code, one.line, one.param) == ("token_limit_exceeded", None, None)
    for told in ("model 'a'", "100 tokens", "60 are", "has 41"):
        assert told in one.message
    assert "0 are, and this batch has 101" in other.message


def test_a_batch_may_cost_so_much() -> None:
    """The very limit passes; beyond it both amounts are told, and a cost that nobody knows is no small one."""
    limit = Decimal("12.50")
    assert cost_refusals(cost=Cost(amount=Decimal("12.5"), currency="EUR"), limit=limit) == []
    (beyond,) = cost_refusals(cost=Cost(amount=Decimal("12.500001"), currency="EUR"), limit=limit)
    assert beyond.code == "batch_cost_exceeded"
    assert "12.500001 EUR by estimate; a batch may cost 12.50 EUR" in beyond.message
    (unknown,) = cost_refusals(cost=None, limit=limit)
    assert unknown.code == "batch_cost_unknown"
    assert "12.50" in unknown.message


def test_budgets_are_shown_with_what_is_used_of_them() -> None:
    """A queue for each model that has one, else one that is empty."""
    assert day_budget(used=5, limit=9, now=NOW) == {
        "kind": "tokens_per_day",
        "limit": 9,
        "used": 5,
        "resets_at": MIDNIGHT,
    }
    shown = [
        (queue["model"], queue["used"], queue["limit"]) for queue in queue_budgets(enqueued={"b": 2, "a": 1}, limit=9)
    ]
    assert shown == [("a", 1, 9), ("b", 2, 9)]
    assert queue_budgets(enqueued={}, limit=9) == [{"kind": "enqueued_tokens", "model": None, "limit": 9, "used": 0}]
    assert cost_budget(limit=Decimal("0.1"), currency="EUR") == {"kind": "batch_cost", "limit": 0.1, "currency": "EUR"}
