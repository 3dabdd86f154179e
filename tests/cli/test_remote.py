"""The commands that ask a server: as people and as scripts use them, against ours and one of the contract alone."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from acceptance.lines import joined, plain_lines
from acceptance.serving import BATCHMILL, Ended, Processes, Server, clean_environment, processes_in, until
from batchmill.cli.batches import whole_usage
from batchmill.cli.main import main
from batchmill.settings import load_settings
from cli.contract_only import contract_only

_BROKEN = (
    b'{"custom_id":"broken-%d","method":"POST","url":"/v1/chat/completions",'
    b'"body":{"model":"witness","messages":[{"role":"user","content":1}]}}\n'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """Runs commands in this process, with a server and its key in the environment."""

    environment: dict[str, str]
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: object, **environment: str) -> Ended:
        """Run one to its end."""
        with self.monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["batchmill", *map(str, words)])
            patch.setattr("os.environ", self.environment | environment)
            with pytest.raises(SystemExit) as ended:
                main()
        said = self.capsys.readouterr()
        return Ended(code=int(ended.value.code or 0), out=said.out, err=said.err)

    def json(self, *words: object, code: int = 0) -> list[Any]:
        """Run one with --json, which ends with this code, and return the lines that it prints."""
        ended = self(*words, "--json")
        assert ended.code == code, ended.err
        return [json.loads(line) for line in ended.out.splitlines()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run the product once for all tests here."""
    with processes_in(tmp_path_factory.mktemp("server")) as processes:
        yield processes.ready("--backend", "echo:?latency_ms=20#witness", "--limits", "open")


