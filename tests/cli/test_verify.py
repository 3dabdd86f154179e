"""`batchmill verify`: what it says of a store, with and without a running server, and how it ends."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from acceptance.lines import joined, plain_lines
from acceptance.serving import Processes, Server, query, until


def order(processes: Processes, server: Server, count: int) -> str:
    """Order a batch of so many lines and return its id."""
    client = processes.client(server, server.key)
    file = client.files.create(file=("input.jsonl", joined(plain_lines(count, model="echo"))), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id


def status(server: Server, batch_id: str) -> str:
    """Return a batch's status, from its row."""
    return str(query(server.data, "SELECT status FROM batch WHERE id = ?", batch_id)[0][0])


def test_a_store_is_sound_while_it_is_worked_on(processes: Processes) -> None:
    """Beside a server that runs, ends and clears batches, and whose Files go, every look finds a sound store."""
    server = processes.ready("--backend", "echo:?latency_ms=2")
    client = processes.client(server, server.key)
    batches = [order(processes, server, count) for count in (50, 200, 1500, 3000)]
    looks = 0
    while looks < 3 or status(server, batches[-1]) != "completed":
        ended = processes.batchmill("verify", "--data", server.data)
        assert (ended.code, ended.err) == (0, ""), ended.out
        assert ended.out.splitlines()[-1].startswith("Sound: ")
        for file in client.files.list():
            if file.purpose == "batch_output":
                client.files.delete(file.id)
        looks += 1
    assert server.stop() == 0
    ended = processes.batchmill("verify", "--data", server.data)
    assert ended.code == 0
    assert ended.out.splitlines()[-1].endswith("damage: 0, notes: 0.")


def test_damage_ends_with_1_and_is_named(processes: Processes) -> None:
    """A changed byte is told on a line that names the bytes; the exit code is 1; JSON says the same."""
    server = processes.ready("--backend", "echo:")
    batch_id = order(processes, server, 50)
    until(lambda: status(server, batch_id) == "completed", 60)
    until(lambda: query(server.data, "SELECT count(*) FROM segment") == [(0,)], 60)
    assert server.stop() == 0
    ((key,),) = query(server.data, "SELECT blob_key FROM file WHERE purpose = 'batch_output'")
    (path,) = server.data.glob(f"blobs/*/{key}")
    path.write_bytes(path.read_bytes().replace(b"assistant", b"Assistant", 1))
    ended = processes.batchmill("verify", "--data", server.data)
    assert ended.code == 1
    assert f"damage: bytes: {key}: its SHA-256 is " in ended.out
    assert ended.out.splitlines()[-1].startswith("Damaged: ")
    told = processes.batchmill("verify", "--data", server.data, "--json")
    assert told.code == 1
    said = json.loads(told.out)
    assert [(f["damage"], f["kind"], f["what"]) for f in said["findings"]] == [(True, "bytes", key)]
    assert (said["sound"], said["blobs"], said["lines"]) == (False, 3, 50)


def test_the_state_of_a_run_is_checked_with_its_input(processes: Processes, tmp_path: Path) -> None:
    """A `run` keeps its input outside: named, it is a part of what is checked; and `backup` leaves such a state."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(joined(plain_lines(5, model="echo")))
    assert processes.batchmill("run", source, "-o", output, "--backend", "echo:").code == 0
    state = ("--data", f"{output}.run")
    ended = processes.batchmill("verify", *state)
    assert (ended.code, "--input" in ended.err) == (2, True)
    ended = processes.batchmill("verify", *state, "--input", source)
    assert (ended.code, ended.out.startswith("Sound: ")) == (0, True)
    source.write_bytes(b"changed")
    assert processes.batchmill("verify", *state, "--input", source).code == 1
    ended = processes.batchmill("backup", tmp_path / "copy", *state)
    assert (ended.code, "batchmill run" in ended.err) == (2, True)


@pytest.mark.parametrize("command", [("verify",), ("backup", "copy")])
def test_where_no_store_is_it_ends_with_2_and_makes_none(
    processes: Processes, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """A folder that is no data directory is named, and nothing is made in it."""
    data = tmp_path / "data"
    data.mkdir()
    ended = processes.batchmill(*command[:1], *(tmp_path / word for word in command[1:]), "--data", data)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"There is no data directory of Batchmill at {data}.\n"
    assert list(data.iterdir()) == []
    assert not (tmp_path / "copy").exists()


def test_a_file_that_is_no_database_is_damage(processes: Processes, tmp_path: Path) -> None:
    """Where the rows' file holds something else, that is told in one line; the exit code is 1."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "batchmill.sqlite3").write_bytes(b"no database" * 1000)
    ended = processes.batchmill("verify", "--data", tmp_path / "data")
    assert ended.code == 1
    assert ended.out.startswith("damage: database: rows: they cannot be read: file is not a database.\n")
    assert "Traceback" not in ended.err


def test_rows_of_another_version_are_not_judged(processes: Processes, tmp_path: Path) -> None:
    """Tables of another version end with 3 and the way on."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "batchmill.sqlite3").touch()
    ended = processes.batchmill("verify", "--data", tmp_path / "data")
    assert ended.code == 3
    assert "start `batchmill serve` on it first" in ended.err


@pytest.mark.parametrize("command", ["verify", "status"])
def test_rows_of_a_newer_version_are_not_judged(processes: Processes, tmp_path: Path, command: str) -> None:
    """Tables of a later era, which this version cannot read, end with 3 and a sentence."""
    assert processes.batchmill("migrate", "--data", tmp_path / "data").code == 0
    with closing(sqlite3.connect(tmp_path / "data" / "batchmill.sqlite3")) as rows, rows:
        rows.execute("UPDATE alembic_version SET version_num = 'a9999'")
    ended = processes.batchmill(command, "--data", tmp_path / "data")
    assert ended.code == 3
    assert "was used by a newer Batchmill" in ended.err
    assert "Traceback" not in ended.err
