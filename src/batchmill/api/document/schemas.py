"""What the OpenAPI document says of each object: files, batches, models, errors, and the bodies that ask for them."""

from collections.abc import Mapping, Sequence

from batchmill.spec.limits import Limits
from batchmill.spec.states import Status

Json = dict[str, object]

TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
TIME: Json = {**COUNT, "description": "Unix time in seconds."}
STATUS: Json = {"type": "string", "enum": [status.value for status in Status]}
TEXT_OR_NULL: Json = {"type": ["string", "null"]}
TIME_OR_NULL: Json = {**TIME, "type": ["integer", "null"]}


def id_(prefix: str) -> Json:
    """Return the schema of an id of this kind."""
    return {"type": "string", "pattern": f"^{prefix}_[0-9a-f]{{46}}$"}


def object_(properties: Mapping[str, Json], *, optional: Sequence[str] = ()) -> Json:
    """Return the schema of an object; all members are required, save those named."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": {**properties}}


COUNTS = object_({"completed": COUNT, "failed": COUNT, "total": COUNT})
USAGE = object_(
    {
        "input_tokens": COUNT,
        "input_tokens_details": object_({"cached_tokens": COUNT}),
        "output_tokens": COUNT,
        "output_tokens_details": object_({"reasoning_tokens": COUNT}),
        "total_tokens": COUNT,
    }
)
RATE_OR_NULL: Json = {"type": ["number", "null"], "minimum": 0}


def list_(schema: str, *, paged: bool = True) -> Json:
    """Return the schema of a list of such objects."""
    members: dict[str, Json] = {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"$ref": f"#/components/schemas/{schema}"}},
    }
    if paged:
        members |= {"has_more": {"type": "boolean"}, "first_id": TEXT_OR_NULL, "last_id": TEXT_OR_NULL}
    return object_(members)


def upload_form(limits: Limits) -> Json:
    """Return the schema of an upload's form (contract a.1)."""
    members: dict[str, Json] = {
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
    return object_(members, optional=expiry) | both | {"additionalProperties": True}  # other parts are ignored


def create_order(limits: Limits) -> Json:
    """Return the schema of an order for a batch (contract a.6)."""
    lasts = object_({"anchor": {"type": "string", "enum": ["created_at"]}, "seconds": _seconds(limits)})
    members: dict[str, Json] = {
        "input_file_id": id_("file"),
        "completion_window": window(limits),
        "endpoint": {"type": "string", "enum": [*limits.endpoints], "default": limits.default_endpoint},
        "metadata": {
            "type": ["object", "null"],
            "maxProperties": limits.metadata_pairs,
            "propertyNames": {"minLength": 1, "maxLength": limits.metadata_key},
            "additionalProperties": {"type": "string", "maxLength": limits.metadata_value},
        },
        "output_expires_after": {**lasts, "type": ["object", "null"]},
    }
    return object_(members, optional=("endpoint", "metadata", "output_expires_after"))


def window(limits: Limits) -> Json:
    """Return the schema of a completion window (contract c.4)."""
    return {
        "type": "string",
        "pattern": f"^[1-9][0-9]{{0,4}}[{''.join(limits.window_units)}]$",
        "description": f"From {limits.window_min} to {limits.window_max} seconds.",
        "examples": ["24h"],
    }


def _seconds(limits: Limits) -> Json:
    return {"type": "integer", "minimum": limits.expires_after_min, "maximum": limits.expires_after_max}


def schemas(limits: Limits) -> Json:
    """Return the schema of every object that is answered with, by its name."""
    model: dict[str, Json] = {"id": TEXT, "object": {"const": "model"}, "created": TIME, "owned_by": TEXT}
    kimis: dict[str, Json] = {"context_length": COUNT}
    kimis |= {f"supports_{what}": {"type": "boolean"} for what in ("image_in", "video_in", "reasoning")}
    fault: dict[str, Json] = {"message": TEXT, "type": TEXT, "param": TEXT_OR_NULL, "code": TEXT_OR_NULL}
    return {
        "File": _file(),
        "FileList": list_("File"),
        "FileDeleted": object_({"id": id_("file"), "object": {"const": "file"}, "deleted": {"const": True}}),
        "Batch": _batch(limits),
        "BatchList": list_("Batch"),
        "Model": object_(model | kimis, optional=tuple(kimis)),
        "ModelList": list_("Model", paged=False),
        "Error": object_({"error": object_(fault)}),
    }


def _file() -> Json:
    return object_(
        {
            "id": id_("file"),
            "object": {"const": "file"},
            "bytes": COUNT,
            "created_at": TIME,
            "filename": TEXT,
            "purpose": {"type": "string", "enum": ["batch", "batch_output"]},
            "status": {"const": "processed"},
            "status_details": {"type": "null"},
            "expires_at": TIME_OR_NULL,
        }
    )


def _batch(limits: Limits) -> Json:
    moments = ("in_progress", "expires", "finalizing", "completed", "failed", "cancelling", "cancelled", "expired")
    return object_(
        {
            "id": id_("batch"),
            "object": {"const": "batch"},
            "endpoint": {"type": "string", "enum": [*limits.endpoints]},
            "input_file_id": id_("file"),
            "completion_window": TEXT,
            "status": STATUS,
            "created_at": TIME,
            "request_counts": COUNTS,
            "output_file_id": TEXT_OR_NULL,
            "error_file_id": TEXT_OR_NULL,
            **{f"{moment}_at": TIME_OR_NULL for moment in moments},
            "metadata": {"type": ["object", "null"], "additionalProperties": TEXT},
            "errors": error_list_or_null(limits),
            "model": TEXT_OR_NULL,
            "usage": {**USAGE, "type": ["object", "null"]},
            "progress": {**_progress(), "type": ["object", "null"]},
            "paused_at": {**TIME_OR_NULL, "description": "Since when no line is sent, in Unix time; null: not paused."},
            "priority": {"type": "integer", "description": "Higher goes first, within the organisation."},
            "cost": cost_or_null(),
            "parent_id": {**TEXT_OR_NULL, "description": "The batch whose failed lines it retries."},
        }
    )


def error_list_or_null(limits: Limits) -> Json:
    """Return the schema of what is wrong with the lines of an input (contract c.3)."""
    wrong = object_(
        {"code": TEXT, "message": TEXT, "param": TEXT_OR_NULL, "line": {"type": ["integer", "null"], "minimum": 1}}
    )
    found = {"type": "array", "items": wrong, "maxItems": limits.max_errors + 1}
    return {**object_({"object": {"const": "list"}, "data": found}), "type": ["object", "null"]}


def cost_or_null() -> Json:
    """Return the schema of an amount of money; null where it is not known."""
    cost = object_(
        {"amount": {"type": "number", "minimum": 0}, "currency": {"type": "string", "pattern": "^[A-Z]{3}$"}}
    )
    told = "By the prices that the operator has configured; null where one is missing."
    return {**cost, "type": ["object", "null"], "description": told}


def _progress() -> Json:
    rate = RATE_OR_NULL
    late = {"type": ["integer", "null"], "minimum": 1, "description": "Seconds after `expires_at`; null if in time."}
    forecast = object_({"lines_per_second": rate, "tokens_per_second": rate, "eta": TIME_OR_NULL, "misses_by": late})
    return {**forecast, "description": "How a batch in progress will go on; null is what nobody can know yet."}
