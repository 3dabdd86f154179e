"""`batchmill check`: every bad line, as text and as JSON, and nothing else."""

import json
import subprocess
from pathlib import Path

import pytest

from acceptance.lines import joined, odd_lines, plain_lines
from acceptance.serving import BATCHMILL, Processes, clean_environment

_BAD = (
    b'{"custom_id": "a", "method": "GET", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [1]}}\r\n'
    b"\n"
    b"{\r\n"
    b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "messages": [1]}}'
)
_FOUND = [
    (1, "invalid_method", "method"),
    (3, "invalid_json_line", None),
    (4, "invalid_url", "url"),
    (4, "duplicate_custom_id", "custom_id"),
]


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """An input with four errors on three lines."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(_BAD)
    return path


def test_every_bad_line_is_listed(processes: Processes, bad: Path, tmp_path: Path) -> None:
    """Text has a line an error and a summary, the exit code is 1, and nothing is written beside the input."""
    ended = processes.batchmill("check", bad)
    *lines, summary = ended.out.splitlines()
    assert (ended.code, ended.err) == (1, "")
    assert lines[0] == "line 1: 'method' must be 'POST', not 'GET'. [invalid_method]"
    assert [line.partition(":")[0] for line in lines] == [f"line {number}" for number, _, _ in _FOUND]
    assert summary == f"4 errors in 3 requests of m, {len(_BAD)} bytes."
    assert {path.name for path in tmp_path.iterdir()} - {"bad.jsonl"} == {"process-0.out", "process-0.err"}


def test_json_has_an_object_for_each_error_and_nothing_else(processes: Processes, bad: Path) -> None:
    """Each line of stdout is an error with its four members; the summary goes to stderr."""
    ended = processes.batchmill("check", bad, "--json")
    errors = [json.loads(line) for line in ended.out.splitlines()]
    assert [(error["line"], error["code"], error["param"]) for error in errors] == _FOUND
    assert all(set(error) == {"code", "message", "param", "line"} for error in errors)
    assert (ended.code, ended.err) == (1, f"4 errors in 3 requests of m, {len(_BAD)} bytes.\n")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_good_input_ends_with_0(processes: Processes, tmp_path: Path, options: list[str]) -> None:
    """Lines as odd as JSON allows are good; how many they are, their model and their bytes are told."""
    text = joined(odd_lines(200))
    path = tmp_path / "good.jsonl"
    path.write_bytes(text)
    ended = processes.batchmill("check", path, *options)
    summary = f"200 requests of witness, {len(text):,} bytes.\n"
    assert (ended.code, ended.out, ended.err) == (0, *(("", summary) if options else (summary, "")))


def test_the_list_ends_after_a_thousand_unless_all_are_asked_for(processes: Processes, tmp_path: Path) -> None:
    """Of 1,005 errors the first 1,000 are listed and the others counted; --all lists every one."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"{\n" * 1005)
    ended = processes.batchmill("check", path)
    assert ended.out.splitlines()[999:] == [
        (
            "line 1000: Line 1000 is not valid JSON (it ends too early). A request must stand on one line of its own. "
            "Is the JSON spread over several? [invalid_json_line]"
        ),
        "The input: 5 more errors are not listed. [more_errors]",
        "1,005 errors in 1,005 requests, 2,010 bytes.",
    ]
    assert len(processes.batchmill("check", path, "--all").out.splitlines()) == 1006


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 1),  # as `serve` does unless it is told otherwise: one model a file
        (["--limits", "open"], 0),
        (["--limits", "open", "--model", "one", "--model", "two"], 0),
        (["--limits", "open", "--model", "one"], 1),
        (["--limits", "open", "--endpoint", "/v1/embeddings"], 1),
    ],
)
def test_limits_endpoint_and_models_are_what_is_said(
    processes: Processes, tmp_path: Path, options: list[str], code: int
) -> None:
    """Without --model any model will do; with it, only those that are named."""
    path = tmp_path / "two.jsonl"
    first, second = plain_lines(1, model="one"), plain_lines(2, model="two")[1:]
    path.write_bytes(joined(first + second))
    assert processes.batchmill("check", path, *options).code == code


def test_an_input_for_another_endpoint_is_known_by_its_first_line(processes: Processes, tmp_path: Path) -> None:
    """The endpoint is taken from the first line's url if it is a known one."""
    path = tmp_path / "embed.jsonl"
    path.write_text(
        '{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}'
    )
    assert processes.batchmill("check", path, "--limits", "open").code == 0
    assert processes.batchmill("check", path).code == 1


@pytest.mark.parametrize(
    ("text", "code", "said"), [(_BAD, 1, "4 errors in"), (b" \n", 1, "The input: The file holds no")]
)
def test_standard_input_is_checked(text: bytes, code: int, said: str) -> None:
    """`-` reads standard input; an input without a request is an error of the whole."""
    ended = subprocess.run(
        [*BATCHMILL, "check", "-"], input=text, capture_output=True, env=clean_environment(), timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (code, b"")
    assert said in ended.stdout.decode()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such-file.jsonl"], "no-such-file.jsonl cannot be read: No such file or directory.\n"),
        (["."], ". cannot be read: Is a directory.\n"),
        (
            ["-", "--endpoint", "/v1/nothing"],
            "endpoint: '/v1/nothing' is none of /v1/chat/completions (see --limits).\n",
        ),
        (["-", "--limits", "wide"], "limits: "),
        ([], "Missing argument 'INPUT'"),
    ],
)
def test_what_cannot_be_checked_ends_with_2(processes: Processes, words: list[str], said: str) -> None:
    """A wrong word on the command line, or an input that cannot be read, is no bad data."""
    ended = processes.batchmill("check", *words)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_a_reader_that_has_seen_enough_is_no_fault(processes: Processes, tmp_path: Path) -> None:
    """`batchmill check INPUT | head -1` prints one line and no complaint."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"nonsense\n" * 20_000)
    ended = processes.run(["sh", "-c", '"$0" -m batchmill check "$1" --all | head -1', BATCHMILL[0], str(path)])
    told = "line 1: Line 1 is not valid JSON (byte 2 of the line). [invalid_json_line]\n"
    assert (ended.code, ended.out, ended.err) == (0, told, "")


def test_the_limits_of_the_settings_file_count(processes: Processes, tmp_path: Path) -> None:
    """`[limits_override]` binds `check`, too, and a limit that does not exist stops it before it reads anything."""
    path, settings = tmp_path / "good.jsonl", tmp_path / "settings.toml"
    path.write_bytes(joined(plain_lines(3)))
    settings.write_text("[limits_override]\nmax_lines = 2\n")
    ended = processes.batchmill("check", path, "--settings", settings)
    assert (ended.code, ended.out.splitlines()[0]) == (
        1,
        "The input: The file holds more than 2 requests. [too_many_tasks]",
    )
    settings.write_text("[limits_override]\nmax_line = 2\n")
    ended = processes.batchmill("check", path, "--settings", settings)
    assert (ended.code, "limits_override.max_line: there is no such limit" in ended.err) == (2, True)
