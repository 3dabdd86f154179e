"""`batchmill serve`: what its first start prints, and where its settings come from."""

import re
import sys
from pathlib import Path

import pytest

from acceptance.serving import Processes, clean_environment, until


def test_what_is_printed_at_the_first_start_works_as_it_is(processes: Processes, tmp_path: Path) -> None:
    """The curl line and the Python snippet of the welcome run as they are printed."""
    server = processes.ready("--backend", "echo:")

    def welcome() -> str:
        text = server.out.read_text()
        return text if "print(" in text else ""

    printed = until(welcome, 10)
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
    file.write_text('backend = ["echo:#of-the-file"]\nlog_format = "json"\n')
    environment = clean_environment(
        BATCHMILL_SETTINGS=str(file), **({"BATCHMILL_BACKEND": variable} if variable else {})
    )
    server = processes.serve(*(["--backend", flag] if flag else []), environment=environment)
    client = processes.client(server, server.key)
    assert until(lambda: [listed.id for listed in client.models.list()], 30) == [model]
    assert server.err.read_text().startswith('{"')  # what only the file sets comes from the file
