"""The routes that steer a batch, in the OpenAPI document."""

from batchmill.api.document.operation import as_json, in_path, json_answer, operation
from batchmill.api.document.schemas import Json, object_, window
from batchmill.spec.limits import Limits


def steer_paths(limits: Limits) -> Json:
    """Return the paths of pause, resume, window and priority."""
    most = limits.max_priority
    number: Json = {
        "type": "integer",
        "minimum": -most,
        "maximum": most,
        "description": "Higher goes first, within the organisation.",
    }
    return {
        "/v1/batches/{batch_id}/pause": _path(
            "Pause a batch", "The last line is sent within a second; what is out comes back. The window keeps running."
        ),
        "/v1/batches/{batch_id}/resume": _path("Resume a batch", "Work goes on at once."),
        "/v1/batches/{batch_id}/window": _path(
            "Change a window",
            "It counts from the batch's creation, and must end in the future.",
            {"completion_window": window(limits)},
        ),
        "/v1/batches/{batch_id}/priority": _path(
            "Change a priority", "Of an organisation's batches the highest go first.", {"priority": number}
        ),
    }


def _path(summary: str, description: str, members: dict[str, Json] | None = None) -> Json:
    """Return a path of one POST; only in `validating` and `in_progress`, and idempotent."""
    posted = operation(
        summary,
        f"{description} Only in `validating` and `in_progress`; said again it changes nothing.",
        {200: json_answer("Batch")},
        faults=(404, 408, 507),
        body=None if members is None else as_json(object_(members)),
    )
    return {"parameters": [in_path("batch_id", "batch")], "post": posted}
