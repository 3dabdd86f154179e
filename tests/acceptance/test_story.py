"""What users and operators live through, with real processes and the official client."""

import json
import os
import signal
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError
from openai.types import Batch

from acceptance.lines import InputLine, joined, odd_lines, plain_lines
from acceptance.serving import Processes, Server, until
from storage import on_one_machine
from witness import answer

_FINAL = ("completed", "failed", "expired", "cancelled")
_PROMPT = 60.0


def submit(client: OpenAI, text: bytes) -> str:
    """Upload an input, order a batch of it, and return the batch's id."""
    file = client.files.create(file=("input.jsonl", text), purpose="batch")
    ordered = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"story": "told"}
    )
    assert ordered.status == "validating"
    return ordered.id


def ended(client: OpenAI, batch_id: str, seconds: float = _PROMPT) -> Batch:
    """Wait for the batch's final state and return it."""

    def is_final() -> Batch | None:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in _FINAL else None

    found = until(is_final, seconds)
    assert found is not None
    return found


def progress(client: OpenAI, batch_id: str) -> int:
    """Return how many lines of a batch are done; -1 while nobody answers."""
    try:
        counts = client.batches.retrieve(batch_id).request_counts
    except OpenAIError:
        return -1
    return 0 if counts is None else counts.completed + counts.failed


def results(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """Return the lines of a result file, decoded; [] where there is none."""
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).content.splitlines()]


def custom_ids(lines: Collection[InputLine]) -> list[str]:
    """Return the custom_ids in order, as the client reads them."""
    return [json.loads(line.custom_id) for line in lines]


def check_witnessed(client: OpenAI, batch: Batch, lines: list[InputLine]) -> None:
    """Every line is in the output file once, in order, with the witness's bytes, and nothing is in an error file."""
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.output_file_id is not None
    found = client.files.content(batch.output_file_id).content.splitlines()
    assert [json.loads(text)["custom_id"] for text in found] == custom_ids(lines)
    assert all(answer(line.body) in text for line, text in zip(lines, found, strict=True))


def restarted(server: Server, role: str, old: int) -> bool:
    """Say whether another process has taken the place of a child."""
    try:
        return server.child(role) != old
    except ValueError:  # nobody has, yet
        return False


def test_a_batch_is_uploaded_ordered_run_and_downloaded(processes: Processes) -> None:
    """A user uploads a file, orders a batch, waits, and downloads one result per line in the file's order."""
    server = processes.ready("--backend", "echo:")
    client = processes.client(server, processes.key(server))
    assert [model.id for model in client.models.list()] == ["echo"]
    lines = plain_lines(1000, model="echo")
    batch = ended(client, submit(client, joined(lines)))
    assert batch.status == "completed"
    assert batch.metadata == {"story": "told"}
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (1000, 1000, 0)
    found = results(client, batch.output_file_id)
    assert [line["custom_id"] for line in found] == custom_ids(lines)
    assert [line["response"]["body"]["choices"][0]["message"]["content"] for line in found] == [
        f"echo: {number} " for number in range(1000)
    ]
    assert {(line["response"]["status_code"], line["error"]) for line in found} == {(200, None)}
    assert batch.error_file_id is None
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(line["response"]["body"]["usage"]["prompt_tokens"] for line in found)
    assert [listed.id for listed in client.batches.list()] == [batch.id]
    assert [file.purpose for file in client.files.list()] == ["batch_output", "batch"]


def test_all_bad_lines_are_reported_at_once_with_their_numbers(processes: Processes) -> None:
    """A file with bad lines fails as a whole, and every one of them is named with its physical line number."""
    server = processes.serve("--backend", "echo:")
    client = processes.client(server, processes.key(server))
    good = [line.text for line in plain_lines(6, model="echo")]
    text = b"".join(
        [
            good[0],
            b"{not json}\n",
            b"\n",  # blank lines are counted and skipped
            good[1],
            good[1],
            good[2].replace(b'"POST"', b'"GET"'),
            good[3].replace(b'"echo"', b'"no-such-model"'),
            good[4].replace(b"/v1/chat/completions", b"/v1/embeddings"),
            good[5].replace(b'"custom_id"', b'"customid"'),
        ]
    )
    batch = ended(client, submit(client, text))
    assert batch.status == "failed"
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert batch.errors is not None
    assert [(error.line, error.code, error.param) for error in batch.errors.data or ()] == [
        (2, "invalid_json_line", None),
        (5, "duplicate_custom_id", "custom_id"),
        (6, "invalid_method", "method"),
        (7, "model_not_found", "body.model"),
        (8, "invalid_url", "url"),
        (9, "missing_required_parameter", "custom_id"),
    ]


