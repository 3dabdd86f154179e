"""Accounts in the OpenAPI document: who asks, what was used, keys, and backends."""

from batchmill.api.document.operation import (
    REPLAY,
    answer_with,
    as_json,
    idempotency_key,
    in_path,
    in_query,
    json_answer,
    operation,
    page,
)
from batchmill.api.document.schemas import COUNT, TEXT, TEXT_OR_NULL, TIME, TIME_OR_NULL, Json, id_, list_, object_
from batchmill.spec.keys import LONGEST_NAME, LONGEST_SECONDS
from batchmill.spec.limits import Limits
from batchmill.spec.scopes import Scope

_DAY: Json = {"type": "string", "format": "date", "description": "A day of UTC, such as 2026-11-27."}
_SCOPES: Json = {"type": "array", "items": {"type": "string", "enum": [scope.value for scope in Scope]}}
_COUNT_OR_NULL: Json = {**COUNT, "type": ["integer", "null"]}
_AMOUNT_OR_NULL: Json = {"type": ["number", "null"], "minimum": 0}
_ADMIN = "For keys with the scope `admin`."


def account_paths(limits: Limits) -> Json:
    """Return the paths of the account, of keys and of backends."""
    who = operation("Retrieve the organisation", "Who asks, and what holds for it.", {200: json_answer("Organisation")})
    after: Json = {"type": "string", "description": "The `last_id` of an earlier page."}
    paged = [in_query("limit", page(limits.usage_page, limits.max_usage_page)), in_query("after", after)]
    used = operation(
        "Retrieve usage",
        "By day, key and model; `key_id` is null, and all keys are one, for a key without the scope `admin`. "
        f"At most {limits.usage_days} days; the last 30 where none is asked for.",
        {200: json_answer("Usage")},
        parameters=[in_query("from", _DAY), in_query("to", _DAY), *paged],
    )
    backends = operation("List backends", "As all workers together know them.", {200: json_answer("BackendList")})
    return {
        "/v1/organisation": {"get": who},
        "/v1/usage": {"get": used},
        "/v1/backends": {"get": backends},
        **_key_paths(limits),
    }


def _key_paths(limits: Limits) -> Json:
    key_id = in_path("key_id", "key")
    once = "The key itself is in this answer and in no other: not in that to a repeated call, either."
    made = {200: answer_with("The new key.", as_json({"$ref": "#/components/schemas/NewKey"}), REPLAY)}
    paged = [in_query("limit", page(limits.keys_page, limits.max_keys_page)), in_query("after", id_("key"))]
    order = object_(
        {
            "name": {"type": ["string", "null"], "minLength": 1, "maxLength": LONGEST_NAME},
            "scopes": {**_SCOPES, "type": ["array", "null"], "minItems": 1},
            "expires_in": _duration(least=1),
        },
        optional=("name", "scopes", "expires_in"),
    )
    overlap = object_({"overlap": _duration(least=0)}, optional=("overlap",))
    return {
        "/v1/keys": {
            "get": operation("List keys", f"Newest first. {_ADMIN}", {200: json_answer("KeyList")}, parameters=paged),
            "post": operation(
                "Create a key",
                f"{once} {_ADMIN} It may give scopes that it lacks itself.",
                made,
                faults=(408, 409, 507),
                parameters=[idempotency_key(limits)],
                body=as_json(order),
                body_needed=False,
            ),
        },
        "/v1/keys/{key_id}/revoke": {
            "parameters": [key_id],
            "post": operation(
                "Revoke a key",
                f"It is good for nothing from the next request on. {_ADMIN}",
                {200: json_answer("Key")},
                faults=(404, 408, 507),
            ),
        },
        "/v1/keys/{key_id}/rotate": {
            "parameters": [key_id],
            "post": operation(
                "Rotate a key",
                f"A new key like it; the old one stays good for the `overlap`. {once} {_ADMIN}",
                made,
                faults=(404, 408, 409, 507),
                parameters=[idempotency_key(limits)],
                body=as_json(overlap),
                body_needed=False,
            ),
        },
    }


