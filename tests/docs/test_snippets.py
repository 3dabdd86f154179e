"""Every command and program in the documentation does what its page says."""

import asyncio
from pathlib import Path

import pytest

from bucket import ENVIRONMENT, bucket_of
from docs.page import ROOT, blocks
from docs.reader import reader
from postgres import cluster_of

_DOCS = ROOT / "docs"
_KNOWN = {"nginx", "console", "python", "text", "json", "jsonl", "toml", "yaml", "csv"}
_MADE = {"reference", "decisions"}  # pages that show no command of their own
PAGES = [
    ROOT / "README.md",
    *sorted(
        page for page in _DOCS.rglob("*.md") if page.relative_to(_DOCS).parts[0] not in _MADE and list(blocks(page))
    ),
]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_page_keeps_its_word(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A reader who types a page's commands from top to bottom sees what it shows; its programs run."""
    text = page.read_text(encoding="utf-8")
    environment: dict[str, str] = {}
    if "# the built-in model" not in text:
        environment["BATCHMILL_BACKEND"] = "echo:#smollm2-135m-instruct"
    stands_for: dict[str, str] = {}
    if "postgresql://batchmill@db/batchmill" in text:
        bucket = bucket_of(request.config)
        stands_for["postgresql://batchmill@db/batchmill"] = asyncio.run(
            cluster_of(request.config).new_database(migrated=False)
        )
        stands_for["s3://bucket/prefix"] = bucket.new_url()
        environment |= {"BATCHMILL_ALLOW_UNSAFE_DATABASE": "1", "AWS_ENDPOINT": bucket.endpoint, **ENVIRONMENT}
    with reader(tmp_path, stands_for=stands_for, environment=environment) as follower:
        for block in blocks(page):
            follower.follow(block)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_page_has_blocks_of_known_kinds_only(page: Path) -> None:
    """What is to be typed is a `console` block: no command hides in a block that nobody runs."""
    fences = sum(line.lstrip().startswith("```") for line in page.read_text(encoding="utf-8").splitlines())
    assert fences == 2 * len(list(blocks(page))), "a fence names no language"
    for block in blocks(page):
        assert block.language in _KNOWN, f"line {block.line}: {block.language}"
        assert block.language == "console" or not block.text.lstrip().startswith(("batchmill ", "curl ", "make "))