def test_a_cancelled_batch_keeps_what_was_done(processes: Processes) -> None:
    """A cancel mid-way leaves finished lines in the output file and names the others `batch_cancelled`."""
    server = processes.serve("--backend", "echo:?latency_ms=50")
    client = processes.client(server, processes.key(server))
    lines = plain_lines(3000, model="echo")
    batch_id = submit(client, joined(lines))
    until(lambda: progress(client, batch_id) >= 100, _PROMPT)
    assert client.batches.cancel(batch_id).status == "cancelling"
    batch = ended(client, batch_id)
    assert batch.status == "cancelled"
    output, errors = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert len(output) >= 100
    assert {(line["response"], line["error"]["code"]) for line in errors} == {(None, "batch_cancelled")}
    counts = batch.request_counts
    assert counts is not None
    assert (counts.completed, counts.failed, counts.total) == (len(output), len(errors), 3000)
    place = {custom_id: number for number, custom_id in enumerate(custom_ids(lines))}
    for found in (output, errors):
        numbers = [place.pop(line["custom_id"]) for line in found]
        assert numbers == sorted(numbers)
    assert not place
    assert batch.cancelling_at is not None
    assert batch.cancelled_at is not None


def test_a_batch_waits_for_a_backend_that_is_not_there_yet(processes: Processes, tmp_path: Path) -> None:
    """A backend that is down when the server starts is waited for, and the batch completes once it is there."""
    log = tmp_path / "witness.log"
    first = processes.witness(log=log)
    port, url = first.port, first.url
    first.kill_everything()
    server = processes.serve("--backend", url)
    client = processes.client(server, processes.key(server))
    lines = odd_lines(500)
    batch_id = submit(client, joined(lines))
    until(lambda: "validation waits" in server.err.read_text(), _PROMPT)
    assert client.batches.retrieve(batch_id).status == "validating"
    assert server.readiness()["checks"]["backends"]["ready"] is False
    witness = processes.witness(log=log, port=port)
    check_witnessed(client, ended(client, batch_id), lines)
    assert Counter(witness.starts()) == Counter(line.digest for line in lines)
    assert server.readiness()["ready"] is True


def test_a_backend_that_dies_mid_run_costs_no_line(processes: Processes, tmp_path: Path) -> None:
    """A backend killed in the middle of a batch and started again later leaves no line in the error file."""
    log = tmp_path / "witness.log"
    witness = processes.witness(log=log, latency_ms=20)
    server = processes.serve("--backend", witness.url)
    client = processes.client(server, processes.key(server))
    lines = odd_lines(1500)
    batch_id = submit(client, joined(lines))
    until(lambda: progress(client, batch_id) >= 100, _PROMPT)
    port = witness.port
    witness.kill_everything()
    until(lambda: "backend unwell" in server.err.read_text(), _PROMPT)
    assert client.batches.retrieve(batch_id).status == "in_progress"
    witness = processes.witness(log=log, port=port)
    check_witnessed(client, ended(client, batch_id), lines)
    sent = Counter(witness.starts())
    assert sent.keys() == {line.digest for line in lines}
    assert sent.total() <= len(lines) + 8  # those in flight when it died


def test_a_server_that_is_told_to_stop_drains(processes: Processes, tmp_path: Path) -> None:
    """After SIGTERM open requests end and are kept; the exit code is 0, and the next start sends no line again."""
    witness = processes.witness(log=tmp_path / "witness.log", latency_ms=50)
    server = processes.serve("--backend", witness.url)
    key = processes.key(server)
    lines = odd_lines(800)
    client = processes.client(server, key)
    batch_id = submit(client, joined(lines))
    until(lambda: progress(client, batch_id) >= 100, _PROMPT)
    assert server.stop() == 0
    assert server.alive() == []
    assert len(witness.starts()) < len(lines)
    ((recorded,),) = processes.query(server, "SELECT completed FROM batch")
    assert recorded == len(witness.starts())
    assert processes.query(server, "SELECT count(*) FROM slice WHERE owner IS NOT NULL") == [(0,)]
    again = processes.serve("--backend", witness.url)
    client = processes.client(again, key)
    check_witnessed(client, ended(client, batch_id), lines)
    assert Counter(witness.starts()) == Counter(line.digest for line in lines)


