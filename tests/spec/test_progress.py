"""What is told of how far a batch is."""

from dataclasses import replace
from decimal import Decimal

import pytest

from batchmill.schedule.forecast import Forecast
from batchmill.spec.groups import ErrorGroup
from batchmill.spec.objects import BatchObject, Counts, Usage
from batchmill.spec.prices import Cost
from batchmill.spec.progress import Errors, ProgressObject, Share
from batchmill.spec.states import FINAL, Status

BATCH = BatchObject(
    id="batch_1",
    endpoint="/v1/chat/completions",
    input_file_id="file_1",
    completion_window="1h",
    status=Status.IN_PROGRESS,
    created_at=100,
    expires_at=3700,
    counts=Counts(completed=5, failed=3, total=20),
)
PROGRESS = ProgressObject(batch=BATCH, waiting=None, ahead=0, retries=0, shares=[], errors=[])


def errors(name: str, count: int) -> Errors:
    """Return a group of so many failed lines."""
    return Errors(group=ErrorGroup(name, 400, "c", "m"), count=count, custom_ids=("a",), example="e")


def test_every_key_is_there_while_nothing_is_known() -> None:
    """What nobody knows is null, and what nobody has counted is nothing."""
    assert PROGRESS.wire() == {
        "object": "batch.progress",
        "batch_id": "batch_1",
        "status": "in_progress",
        "paused_at": None,
        "priority": 0,
        "request_counts": {"completed": 5, "failed": 3, "total": 20},
        "lines_per_second": None,
        "prompt_tokens_per_second": None,
        "completion_tokens_per_second": None,
        "usage": Usage().wire(),
        "cost": None,
        "eta": None,
        "expires_at": 3700,
        "margin": None,
        "misses_by": None,
        "queue_position": 0,
        "waiting": None,
        "retries": 0,
        "backends": [],
        "error_groups": [],
        "errors_ungrouped": 3,
    }


def test_all_that_is_known_is_told() -> None:
    """Rates, tokens, the reason of a wait, shares and groups, each in its own words."""
    course = Forecast(lines_per_second=2.0, prompt_tokens_per_second=3.0, completion_tokens_per_second=1.0, eta=3000)
    told = replace(
        PROGRESS,
        batch=replace(
            BATCH,
            usage=Usage(input_tokens=9, output_tokens=4),
            progress=course,
            paused_at=150,
            priority=3,
            cost=Cost(amount=Decimal("0.25"), currency="USD"),
        ),
        waiting=("the disk is full", 200),
        ahead=2,
        retries=7,
        shares=[Share(backend="gpu", lines=5, prompt_tokens=9, completion_tokens=4)],
        errors=[errors("g", 2)],
    ).wire()
    assert (told["lines_per_second"], told["eta"], told["margin"], told["misses_by"]) == (2.0, 3000, 700, None)
    assert (told["prompt_tokens_per_second"], told["completion_tokens_per_second"]) == (3.0, 1.0)
    assert (told["paused_at"], told["priority"]) == (150, 3)
    assert told["cost"] == {"amount": 0.25, "currency": "USD"}
    assert told["usage"] == Usage(input_tokens=9, output_tokens=4).wire()
    assert told["waiting"] == {"reason": "the disk is full", "since": 200}
    assert (told["queue_position"], told["retries"]) == (2, 7)
    assert told["backends"] == [{"backend": "gpu", "lines": 5, "prompt_tokens": 9, "completion_tokens": 4}]
    assert told["error_groups"] == [
        {"id": "g", "status": 400, "code": "c", "message": "m", "example": "e", "count": 2, "custom_ids": ["a"]}
    ]
    assert told["errors_ungrouped"] == 1


def test_a_miss_is_a_margin_below_nothing() -> None:
    """Both say the same of an end behind the deadline; without a deadline there is neither."""
    late = replace(BATCH, progress=Forecast(eta=3800, misses_by=100))
    told = replace(PROGRESS, batch=late).wire()
    assert (told["margin"], told["misses_by"]) == (-100, 100)
    assert replace(PROGRESS, batch=replace(late, expires_at=None)).wire()["margin"] is None


def test_the_largest_groups_are_shown_first_and_the_others_count() -> None:
    """Twenty of them; what the others hold is in a group all the same."""
    batch = replace(BATCH, counts=Counts(failed=1000, total=1000))
    some = [errors(f"g{n:02}", 1 + n % 2) for n in range(30)]
    told = replace(PROGRESS, batch=batch, errors=some).wire()
    shown = told["error_groups"]
    assert isinstance(shown, list)
    assert [(group["count"], group["id"]) for group in shown] == [
        *((2, f"g{n:02}") for n in range(1, 30, 2)),
        *((1, f"g{n:02}") for n in range(0, 10, 2)),
    ]
    assert told["errors_ungrouped"] == 1000 - 45


@pytest.mark.parametrize("status", Status)
def test_only_a_final_batch_stays_as_it_is(status: Status) -> None:
    """Four states are final."""
    assert replace(PROGRESS, batch=replace(BATCH, status=status)).is_final is (status in FINAL)
