"""How far a batch is, in the OpenAPI document."""

from batchmill.api.document.operation import RATE, answer_with, as_json, in_path, in_query, operation
from batchmill.api.document.schemas import (
    COUNT,
    COUNTS,
    RATE_OR_NULL,
    STATUS,
    TEXT,
    TEXT_OR_NULL,
    TIME,
    TIME_OR_NULL,
    USAGE,
    Json,
    cost_or_null,
    id_,
    object_,
)

_EVENTS = (
    "As server-sent events: `progress`, whose data is a Progress, at once and whenever it has changed, at most once a "
    "second; `end` behind the last one, once the batch is final. A stream that ends without it is to be opened again."
)


def progress_paths() -> Json:
    """Return the path that tells how far a batch is."""
    events: Json = {"text/event-stream": {"schema": {"type": "string", "description": _EVENTS}}}
    answer = answer_with("A Progress.", as_json({"$ref": "#/components/schemas/Progress"}) | events, RATE)
    stream = in_query("stream", {"type": "boolean", "description": "As events, as with `Accept: text/event-stream`."})
    return {
        "/v1/batches/{batch_id}/progress": {
            "parameters": [in_path("batch_id", "batch")],
            "get": operation(
                "Follow a batch",
                "Counts, rates, its end against its deadline, why it waits, who does it, and what went wrong.",
                {200: answer},
                faults=(404,),
                parameters=[stream],
            ),
        },
    }


def progress_schemas() -> Json:
    """Return the schema of what is told."""
    share = object_({"backend": TEXT, "lines": COUNT, "prompt_tokens": COUNT, "completion_tokens": COUNT})
    group: dict[str, Json] = {
        "id": TEXT,
        "status": {"type": ["integer", "null"]},
        "code": TEXT_OR_NULL,
        "message": {"type": "string", "description": "Without what differs from line to line."},
        "example": {
            "type": ["string", "null"],
            "description": "The message of one of the lines as it came, up to 1,000 characters; null once the error "
            "file is deleted.",
        },
        "count": {"type": "integer", "minimum": 1},
        "custom_ids": {"type": "array", "items": TEXT, "maxItems": 5},
    }
    waits: Json = {**object_({"reason": TEXT, "since": TIME}), "type": ["object", "null"]}
    margin: Json = {
        "type": ["integer", "null"],
        "description": "Seconds from `eta` to `expires_at`; below 0 it is too late.",
    }
    late: Json = {
        "type": ["integer", "null"],
        "minimum": 1,
        "description": "Seconds after `expires_at`; null if in time.",
    }
    ahead: Json = {
        "type": ["integer", "null"],
        "minimum": 0,
        "description": "Batches that come before it, counted up to 1,000; null if final.",
    }
    return {
        "Progress": object_(
            {
                "object": {"const": "batch.progress"},
                "batch_id": id_("batch"),
                "status": STATUS,
                "paused_at": TIME_OR_NULL,
                "priority": {"type": "integer"},
                "request_counts": COUNTS,
                "lines_per_second": RATE_OR_NULL,
                "prompt_tokens_per_second": RATE_OR_NULL,
                "completion_tokens_per_second": RATE_OR_NULL,
                "usage": USAGE,
                "cost": cost_or_null(),
                "eta": TIME_OR_NULL,
                "expires_at": TIME,
                "margin": margin,
                "misses_by": late,
                "queue_position": ahead,
                "waiting": waits,
                "retries": COUNT,
                "backends": {"type": "array", "items": share},
                "error_groups": {"type": "array", "items": object_(group), "maxItems": 20},
                "errors_ungrouped": COUNT,
            }
        )
    }
