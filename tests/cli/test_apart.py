"""The API and the workers as processes apart, on a real PostgreSQL and a real bucket."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from acceptance.lines import joined, plain_lines
from acceptance.serving import Processes, Server, clean_environment, until
from bucket import ENVIRONMENT, Bucket
from postgres import Cluster

_FINAL = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture
def environment(cluster: Cluster, bucket: Bucket) -> dict[str, str]:
    """What every process of one installation has in common."""
    return clean_environment(
        BATCHMILL_DATABASE=asyncio.run(cluster.new_database(migrated=False)),
        BATCHMILL_BLOBS=bucket.new_url(),
        BATCHMILL_ALLOW_UNSAFE_DATABASE="1",
        AWS_ENDPOINT=bucket.endpoint,
        **ENVIRONMENT,
    )


def _key(processes: Processes, environment: dict[str, str]) -> str:
    return processes.batchmill("keys", "create", environment=environment).out.strip()


def _status(processes: Processes, environment: dict[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(processes.batchmill("status", "--json", environment=environment).out)
    return said


def _api(processes: Processes, environment: dict[str, str], data: Path) -> Server:
    return processes.serve("--no-worker", "--metrics-port", 0, environment=environment, data=data)


def test_apis_and_workers_are_any_number_and_any_may_die(
    processes: Processes, environment: dict[str, str], tmp_path: Path
) -> None:
    """Two API processes and two workers share a batch; one of each is killed in its middle, and it is completed.

    `status` names the workers with what they hold, and the backend with its common window; `verify` finds all sound.
    """
    apis = [_api(processes, environment, tmp_path / f"api-{n}") for n in range(2)]
    options = ("--backend", "echo:?latency_ms=100", "--window", 16, "--lease", "2s", "--metrics-port", 0)
    workers = [
        processes.start("worker", "--data", tmp_path / f"worker-{n}", *options, environment=environment)
        for n in range(2)
    ]
    until(lambda: len(_status(processes, environment)["workers"]) == len(workers), 30, every=0.3)
    key = _key(processes, environment)
    clients = [processes.client(api, key) for api in apis]
    file = clients[0].files.create(file=("in.jsonl", joined(plain_lines(1000, model="echo"))), purpose="batch")
    batch = clients[1].batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")

    def both_work() -> bool:
        return sum(worker["slices"] > 0 for worker in _status(processes, environment)["workers"]) == len(workers)

    until(both_work, 30, every=0.2)
    seen = _status(processes, environment)
    assert [(backend["name"], backend["well"], backend["window"]) for backend in seen["backends"]] == [
        ("echo:", True, 16)
    ]
    workers[0].kill_everything()
    apis[0].kill_everything()
    until(lambda: clients[1].batches.retrieve(batch.id).status in _FINAL, 60, every=0.2)
    batch = clients[1].batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.output_file_id is not None
    lines = [json.loads(line) for line in clients[1].files.content(batch.output_file_id).text.splitlines()]
    wanted = [json.loads(line.custom_id) for line in plain_lines(1000)]
    assert [line["custom_id"] for line in lines] == wanted
    assert workers[1].stop() == 0
    verified = processes.batchmill("verify", "--data", tmp_path / "api-1", environment=environment)
    assert verified.code == 0, verified.out


def test_backends_come_and_go_while_a_worker_runs(
    processes: Processes, environment: dict[str, str], tmp_path: Path
) -> None:
    """A backend that is added gets lines, one that is drained gets none, whoever named it; no restart is needed."""
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    first, second = (processes.witness(log=log) for log in logs)
    api = _api(processes, environment, tmp_path / "api")
    options = ("--data", tmp_path / "worker", "--backend", first.url, "--metrics-port", 0)
    processes.start("worker", *options, environment=environment)
    client = processes.client(api, _key(processes, environment))

    def run() -> tuple[int, int]:
        before = len(first.starts()), len(second.starts())
        file = client.files.create(file=("in.jsonl", joined(plain_lines(50))), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        until(lambda: client.batches.retrieve(batch.id).status in _FINAL, 30, every=0.1)
        assert client.batches.retrieve(batch.id).status == "completed"
        return len(first.starts()) - before[0], len(second.starts()) - before[1]

    def backends() -> dict[str, str]:
        said = json.loads(processes.batchmill("backends", "list", "--json", environment=environment).out)
        return {backend["name"]: backend["state"] for backend in said}

    until(lambda: backends().get(first.url) == "well", 30, every=0.2)
    assert run() == (50, 0)
    assert processes.batchmill("backends", "add", second.url, environment=environment).code == 0
    until(lambda: backends().get(second.url) == "well", 30, every=0.2)
    assert processes.batchmill("backends", "drain", first.url, environment=environment).code == 0
    until(lambda: backends()[first.url] == "draining", 30, every=0.2)
    until(lambda: run() == (0, 50), 30)
    assert processes.batchmill("backends", "resume", first.url, environment=environment).code == 0
    assert processes.batchmill("backends", "remove", second.url, environment=environment).code == 0
    until(lambda: second.url not in backends(), 30, every=0.2)
    assert run() == (50, 0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["add", "http://me:secret@gpu-1/v1"], "rows are no place for it"),
        (["add", "ftp://gpu-1/v1"], "is not a URL that begins with"),
        (["add", "http://gpu-1/v1", "--window", "0"], "It cannot be a backend"),
        (["drain", "http://nowhere/v1"], "There is no backend 'http://nowhere/v1'"),
        (["remove", "http://nowhere/v1"], "There is no backend 'http://nowhere/v1'"),
    ],
)
def test_what_is_no_backend_is_refused(processes: Processes, tmp_path: Path, words: list[str], sentence: str) -> None:
    """A backend that cannot be, or that nobody knows, is named in a sentence without a secret."""
    if "nowhere" in words[1]:
        assert processes.batchmill("migrate", "--data", tmp_path / "data").code == 0
    ended = processes.batchmill("backends", *words, "--data", tmp_path / "data")
    assert ended.code != 0
    assert sentence in ended.err
    assert "Traceback" not in ended.err
    assert "Value error" not in ended.err
    assert "secret" not in ended.err


def test_a_worker_of_its_own_needs_rows_that_it_can_share(processes: Processes, tmp_path: Path) -> None:
    """On SQLite `worker` and `serve --no-worker` are refused, with what to do."""
    alone = processes.batchmill("worker", "--data", tmp_path / "data")
    assert (alone.code, "--database" in alone.err) == (2, True)
    apart = processes.batchmill("serve", "--no-worker", "--data", tmp_path / "data")
    assert (apart.code, "set database to a PostgreSQL server" in apart.err) == (2, True)


@pytest.mark.parametrize("words", [["worker"], ["serve", "--no-worker"]], ids=" ".join)
def test_processes_apart_need_bytes_that_they_can_share(processes: Processes, tmp_path: Path, words: list[str]) -> None:
    """Without a bucket both are refused: each would look for the others' bytes in a folder of its own."""
    rows = clean_environment(BATCHMILL_DATABASE="postgresql://127.0.0.1:1/rows")
    refused = processes.batchmill(*words, "--data", tmp_path / "data", environment=rows)
    assert (refused.code, "name a bucket with --blobs" in refused.err) == (2, True)


def test_a_database_that_may_lose_commits_is_refused(
    processes: Processes, environment: dict[str, str], tmp_path: Path
) -> None:
    """A PostgreSQL without fsync is not worked on unless that is allowed; nor is one that does not answer."""
    strict = {name: value for name, value in environment.items() if name != "BATCHMILL_ALLOW_UNSAFE_DATABASE"}
    refused = processes.batchmill("migrate", "--data", tmp_path, environment=strict)
    assert (refused.code, "fsync=off" in refused.err) == (3, True)
    assert processes.batchmill("migrate", "--data", tmp_path, environment=environment).code == 0
    nowhere = clean_environment(BATCHMILL_DATABASE="postgresql://me:secret@127.0.0.1:1/rows")
    away = processes.batchmill("migrate", "--data", tmp_path, environment=nowhere)
    assert (away.code, "The database cannot be used" in away.err, "secret" in away.err) == (3, True, False)