def account_schemas() -> Json:
    """Return the schemas of what they answer with."""
    return {
        "Organisation": _organisation(),
        "Usage": _usage(),
        "Key": _key(),
        "NewKey": _key() | {"properties": {**_key_members(), "key": {**TEXT, "description": "Shown this once."}}},
        "KeyList": list_("Key"),
        "Backend": _backend(),
        "BackendList": list_("Backend", paged=False),
    }


def _organisation() -> Json:
    names: Json = {"type": "array", "items": TEXT}
    limits = object_(
        {
            "endpoints": names,
            "models": {**names, "type": ["array", "null"]},
            **dict.fromkeys(("window_min", "window_max", "max_input_bytes", "max_files", "max_keys"), COUNT),
            **dict.fromkeys(("max_lines", "max_bytes", "requests_per_minute"), _COUNT_OR_NULL),
            "tokens_per_day": _COUNT_OR_NULL,
            "enqueued_tokens": _COUNT_OR_NULL,
            "batch_cost": _AMOUNT_OR_NULL,
        }
    )
    return object_(
        {
            "object": {"const": "organisation"},
            "id": TEXT,
            "name": TEXT,
            "key_id": TEXT,
            "scopes": _SCOPES,
            "limits": {**limits, "description": "Seconds, bytes and counts; null is no limit."},
        }
    )


def _usage() -> Json:
    cost = {**object_({"amount": {"type": "number", "minimum": 0}, "currency": TEXT}), "type": ["object", "null"]}
    tokens = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    entry = object_(
        {
            "day": _DAY,
            "key_id": TEXT_OR_NULL,
            "key_name": TEXT_OR_NULL,
            "model": TEXT,
            **dict.fromkeys(("requests", "failed", *tokens), COUNT),
            "cost": {**cost, "description": "By the prices of today; null where the model has none."},
        }
    )
    kinds: Json = {"type": "string", "enum": ["tokens_per_day", "enqueued_tokens", "batch_cost"]}
    numbers: dict[str, Json] = {"limit": {"type": "number", "minimum": 0}, "used": COUNT, "resets_at": TIME}
    budget = object_(
        {"kind": kinds, "model": TEXT_OR_NULL, "currency": TEXT, **numbers},
        optional=("model", "currency", "used", "resets_at"),
    )
    return object_(
        {
            "object": {"const": "usage"},
            "from": _DAY,
            "to": _DAY,
            "data": {"type": "array", "items": entry},
            "last_id": {**TEXT_OR_NULL, "description": "Opaque: `after` for the next page."},
            "has_more": {"type": "boolean"},
            "budgets": {"type": "array", "items": budget},
        }
    )


def _key_members() -> dict[str, Json]:
    return {
        "object": {"const": "api_key"},
        "id": TEXT,
        "name": TEXT_OR_NULL,
        "hint": {**TEXT_OR_NULL, "description": "Its first characters behind the prefix."},
        "scopes": _SCOPES,
        "created_at": TIME,
        "expires_at": TIME_OR_NULL,
        "revoked_at": TIME_OR_NULL,
    }


def _key() -> Json:
    return object_(_key_members())


def _backend() -> Json:
    return object_(
        {
            "object": {"const": "backend"},
            "id": TEXT,
            "well": {"type": "boolean"},
            "reason": TEXT_OR_NULL,
            "since": TIME,
            "window": {**_COUNT_OR_NULL, "description": "Requests in flight that all workers together may have."},
            "in_flight": COUNT,
            "workers": COUNT,
            "draining": {"type": "boolean"},
            "models": {"type": "array", "items": TEXT},
        }
    )


def _duration(*, least: int) -> Json:
    text: Json = {"type": "string", "pattern": "^[1-9][0-9]{0,3}[smhd]$", "examples": ["90d"]}
    seconds: Json = {"type": "integer", "minimum": least, "maximum": LONGEST_SECONDS}
    return {"anyOf": [seconds, text, {"type": "null"}], "description": "Seconds, or a text such as 90d."}
