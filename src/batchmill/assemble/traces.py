"""Traces, where the environment asks for them: nothing of OpenTelemetry is imported before it does."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from batchmill.settings import BadSettings
from batchmill.telemetry import Traces

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Say whether the environment asks for traces.

    Raises:
        BadSettings: it does, and the extra is not installed.
    """
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    unwanted = environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    endpoint = next((name for name in _ENDPOINTS if environment.get(name)), None)
    if disabled or unwanted or endpoint is None:
        return False
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise BadSettings(f"{endpoint}: traces need an extra: pip install 'batchmill[otel]'")
    return True


@contextmanager
def traces_of(role: str, environment: Mapping[str, str] = os.environ) -> Iterator[Traces | None]:
    """Give a process its traces, and send the last of them when it ends; None where nobody asks for any."""
    if not wants_traces(environment):
        yield None
        return
    from batchmill.telemetry.otel import OtelTraces  # noqa: PLC0415 - an extra, which few need

    named = "OTEL_SERVICE_NAME" in environment or "service.name" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    traces = OtelTraces(process=role, named=named)
    try:
        yield traces
    finally:
        traces.close()
