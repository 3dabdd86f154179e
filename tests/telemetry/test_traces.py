"""Traces and request ids of a real `batchmill serve`, as a collector and a backend see them."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai import NotFoundError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from acceptance.serving import Processes, clean_environment, until
from batchmill.telemetry.otel import trace_of

_MODEL = {"object": "list", "data": [{"id": "m", "object": "model"}]}
_REPLY = {"id": "c", "choices": [{"message": {"role": "assistant", "content": "a secret answer"}}]}


@dataclass(slots=True, kw_only=True)
class Span:
    """A span as it arrived."""

    name: str
    trace: int
    id: int
    links: list[int]
    facts: dict[str, Any]
    resource: dict[str, Any]
    failed: bool


@dataclass(slots=True)
class Seen:
    """What came: spans, the bytes that they came in, and the traceparents that the backend got."""

    spans: list[Span] = field(default_factory=list)
    raw: bytes = b""
    parents: list[str] = field(default_factory=list)

    def named(self, name: str) -> list[Span]:
        """Return the spans with this name."""
        return [span for span in self.spans if span.name == name]


@contextmanager
def peers() -> Iterator[tuple[str, Seen]]:
    """Be a collector of OTLP over HTTP and a model server at one address."""
    seen = Seen()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._say(json.dumps(_MODEL).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                seen.raw += body
                seen.spans += _decoded(body)
                self._say(ExportTraceServiceResponse().SerializeToString(), "application/x-protobuf")
            else:
                seen.parents += self.headers.get_all("traceparent", [])
                self._say(json.dumps(_REPLY).encode())

        def _say(self, body: bytes, kind: str = "application/json") -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        serving.join()


def _decoded(body: bytes) -> Iterator[Span]:
    for resources in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _facts(resources.resource.attributes)
        for scope in resources.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    trace=int.from_bytes(span.trace_id),
                    id=int.from_bytes(span.span_id),
                    links=[int.from_bytes(link.trace_id) for link in span.links],
                    facts=_facts(span.attributes),
                    resource=resource,
                    failed=span.status.code == 2,
                )


def _facts(attributes: Any) -> dict[str, Any]:  # noqa: ANN401 - protobuf's own
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def test_a_batch_is_one_trace_from_the_api_to_the_backend(processes: Processes) -> None:
    """Validation, calls, commits and the end are in the trace that the creating request links to; no secret is."""
    with peers() as (url, seen):
        environment = clean_environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=url,
            OTEL_SERVICE_NAME="mill",
            OTEL_BSP_SCHEDULE_DELAY="100",
            BATCHMILL_ACCESS_LOG="true",
            BATCHMILL_LOG_FORMAT="json",
        )
        server = processes.serve("--backend", f"{url}/v1#m", environment=environment)
        client = processes.client(server, server.key)
        body = {"model": "m", "messages": [{"role": "user", "content": "a secret prompt"}]}
        line = {"custom_id": "a secret id", "method": "POST", "url": "/v1/chat/completions", "body": body}
        file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        made = client.batches.with_raw_response.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        batch = made.parse()
        with pytest.raises(NotFoundError):
            client.batches.retrieve("a secret put in the wrong place")
        until(lambda: client.batches.retrieve(batch.id).status == "completed", 30, every=0.2)
        until(lambda: seen.named("finalizing") and seen.named("POST /v1/batches"), 10, every=0.1)
        assert server.stop() == 0
    trace = trace_of(batch.id)
    (create,) = seen.named("POST /v1/batches")
    request_id = made.headers["x-request-id"]
    assert create.links == [trace]
    assert create.facts["batchmill.request_id"] == request_id
    assert create.facts["http.response.status_code"] == 200
    assert create.facts["batchmill.organisation"].startswith("org_")
    assert create.resource["service.name"] == "mill"
    for work in ("validating", "call", "commit", "finalizing"):
        assert [span.trace for span in seen.named(work)] == [trace], work
    (upload,) = seen.named("POST /v1/files")
    told = [span.facts["batchmill.file"] for span in (upload, *seen.named("validating"), *seen.named("finalizing"))]
    assert told == [file.id] * 3
    (call,) = seen.named("call")
    assert seen.parents == [f"00-{trace:032x}-{call.id:016x}-01"]
    assert call.facts["batchmill.model"] == "m"
    looks = {span.facts.get("batchmill.batch") for span in seen.named("GET /v1/batches/{batch_id}")}
    assert looks == {batch.id, None}  # what stands in an id's place and is none is not told
    assert {span.name for span in seen.spans if span.failed} <= {"GET /readyz"}  # until the worker has begun
    for secret in (b"a secret", server.key.encode()):
        assert secret not in seen.raw
    logged = [json.loads(text) for text in server.err.read_text().splitlines() if text.startswith("{")]
    (told,) = [entry for entry in logged if entry.get("request_id") == request_id]
    assert {name: told[name] for name in ("event", "method", "route", "status")} == {
        "event": "request",
        "method": "POST",
        "route": "/v1/batches",
        "status": 200,
    }
    assert told["organisation"] == create.facts["batchmill.organisation"]
    assert told["key"].startswith("key_")


def test_who_asks_for_no_traces_imports_nothing_of_them() -> None:
    """Without an endpoint the processes know nothing of OpenTelemetry's SDK."""
    code = (
        "import sys, batchmill.cli.process as process\n"
        "with process.traces_of('api') as traces: print(traces)\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    environment = {name: value for name, value in clean_environment().items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["None", "[]"]
