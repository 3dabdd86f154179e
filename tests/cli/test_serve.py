"""`batchmill serve`: what its first start prints, and where its settings come from."""

import json
import os
import re
import signal
import sqlite3
import sys
import urllib.request
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from acceptance.lines import joined, plain_lines
from acceptance.serving import FOUND, Processes, Server, clean_environment, query, until


def test_what_is_printed_at_the_first_start_works_as_it_is(processes: Processes, tmp_path: Path) -> None:
    """The curl line and the Python snippet of the welcome run as they are printed; the dashboard is where it says."""
    server = processes.ready("--backend", "echo:")

    def welcome() -> str:
        text = server.out.read_text()
        return text if "print(" in text else ""

    printed = until(welcome, 10)
    dashboard = re.search(r"^Dashboard on (\S+)$", printed, re.MULTILINE)
    assert dashboard is not None
    with urllib.request.urlopen(dashboard[1], timeout=10) as page:  # noqa: S310 - our own server
        assert b"dashboard" in page.read()
    curl = re.search(r"^ *(curl .*)$", printed, re.MULTILINE)
    assert curl is not None
    ended = processes.run(["sh", "-c", curl[1]])
    assert ended.code == 0
    assert '"id":"echo"' in ended.out
    snippet = re.search(r"^ *from openai import.*?print\(.*?$", printed, re.MULTILINE | re.DOTALL)
    assert snippet is not None
    script = tmp_path / "snippet.py"
    script.write_text("\n".join(line.strip() for line in snippet[0].splitlines()))
    ended = processes.run([sys.executable, str(script)])
    assert (ended.code, ended.out, ended.err) == (0, "['echo']\n", "")


@pytest.mark.parametrize(
    ("variable", "flag", "model"),
    [
        ("", "", "of-the-file"),
        ("echo:#of-the-environment", "", "of-the-environment"),
        ("echo:#e", "echo:#of-a-flag", "of-a-flag"),
    ],
)
def test_flags_win_over_the_environment_and_that_over_the_file(
    processes: Processes, tmp_path: Path, variable: str, flag: str, model: str
) -> None:
    """A setting is taken from a flag, else from `BATCHMILL_…`, else from the settings file."""
    file = tmp_path / "batchmill.toml"
    file.write_text('backend = ["echo:#of-the-file"]\nlog_format = "json"\nretention = "1h"\ndashboard = false\n')
    environment = clean_environment(
        BATCHMILL_SETTINGS=str(file), **({"BATCHMILL_BACKEND": variable} if variable else {})
    )
    flags = [*(["--backend", flag] if flag else []), "--retention", "2h"]
    server = processes.serve(*flags, environment=environment)
    client = processes.client(server, server.key)
    assert until(lambda: [listed.id for listed in client.models.list()], 30) == [model]
    kept = client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
    assert kept.expires_at == kept.created_at + 7200
    assert server.err.read_text().startswith('{"')  # what only the file sets comes from the file
    assert "Dashboard" not in server.out.read_text()


def test_a_fresh_start_tries_a_stuck_batch_again(processes: Processes) -> None:
    """A batch that failed five times is left alone while `serve` runs; the next `serve` validates and completes it."""
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    server = processes.serve("--backend", "http://127.0.0.1:9/v1")  # nobody is there: the batch stays validating
    key = server.key
    client = processes.client(server, key)
    uploaded = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    made = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
    server.stop()
    with closing(sqlite3.connect(server.data / "batchmill.sqlite3")) as rows, rows:
        rows.execute("UPDATE batch SET crashes = 5, retry_at = 1e12, waiting = 'stuck: validating failed'")
    server = processes.serve("--backend", "echo:")
    client = processes.client(server, key)
    until(lambda: client.batches.retrieve(made.id).status == "completed", 30)
    assert query(server.data, "SELECT crashes, waiting FROM batch") == [(0, None)]


def test_metrics_are_served_where_it_says(processes: Processes) -> None:
    """The address that is printed answers without a key, also after the worker was killed and started again."""
    server = processes.ready("--backend", "echo:")
    assert 'batchmill_batches{status="in_progress"} 0.0' in scrape(server)
    old = server.child("worker")
    os.kill(old, signal.SIGKILL)
    until(lambda: "worker" in server.readiness()["checks"] and scrape(server) and server.child("worker") != old, 30)
    assert "batchmill_lines_open 0.0" in scrape(server)


def test_an_open_scrape_does_not_keep_the_worker_from_ending(processes: Processes) -> None:
    """With a connection to `/metrics` held open, SIGTERM ends `serve` with 0 and in good time, nobody killed."""
    server = processes.ready("--backend", "echo:")
    held = HTTPConnection("127.0.0.1", int(metrics_url(server).split(":")[2].partition("/")[0]), timeout=10)
    held.request("GET", "/metrics")
    assert server.stop(seconds=20) == 0
    held.close()
    assert "killed" not in server.err.read_text()


def test_the_window_is_found_unless_a_number_is_set(processes: Processes) -> None:
    """A backend that takes more at once gets more, and every line has its result."""
    witness = processes.witness(log=processes.folder / "witness.log", latency_ms=50)
    server = processes.serve("--backend", witness.url, environment=clean_environment(BATCHMILL_WINDOW=FOUND))
    with processes.client(server, server.key) as client:
        lines = plain_lines(6000)
        file = client.files.create(file=("in.jsonl", joined(lines)), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        until(lambda: window(server) >= 32, 60)
        until(lambda: client.batches.retrieve(made.id).status == "completed", 120)
        counts = client.batches.retrieve(made.id).request_counts
    assert counts is not None
    assert (counts.completed, counts.failed) == (6000, 0)


def window(server: Server) -> float:
    """Return the present window of the one backend."""
    found = re.search(r"^batchmill_window\{.*\} ([0-9.]+)$", scrape(server), re.MULTILINE)
    return 0.0 if found is None else float(found[1])


def metrics_url(server: Server) -> str:
    """Return the address of `/metrics`, as `serve` prints it."""
    found = until(lambda: re.search(r"^Metrics on (http://\S+/metrics)$", server.out.read_text(), re.MULTILINE), 10)
    assert found is not None
    return found[1]


def scrape(server: Server) -> str:
    """Return what `/metrics` says; "" while the worker is away."""
    host, _, path = metrics_url(server).removeprefix("http://").partition("/")
    connection = HTTPConnection(host, timeout=30)
    try:
        connection.request("GET", f"/{path}")
        return connection.getresponse().read().decode()
    except (OSError, HTTPException):  # the worker died over this very request
        return ""
    finally:
        connection.close()
