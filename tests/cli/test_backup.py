"""`batchmill backup`: taken of a running server, it is whole, sound, and goes on where it was."""

import re
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from acceptance.lines import InputLine, joined, odd_lines, plain_lines
from acceptance.serving import Processes, Server, query, until
from witness import answer

_PROMPT = 60.0


def submit(processes: Processes, server: Server, lines: list[InputLine]) -> str:
    """Upload an input, order a batch of it, and return the batch's id."""
    client = processes.client(server, server.key)
    file = client.files.create(file=("input.jsonl", joined(lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id


def recorded(data: Path, batch_id: str) -> set[int]:
    """Return the lines, counted from 0, whose bit is set; the Plan is in the file's own order."""
    rows = query(data, "SELECT first, lines, done FROM slice WHERE batch_id = ?", batch_id)
    return {first + i for first, lines, done in rows for i in range(lines) if done[i >> 3] >> (i & 7) & 1}


def completed(data: Path, batch_id: str) -> int:
    """Return how many lines are counted as completed."""
    return int(query(data, "SELECT completed FROM batch WHERE id = ?", batch_id)[0][0])


def test_a_backup_of_a_running_server_goes_on_elsewhere(processes: Processes, tmp_path: Path) -> None:
    """Restored elsewhere, a backup ends the batch with every line once, and sends nothing that it had recorded."""
    lines = odd_lines(6000)
    witness = processes.witness(log=tmp_path / "first.log", latency_ms=100)  # 40 s: the backup is not late
    server = processes.serve("--backend", witness.url, "--window", 16)
    key = server.key
    batch_id = submit(processes, server, lines)
    until(lambda: completed(server.data, batch_id) >= 300, _PROMPT)
    taken = processes.batchmill("backup", tmp_path / "copy", "--data", server.data)
    assert (taken.code, taken.err) == (0, ""), taken.out
    assert taken.out.splitlines()[-1].startswith("Backed up: ")
    server.kill_everything()  # the first place and its engine are gone
    witness.kill_everything()
    had = recorded(tmp_path / "copy", batch_id)
    assert 300 <= len(had) < len(lines)
    assert processes.batchmill("verify", "--data", tmp_path / "copy").code == 0

    shutil.copytree(tmp_path / "copy", tmp_path / "restored")
    second = processes.witness(log=tmp_path / "second.log")
    again = processes.serve("--backend", second.url, data=tmp_path / "restored")
    assert "sk-bm-" not in again.out.read_text()  # the keys are those of the backup
    client = processes.client(again, key)
    batch = until(lambda: (b := client.batches.retrieve(batch_id)).status == "completed" and b, _PROMPT)
    assert (batch.error_file_id, batch.request_counts.completed) == (None, len(lines))
    found = client.files.content(batch.output_file_id).content.splitlines()
    assert len(found) == len(lines)
    for line, text in zip(lines, found, strict=True):
        assert b',"custom_id":%s,"response":' % line.custom_id in text
        assert answer(line.body) in text
    assert sorted(second.starts()) == sorted(lines[n].digest for n in range(len(lines)) if n not in had)
    assert again.stop() == 0
    assert processes.batchmill("verify", "--data", again.data).code == 0


def test_a_backup_is_whole_although_files_go_meanwhile(processes: Processes, tmp_path: Path) -> None:
    """Batches end and Files are deleted all the time; each backup taken meanwhile is sound, with nothing too much."""
    server = processes.ready("--backend", "echo:")
    client = processes.client(server, server.key)
    stop = threading.Event()
    made = 0

    def churn() -> None:
        nonlocal made
        while not stop.is_set():
            batch_id = submit(processes, server, plain_lines(40, model="echo"))
            until(lambda batch_id=batch_id: client.batches.retrieve(batch_id).status == "completed", _PROMPT)
            for file in client.files.list():
                client.files.delete(file.id)
            made += 1

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        for number in range(4):
            copy = tmp_path / f"copy-{number}"
            taken = processes.batchmill("backup", copy, "--data", server.data)
            assert (taken.code, taken.err) == (0, ""), taken.out
            assert sorted(path.name for path in copy.iterdir()) == ["batchmill.sqlite3", "blobs", "lock"]
            needed = {key for (key,) in query(copy, "SELECT key FROM blob WHERE state = 'ready'")}
            assert {path.name for path in (copy / "blobs").glob("*/*")} == needed
            assert query(copy, "SELECT count(*) FROM blob WHERE state = 'writing'") == [(0,)]
    finally:
        stop.set()
        churning.join()
    assert made > 0


def test_damage_is_named_and_the_rest_is_saved(processes: Processes, tmp_path: Path) -> None:
    """Bytes that are lost or rotten are named, the exit code is 1, and everything else is in the backup."""
    server = processes.ready("--backend", "echo:")
    batch_ids = [submit(processes, server, plain_lines(20, model="echo")) for _ in range(3)]
    done = "SELECT count(*) FROM batch WHERE status = 'completed' AND input_key IS NULL"
    until(lambda: query(server.data, done) == [(len(batch_ids),)], _PROMPT)
    keys = [key for (key,) in query(server.data, "SELECT blob_key FROM file WHERE purpose = 'batch_output'")]
    lost, rotten, sound = [next(server.data.glob(f"blobs/*/{key}")) for key in keys]
    lost.unlink()
    rotten.write_bytes(rotten.read_bytes().replace(b"assistant", b"Assistant", 1))
    taken = processes.batchmill("backup", tmp_path / "copy", "--data", server.data)
    assert taken.code == 1
    assert f"damage: bytes: {lost.name}: its bytes are gone.\n" in taken.out
    assert f"damage: bytes: {rotten.name}: its SHA-256 is " in taken.out
    assert len(re.findall(r"^damage: bytes: ", taken.out, re.MULTILINE)) == 2
    (copied,) = (tmp_path / "copy").glob(f"blobs/*/{sound.name}")
    assert copied.read_bytes() == sound.read_bytes()


def test_a_copy_is_nobodys(processes: Processes, tmp_path: Path) -> None:
    """In the copy no worker holds anything, nothing waits for another machine's clock, and nothing is being written."""
    server = processes.ready("--backend", "echo:?latency_ms=2000")
    batch_id = submit(processes, server, plain_lines(500, model="echo"))
    until(lambda: completed(server.data, batch_id) > 0, _PROMPT)
    with closing(sqlite3.connect(server.data / "batchmill.sqlite3", timeout=30)) as connection, connection:
        connection.execute("UPDATE batch SET retry_at = 1e12")
        connection.execute(
            "INSERT INTO blob (key, state, bytes, refs, created_at) VALUES ('upload_half', 'writing', 0, 0, 4102444800)"
        )
    assert processes.batchmill("backup", tmp_path / "copy", "--data", server.data).code == 0
    owned = "SELECT count(*) FROM slice WHERE owner IS NOT NULL"
    assert query(server.data, owned) != [(0,)]
    assert query(tmp_path / "copy", owned) == [(0,)]
    assert query(tmp_path / "copy", "SELECT count(*) FROM worker") == [(0,)]
    assert query(tmp_path / "copy", "SELECT retry_at FROM batch") == [(None,)]
    assert query(tmp_path / "copy", "SELECT state FROM blob WHERE key = 'upload_half'") == [("doomed",)]


@pytest.mark.parametrize("kind", ["file", "full"])
def test_a_backup_is_made_in_a_folder_of_its_own(processes: Processes, tmp_path: Path, kind: str) -> None:
    """A folder that is not empty, or in the data itself, is refused with 2, no folder with 3; none is touched."""
    server = processes.ready("--backend", "echo:")
    target = tmp_path / "copy"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    ended = processes.batchmill("backup", target, "--data", server.data)
    assert ended.code == {"file": 3, "full": 2}[kind]
    assert str(target) in ended.err
    assert "Traceback" not in ended.err
    assert (target if kind == "file" else target / "mine").read_text() == "mine"
    assert kind == "file" or len(list(target.iterdir())) == 1
    inside = server.data / "blobs" / "copy"
    ended = processes.batchmill("backup", inside, "--data", server.data)
    assert (ended.code, inside.exists()) == (2, False)
