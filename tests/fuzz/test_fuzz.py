"""Runs each fuzz target for a while, guided by what its inputs reach: a crash is a failure, with the input."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_SECONDS = int(os.environ.get("BATCHMILL_FUZZ_SECONDS", "25"))


@pytest.mark.parametrize("target", ["lines.py", "multipart.py"])
def test_no_input_is_a_crash(tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str) -> None:
    """Whatever bytes come, a target gives its verdict; atheris looks for those that it cannot take."""
    if importlib.util.find_spec("atheris") is None:
        with capsys.disabled():
            print(f"\nNOT RUN {target}: there is no atheris for this Python")  # noqa: T201 - a skipped test must not look like a passed one
        pytest.skip("there is no atheris for this Python")
    command = [sys.executable, str(_HERE / target), f"-max_total_time={_SECONDS}", "-max_len=4096", "-verbosity=1"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=_SECONDS + 120, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "Done " in ended.stderr
    print(ended.stderr.splitlines()[-1])  # noqa: T201 - the figure
