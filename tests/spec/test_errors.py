"""The errors that the API answers with."""

import pytest

from batchmill.spec import errors
from batchmill.spec.errors import ApiError

CASES = [
    (errors.invalid_request("no"), 400, "invalid_request_error", None, None),
    (errors.missing_parameter("endpoint"), 400, "invalid_request_error", "missing_required_parameter", "endpoint"),
    (errors.invalid_type("metadata", "an object"), 400, "invalid_request_error", "invalid_type", "metadata"),
    (errors.invalid_type(None, "an object"), 400, "invalid_request_error", "invalid_type", None),
    (errors.invalid_value("endpoint", "no"), 400, "invalid_request_error", "invalid_value", "endpoint"),
    (errors.unknown_input_file(), 400, "invalid_request_error", "invalid_value", "input_file_id"),
    (errors.not_cancellable("failed"), 400, "invalid_request_error", "invalid_batch_state", None),
    (errors.not_steerable("failed", "paused"), 400, "invalid_request_error", "invalid_batch_state", None),
    (errors.too_big("The file", 5, "file"), 400, "invalid_request_error", "invalid_value", "file"),
    (errors.unauthenticated(), 401, "incorrect_api_key_error", "invalid_api_key", None),
    (errors.permission_denied("no"), 403, "permission_denied_error", "insufficient_permissions", None),
    (errors.not_found("batch"), 404, "resource_not_found_error", "resource_not_found", None),
    (errors.results_gone("batch_1"), 404, "resource_not_found_error", "results_gone", None),
    (errors.unknown_route(), 404, "resource_not_found_error", "unknown_url", None),
    (errors.request_timeout("slow"), 408, "invalid_request_error", "request_timeout", None),
    (errors.method_not_allowed(["POST"]), 405, "invalid_request_error", "method_not_allowed", None),
    (errors.conflict("running", retry_after=5), 409, "conflict_error", "idempotency_conflict", None),
    (errors.target_too_long(8192), 414, "invalid_request_error", "target_too_long", None),
    (errors.unsupported_media_type("no"), 415, "invalid_request_error", "unsupported_media_type", None),
    (errors.head_too_large(65536), 431, "invalid_request_error", "headers_too_large", None),
    (errors.rate_limited(5), 429, "rate_limit_reached_error", "rate_limit_exceeded", None),
    (errors.quota_exceeded("no"), 429, "exceeded_current_quota_error", "insufficient_quota", None),
    (errors.server_error(), 500, "server_error", "internal_error", None),
    (errors.unavailable("away", 5), 503, "server_unavailable", "unavailable", None),
    (errors.insufficient_storage(5), 507, "insufficient_storage", "insufficient_storage", None),
]


@pytest.mark.parametrize(("error", "status", "kind", "code", "param"), CASES)
def test_an_error_knows_its_answer(
    error: ApiError, status: int, kind: str, code: str | None, param: str | None
) -> None:
    """Each case of the contract has its status, type, code and param, and all four keys are on the wire."""
    assert error.status == status
    assert error.body() == {"error": {"message": error.message, "type": kind, "param": param, "code": code}}
    assert str(error) == error.message != ""


def test_headers_tell_the_official_client_what_to_do() -> None:
    """A conflict says whether to try again; what waiting does not mend says not to."""
    assert errors.conflict("running", retry_after=5).headers == {"x-should-retry": "true", "Retry-After": "5"}
    assert errors.conflict("differs").headers == {"x-should-retry": "false"}
    assert errors.quota_exceeded("no").headers == {"x-should-retry": "false"}
    assert errors.insufficient_storage(5).headers == {"Retry-After": "5", "x-should-retry": "false"}
    assert errors.unauthenticated().headers == {"WWW-Authenticate": "Bearer"}
    assert errors.method_not_allowed({"POST", "GET"}).headers == {"Allow": "GET, POST"}
    assert errors.server_error().headers == {}


@pytest.mark.parametrize(("asked", "header"), [(0, "1"), (0.2, "1"), (7.4, "7"), (60, "60"), (3600, "60")])
def test_retry_after_is_whole_seconds_within_a_minute(asked: float, header: str) -> None:
    """Above 60 s the older official client stops obeying the header."""
    assert errors.rate_limited(asked).headers["Retry-After"] == header
    assert errors.unavailable("away", asked).headers["Retry-After"] == header


def test_a_users_text_is_echoed_shortened_and_escaped() -> None:
    """A message holds at most 64 characters of the user's own, and none that forge a line of a log."""
    assert errors.clip("row-3") == "'row-3'"
    assert errors.clip("x" * 64) == repr("x" * 64)
    assert errors.clip("x" * 65) == repr("x" * 63 + "…")
    assert "\n" not in errors.clip("a\nINFO admin logged in")
