"""The OpenAPI 3.1 document of what is served, with this server's own limits."""

from collections.abc import Mapping, Sequence

from batchmill.spec.limits import Limits
from batchmill.spec.states import Status

_Json = dict[str, object]

_TEXT: _Json = {"type": "string"}
_COUNT: _Json = {"type": "integer", "minimum": 0}
_TIME: _Json = {**_COUNT, "description": "Unix time in seconds."}
_TEXT_OR_NULL: _Json = {"type": ["string", "null"]}
_TIME_OR_NULL: _Json = {**_TIME, "type": ["integer", "null"]}

_LINK: _Json = {  # what an upload is for
    "operationId": "create_batch",
    "requestBody": {"input_file_id": "$response.body#/id", "completion_window": "24h"},
}

_ALWAYS = (400, 401, 403, 415, 429, 500, 503)  # what the gate and any fault may answer, on every route with a key
_FAULTS: Mapping[int, str] = {
    400: "Something in the request is wrong; `message` and `param` say what.",
    401: "The API key is missing or not valid.",
    403: "The key may not do this.",
    404: "Not there, or not yours.",
    408: "The body did not arrive in time.",
    409: "The same idempotency key came with another request, or its first request is still under way.",
    415: "A Content-Type or Content-Encoding that is not read.",
    416: "None of the bytes asked for is there.",
    429: "Too many requests.",
    500: "A fault of the server.",
    503: "A part of the server is away; try again.",
    507: "The server's disk is full.",
}
_FAULT_HEADERS: Mapping[int, Sequence[str]] = {
    401: ("WWW-Authenticate",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    503: ("Retry-After",),
    507: ("Retry-After",),
}


def openapi(*, version: str, limits: Limits) -> _Json:
    """Return the document as data (contract a.0 to a.10)."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Batchmill", "version": version},
        "paths": {**_file_paths(limits), **_batch_paths(limits), **_model_paths(), **_health_paths()},
        "components": {
            "schemas": _schemas(limits),
            "responses": {str(status): _fault(status) for status in _FAULTS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _file_paths(limits: Limits) -> _Json:
    file_id = _in_path("file_id", "file")
    query = [
        _in_query("purpose", {"type": "string", "pattern": "^[ -~]*$"}),
        _in_query("limit", _page(limits.files_page, limits.max_files_page)),
        _in_query("after", _id("file")),
        _in_query("order", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}),
    ]
    ranged = [_in_header("Range", {"type": "string", "examples": ["bytes=0-99"]}), _in_header("If-Range", _TEXT)]
    content: _Json = {"text/plain": {"schema": {"type": "string", "format": "binary"}}}
    tags = ["Accept-Ranges", "ETag", "Content-Disposition"]
    parts = {200: _answer("The bytes.", content, tags), 206: _answer("A part.", content, [*tags, "Content-Range"])}
    return {
        "/v1/files": {
            "post": _operation(
                "Upload a file",
                "Its bytes are kept as they are; its lines are checked by the batch that uses it.",
                {200: {**_json_answer("File"), "links": {"batch": _LINK}}},
                faults=(408, 409, 507),
                parameters=[_idempotency_key(limits)],
                body={"multipart/form-data": {"schema": _upload(limits), "encoding": {"file": _named(limits)}}},
            ),
            "get": _operation("List files", "Newest first.", {200: _json_answer("FileList")}, parameters=query),
        },
        "/v1/files/{file_id}": {
            "parameters": [file_id],
            "get": _operation("Retrieve a file", "Its facts.", {200: _json_answer("File")}, faults=(404,)),
            "delete": _operation(
                "Delete a file",
                "A live batch keeps the bytes that it still needs.",
                {200: _json_answer("FileDeleted")},
                faults=(404, 507),
            ),
        },
        "/v1/files/{file_id}/content": {
            "parameters": [file_id],
            "get": _operation(
                "Download a file", "Whole, or one range of it.", parts, faults=(404, 416), parameters=ranged
            ),
            "head": _operation(
                "Describe a download",
                "The headers of the whole.",
                {200: {"description": "There.", "headers": _headers(tags)}},
                faults=(404,),
                bodiless=True,
            ),
        },
    }


def _batch_paths(limits: Limits) -> _Json:
    batch_id = _in_path("batch_id", "batch")
    query = [
        _in_query("limit", _page(limits.batches_page, limits.max_batches_page)),
        _in_query("after", _id("batch")),
    ]
    return {
        "/v1/batches": {
            "post": _operation(
                "Create a batch",
                "Its lines are checked afterwards, in `validating`.",
                {200: _json_answer("Batch")},
                faults=(408, 409, 507),
                parameters=[_idempotency_key(limits)],
                body={"application/json": {"schema": _create(limits)}},
            ),
            "get": _operation("List batches", "Newest first.", {200: _json_answer("BatchList")}, parameters=query),
        },
        "/v1/batches/{batch_id}": {
            "parameters": [batch_id],
            "get": _operation("Retrieve a batch", "Its facts.", {200: _json_answer("Batch")}, faults=(404,)),
        },
        "/v1/batches/{batch_id}/cancel": {
            "parameters": [batch_id],
            "post": _operation(
                "Cancel a batch", "What is done stays done.", {200: _json_answer("Batch")}, faults=(404, 408, 507)
            ),
        },
    }


def _model_paths() -> _Json:
    name: _Json = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    one = _operation("Retrieve a model", "Its facts.", {200: _json_answer("Model")}, faults=(404,))
    return {
        "/v1/models": {"get": _operation("List models", "All of them.", {200: _json_answer("ModelList")})},
        "/v1/models/{model}": {"parameters": [name], "get": one},
    }


def _health_paths() -> _Json:
    living = _object({"status": {"const": "ok"}})
    check = _object({"ready": {"type": "boolean"}, "reason": _TEXT_OR_NULL})
    ready = _object({"ready": {"type": "boolean"}, "checks": {"type": "object", "additionalProperties": check}})
    answers = {status: _answer(text, _json(ready)) for status, text in ((200, "Ready."), (503, "Not ready."))}
    return {
        "/healthz": {
            "get": {
                "summary": "Ask for life",
                "description": "The process is alive.",
                "responses": {"200": _answer("Alive.", _json(living))},
            }
        },
        "/readyz": {
            "get": {
                "summary": "Ask for readiness",
                "description": "Each part, with a reason where it is not ready.",
                "responses": {str(status): answer for status, answer in answers.items()},
            }
        },
    }


def _operation(
    summary: str,
    description: str,
    answers: Mapping[int, _Json],
    *,
    faults: Sequence[int] = (),
    parameters: Sequence[_Json] = (),
    body: _Json | None = None,
    bodiless: bool = False,
) -> _Json:
    """Return an operation that needs a key; what is `bodiless` answers a fault with its headers alone."""
    responses = {str(status): answer for status, answer in answers.items()}
    for status in sorted({*_ALWAYS, *faults}):
        shared: _Json = {"$ref": f"#/components/responses/{status}"}
        responses[str(status)] = {"description": _FAULTS[status]} if bodiless else shared
    operation: _Json = {
        "operationId": summary.lower().replace(" a ", " ").replace(" ", "_"),
        "summary": summary,
        "description": description,
        "security": [{"key": []}],
        "parameters": list(parameters),
        "responses": responses,
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _fault(status: int) -> _Json:
    return _answer(_FAULTS[status], _json({"$ref": "#/components/schemas/Error"}), _FAULT_HEADERS.get(status, ()))


def _json_answer(schema: str) -> _Json:
    return _answer(f"A {schema}.", _json({"$ref": f"#/components/schemas/{schema}"}))


def _answer(description: str, content: _Json, headers: Sequence[str] = ()) -> _Json:
    return {"description": description, "headers": _headers(headers), "content": content}


def _headers(names: Sequence[str]) -> _Json:
    return {name: {"required": True, "schema": _TEXT} for name in ("x-request-id", "msh-request-id", *names)}


def _json(schema: _Json) -> _Json:
    return {"application/json": {"schema": schema}}


def _in_path(name: str, prefix: str) -> _Json:
    return {"name": name, "in": "path", "required": True, "schema": _id(prefix)}


def _in_query(name: str, schema: _Json) -> _Json:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _in_header(name: str, schema: _Json) -> _Json:
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _idempotency_key(limits: Limits) -> _Json:
    most = limits.max_idempotency_key
    return _in_header("Idempotency-Key", {"type": "string", "pattern": f"^[!-~]{{1,{most}}}$", "maxLength": most})


def _page(default: int, most: int) -> _Json:
    return {"type": "integer", "minimum": 1, "maximum": most, "default": default}


def _id(prefix: str) -> _Json:
    return {"type": "string", "pattern": f"^{prefix}_[0-9a-f]{{46}}$"}


def _object(properties: Mapping[str, _Json], *, optional: Sequence[str] = ()) -> _Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": {**properties}}


def _list(schema: str, *, paged: bool = True) -> _Json:
    members: dict[str, _Json] = {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"$ref": f"#/components/schemas/{schema}"}},
    }
    if paged:
        members |= {"has_more": {"type": "boolean"}, "first_id": _TEXT_OR_NULL, "last_id": _TEXT_OR_NULL}
    return _object(members)


def _upload(limits: Limits) -> _Json:
    members: dict[str, _Json] = {
        "purpose": {"type": "string", "enum": ["batch"]},
        "file": {
            "type": "string",
            "format": "binary",
            "minLength": 1,
            "description": f"A {limits.extension} file of at most {limits.max_input_bytes} bytes.",
        },
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": _seconds(limits),
    }
    anchor, seconds = expiry = ("expires_after[anchor]", "expires_after[seconds]")
    both = {"dependentRequired": {anchor: [seconds], seconds: [anchor]}}
    return _object(members, optional=expiry) | both | {"additionalProperties": _TEXT}  # other parts are ignored


def _named(limits: Limits) -> _Json:
    """Return how a form's file is sent: its part carries a name (contract a.1)."""
    example = f'form-data; name="file"; filename="requests{limits.extension}"'
    return {
        "contentType": "application/jsonl",
        "headers": {"Content-Disposition": {"required": True, "schema": _TEXT, "example": example}},
    }


def _create(limits: Limits) -> _Json:
    lasts = _object({"anchor": {"type": "string", "enum": ["created_at"]}, "seconds": _seconds(limits)})
    members: dict[str, _Json] = {
        "input_file_id": _id("file"),
        "completion_window": {
            "type": "string",
            "pattern": f"^[1-9][0-9]{{0,4}}[{''.join(limits.window_units)}]$",
            "description": f"From {limits.window_min} to {limits.window_max} seconds.",
            "examples": ["24h"],
        },
        "endpoint": {"type": "string", "enum": [*limits.endpoints], "default": limits.default_endpoint},
        "metadata": {
            "type": ["object", "null"],
            "maxProperties": limits.metadata_pairs,
            "propertyNames": {"minLength": 1, "maxLength": limits.metadata_key},
            "additionalProperties": {"type": "string", "maxLength": limits.metadata_value},
        },
        "output_expires_after": {**lasts, "type": ["object", "null"]},
    }
    return _object(members, optional=("endpoint", "metadata", "output_expires_after"))


def _seconds(limits: Limits) -> _Json:
    return {"type": "integer", "minimum": limits.expires_after_min, "maximum": limits.expires_after_max}


def _schemas(limits: Limits) -> _Json:
    model: dict[str, _Json] = {"id": _TEXT, "object": {"const": "model"}, "created": _TIME, "owned_by": _TEXT}
    kimis: dict[str, _Json] = {"context_length": _COUNT}
    kimis |= {f"supports_{what}": {"type": "boolean"} for what in ("image_in", "video_in", "reasoning")}
    fault: dict[str, _Json] = {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL}
    return {
        "File": _file(),
        "FileList": _list("File"),
        "FileDeleted": _object({"id": _id("file"), "object": {"const": "file"}, "deleted": {"const": True}}),
        "Batch": _batch(limits),
        "BatchList": _list("Batch"),
        "Model": _object(model | kimis, optional=tuple(kimis)),
        "ModelList": _list("Model", paged=False),
        "Error": _object({"error": _object(fault)}),
    }


def _file() -> _Json:
    return _object(
        {
            "id": _id("file"),
            "object": {"const": "file"},
            "bytes": _COUNT,
            "created_at": _TIME,
            "filename": _TEXT,
            "purpose": {"type": "string", "enum": ["batch", "batch_output"]},
            "status": {"const": "processed"},
            "status_details": {"type": "null"},
            "expires_at": _TIME_OR_NULL,
        }
    )


def _batch(limits: Limits) -> _Json:
    wrong = _object(
        {"code": _TEXT, "message": _TEXT, "param": _TEXT_OR_NULL, "line": {"type": ["integer", "null"], "minimum": 1}}
    )
    usage = _object(
        {
            "input_tokens": _COUNT,
            "input_tokens_details": _object({"cached_tokens": _COUNT}),
            "output_tokens": _COUNT,
            "output_tokens_details": _object({"reasoning_tokens": _COUNT}),
            "total_tokens": _COUNT,
        }
    )
    found = {"type": "array", "items": wrong, "maxItems": limits.max_errors + 1}
    moments = ("in_progress", "expires", "finalizing", "completed", "failed", "cancelling", "cancelled", "expired")
    return _object(
        {
            "id": _id("batch"),
            "object": {"const": "batch"},
            "endpoint": {"type": "string", "enum": [*limits.endpoints]},
            "input_file_id": _id("file"),
            "completion_window": _TEXT,
            "status": {"type": "string", "enum": [status.value for status in Status]},
            "created_at": _TIME,
            "request_counts": _object({"completed": _COUNT, "failed": _COUNT, "total": _COUNT}),
            "output_file_id": _TEXT_OR_NULL,
            "error_file_id": _TEXT_OR_NULL,
            **{f"{moment}_at": _TIME_OR_NULL for moment in moments},
            "metadata": {"type": ["object", "null"], "additionalProperties": _TEXT},
            "errors": {**_object({"object": {"const": "list"}, "data": found}), "type": ["object", "null"]},
            "model": _TEXT_OR_NULL,
            "usage": {**usage, "type": ["object", "null"]},
        }
    )
