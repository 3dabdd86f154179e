"""A server that is stopped and started again under those who follow a batch."""

import json
import socket
import time
from pathlib import Path

from acceptance.lines import joined, plain_lines
from acceptance.serving import Processes, clean_environment, until

_LINES = 400


def test_those_who_follow_go_on_after_a_restart(processes: Processes, tmp_path: Path) -> None:
    """SIGTERM ends `serve` in good time under open streams and an upload; results come once each."""
    server = processes.ready("--backend", "echo:?latency_ms=300#witness", "--limits", "open")
    environment = clean_environment(BATCHMILL_SERVER=server.url, BATCHMILL_API_KEY=server.key)
    source, results = tmp_path / "in.jsonl", tmp_path / "results.jsonl"
    source.write_bytes(joined(plain_lines(_LINES)))
    batch_id = processes.batchmill("submit", source, environment=environment).out.strip()
    followers = [
        processes.start(*words, batch_id, *more, environment=environment)
        for words, more in ((["results"], ["--follow", "-o", str(results)]), (["watch"], ["--json"]))
    ]
    until(lambda: results.exists() and results.read_bytes().count(b"\n") >= 20 and followers[1].out.read_text(), 30)
    with (
        socket.create_connection(("127.0.0.1", server.port)) as upload,
        socket.create_connection(("127.0.0.1", server.port)) as stream,
    ):
        key = f"Host: x\r\nAuthorization: Bearer {server.key}\r\n\r\n"
        stream.sendall(f"GET /v1/batches/{batch_id}/results?follow=true HTTP/1.1\r\n{key}".encode())
        assert stream.recv(9) == b"HTTP/1.1 "
        head = "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        upload.sendall(f"{head}Authorization: Bearer {server.key}\r\nContent-Length: 1000000\r\n\r\n--b\r\n".encode())
        began = time.monotonic()
        assert server.stop() == 0
        assert "without completing" not in server.err.read_text()  # a stream that is cut is no fault
    assert time.monotonic() - began < 15
    assert all(follower.process.poll() is None for follower in followers)
    assert results.read_bytes().count(b"\n") < _LINES
    until(lambda: all("Waiting until it is back" in follower.err.read_text() for follower in followers), 30)
    processes.serve("--backend", "echo:#witness", "--limits", "open", "--port", server.port, "--metrics-port", 0)
    assert [follower.process.wait(timeout=60) for follower in followers] == [0, 0]
    came = [json.loads(line)["custom_id"] for line in results.read_bytes().splitlines()]
    assert (len(came), len(set(came))) == (_LINES, _LINES)
    told = [json.loads(line) for line in followers[1].out.read_text().splitlines()]
    assert told[-1]["status"] == "completed"
    assert told[-1]["request_counts"]["completed"] == _LINES
