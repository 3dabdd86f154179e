"""The walls of the house: the import law, the mirror of rooms in tests, and what the docs show of the code."""

import ast
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from batchmill.spec.states import diagram

_ROOT = Path(__file__).parents[2]
_SOURCE = _ROOT / "src" / "batchmill"
_MODULES = sorted(_SOURCE.rglob("*.py"))
_TESTS = sorted((_ROOT / "tests").rglob("test_*.py"))
_LONGEST = 400


def _name(path: Path) -> str:
    return str(path.relative_to(_ROOT))


def test_the_import_law_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every import goes to a floor below, and spec and schedule know no I/O."""
    monkeypatch.chdir(_ROOT)
    assert lint_imports(config_filename=str(_ROOT / "pyproject.toml"), cache_dir=None) == 0


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_a_module_opens_with_its_reason(path: Path) -> None:
    """The first line of every module is a sentence that says what it is for."""
    assert path.read_text(encoding="utf-8").startswith(('"""', 'r"""'))
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_a_module_is_short(path: Path) -> None:
    """No module is longer than 400 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= _LONGEST


@pytest.mark.parametrize("path", _TESTS, ids=_name)
def test_a_test_states_a_fact(path: Path) -> None:
    """Every test has a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    ]
    assert [node.name for node in tests if not ast.get_docstring(node)] == []


def test_tests_mirror_the_house() -> None:
    """Every room has a folder of tests, and every other folder of tests has a name of its own."""
    rooms = {path.name for path in _SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    folders = {path.name for path in (_ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= folders
    assert folders - rooms == {"acceptance", "clients", "docs", "faults", "fuzz", "house"}


def test_the_docs_show_the_states_as_they_are() -> None:
    """The diagram in ARCHITECTURE.md is the one that the table of states draws."""
    assert diagram() in (_ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
