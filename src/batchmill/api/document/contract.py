"""The contract's own routes in the OpenAPI document: files, batches, models, and health (contract a.0 to a.10)."""

from collections.abc import Mapping

from batchmill.api.document.operation import (
    RATE,
    REPLAY,
    answer_with,
    as_json,
    headers_of,
    idempotency_key,
    in_header,
    in_path,
    in_query,
    json_answer,
    operation,
    page,
)
from batchmill.api.document.schemas import STATUS, TEXT, TEXT_OR_NULL, Json, create_order, id_, object_, upload_form
from batchmill.spec.limits import Limits

_LINK: Json = {  # what an upload is for
    "operationId": "create_batch",
    "requestBody": {"input_file_id": "$response.body#/id", "completion_window": "24h"},
}


def contract_paths(limits: Limits) -> Json:
    """Return the paths of the contract, and those that machines ask for life."""
    return {**_file_paths(limits), **_batch_paths(limits), **_model_paths(), **_health_paths()}


def _file_paths(limits: Limits) -> Json:
    file_id = in_path("file_id", "file")
    query = [
        in_query("purpose", {"type": "string", "pattern": "^[ -~]*$"}),
        in_query("limit", page(limits.files_page, limits.max_files_page)),
        in_query("after", id_("file")),
        in_query("order", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}),
    ]
    one = "One range of bytes; several are answered with the whole file."
    ranged = [
        in_header("Range", {"type": "string", "description": one, "examples": ["bytes=0-99"]}),
        in_header("If-Range", {"type": "string", "description": "The ETag; another one gets the whole file."}),
        in_query("redirect", {"type": "string", "enum": ["true", "false"], "default": "true"}),
    ]
    content: Json = {"text/plain": {"schema": {"type": "string", "format": "binary"}}}
    tags = ["Accept-Ranges", "ETag", "Content-Disposition", *RATE]
    parts: dict[int, Json] = {
        200: answer_with("The bytes.", content, tags),
        206: answer_with("A part.", content, [*tags, "Content-Range"]),
        302: {"description": "Where the bytes are, for some minutes; only where the operator has chosen so."},
    }
    return {
        "/v1/files": {
            "post": operation(
                "Upload a file",
                "Its bytes are kept as they are; its lines are checked by the batch that uses it.",
                {200: {**json_answer("File", REPLAY), "links": {"batch": _LINK}}},
                faults=(408, 409, 507),
                parameters=[idempotency_key(limits)],
                body={"multipart/form-data": {"schema": upload_form(limits), "encoding": {"file": _named(limits)}}},
            ),
            "get": operation("List files", "Newest first.", {200: json_answer("FileList")}, parameters=query),
        },
        "/v1/files/{file_id}": {
            "parameters": [file_id],
            "get": operation("Retrieve a file", "Its facts.", {200: json_answer("File")}, faults=(404,)),
            "delete": operation(
                "Delete a file",
                "A live batch keeps the bytes that it still needs.",
                {200: json_answer("FileDeleted")},
                faults=(404, 507),
            ),
        },
        "/v1/files/{file_id}/content": {
            "parameters": [file_id],
            "get": operation(
                "Download a file", "Whole, or one range of it.", parts, faults=(404, 416), parameters=ranged
            ),
            "head": operation(
                "Describe a download",
                "The headers of the whole, its length among them.",
                {200: {"description": "There.", "headers": headers_of(tags)}},
                faults=(404,),
                bodiless=True,
            ),
        },
    }


def _batch_paths(limits: Limits) -> Json:
    batch_id = in_path("batch_id", "batch")
    query = [
        in_query("limit", page(limits.batches_page, limits.max_batches_page)),
        in_query("after", id_("batch")),
        {**in_query("status", {"type": "array", "minItems": 1, "items": STATUS}), "explode": False},
        {**in_query("parent_id", id_("batch")), "description": "Only retries of this batch's failed lines."},
    ]
    return {
        "/v1/batches": {
            "post": operation(
                "Create a batch",
                "Its lines are checked afterwards, in `validating`.",
                {200: json_answer("Batch", REPLAY)},
                faults=(408, 409, 507),
                parameters=[idempotency_key(limits)],
                body={"application/json": {"schema": create_order(limits)}},
            ),
            "get": operation("List batches", "Newest first.", {200: json_answer("BatchList")}, parameters=query),
        },
        "/v1/batches/{batch_id}": {
            "parameters": [batch_id],
            "get": operation("Retrieve a batch", "Its facts.", {200: json_answer("Batch")}, faults=(404,)),
        },
        "/v1/batches/{batch_id}/cancel": {
            "parameters": [batch_id],
            "post": operation(
                "Cancel a batch", "What is done stays done.", {200: json_answer("Batch")}, faults=(404, 408, 507)
            ),
        },
    }


def _model_paths() -> Json:
    name: Json = {"name": "model", "in": "path", "required": True, "schema": TEXT}
    one = operation("Retrieve a model", "Its facts.", {200: json_answer("Model")}, faults=(404,))
    return {
        "/v1/models": {"get": operation("List models", "All of them.", {200: json_answer("ModelList")})},
        "/v1/models/{model}": {"parameters": [name], "get": one},
    }


def _health_paths() -> Json:
    living = object_({"status": {"const": "ok"}})
    check = object_({"ready": {"type": "boolean"}, "reason": TEXT_OR_NULL})
    ready = object_({"ready": {"type": "boolean"}, "checks": {"type": "object", "additionalProperties": check}})
    answers = {status: answer_with(text, as_json(ready)) for status, text in ((200, "Ready."), (503, "Not ready."))}
    alive = {"200": answer_with("Alive.", as_json(living))}
    return {
        "/healthz": _for_machines("Ask for life", "The process is alive.", alive),
        "/readyz": _for_machines(
            "Ask for readiness",
            "Each part, with a reason where it is not ready.",
            {str(status): answer for status, answer in answers.items()},
        ),
    }


def _for_machines(summary: str, description: str, answers: Mapping[str, Json]) -> Json:
    """Return what needs no key, and answers to HEAD, too."""
    told = {"summary": summary, "description": description}
    bare = {status: {**answer, "content": {}} for status, answer in answers.items()}
    return {"get": {**told, "responses": {**answers}}, "head": {**told, "responses": bare}}


def _named(limits: Limits) -> Json:
    """Return how a form's file is sent: its part carries a name (contract a.1)."""
    example = f'form-data; name="file"; filename="requests{limits.extension}"'
    return {
        "contentType": "application/jsonl",
        "headers": {"Content-Disposition": {"required": True, "schema": TEXT, "example": example}},
    }
