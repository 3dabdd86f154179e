"""`batchmill run`: what it refuses, what it writes, how it ends. Kills and interrupts: tests/acceptance/test_run.py."""

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from acceptance.lines import joined, plain_lines
from acceptance.serving import BATCHMILL, Ended, Processes, clean_environment

_BAD_FOR_ECHO = (
    b'{"custom_id":"bad","method":"POST","url":"/v1/chat/completions","body":{"model":"echo","messages":[17]}}\n'
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An input of five good lines."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(joined(plain_lines(5, model="echo")))
    return path


def run(processes: Processes, source: Path, output: Path, *more: object, **variables: str) -> Ended:
    """Run an input with the echo backend."""
    words = ("run", source, "-o", output, "--backend", "echo:", *more)
    return processes.batchmill(*words, environment=clean_environment(**variables))


def custom_ids(path: Path) -> list[str]:
    """Return the custom_ids of a result file, in its order."""
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def test_a_good_run_ends_with_0(processes: Processes, source: Path, tmp_path: Path) -> None:
    """The output has a line a request in input order, there is no file of errors, and progress is on stderr."""
    output = tmp_path / "out.jsonl"
    ended = run(processes, source, output)
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith("reading the input\nvalidating\n")
    assert ended.err.endswith(f"Finished: 5 of 5 lines in {output}.\n")
    assert custom_ids(output) == [f"line-{number}" for number in range(5)]
    assert {path.name for path in tmp_path.glob("out*")} == {"out.jsonl", "out.jsonl.run"}


def test_lines_that_fail_end_with_3_and_so_does_the_next_start(
    processes: Processes, source: Path, tmp_path: Path
) -> None:
    """Errors go to a file of their own; a finished run says so and ends as before; a lost output is given again."""
    with source.open("ab") as stream:
        stream.write(_BAD_FOR_ECHO)
    output, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"
    ended = run(processes, source, output)
    said = f"5 of 6 lines in {output}; 1 failed, see {errors}."
    assert (ended.code, ended.err.splitlines()[-1]) == (3, f"Finished: {said}")
    assert custom_ids(errors) == ["bad"]
    results = output.read_bytes()
    output.unlink()
    ended = run(processes, source, output)
    assert (ended.code, ended.err.splitlines()[-1]) == (3, f"Finished before: {said} --again starts over.")
    assert output.read_bytes() == results


def test_again_leaves_no_old_errors(processes: Processes, source: Path, tmp_path: Path) -> None:
    """After --again with an input that is mended, the errors of the earlier run are gone."""
    output = tmp_path / "out.jsonl"
    good = source.read_bytes()
    source.write_bytes(_BAD_FOR_ECHO)
    assert run(processes, source, output).code == 3
    assert output.read_bytes() == b""  # nothing succeeded; that it is there says that the run is complete
    source.write_bytes(good)
    assert run(processes, source, output, "--again").code == 0
    assert {path.name for path in tmp_path.glob("out*")} == {"out.jsonl", "out.jsonl.run"}
    assert len(custom_ids(output)) == 5


def test_bad_data_ends_with_1_and_is_run_once_it_is_mended(processes: Processes, source: Path, tmp_path: Path) -> None:
    """Every bad line is named as `check` does; nothing was sent, so the mended input needs no --again."""
    output = tmp_path / "out.jsonl"
    good = source.read_bytes()
    source.write_bytes(b"{\n" + good + b'{"custom_id": "x"}\n')
    listed = [line for line in processes.batchmill("check", source).out.splitlines() if line.startswith("line ")]
    ended = run(processes, source, output, "--quiet")
    assert (ended.code, ended.err.splitlines()) == (1, listed)
    assert len(listed) == 4
    assert not output.exists()
    source.write_bytes(good)
    assert run(processes, source, output).code == 0
    assert len(custom_ids(output)) == 5


def test_an_unknown_model_and_an_empty_input_are_bad_data(processes: Processes, source: Path, tmp_path: Path) -> None:
    """A model that no backend has is named; an input without a request says so."""
    source.write_bytes(joined(plain_lines(1, model="other")))
    ended = run(processes, source, tmp_path / "out.jsonl", "--quiet")
    assert (ended.code, ended.err) == (1, "line 1: There is no model 'other'. [model_not_found]\n")
    source.write_bytes(b"")
    ended = run(processes, source, tmp_path / "out.jsonl", "--quiet")
    assert (ended.code, ended.err) == (1, "The input: The file holds no request lines. [empty_file]\n")


def test_windows_line_ends_and_other_endpoints(processes: Processes, tmp_path: Path) -> None:
    """CRLF is read, and the endpoint is the first line's, with the open limits unless others are asked for."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    line = '{"custom_id": "%s", "method": "POST", "url": "/v1/embeddings", "body": {"model": "echo", "input": "x"}}\r\n'
    source.write_bytes(b"\xef\xbb\xbf" + (line % "a" + line % "b").encode())
    assert run(processes, source, output, "--limits", "kimi").code == 1
    assert run(processes, source, output, BATCHMILL_LIMITS="kimi").code == 1
    assert run(processes, source, output).code == 0
    assert custom_ids(output) == ["a", "b"]
    ended = run(processes, source, output, "--endpoint", "/v1/completions")
    assert (ended.code, "began with --endpoint /v1/embeddings" in ended.err) == (2, True)


def test_relative_paths_and_a_servers_environment(source: Path, tmp_path: Path) -> None:
    """Paths are those of the working directory, and a server's data, database and blobs are not touched."""
    (tmp_path / "sub").mkdir()
    variables = {"BATCHMILL_DATA": "elsewhere", "BATCHMILL_DATABASE": "postgresql://db", "BATCHMILL_BLOBS": "s3://b"}
    ended = subprocess.run(
        [*BATCHMILL, "run", f"../{source.name}", "--output", "out.jsonl", "--backend", "echo:", "--quiet"],
        cwd=tmp_path / "sub",
        env=clean_environment(**variables),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    assert {path.name for path in (tmp_path / "sub").iterdir()} == {"out.jsonl", "out.jsonl.run"}


@pytest.mark.parametrize("name", ["out.jsonl", "out.errors.jsonl"])
def test_a_file_that_is_not_ours_is_never_overwritten(
    processes: Processes, source: Path, tmp_path: Path, name: str
) -> None:
    """An output or a file of errors of someone else is in the way, --again or not, and nothing is made beside it."""
    (tmp_path / name).write_text("precious")
    for more in ([], ["--again"]):
        ended = run(processes, source, tmp_path / "out.jsonl", *more)
        said = f"{tmp_path / name} exists already, and is not of this run: move it away, or choose another output.\n"
        assert (ended.code, ended.err) == (2, said)
    assert (tmp_path / name).read_text() == "precious"
    assert not (tmp_path / "out.jsonl.run").exists()


_USAGE = [
    (["gone.jsonl", "-o", "out.jsonl"], "The input gone.jsonl is not there."),
    ([".", "-o", "out.jsonl"], "The input . is not a regular file, and is read where it lies."),
    (["in.jsonl", "-o", "in.jsonl"], "in.jsonl is the input: choose another name for the output."),
    (["in.jsonl", "-o", "link.jsonl"], "link.jsonl is the input: choose another name for the output."),
    (["in.errors.jsonl", "-o", "in.jsonl.x"], "The input in.errors.jsonl is not there."),
    (["in.jsonl", "-o", ""], "The output is a folder: name a file in it."),
    (["in.jsonl", "-o", ".."], "The output is a folder: name a file in it."),
    (["in.jsonl", "-o", "no/folder/out.jsonl"], "There is no folder no/folder for the output."),
    (["in.jsonl", "-o", "out.jsonl", "--endpoint", "/v1/no"], "endpoint: '/v1/no' is none of /v1/chat/completions, "),
    (["in.jsonl", "-o", "out.jsonl", "--window", "0"], "window: "),
    (["in.jsonl", "-o", "out.jsonl", "--backend", "ftp://gpu-1"], "'ftp://gpu-1' is not a URL"),
    (["in.jsonl", "-o", "out.jsonl", "--backend", "echo:?latency=1"], "The echo backend knows latency_ms"),
    (["in.jsonl", "-o", "out.jsonl", "--backend", "http://g/v1", "--backend-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
    (["in.jsonl"], "Missing option '--output'"),
]


@pytest.mark.parametrize(("words", "said"), _USAGE, ids=[" ".join(words) for words, _ in _USAGE])
def test_a_wrong_command_ends_with_2(source: Path, words: list[str], said: str) -> None:
    """What cannot be meant is said in a sentence without a traceback, and nothing is made."""
    folder = source.parent
    (folder / "link.jsonl").symlink_to(source)
    before = {path.name for path in folder.iterdir()}
    ended = subprocess.run(
        [*BATCHMILL, "run", *words], cwd=folder, env=clean_environment(), capture_output=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert said in ended.stderr.decode()
    assert b"Traceback" not in ended.stderr
    assert {path.name for path in folder.iterdir()} == before


def test_a_model_file_that_is_not_there_ends_with_6(processes: Processes, source: Path, tmp_path: Path) -> None:
    """Without --backend the built-in engine is started as by `serve`, and says why it cannot be."""
    environment = clean_environment(BATCHMILL_MODEL="/nonexistent")
    ended = processes.batchmill("run", source, "-o", tmp_path / "out.jsonl", environment=environment)
    assert (ended.code, ended.err.splitlines()[-1]) == (6, "There is no model file /nonexistent.")


def test_on_a_terminal_there_is_a_bar(source: Path, tmp_path: Path) -> None:
    """The bar counts the lines, the cursor is given back, and the last line says what there is."""
    leader, follower = pty.openpty()
    environment = clean_environment(TERM="xterm", COLUMNS="200")
    with subprocess.Popen(
        [*BATCHMILL, "run", str(source), "-o", str(tmp_path / "out.jsonl"), "--backend", "echo:"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
    ) as process:
        os.close(follower)
        shown = _read(leader)
    assert process.returncode == 0
    assert "5/5" in shown
    assert "\x1b[?25l" in shown  # the cursor goes, and comes back
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert shown.endswith(f"Finished: 5 of 5 lines in {tmp_path / 'out.jsonl'}.\r\n")


def _read(leader: int) -> str:
    """Return all that is written to a terminal."""
    pieces: list[bytes] = []
    try:
        while piece := os.read(leader, 65536):
            pieces.append(piece)
    except OSError:  # how Linux says that the last writer has gone
        pass
    finally:
        os.close(leader)
    return b"".join(pieces).decode()


def test_aliases_and_locked_parameters_of_the_settings_file_count(processes: Processes, tmp_path: Path) -> None:
    """A line for an alias is answered; one with another value for a locked parameter ends as a 400 of ours, unsent."""
    settings, source, output = tmp_path / "settings.toml", tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    settings.write_text('[models.echo]\naliases = ["nick"]\nlocked = { temperature = 1.0 }\n')
    bodies = {
        "good": {"model": "nick", "messages": [{"role": "user", "content": "hi"}], "temperature": 1},
        "hot": {"model": "nick", "messages": [{"role": "user", "content": "hi"}], "temperature": 2},
    }
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        for name, body in bodies.items()
    ]
    source.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    assert run(processes, source, output, "--settings", settings).code == 3
    assert custom_ids(output) == ["good"]
    assert json.loads(output.read_text())["response"]["body"]["model"] == "echo"
    failed = json.loads((tmp_path / "out.errors.jsonl").read_text())
    assert failed["custom_id"] == "hot"
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["param"] == "temperature"
