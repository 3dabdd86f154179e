"""The routes of results as they come, of requests by custom_id, and of retries, in the OpenAPI document."""

from batchmill.api.document.operation import (
    REPLAY,
    answer_with,
    as_json,
    idempotency_key,
    in_header,
    in_path,
    in_query,
    json_answer,
    operation,
    page,
)
from batchmill.api.document.schemas import TEXT, Json, create_order, object_
from batchmill.spec.limits import Limits

_LINES: Json = {"application/jsonl": {"schema": {"type": "string", "description": "One JSON object a line."}}}
_GROUP: Json = {"type": "string", "pattern": "^[0-9a-f]{16}$", "description": "The id of an error group."}


def result_paths(limits: Limits) -> Json:
    """Return the paths."""
    batch_id = in_path("batch_id", "batch")
    yes_or_no: Json = {"type": "string", "enum": ["true", "false"], "default": "false"}
    query = [
        in_query("after", {**TEXT, "pattern": "^[ -~]*$", "description": "A cursor of an earlier answer."}),
        in_query("limit", page(limits.results_page, limits.max_results_page)),
        in_query("status", {"type": "string", "enum": ["succeeded", "failed"]}),
        in_query("error_group", _GROUP),
        in_query("merged", yes_or_no),
        in_query("wait", {"type": "integer", "minimum": 0, "maximum": limits.max_results_wait, "default": 0}),
        in_query("follow", yes_or_no),
        in_header("Last-Event-ID", {**TEXT, "description": "Where a stream of events goes on: `after` of those."}),
    ]
    asked: Json = {
        "name": "custom_id",
        "in": "query",
        "required": True,
        "schema": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": limits.max_requests_asked},
    }
    told = ("x-next-cursor", "x-has-more", "x-complete")
    return {
        "/v1/batches/{batch_id}/results": {
            "parameters": [batch_id],
            "get": operation(
                "Read results",
                "The lines of the result files in the order in which they came, before, while and after these are "
                "written. A page is bounded in bytes, too, and may hold none of what is asked for and still have "
                "more behind it. `follow` streams to the end; `Accept: text/event-stream` makes events of that.",
                {200: answer_with("Results.", _LINES, told)},
                faults=(404,),
                parameters=query,
            ),
        },
        "/v1/batches/{batch_id}/requests": {
            "parameters": [batch_id],
            "get": operation(
                "Read requests",
                "The input's own lines of these custom_ids, byte for byte.",
                {200: answer_with("Requests.", _LINES)},
                faults=(404,),
                parameters=[asked],
            ),
        },
        "/v1/batches/{batch_id}/retry": {
            "parameters": [batch_id],
            "post": operation(
                "Retry a batch",
                "Its failed lines, all that no retry has yet or those of one error group, become a File and a batch.",
                {200: json_answer("Batch", REPLAY)},
                faults=(404, 408, 409, 507),
                parameters=[idempotency_key(limits)],
                body=as_json(_order(limits)),
            ),
        },
    }


def _order(limits: Limits) -> Json:
    members = create_order(limits)["properties"]
    if not isinstance(members, dict):
        raise TypeError("an order is an object")
    given: dict[str, Json] = {
        "error_group": {**_GROUP, "type": ["string", "null"]},
        "completion_window": members["completion_window"],
        "metadata": members["metadata"],
    }
    return object_(given, optional=tuple(given))
