"""The documentation's site: built without a warning, of pages that are what the code says."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from docs.page import ROOT
from faults.careless import CARELESS
from faults.planted import BUGS, REMOTE_BUGS
from faults.test_simulator import PLANTED

_TOOL = [sys.executable, "tools/reference.py", "--check"]
_LOADED = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?([^\"' >]+)|<link[^>]*\shref=[\"']?([^\"' >]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built beside a copy of its sources."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--clean", "--strict"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "No issues found" in said.stderr, said.stderr
    return folder / "site"


def test_the_site_is_built_without_a_warning(site: Path) -> None:
    """Every page becomes one; a link to nowhere would have ended the build."""
    pages = {page.relative_to(ROOT / "docs").with_suffix("") for page in (ROOT / "docs").rglob("*.md")}
    made = {page.relative_to(site).with_suffix("") for page in site.rglob("*.html")}
    assert {page.with_name("index") if page.name == "README" else page for page in pages} <= made


def test_the_site_asks_nothing_of_another_host(site: Path) -> None:
    """Whatever a page loads is its own: no font, script or image comes from elsewhere."""
    for page in site.rglob("*.html"):
        for found in _LOADED.finditer(page.read_text(encoding="utf-8")):
            assert not re.match(r"(?:https?:)?//", found[1] or found[2]), f"{page.name}: {found[0]}"


def test_every_page_stands_in_the_navigation() -> None:
    """A page that nobody links to would be found by search alone."""
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    named = set(_leaves(config["project"]["nav"]))
    assert named == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}


def _leaves(nav: Any) -> list[str]:  # noqa: ANN401 - TOML's own
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [leaf for each in inner for leaf in _leaves(each)]


def test_the_reference_is_what_the_code_gives() -> None:
    """docs/reference is made by tools/reference.py: run `make reference`, do not edit it."""
    said = subprocess.run(_TOOL, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


def test_the_promises_count_the_planted_bugs() -> None:
    """The page says how many known bugs the harness must find: as many as there are."""
    text = " ".join((ROOT / "docs" / "promises.md").read_text(encoding="utf-8").split())
    assert f"has {len(BUGS)} for the storms on one machine and {len(REMOTE_BUGS)} for those on PostgreSQL" in text
    assert f"the simulator has {len(PLANTED)} " in text
    assert f"the crash points {len(CARELESS)} careless" in text


def test_the_reference_says_something_of_everything() -> None:
    """Whatever has a row there has words: no limit, setting, option or member is a name alone."""
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for row in re.findall(r"^\| .* \|$", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert not row.endswith("|  |"), f"{page.name}: {row}"
