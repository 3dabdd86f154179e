"""Quotes, and orders that bring their requests, in the OpenAPI document."""

from batchmill.api.document.operation import REPLAY, idempotency_key, json_answer, operation
from batchmill.api.document.schemas import (
    COUNT,
    TEXT,
    TIME,
    TIME_OR_NULL,
    Json,
    cost_or_null,
    create_order,
    error_list_or_null,
    id_,
    object_,
)
from batchmill.spec.limits import Limits


def quote_paths(limits: Limits) -> Json:
    """Return the paths of what comes before a batch, or with it."""
    return {
        "/v1/batches/quote": {
            "post": operation(
                "Quote a batch",
                "Every bad line and each budget without room, the tokens by estimate, what they cost and when they "
                "would be done. Nothing is made, unless `trial` lets the first lines of a valid input run.",
                {200: json_answer("Quote", REPLAY)},
                faults=(408, 409, 507),
                parameters=[idempotency_key(limits)],
                body={"application/json": {"schema": _quote_order(limits)}},
            ),
        },
        "/v1/batches/inline": {
            "post": operation(
                "Create a batch of requests",
                "The requests in the body become a File, each with its own bytes, and the batch is over that.",
                {200: json_answer("Batch", REPLAY)},
                faults=(408, 409, 507),
                parameters=[idempotency_key(limits)],
                body={"application/json": {"schema": _inline_order(limits)}},
            ),
        },
    }


def quote_schemas(limits: Limits) -> dict[str, Json]:
    """Return what a quote is answered with."""
    prompt = {**COUNT, "description": "By estimate, from the bytes of the bodies."}
    completion = {**COUNT, "description": "As many as the lines allow; those of `unbounded` lines are not in it."}
    unbounded = {**COUNT, "description": "Lines that do not say how much may be generated."}
    tokens: dict[str, Json] = {"prompt_tokens": prompt, "completion_tokens": completion, "unbounded": unbounded}
    model = object_({"model": TEXT, "requests": COUNT, **tokens, "cost": cost_or_null()})
    margin: Json = {"type": ["integer", "null"], "description": "Seconds from `eta` to `expires_at`."}
    forecast = object_(
        {
            "tokens_per_second": {"type": ["number", "null"], "minimum": 0},
            "queue_position": {**COUNT, "description": "Batches that are there already."},
            "eta": {**TIME_OR_NULL, "description": "If all of them are done before it."},
            "expires_at": TIME,
            "margin": margin,
        }
    )
    batch: Json = {"$ref": "#/components/schemas/Batch"}
    quote: dict[str, Json] = {
        "object": {"const": "batch.quote"},
        "input_file_id": id_("file"),
        "endpoint": {"type": "string", "enum": [*limits.endpoints]},
        "completion_window": TEXT,
        "valid": {"type": "boolean"},
        "errors": error_list_or_null(limits),
        "requests": {**COUNT, "description": "Lines, good or bad."},
        "bytes": COUNT,
        "models": {"type": "array", "items": model},
        **tokens,
        "cost": cost_or_null(),
        "forecast": forecast,
        "trial": {"anyOf": [batch, {"type": "null"}]},
    }
    return {"Quote": object_(quote)}


def _quote_order(limits: Limits) -> Json:
    trial: Json = {
        "type": "integer",
        "minimum": 0,
        "maximum": limits.max_trial,
        "default": 0,
        "description": "So many of the first lines are really run, as a batch of their own.",
    }
    order = create_order(limits)
    return {**order, "properties": {**_members(order), "trial": trial}}


def _inline_order(limits: Limits) -> Json:
    request = object_(  # its rules are those of a line, and kept in `validating`
        {"custom_id": TEXT, "method": TEXT, "url": TEXT, "body": {"type": "object"}},
        optional=("method", "url"),
    )
    requests: Json = {"type": "array", "items": request, "minItems": 1, "maxItems": limits.max_inline_requests}
    order = create_order(limits)
    members = {name: schema for name, schema in _members(order).items() if name != "input_file_id"}
    return object_({"requests": requests, **members}, optional=("endpoint", "metadata", "output_expires_after"))


def _members(order: Json) -> dict[str, Json]:
    members = order["properties"]
    if not isinstance(members, dict):
        raise TypeError("an order is an object")
    return members
