"""The objects on the wire."""

from dataclasses import replace
from decimal import Decimal

from batchmill.schedule.forecast import Forecast
from batchmill.spec.objects import (
    BatchObject,
    Counts,
    FileObject,
    LineError,
    Usage,
    file_deleted,
    list_page,
    model_list,
    model_object,
    more_errors,
    shorten,
)
from batchmill.spec.prices import Cost
from batchmill.spec.states import Status

BATCH = BatchObject(
    id="batch_1",
    endpoint="/v1/chat/completions",
    input_file_id="file_1",
    completion_window="1d",
    status=Status.VALIDATING,
    created_at=1,
)


def faults(count: int) -> tuple[LineError, ...]:
    """Return as many errors, one a line."""
    return tuple(LineError(code="invalid_url", message="no", param="url", line=n + 1) for n in range(count))


def test_a_file_has_every_key() -> None:
    """Its status is `processed`, so that the official client stops waiting."""
    file = FileObject(id="file_1", bytes=5, created_at=1, filename="in.jsonl", purpose="batch")
    assert file.wire() == {
        "id": "file_1",
        "object": "file",
        "bytes": 5,
        "created_at": 1,
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
        "expires_at": None,
    }


def test_a_new_batch_has_every_key_with_null_where_unset() -> None:
    """The keys of the contract, in its order, and ours behind them."""
    wire = BATCH.wire()
    keys = """
        id object endpoint input_file_id completion_window status created_at request_counts output_file_id error_file_id
        in_progress_at expires_at finalizing_at completed_at failed_at cancelling_at cancelled_at metadata expired_at
        errors model usage progress paused_at priority cost parent_id
    """
    assert list(wire) == keys.split()
    assert wire["object"] == "batch"
    assert wire["status"] == "validating"
    assert type(wire["status"]) is str
    assert wire["request_counts"] == {"completed": 0, "failed": 0, "total": 0}
    assert wire.pop("priority") == 0
    assert {wire[key] for key in list(wire)[8:]} == {None}


def test_a_batch_shows_all_that_it_holds() -> None:
    """Counts, metadata, errors and usage have the shapes of the contract."""
    wire = BatchObject(
        id="batch_1",
        endpoint="/v1/chat/completions",
        input_file_id="file_1",
        completion_window="1d",
        status=Status.COMPLETED,
        created_at=1,
        counts=Counts(completed=2, failed=1, total=3),
        metadata={"a": "b"},
        errors=faults(1),
        usage=Usage(input_tokens=10, cached_tokens=4, output_tokens=5, reasoning_tokens=2),
    ).wire()
    assert wire["request_counts"] == {"completed": 2, "failed": 1, "total": 3}
    assert wire["metadata"] == {"a": "b"}
    assert wire["errors"] == {
        "object": "list",
        "data": [{"code": "invalid_url", "message": "no", "param": "url", "line": 1}],
    }
    assert wire["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 15,
    }


def test_a_batch_in_progress_shows_how_it_will_go_on() -> None:
    """Rates, end and miss have names of their own, and null is what nobody knows."""
    told = Forecast(lines_per_second=1.5, tokens_per_second=None, eta=7, misses_by=2)
    wire = replace(BATCH, progress=told).wire()
    assert wire["progress"] == {"lines_per_second": 1.5, "tokens_per_second": None, "eta": 7, "misses_by": 2}


def test_a_batch_shows_what_it_has_cost() -> None:
    """An amount in a currency, null where it is not known."""
    cost = Cost(amount=Decimal("0.25"), currency="USD")
    assert replace(BATCH, cost=cost).wire()["cost"] == {"amount": 0.25, "currency": "USD"}
    assert BATCH.wire()["cost"] is None


def test_a_list_shows_a_batchs_first_errors_and_counts_the_rest() -> None:
    """The closing entry counts everything left out, before and now."""
    errors = (*faults(1000), more_errors(234))
    batch = BatchObject(
        id="batch_1",
        endpoint="/v1/chat/completions",
        input_file_id="file_1",
        completion_window="1d",
        status=Status.FAILED,
        created_at=1,
        errors=errors,
    )
    shown = batch.wire(errors_shown=10)["errors"]
    assert shown == {
        "object": "list",
        "data": [*(e.wire() for e in faults(10)), more_errors(1224).wire()],
    }


def test_a_short_list_of_errors_stays_as_it_is() -> None:
    """Nothing is closed where nothing was left out, and a list closed before stays closed."""
    assert shorten((), 10) == []
    assert shorten(faults(10), 10) == list(faults(10))
    assert shorten(faults(11), 10) == [*faults(10), more_errors(1)]
    assert shorten((*faults(3), more_errors(7)), 10) == [*faults(3), more_errors(7)]


def test_a_deleted_file_says_so() -> None:
    """The strict client takes no other `object` than "file"."""
    assert file_deleted("file_1") == {"id": "file_1", "object": "file", "deleted": True}


def test_a_page_names_its_first_and_last() -> None:
    """An empty page has null for both, and `has_more` is always there."""
    assert list_page([{"id": "a"}, {"id": "b"}], has_more=True) == {
        "object": "list",
        "data": [{"id": "a"}, {"id": "b"}],
        "has_more": True,
        "first_id": "a",
        "last_id": "b",
    }
    assert list_page([], has_more=False) == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


def test_models_are_listed_without_pages() -> None:
    """A model has the four keys that the strict client checks."""
    model = model_object("m", 7)
    assert model == {"id": "m", "object": "model", "created": 7, "owned_by": "batchmill"}
    assert model_list([model]) == {"object": "list", "data": [model]}
