"""The quote on the wire, and what a quote may be asked for."""

from decimal import Decimal

import pytest

from batchmill.schedule.forecast import Outlook
from batchmill.spec.create import CreateOrder, parse_trial
from batchmill.spec.errors import ApiError
from batchmill.spec.limits import KIMI
from batchmill.spec.models import Catalogue, ModelFacts
from batchmill.spec.objects import LineError
from batchmill.spec.prices import Price
from batchmill.spec.quote import Estimate, Quote

ORDER = CreateOrder(
    input_file_id="file_1",
    endpoint="/v1/chat/completions",
    completion_window="24h",
    window_seconds=86_400,
    metadata=None,
    output_expires_after=None,
)
PRICED = ModelFacts(name="m", price=Price(input=Decimal(1), output=Decimal(2)))


def a_quote(*errors: LineError, **estimates: Estimate) -> Quote:
    """Return a quote over these models."""
    return Quote(
        order=ORDER,
        bytes=10,
        requests=3,
        errors=errors,
        estimates=estimates,
        queue_position=2,
        outlook=Outlook(tokens_per_second=1.5, eta=90, margin=10),
        expires_at=100,
    )


def test_a_quote_says_all_that_is_known() -> None:
    """Its counts are those of its models together; the cost is theirs, too, while each has a price."""
    one = Estimate(requests=2, prompt_tokens=1_000_000, completion_tokens=500_000, unbounded=0)
    wire = a_quote(m=one).wire(Catalogue([PRICED]))
    counts = {"prompt_tokens": 1_000_000, "completion_tokens": 500_000, "unbounded": 0}
    cost = {"amount": 2.0, "currency": "USD"}
    assert wire == {
        "object": "batch.quote",
        "input_file_id": "file_1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "valid": True,
        "errors": None,
        "requests": 3,
        "bytes": 10,
        "models": [{"model": "m", "requests": 2, **counts, "cost": cost}],
        **counts,
        "cost": cost,
        "forecast": {"tokens_per_second": 1.5, "queue_position": 2, "eta": 90, "expires_at": 100, "margin": 10},
        "trial": None,
    }


def test_a_model_without_a_price_leaves_the_whole_unknown() -> None:
    """Its own entry says so, and what the others cost is not taken for the sum."""
    one = Estimate(requests=1, prompt_tokens=1, completion_tokens=1, unbounded=1)
    wire = a_quote(m=one, n=one).wire(Catalogue([PRICED]))
    assert [each["cost"] is None for each in wire["models"]] == [False, True]  # type: ignore[attr-defined]
    assert (wire["cost"], wire["unbounded"], wire["prompt_tokens"]) == (None, 2, 2)


def test_a_quote_of_a_bad_input_lists_its_errors() -> None:
    """It is not valid, and has them in the form that a failed batch has."""
    wire = a_quote(LineError(code="c", message="m", line=3)).wire(Catalogue())
    assert wire["valid"] is False
    assert wire["errors"] == {"object": "list", "data": [{"code": "c", "message": "m", "param": None, "line": 3}]}


@pytest.mark.parametrize(
    ("value", "trial"), [({}, 0), ([], 0), ({"trial": 0}, 0), ({"trial": 100}, 100), ({"trial": 3.0}, 3)]
)
def test_a_trial_is_a_number_of_lines(value: object, trial: int) -> None:
    """None unless it is asked for; JSON knows one kind of number."""
    assert parse_trial(value, limits=KIMI) == trial


@pytest.mark.parametrize(
    ("trial", "code"),
    [
        (-1, "invalid_value"),
        (101, "invalid_value"),
        (True, "invalid_type"),
        (None, "invalid_type"),
        ("3", "invalid_type"),
        (1.5, "invalid_type"),
    ],
)
def test_another_trial_is_refused(trial: object, code: str) -> None:
    """Out of its range or of another type."""
    with pytest.raises(ApiError) as caught:
        parse_trial({"trial": trial}, limits=KIMI)
    assert (caught.value.param, caught.value.code) == ("trial", code)