@pytest.fixture
def shell(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Return a shell for the server."""
    environment = clean_environment(BATCHMILL_SERVER=server.url, BATCHMILL_API_KEY=server.key)
    return Shell(environment=environment, monkeypatch=monkeypatch, capsys=capsys)


@pytest.fixture
def plain_shell(shell: Shell, server: Server) -> Iterator[Shell]:
    """Return a shell for a server that has the contract's routes and no others."""
    with contract_only(server.port) as url:
        yield replace(shell, environment=shell.environment | {"BATCHMILL_SERVER": url})


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """An input of 20 lines that succeed and 2 that the backend refuses."""
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(joined(plain_lines(20)) + _BROKEN % 1 + _BROKEN % 2)
    return path


def test_from_a_file_to_results(shell: Shell, mixed: Path, tmp_path: Path) -> None:
    """Submit prints the id alone; watching ends with what became of it; results and files have every line once."""
    submitted = shell("submit", mixed, "--no-check", "--metadata", "team=a=b", "--watch", "--window", "1h")
    batch_id = submitted.out.strip()
    assert (submitted.code, re.fullmatch(r"batch_\w+", batch_id) is not None) == (3, True)
    assert "completed: 22 of 22 lines, 2 failed" in submitted.err
    (batch,) = shell.json("show", batch_id)
    assert (batch["status"], batch["metadata"]) == ("completed", {"team": "a=b"})
    told = shell("show", batch_id).out
    assert "lines: 20 completed, 2 failed, 22 total" in told
    assert "metadata: team = a=b" in told
    lines = shell("results", batch_id).out.splitlines()
    assert len({json.loads(line)["custom_id"] for line in lines}) == 22
    failed = shell("results", batch_id, "--status", "failed", "-o", tmp_path / "failed.jsonl")
    assert (failed.code, failed.out) == (0, "")
    kept = [json.loads(line) for line in (tmp_path / "failed.jsonl").read_text().splitlines()]
    assert sorted(each["custom_id"] for each in kept) == ["broken-1", "broken-2"]
    (files,) = shell.json("fetch", batch_id, "-o", tmp_path / "new" / "folder")
    assert sorted(
        Path(files["output_file"]).read_text().splitlines() + Path(files["error_file"]).read_text().splitlines()
    ) == sorted(lines)
    (told,) = shell.json("fetch", batch_id, "-o", mixed, code=2)
    assert told["error"]["message"] == f"{mixed} is a file: name a folder for the result files."
    again = shell("fetch", batch_id, "-o", tmp_path / "new" / "folder")
    assert "is there already" in again.err
    assert sorted(each.name for each in (tmp_path / "new" / "folder").iterdir()) == [
        f"{batch_id}_error.jsonl",
        f"{batch_id}_output.jsonl",
    ]


def test_progress_comes_by_events(shell: Shell, mixed: Path) -> None:
    """Every object is the server's own; the end names why lines failed, and by that a group is chosen."""
    submitted = shell.json("submit", mixed, "--no-check", "--watch", code=3)
    batch_id = submitted[0]["id"]
    assert {each["object"] for each in submitted[1:]} == {"batch.progress"}
    assert submitted[-1]["status"] == "completed"
    (group,) = submitted[-1]["error_groups"]
    watched = shell("watch", batch_id)
    assert (watched.code, watched.err) == (3, "")
    assert f"2× 400 {group['code']}: " in watched.out
    assert f"[{group['id']}]  e.g. broken-1, broken-2" in shell("show", batch_id).out
    assert len(shell("results", batch_id, "--error-group", group["id"]).out.splitlines()) == 2


def test_a_server_of_the_contract_alone_will_do(plain_shell: Shell, mixed: Path, tmp_path: Path) -> None:
    """Watching looks at the Batch, results come from the files, and what it cannot do is told in a sentence."""
    submitted = plain_shell.json("submit", mixed, "--no-check", "--watch", code=3)
    batch_id = submitted[0]["id"]
    assert submitted[-1]["object"] == "batch.progress"
    assert submitted[-1]["request_counts"] == {"completed": 20, "failed": 2, "total": 22}
    watched = plain_shell("watch", batch_id)
    assert watched.code == 3
    assert watched.err == "This server does not tell of progress: its Batch is looked at every 2 s.\n"
    results = plain_shell("results", batch_id, "--follow")
    assert (len(results.out.splitlines()), results.err.count("\n")) == (22, 1)
    assert plain_shell("fetch", batch_id, "-o", tmp_path).code == 0
    paused = plain_shell.json("pause", batch_id, code=1)
    assert "an extension of Batchmill's" in paused[0]["error"]["message"]
    assert [each["id"] for each in plain_shell.json("list", "--status", "completed", "--limit", 1)] == [batch_id]
    child = plain_shell.json("retry", batch_id, "--watch", code=3)
    assert child[-1]["request_counts"] == {"completed": 0, "failed": 2, "total": 2}
    assert "None of its lines failed for this reason." in plain_shell("retry", batch_id, "--error-group", "none").err


def test_bad_lines_are_told_before_anything_is_sent(shell: Shell, tmp_path: Path) -> None:
    """The check is that of `check`; as JSON it is one object; --no-check leaves it to the server, which ends it."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(joined(plain_lines(1)) + b'{"custom_id": "a"\n')
    before = len(shell.json("files", "list", "--all"))
    bad = shell("submit", path)
    assert (bad.code, bad.out) == (1, "")
    assert "line 2: " in bad.err
    assert "Nothing was sent" in bad.err
    (told,) = shell.json("submit", path, code=1)
    assert [error["line"] for error in told["error"]["errors"]] == [2]
    assert len(shell.json("files", "list", "--all")) == before
    sent = shell("submit", path, "--no-check", "--watch")
    assert sent.code == 4
    assert "line 2: " in shell("show", sent.out.strip()).out


def test_a_file_is_submitted_by_its_id(shell: Shell, mixed: Path) -> None:
    """What is uploaded already is not uploaded again; a word that is neither a file nor an id is told."""
    (first,) = shell.json("submit", mixed, "--no-check")
    (second,) = shell.json("submit", first["input_file_id"])
    assert second["input_file_id"] == first["input_file_id"]
    assert shell("submit", "nothing.jsonl").err == "There is no file nothing.jsonl.\n"
    assert [each["id"] for each in shell.json("list", "--limit", 2)] == [second["id"], first["id"]]
    listed = shell("list").out.splitlines()
    assert listed[0].split("\t")[:3] == ["id", "status", "done"]
    assert listed[1].startswith(second["id"])


def test_a_batch_is_steered(shell: Shell, processes: Processes, tmp_path: Path) -> None:
    """Paused, given another window and a priority, resumed, cancelled; the end is told by `watch`'s exit code."""
    path = tmp_path / "long.jsonl"
    path.write_bytes(joined(plain_lines(3000)))
    batch_id = shell("submit", path, "--no-check").out.strip()
    assert "(paused)" in shell("pause", batch_id).out
    (batch,) = shell.json("window", batch_id, "48h")
    assert batch["completion_window"] == "48h"
    assert shell.json("priority", batch_id, "-5")[0]["priority"] == -5
    assert shell.json("priority", batch_id, "7")[0]["priority"] == 7
    watching = processes.start("watch", batch_id, environment=shell.environment)
    until(lambda: "in_progress" in watching.out.read_text(), 20)
    assert watching.stop(signal.SIGINT) == 130
    assert f"The batch goes on; to see it again: batchmill watch {batch_id}" in watching.err.read_text()
    assert shell.json("resume", batch_id)[0]["paused_at"] is None
    assert shell("cancel", batch_id).code == 0
    assert shell("watch", batch_id).code == 6


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "batch_nothing"], 1, "The server answers 404: No such batch.\n"),
        (["show", "../files"], 2, "BATCH: '../files' is no id.\n"),
        (["list", "--server", "nowhere"], 2, "--server: it is no URL that begins with http:// or https://.\n"),
        (["submit", "/proc/self"], 2, "/proc/self is a folder: name a file in it.\n"),
        (["submit", "/proc/self/mem"], 2, "/proc/self/mem cannot be read: Input/output error.\n"),
        (["submit", "a" * 300], 2, f"{'a' * 300} cannot be read: File name too long.\n"),
        (["submit", "x.jsonl", "--metadata", "a"], 2, "--metadata: 'a' is not of the form KEY=VALUE.\n"),
        (["results", "batch_1", "--status", "odd"], 2, "--status: 'odd' is neither succeeded nor failed.\n"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(shell: Shell, words: list[str], code: int, said: str) -> None:
    """On stderr, with its exit code, and nothing on stdout."""
    ended = shell(*words)
    assert (ended.code, ended.out, ended.err) == (code, "", said)


def test_a_quote_is_told_and_its_file_submitted(shell: Shell, mixed: Path, tmp_path: Path) -> None:
    """Requests and tokens of a good file, which stays uploaded; the bad lines of another, with exit code 1."""
    told = shell("quote", mixed, "--no-check")
    assert (told.code, "22 requests" in told.out) == (0, True)
    (file_id,) = set(re.findall(r"file_\w+", told.out))
    assert shell("submit", file_id).code == 0
    (trial,) = shell.json("quote", mixed, "--no-check", "--trial", 3)
    assert shell("watch", trial["trial"]["id"]).code == 0
    path = tmp_path / "bad.jsonl"
    path.write_bytes(joined(plain_lines(1)) + b"{}\n")
    bad = shell("quote", path, "--no-check")
    assert (bad.code, "NOT VALID" in bad.out, "line 2: " in bad.out) == (1, True, True)


def test_what_was_used_is_told(shell: Shell, mixed: Path) -> None:
    """By day, key and model; a day that is none is refused."""
    assert shell("submit", mixed, "--no-check", "--watch").code == 3
    rows = [line.split("\t") for line in shell("usage").out.splitlines()]
    assert (rows[0][0], rows[1][2]) == ("day", "witness")
    (usage,) = shell.json("usage")
    assert usage["data"][0]["requests"] >= 22
    (refused,) = shell.json("usage", "--from", "yesterday", code=1)
    assert refused["error"]["status"] == 400


async def test_usage_is_asked_for_page_by_page() -> None:
    """All pages are one to who reads it, with the budgets told once; what knows no pages is asked once."""

    class Paged:
        """A server that tells one entry a page, or all at once."""

        def __init__(self, *pages: object) -> None:
            self.pages = list(pages)
            self.asked: list[dict[str, str]] = []

        async def get(self, _path: str, query: dict[str, str]) -> object:
            self.asked.append(query)
            return self.pages.pop(0)

    first = {"from": "a", "data": [1], "last_id": "x", "has_more": True, "budgets": [7]}
    paged, old = Paged(first, {"data": [2], "last_id": "y", "has_more": False, "budgets": [7]}), Paged({"data": [1]})
    found = await whole_usage(paged, {"from": "a"})  # type: ignore[arg-type]
    assert found == {"from": "a", "data": [1, 2], "last_id": "y", "has_more": False, "budgets": [7]}
    assert paged.asked == [{"from": "a"}, {"from": "a", "after": "x"}]
    assert (await whole_usage(old, {}))["data"] == [1]  # type: ignore[arg-type]


def test_a_key_is_asked_for_and_never_told(shell: Shell) -> None:
    """Without a key, with a wrong one, and with one that no header may hold."""
    (told,) = [json.loads(line) for line in shell("list", "--json", BATCHMILL_API_KEY="sk two").out.splitlines()]
    assert "holds what no key has" in told["error"]["message"]
    for key, said in (
        ("", "is not set"),
        ("sk-bm-wrong", "is not good here"),
        ("sk two\nlines", "holds what no key has"),
    ):
        ended = shell("list", BATCHMILL_API_KEY=key)
        assert ended.code != 0
        assert said in ended.err
        assert not key or key not in ended.err


def test_what_stdout_cannot_show_ends_no_command(processes: Processes, shell: Shell, mixed: Path) -> None:
    """Where it is ASCII, a cause of failures and a name stand there all the same; where it is full, that is told."""
    batch_id = shell("submit", mixed, "--no-check", "--metadata", "name=很", "--watch").out.strip()
    ascii_alone = shell.environment | {"PYTHONIOENCODING": "ascii"}
    watched = processes.batchmill("watch", batch_id, environment=ascii_alone)
    assert (watched.code, watched.err, "2\\xd7 400" in watched.out) == (3, "", True)
    assert "name = \\u5f88" in processes.batchmill("show", batch_id, environment=ascii_alone).out
    command = f"{' '.join(BATCHMILL)} show {batch_id} > /dev/full"
    full = processes.run(["sh", "-c", command], environment=shell.environment)
    assert (full.code, full.err) == (2, "Standard output: No space left on device.\n")


def test_closed_streams_are_no_fault(processes: Processes, shell: Shell, mixed: Path) -> None:
    """As where a scheduler starts it: what would be said is said to nobody, and no socket gets a stream's number."""
    program = " ".join(BATCHMILL)
    command = f"BATCH=$({program} submit {mixed} --no-check <&- 2>&-) && {program} results $BATCH --follow >&-"
    ended = processes.run(["sh", "-c", command], environment=shell.environment)
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_a_running_server_is_known(shell: Shell, server: Server) -> None:
    """Doctor finds its ports, its rows and its key well, and another key a problem with what to do."""
    words = ["doctor", "--data", server.data, "--port", server.port, "--backend", "echo:", "--server", server.url]
    words += ["--metrics-port", "0"]
    good = shell(*words)
    assert good.code == 0, good.out
    assert "in use by a running Batchmill" in good.out
    assert "its tables are up to date" in good.out
    assert "takes the key" in good.out
    assert "The server's clock and this machine's agree." in good.out
    assert "holds what no key has in it" in shell(*words, BATCHMILL_API_KEY="sk-bm\nno").out
    bad = shell(*words, "--json", BATCHMILL_API_KEY="sk-bm-wrong")
    (problem,) = [each for each in json.loads(bad.out)["findings"] if each["verdict"] == "problem"]
    assert (bad.code, problem["check"], "BATCHMILL_API_KEY" in problem["advice"]) == (1, "server", True)
    assert "sk-bm-wrong" not in bad.out + bad.err


def test_the_clients_variables_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` starts beside them, whatever they hold."""
    monkeypatch.setenv("BATCHMILL_SERVER", "http://127.0.0.1:8000")
    monkeypatch.setenv("BATCHMILL_API_KEY", "sk-1")
    assert load_settings({}).port == 8000


def on_a_terminal(*words: str, environment: dict[str, str]) -> bytes:
    """Run a command on a terminal of its own, to its end for a batch with failed lines; return what it showed."""
    leader, follower = pty.openpty()
    process = subprocess.Popen([*BATCHMILL, *words], stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    told, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        try:
            told += os.read(leader, 1 << 16)
        except OSError:  # the terminal is closed
            break
    os.close(leader)
    assert process.wait(timeout=10) == 3
    return told


def test_a_terminal_is_shown_a_picture(shell: Shell, mixed: Path) -> None:
    """On a terminal `watch` draws, and leaves the end of the story there."""
    batch_id = shell("submit", mixed, "--no-check").out.strip()
    told = on_a_terminal("watch", batch_id, environment=shell.environment | {"TERM": "xterm"})
    assert "━".encode() in told
    assert b"completed: 22 of 22 lines, 2 failed" in told


def test_a_shell_can_complete_the_commands(processes: Processes) -> None:
    """--show-completion prints a script for bash, and what the script asks is answered with the commands."""
    shown = processes.run(["bash", "-c", '"$0" -m batchmill --show-completion; true', BATCHMILL[0]])
    assert "complete -o default -F _batchmill_completion batchmill" in shown.out
    asked = {"_BATCHMILL_COMPLETE": "complete_bash", "COMP_WORDS": "batchmill re", "COMP_CWORD": "1"}
    completed = processes.batchmill(environment=clean_environment(**asked))
    assert {"results", "retry", "resume"} <= set(completed.out.split())


def test_help_groups_the_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves, what asks a server, and what needs none stand apart."""
    monkeypatch.setattr("sys.argv", ["batchmill", "--help"])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().out
    panels = [told.index(f"─ {name} ─") for name in ("Server", "Client", "Local")]
    assert panels == sorted(panels)
    assert panels[0] < told.index(" serve ") < panels[1] < told.index(" submit ") < panels[2] < told.index(" convert ")


def test_results_are_followed(shell: Shell, mixed: Path) -> None:
    """Lines come while the batch runs, none twice, and the command ends with the batch."""
    batch_id = shell("submit", mixed, "--no-check").out.strip()
    followed = shell("results", batch_id, "--follow")
    lines = followed.out.splitlines()
    assert (followed.code, followed.err, len({json.loads(line)["custom_id"] for line in lines}), len(lines)) == (
        0,
        "",
        22,
        22,
    )


def test_what_failed_is_retried(shell: Shell, mixed: Path) -> None:
    """A retry is a batch of its own; merged with its parent each line stands once, and nothing is retried twice."""
    batch_id = shell.json("submit", mixed, "--no-check", "--watch", code=3)[0]["id"]
    child = shell.json("retry", batch_id, "--watch", code=3)
    assert child[0]["parent_id"] == batch_id
    assert child[-1]["request_counts"] == {"completed": 0, "failed": 2, "total": 2}
    (again,) = shell.json("retry", batch_id, code=1)
    assert child[0]["id"] in again["error"]["message"]
    assert len(shell("results", batch_id, "--merged").out.splitlines()) == 22


def test_deleted_results_are_told_as_what_they_are(shell: Shell, server: Server, mixed: Path) -> None:
    """The server has the route: what it says of files that are gone is passed on, and nothing else is tried."""
    batch_id = shell.json("submit", mixed, "--no-check", "--watch", code=3)[0]["id"]
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
        error_file_id = client.batches.retrieve(batch_id).error_file_id
        assert error_file_id is not None
        client.files.delete(error_file_id)
    ended = shell("results", batch_id, "--status", "failed")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"The server answers 404: The result files of {batch_id} are deleted or have expired.\n"