def test_a_second_signal_ends_the_server_at_once(processes: Processes) -> None:
    """Who asks twice is not kept waiting for open requests."""
    server = processes.serve("--backend", "echo:?latency_ms=600000")
    client = processes.client(server, processes.key(server))
    batch_id = submit(client, joined(plain_lines(10, model="echo")))
    until(lambda: client.batches.retrieve(batch_id).status == "in_progress", _PROMPT)
    until(lambda: processes.query(server, "SELECT 1 FROM slice WHERE owner IS NOT NULL"), _PROMPT)
    server.process.send_signal(signal.SIGINT)
    until(lambda: "draining" in server.err.read_text(), _PROMPT)
    assert server.stop(signal.SIGINT, seconds=10) == 0
    assert server.alive() == []


@on_one_machine
def test_one_data_directory_has_one_server(processes: Processes) -> None:
    """A second start on the same data directory gives up after a while, says why, and disturbs nobody.

    Where the rows are elsewhere, any number of servers share them.
    """
    server = processes.serve("--backend", "echo:")
    second = processes.launch("--backend", "echo:")
    assert second.process.wait(timeout=60) == 4
    assert f"The data directory {server.data} is in use by another Batchmill." in second.err.read_text()
    assert "Traceback" not in second.err.read_text()
    client = processes.client(server, processes.key(server))
    assert ended(client, submit(client, joined(plain_lines(10, model="echo")))).status == "completed"


def test_everything_is_still_there_after_a_restart(processes: Processes) -> None:
    """Keys, Files, batches and result bytes are the same after a stop and a start, and no new key is shown."""
    server = processes.serve("--backend", "echo:")
    key = processes.key(server)
    client = processes.client(server, key)
    batch = ended(client, submit(client, joined(plain_lines(300, model="echo"))))
    assert batch.output_file_id is not None
    files = [file.to_dict() for file in client.files.list()]
    content = client.files.content(batch.output_file_id).content
    assert server.stop() == 0
    again = processes.serve("--backend", "echo:")
    assert "sk-bm-" not in again.out.read_text()
    client = processes.client(again, key)
    assert client.batches.retrieve(batch.id) == batch
    assert [file.to_dict() for file in client.files.list()] == files
    assert client.files.content(batch.output_file_id).content == content


def test_a_killed_worker_is_replaced_and_the_api_does_not_notice(processes: Processes, tmp_path: Path) -> None:
    """A worker killed with -9 is started again at once; the API answers meanwhile, and the batch completes."""
    witness = processes.witness(log=tmp_path / "witness.log", latency_ms=10)
    server = processes.serve("--backend", witness.url)
    client = processes.client(server, processes.key(server))
    lines = odd_lines(1500)
    batch_id = submit(client, joined(lines))
    until(lambda: progress(client, batch_id) >= 100, _PROMPT)
    worker = server.child("worker")
    recorded = progress(client, batch_id)
    os.kill(worker, signal.SIGKILL)
    assert recorded <= progress(client, batch_id) < len(lines)
    until(lambda: restarted(server, "worker", worker), _PROMPT)
    check_witnessed(client, ended(client, batch_id), lines)
    assert len(witness.starts()) <= len(lines) + 8 + 1024  # in flight, and one group that was not durable


def test_a_killed_api_is_replaced_and_the_batch_does_not_notice(processes: Processes, tmp_path: Path) -> None:
    """An API process killed with -9 is started again on the same port; no line is sent twice because of it."""
    witness = processes.witness(log=tmp_path / "witness.log", latency_ms=10)
    server = processes.serve("--backend", witness.url)
    client = processes.client(server, processes.key(server))
    lines = odd_lines(1500)
    batch_id = submit(client, joined(lines))
    until(lambda: progress(client, batch_id) >= 100, _PROMPT)
    api = server.child("api")
    os.kill(api, signal.SIGKILL)
    until(lambda: restarted(server, "api", api), _PROMPT)
    until(lambda: progress(client, batch_id) >= 100, _PROMPT)
    check_witnessed(client, ended(client, batch_id), lines)
    assert Counter(witness.starts()) == Counter(line.digest for line in lines)


def test_children_end_with_their_supervisor(processes: Processes) -> None:
    """A supervisor killed with -9 leaves no process behind, and the data directory is free for the next start."""
    server = processes.serve("--backend", "echo:?latency_ms=20")
    key = processes.key(server)
    client = processes.client(server, key)
    lines = plain_lines(1000, model="echo")
    batch_id = submit(client, joined(lines))
    until(lambda: progress(client, batch_id) >= 50, _PROMPT)
    server.stop(signal.SIGKILL)
    until(lambda: not server.alive(), 10)
    again = processes.serve("--backend", "echo:")
    client = processes.client(again, key)
    batch = ended(client, batch_id)
    assert [line["custom_id"] for line in results(client, batch.output_file_id)] == custom_ids(lines)
