"""A command that cannot do its work ends with one sentence and the exit code that scripts rely on."""

import socket
from pathlib import Path

import pytest

from acceptance.serving import Processes, clean_environment

_USAGE = [
    (["--nonsense"], "No such option: --nonsense"),
    (["--port", "many"], "Invalid value for '--port'"),
    (["--port", "70000"], "port: "),
    (["--metrics-port", "70000"], "metrics_port: "),
    (["--limits", "wide"], "limits: "),
    (["--window", "0"], "window: "),
    (["--drain", "soon"], "drain: 'soon' is not a duration"),
    (["--lease", "10ms"], "lease: "),
    (["--log-format", "xml"], "log_format: "),
    (["--backend", "ftp://gpu-1/v1"], "'ftp://gpu-1/v1' is not a URL that begins with http://, https:// or echo:"),
    (["--backend", "http://"], "is not a URL that begins with"),
    (["--backend", "http://gpu-1:99999/v1"], "backend: "),
    (["--backend", "echo:?latency=5"], "The echo backend knows latency_ms, not 'latency'."),
    (["--backend", "http://gpu-1/v1", "--backend", "http://gpu-1/v1"], "backend: http://gpu-1/v1 is given twice"),
    (["--backend", "http://gpu-1/v1", "--backend-key-env", "NO_SUCH_KEY"], "the environment variable NO_SUCH_KEY"),
    (["--backend", "http://gpu-1/v1", "--backend-key-env", "A", "--backend-key-env", "B"], "give one name for each"),
    (
        ["--backend", "echo:", "--database", "mysql://me:secret@db/rows"],
        "database: is no URL of the form postgresql://",
    ),
    (["--backend", "echo:", "--database", "sqlite:///rows"], "SQLite's file lies under --data"),
    (["--backend", "echo:", "--no-worker"], "worker: one cannot be apart from SQLite"),
    (["--backend", "echo:", "--blobs", "ftp://bucket/prefix"], "blobs: is no URL of the form s3://bucket/prefix"),
    (["--settings", "no-such-file.toml"], "settings: there is no file no-such-file.toml"),
]


@pytest.mark.parametrize(("options", "sentence"), _USAGE, ids=[" ".join(options) for options, _ in _USAGE])
def test_a_wrong_option_ends_with_2(processes: Processes, tmp_path: Path, options: list[str], sentence: str) -> None:
    """A wrong option is named in a sentence without a traceback and without a secret; the exit code is 2."""
    ended = processes.batchmill("serve", "--data", tmp_path / "data", "--port", 0, *options)
    assert ended.code == 2
    assert sentence in ended.err
    assert "Traceback" not in ended.err
    assert "secret" not in ended.err
    assert ended.out == ""


def test_a_flag_wins_over_the_environment(processes: Processes, tmp_path: Path) -> None:
    """`--worker` brings a worker, whose backends are looked at, also where BATCHMILL_WORKER says that there is none."""
    options = ("--worker", "--backend", "http://gpu-1/v1", "--backend-key-env", "NO_SUCH_KEY")
    environment = clean_environment(BATCHMILL_WORKER="false")
    ended = processes.batchmill("serve", "--data", tmp_path / "data", *options, environment=environment)
    assert (ended.code, "the environment variable NO_SUCH_KEY" in ended.err) == (2, True)


def test_a_wrong_settings_file_ends_with_2(processes: Processes, tmp_path: Path) -> None:
    """Every wrong field of a settings file is named, each on a line of its own."""
    file = tmp_path / "batchmill.toml"
    file.write_text('port = "x"\nlease = "no"\nprot = 1\n[[backend]]\nurl = "ftp://gpu-1"\n')
    ended = processes.batchmill("serve", "--data", tmp_path / "data", "--settings", file)
    assert ended.code == 2
    assert sorted(line.partition(":")[0] for line in ended.err.splitlines()) == [
        "backend.0.url",
        "lease",
        "port",
        "prot",
    ]


def test_a_settings_file_that_is_no_toml_ends_with_2(processes: Processes, tmp_path: Path) -> None:
    """A settings file that cannot be read is told apart from a wrong field."""
    file = tmp_path / "batchmill.toml"
    file.write_text("port = [\n")
    ended = processes.batchmill("serve", "--data", tmp_path / "data", "--settings", file)
    assert ended.code == 2
    assert ended.err.startswith("settings: ")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(("name", "value"), [("PORT", "many"), ("BACKEND", "ftp://gpu-1"), ("DRAIN", "soon")])
def test_a_wrong_environment_variable_ends_with_2(processes: Processes, tmp_path: Path, name: str, value: str) -> None:
    """A wrong `BATCHMILL_…` variable ends the start as a wrong option does, with the setting's name."""
    environment = clean_environment(**{f"BATCHMILL_{name}": value})
    ended = processes.batchmill("serve", "--data", tmp_path / "data", environment=environment)
    assert ended.code == 2
    assert ended.err.startswith(name.lower())
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", [("serve", "--port", "0", "--backend", "echo:"), ("keys", "create")])
def test_a_data_directory_that_cannot_be_made_ends_with_3(
    processes: Processes, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """A data directory below a regular file is refused with its path and the reason; the exit code is 3."""
    (tmp_path / "file").touch()
    ended = processes.batchmill(*command, "--data", tmp_path / "file" / "data")
    assert ended.code == 3
    assert ended.err == f"The data directory {tmp_path}/file/data cannot be written: Not a directory.\n"


def test_a_port_that_is_taken_ends_with_5(processes: Processes, tmp_path: Path) -> None:
    """A port that another process listens on is named; the exit code is 5."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = processes.batchmill("serve", "--data", tmp_path / "data", "--port", port, "--backend", "echo:")
    assert ended.code == 5
    assert ended.err == f"Cannot listen on 127.0.0.1:{port}: Address already in use.\n"


def test_a_metrics_port_that_is_taken_ends_with_5(processes: Processes, tmp_path: Path) -> None:
    """A port of `/metrics` that another process listens on is named, with the flag that chooses another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--port", 0, "--metrics-port", port, "--backend", "echo:"]
        ended = processes.batchmill("serve", "--data", tmp_path / "data", *options)
    assert ended.code == 5
    assert ended.err == (
        f"Cannot listen on 127.0.0.1:{port}: Address already in use."
        " It is for /metrics: choose another with --metrics-port.\n"
    )


def test_a_host_that_is_not_ours_ends_with_5(processes: Processes, tmp_path: Path) -> None:
    """An address of another machine cannot be listened on; the exit code is 5."""
    options = ["--host", "192.0.2.1", "--port", 0, "--backend", "echo:"]  # RFC 5737: for documentation, nobody's
    ended = processes.batchmill("serve", "--data", tmp_path / "data", *options)
    assert ended.code == 5
    assert ended.err.startswith("Cannot listen on 192.0.2.1:0: ")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("/nonexistent", "There is no model file /nonexistent."),
        ("/etc/passwd", "/etc/passwd is no model: a GGUF file is needed."),
    ],
)
def test_a_model_that_is_none_ends_with_6(processes: Processes, tmp_path: Path, file: str, sentence: str) -> None:
    """A model file that does not exist, or is of another kind, is named; the exit code is 6."""
    ended = processes.batchmill("serve", "--data", tmp_path / "data", "--port", 0, "--model", file)
    assert ended.code == 6
    assert ended.err.endswith(f"{sentence}\n")
    assert "Traceback" not in ended.err
    assert ended.out == ""
