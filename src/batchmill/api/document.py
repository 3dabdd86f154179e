"""The OpenAPI 3.1 document of what is served, with this server's own limits."""

from collections.abc import Mapping, Sequence

from batchmill.api.schemas import TEXT, TEXT_OR_NULL, Json, create_order, id_, object_, schemas, upload_form
from batchmill.spec.limits import Limits

_LINK: Json = {  # what an upload is for
    "operationId": "create_batch",
    "requestBody": {"input_file_id": "$response.body#/id", "completion_window": "24h"},
}

_ALWAYS = (
    400,
    401,
    403,
    414,
    415,
    429,
    431,
    500,
    503,
)  # what the gate and any fault may answer, on every route with a key
_FAULTS: Mapping[int, str] = {
    400: "Something in the request is wrong; `message` and `param` say what.",
    401: "The API key is missing or not valid.",
    403: "The key may not do this.",
    404: "Not there, or not yours.",
    408: "The body did not arrive in time.",
    409: "The same idempotency key came with another request, or its first request is still under way.",
    414: "The path and the query are too long.",
    415: "A Content-Type or Content-Encoding that is not read.",
    416: "None of the bytes asked for is there.",
    429: "Too many requests.",
    431: "The headers are too large.",
    500: "A fault of the server.",
    503: "A part of the server is away; try again.",
    507: "The server's disk is full.",
}
_FAULT_HEADERS: Mapping[int, Sequence[str]] = {
    401: ("WWW-Authenticate",),
    409: ("x-should-retry",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    503: ("Retry-After",),
    507: ("Retry-After", "x-should-retry"),
}
_REPLAY = ("x-idempotent-replay",)
_RATE = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
_OPTIONAL: Mapping[str, str] = {
    "X-RateLimit-Limit": "Calls a minute that the organisation may make, if it is limited.",
    "X-RateLimit-Remaining": "How many of them it may make at once.",
    "X-RateLimit-Reset": "Seconds until it may make all of them again.",
    "x-idempotent-replay": "`true` on the answer that an earlier call of the same got; nothing was made.",
}


def openapi(*, version: str, limits: Limits) -> Json:
    """Return the document as data (contract a.0 to a.10)."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Batchmill", "version": version},
        "paths": {**_file_paths(limits), **_batch_paths(limits), **_model_paths(), **_health_paths()},
        "components": {
            "schemas": schemas(limits),
            "responses": {str(status): _fault(status) for status in _FAULTS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _file_paths(limits: Limits) -> Json:
    file_id = _in_path("file_id", "file")
    query = [
        _in_query("purpose", {"type": "string", "pattern": "^[ -~]*$"}),
        _in_query("limit", _page(limits.files_page, limits.max_files_page)),
        _in_query("after", id_("file")),
        _in_query("order", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}),
    ]
    one = "One range of bytes; several are answered with the whole file."
    ranged = [
        _in_header("Range", {"type": "string", "description": one, "examples": ["bytes=0-99"]}),
        _in_header("If-Range", {"type": "string", "description": "The ETag; another one gets the whole file."}),
    ]
    content: Json = {"text/plain": {"schema": {"type": "string", "format": "binary"}}}
    tags = ["Accept-Ranges", "ETag", "Content-Disposition", *_RATE]
    parts: dict[int, Json] = {
        200: _answer("The bytes.", content, tags),
        206: _answer("A part.", content, [*tags, "Content-Range"]),
        302: {"description": "Where the bytes are, for some minutes; only where the operator has chosen so."},
    }
    return {
        "/v1/files": {
            "post": _operation(
                "Upload a file",
                "Its bytes are kept as they are; its lines are checked by the batch that uses it.",
                {200: {**_json_answer("File", _REPLAY), "links": {"batch": _LINK}}},
                faults=(408, 409, 507),
                parameters=[_idempotency_key(limits)],
                body={"multipart/form-data": {"schema": upload_form(limits), "encoding": {"file": _named(limits)}}},
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
                "The headers of the whole, its length among them.",
                {200: {"description": "There.", "headers": _headers(tags)}},
                faults=(404,),
                bodiless=True,
            ),
        },
    }


def _batch_paths(limits: Limits) -> Json:
    batch_id = _in_path("batch_id", "batch")
    query = [
        _in_query("limit", _page(limits.batches_page, limits.max_batches_page)),
        _in_query("after", id_("batch")),
    ]
    return {
        "/v1/batches": {
            "post": _operation(
                "Create a batch",
                "Its lines are checked afterwards, in `validating`.",
                {200: _json_answer("Batch", _REPLAY)},
                faults=(408, 409, 507),
                parameters=[_idempotency_key(limits)],
                body={"application/json": {"schema": create_order(limits)}},
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


def _model_paths() -> Json:
    name: Json = {"name": "model", "in": "path", "required": True, "schema": TEXT}
    one = _operation("Retrieve a model", "Its facts.", {200: _json_answer("Model")}, faults=(404,))
    return {
        "/v1/models": {"get": _operation("List models", "All of them.", {200: _json_answer("ModelList")})},
        "/v1/models/{model}": {"parameters": [name], "get": one},
    }


def _health_paths() -> Json:
    living = object_({"status": {"const": "ok"}})
    check = object_({"ready": {"type": "boolean"}, "reason": TEXT_OR_NULL})
    ready = object_({"ready": {"type": "boolean"}, "checks": {"type": "object", "additionalProperties": check}})
    answers = {status: _answer(text, _json(ready)) for status, text in ((200, "Ready."), (503, "Not ready."))}
    alive = {"200": _answer("Alive.", _json(living))}
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


def _operation(
    summary: str,
    description: str,
    answers: Mapping[int, Json],
    *,
    faults: Sequence[int] = (),
    parameters: Sequence[Json] = (),
    body: Json | None = None,
    bodiless: bool = False,
) -> Json:
    """Return an operation that needs a key; what is `bodiless` answers a fault with its headers alone."""
    responses = {str(status): answer for status, answer in answers.items()}
    for status in sorted({*_ALWAYS, *faults}):
        shared: Json = {"$ref": f"#/components/responses/{status}"}
        responses[str(status)] = {**_fault(status), "content": {}} if bodiless else shared
    operation: Json = {
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


def _fault(status: int) -> Json:
    error = _json({"$ref": "#/components/schemas/Error"})
    return _answer(_FAULTS[status], error, (*_FAULT_HEADERS.get(status, ()), *_RATE))


def _json_answer(schema: str, headers: Sequence[str] = ()) -> Json:
    return _answer(f"A {schema}.", _json({"$ref": f"#/components/schemas/{schema}"}), (*headers, *_RATE))


def _answer(description: str, content: Json, headers: Sequence[str] = ()) -> Json:
    return {"description": description, "headers": _headers(headers), "content": content}


def _headers(names: Sequence[str]) -> Json:
    return {name: _header(name) for name in ("x-request-id", "msh-request-id", *names)}


def _header(name: str) -> Json:
    told: Json = {"description": _OPTIONAL[name]} if name in _OPTIONAL else {}
    return {**told, "required": name not in _OPTIONAL, "schema": TEXT}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _in_path(name: str, prefix: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": id_(prefix)}


def _in_query(name: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _in_header(name: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _idempotency_key(limits: Limits) -> Json:
    most = limits.max_idempotency_key
    return _in_header("Idempotency-Key", {"type": "string", "pattern": f"^[!-~]{{1,{most}}}$", "maxLength": most})


def _page(default: int, most: int) -> Json:
    return {"type": "integer", "minimum": 1, "maximum": most, "default": default}


def _named(limits: Limits) -> Json:
    """Return how a form's file is sent: its part carries a name (contract a.1)."""
    example = f'form-data; name="file"; filename="requests{limits.extension}"'
    return {
        "contentType": "application/jsonl",
        "headers": {"Content-Disposition": {"required": True, "schema": TEXT, "example": example}},
    }
