"""What operations of the OpenAPI document are made of: answers, faults, headers, parameters."""

from collections.abc import Mapping, Sequence

from batchmill.api.document.schemas import TEXT, Json, id_
from batchmill.spec.limits import Limits

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
FAULTS: Mapping[int, str] = {
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
REPLAY = ("x-idempotent-replay",)
RATE = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
_OPTIONAL: Mapping[str, str] = {
    "X-RateLimit-Limit": "Calls a minute that the organisation may make, if it is limited.",
    "X-RateLimit-Remaining": "How many of them it may make at once.",
    "X-RateLimit-Reset": "Seconds until it may make all of them again.",
    "x-next-cursor": "Where the next page begins; not on a stream.",
    "x-has-more": "`true`: there is more now.",
    "x-complete": "`true`: nothing will ever come behind this cursor.",
    "x-idempotent-replay": "`true` on the answer that an earlier call of the same got; nothing was made.",
}


def operation(
    summary: str,
    description: str,
    answers: Mapping[int, Json],
    *,
    faults: Sequence[int] = (),
    parameters: Sequence[Json] = (),
    body: Json | None = None,
    body_needed: bool = True,
    bodiless: bool = False,
) -> Json:
    """Return an operation that needs a key; what is `bodiless` answers a fault with its headers alone."""
    responses = {str(status): answer for status, answer in answers.items()}
    for status in sorted({*_ALWAYS, *faults}):
        shared: Json = {"$ref": f"#/components/responses/{status}"}
        responses[str(status)] = {**fault_answer(status), "content": {}} if bodiless else shared
    operation: Json = {
        "operationId": summary.lower().replace(" a ", " ").replace(" ", "_"),
        "summary": summary,
        "description": description,
        "security": [{"key": []}],
        "parameters": list(parameters),
        "responses": responses,
    }
    if body is not None:
        operation["requestBody"] = {"required": body_needed, "content": body}
    return operation


def fault_answer(status: int) -> Json:
    """Return what a fault of this status is answered with."""
    error = as_json({"$ref": "#/components/schemas/Error"})
    return answer_with(FAULTS[status], error, (*_FAULT_HEADERS.get(status, ()), *RATE))


def json_answer(schema: str, headers: Sequence[str] = ()) -> Json:
    """Return an answer that holds an object of this schema."""
    return answer_with(f"A {schema}.", as_json({"$ref": f"#/components/schemas/{schema}"}), (*headers, *RATE))


def answer_with(description: str, content: Json, headers: Sequence[str] = ()) -> Json:
    """Return an answer with its headers; the ids of a request are on each."""
    return {"description": description, "headers": headers_of(headers), "content": content}


def headers_of(names: Sequence[str]) -> Json:
    """Return headers by name, and those of every answer."""
    return {name: _header(name) for name in ("x-request-id", "msh-request-id", *names)}


def _header(name: str) -> Json:
    told: Json = {"description": _OPTIONAL[name]} if name in _OPTIONAL else {}
    return {**told, "required": name not in _OPTIONAL, "schema": TEXT}


def as_json(schema: Json) -> Json:
    """Return the content of a body in JSON."""
    return {"application/json": {"schema": schema}}


def in_path(name: str, prefix: str) -> Json:
    """Return a parameter of the path that is an id."""
    return {"name": name, "in": "path", "required": True, "schema": id_(prefix)}


def in_query(name: str, schema: Json) -> Json:
    """Return a parameter of the query that may be left out."""
    return {"name": name, "in": "query", "required": False, "schema": schema}


def in_header(name: str, schema: Json) -> Json:
    """Return a header that may be left out."""
    return {"name": name, "in": "header", "required": False, "schema": schema}


def idempotency_key(limits: Limits) -> Json:
    """Return the header by which a call may be sent again."""
    most = limits.max_idempotency_key
    return in_header("Idempotency-Key", {"type": "string", "pattern": f"^[!-~]{{1,{most}}}$", "maxLength": most})


def page(default: int, most: int) -> Json:
    """Return the schema of a page's length."""
    return {"type": "integer", "minimum": 1, "maximum": most, "default": default}
