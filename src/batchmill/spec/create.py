"""The order for a batch: what `POST /v1/batches` may say (contract a.6; c.3, rows 8 to 12)."""

from collections.abc import Mapping
from dataclasses import dataclass

from batchmill.spec import errors
from batchmill.spec.limits import Limits
from batchmill.spec.windows import window_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOrder:
    """A well-formed order; whether its file exists is for the Store to say."""

    input_file_id: str
    endpoint: str
    completion_window: str  # as received, to be echoed
    window_seconds: int
    metadata: Mapping[str, str] | None
    output_expires_after: int | None  # seconds after the result file's own creation


def parse_create(value: object, *, limits: Limits) -> CreateOrder:
    """Return the order in a decoded JSON body; ApiError for the first thing wrong. Unknown members are ignored."""
    if not isinstance(value, dict):
        raise errors.invalid_type(None, "a JSON object")
    input_file_id = _string(value, "input_file_id")
    if not (input_file_id.isascii() and input_file_id.isprintable()):
        raise errors.unknown_input_file()  # no id of ours, and a NUL would be an error in PostgreSQL
    return parse_order(value, input_file_id=input_file_id, limits=limits)


def parse_trial(value: object, *, limits: Limits) -> int:
    """Return how many lines a quote is to run, from its decoded body, which is an order; none unless it says so."""
    trial = value.get("trial", 0) if isinstance(value, dict) else 0
    if isinstance(trial, float) and trial.is_integer():
        trial = int(trial)
    if not isinstance(trial, int) or isinstance(trial, bool):
        raise errors.invalid_type("trial", "an integer")
    if not 0 <= trial <= limits.max_trial:
        raise errors.invalid_value("trial", f"'trial' must be from 0 to {limits.max_trial}.")
    return trial


def parse_order(value: Mapping[str, object], *, input_file_id: str, limits: Limits) -> CreateOrder:
    """Return the order in the members of a decoded JSON body, over this File; ApiError for the first thing wrong."""
    endpoint = _string(value, "endpoint") if "endpoint" in value else limits.default_endpoint
    if endpoint not in limits.endpoints:
        known = ", ".join(limits.endpoints)
        raise errors.invalid_value("endpoint", f"'endpoint' must be one of: {known}.")
    window = _string(value, "completion_window")
    return CreateOrder(
        input_file_id=input_file_id,
        endpoint=endpoint,
        completion_window=window,
        window_seconds=window_seconds(window, limits),
        metadata=_metadata(value.get("metadata"), limits),
        output_expires_after=_output_expires_after(value.get("output_expires_after"), limits),
    )


def _string(value: Mapping[str, object], name: str) -> str:
    if name not in value:
        raise errors.missing_parameter(name)
    text = value[name]
    if not isinstance(text, str):
        raise errors.invalid_type(name, "a string")
    return text


def _metadata(value: object, limits: Limits) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise errors.invalid_type("metadata", "an object or null")
    if len(value) > limits.metadata_pairs:
        raise errors.invalid_value("metadata", f"'metadata' may hold at most {limits.metadata_pairs} pairs.")
    for key, text in value.items():
        param = f"metadata.{key[: errors.CLIP]}"
        if not 1 <= len(key) <= limits.metadata_key:
            raise errors.invalid_value(param, f"A metadata key must have 1 to {limits.metadata_key} characters.")
        if not isinstance(text, str):
            raise errors.invalid_type(param, "a string")
        if len(text) > limits.metadata_value:
            raise errors.invalid_value(param, f"A metadata value may have at most {limits.metadata_value} characters.")
    return value


def _output_expires_after(value: object, limits: Limits) -> int | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise errors.invalid_type("output_expires_after", "an object or null")
    anchor = "output_expires_after.anchor"
    if "anchor" not in value:
        raise errors.missing_parameter(anchor)
    if value["anchor"] != "created_at":
        raise errors.invalid_value(anchor, f"'{anchor}' must be 'created_at'.")
    param = "output_expires_after.seconds"
    if "seconds" not in value:
        raise errors.missing_parameter(param)
    return expires_after_seconds(value["seconds"], param, limits)


def expires_after_seconds(value: object, param: str, limits: Limits) -> int:
    """Return a time to live in seconds; ApiError when it is no integer or out of range (contract a.1, a.6).

    3600.0 is an integer, too: JSON knows one kind of number, and JSON Schema's `integer` takes it.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise errors.invalid_type(param, "an integer")
    if not limits.expires_after_min <= value <= limits.expires_after_max:
        raise errors.invalid_value(
            param, f"'{param}' must be from {limits.expires_after_min} to {limits.expires_after_max}."
        )
    return value
