"""The demo, as a newcomer runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from batchmill.backends.builtin import BUILTIN_MODEL
from batchmill.spec.limits import KIMI
from batchmill.spec.lines import Checker, Line, read_lines

_EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_line_of_the_demo_is_good() -> None:
    """The demo's own input breaks no rule, and is for the built-in model."""
    checker = Checker(endpoint="/v1/chat/completions", limits=KIMI, known_models={BUILTIN_MODEL})
    with (_EXAMPLES / "demo.jsonl").open("rb") as stream:
        checked = [checker.check(raw) for raw in read_lines(stream.readline, KIMI.max_line_bytes)]
    assert len(checked) == 24
    assert all(isinstance(line, Line) for line in checked)


def test_the_demo_runs_on_the_built_in_model(tmp_path: Path) -> None:
    """The demo's script takes real requests to real answers, prints them, and stops its server."""
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join((_EXAMPLES / "demo.jsonl").read_bytes().splitlines(keepends=True)[:4]))
    done = subprocess.run(
        [sys.executable, _EXAMPLES / "demo.py", "--file", few, "--results", tmp_path / "results"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in (tmp_path / "results" / "output.jsonl").read_text().splitlines()]
    answers = [json.loads(r["response"]["body"]["choices"][0]["message"]["content"]) for r in results]
    assert [answer["sentiment"] for answer in answers] == ["positive", "negative", "positive", "negative"]
    assert "review-04" in done.stdout
    assert str(tmp_path / "results" / "output.jsonl") in done.stdout


def test_the_demo_leaves_a_folder_alone_that_is_not_its_own(tmp_path: Path) -> None:
    """Results are never written over somebody else's files; one sentence says why."""
    letter = tmp_path / "letter.txt"
    letter.write_text("keep me")
    done = subprocess.run(
        [sys.executable, _EXAMPLES / "demo.py", "--results", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "letter.txt, which is not the demo's" in done.stdout
    assert "Traceback" not in done.stderr
    assert letter.read_text() == "keep me"


def test_the_demo_says_which_line_is_bad_and_ignores_the_shells_settings(tmp_path: Path) -> None:
    """A batch that fails its check ends with the server's own reasons; BATCHMILL_ variables do not reach the server."""
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes((_EXAMPLES / "demo.jsonl").read_bytes().splitlines(keepends=True)[0].replace(b"POST", b"GET"))
    done = subprocess.run(
        [sys.executable, _EXAMPLES / "demo.py", "--file", bad, "--backend", "echo:", "--results", tmp_path / "results"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "BATCHMILL_LIMITS": "nonsense"},
    )
    assert done.returncode == 1
    assert "The batch ended as failed.\nline 1: " in done.stdout
    assert "Traceback" not in done.stderr
