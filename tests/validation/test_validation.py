"""One pass over an input: with a Plan for a batch, without one for a quote."""

import json
from pathlib import Path

import pytest

from batchmill.blobs.blobs import Written
from batchmill.blobs.disk import DiskBlobs
from batchmill.spec.limits import OPEN
from batchmill.spec.models import Catalogue, ModelFacts
from batchmill.validation.validation import Validation, validate
from engine.mill import CHAT, line

CATALOGUE = Catalogue([ModelFacts(name="echo", aliases=("nick",))])


@pytest.fixture
def blobs(tmp_path: Path) -> DiskBlobs:
    """Bytes on a disk."""
    return DiskBlobs(folder=tmp_path / "blobs")


def put(blobs: DiskBlobs, content: bytes) -> None:
    """Write the input."""
    writer = blobs.writer("input")
    writer.write(content)
    writer.finish()


def check(blobs: DiskBlobs, plan_key: str | None = None, first: int = 0, endpoint: str = CHAT) -> Validation:
    """Check the input."""
    return validate(
        blobs=blobs,
        input_key="input",
        plan_key=plan_key,
        endpoint=endpoint,
        limits=OPEN,
        known_models={"echo", "other"},
        catalogue=CATALOGUE,
        first=first,
    )


def test_without_a_key_for_a_plan_nothing_is_written(blobs: DiskBlobs) -> None:
    """What is found is the same as with one."""
    put(blobs, line("a", max_tokens=3) + line("b", model="nick") + line("c", model="other"))
    quoted, planned = check(blobs), check(blobs, plan_key="plan")
    assert quoted.plan is None
    assert isinstance(planned.plan, Written)
    assert (quoted.parts, quoted.lines, quoted.total, quoted.tokens) == (planned.parts, 3, 3, planned.tokens)
    assert set(blobs.keys(before=float("inf"))) == {"input", "plan"}


def test_lines_are_counted_by_model(blobs: DiskBlobs) -> None:
    """An alias is its model; a line that says nothing of what it may generate is told apart."""
    put(blobs, line("a", max_tokens=3) + line("b", model="nick") + line("c", model="other", max_tokens=4))
    one, two = check(blobs).parts
    assert [(p.model, p.place, p.lines, p.completion_tokens, p.unbounded) for p in (one, two)] == [
        ("echo", 0, 2, 3, 1),
        ("other", 1, 1, 4, 0),
    ]
    assert one.prompt_tokens > two.prompt_tokens > 0


@pytest.mark.parametrize("endpoint", ["/v1/embeddings", "/v1/moderations"])
def test_where_nothing_is_generated_no_line_is_unbounded(blobs: DiskBlobs, endpoint: str) -> None:
    """Their lines have no limit to give."""
    body = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": "echo", "input": "x"}}
    put(blobs, json.dumps(body).encode())
    (part,) = check(blobs, endpoint=endpoint).parts
    assert (part.lines, part.completion_tokens, part.unbounded) == (1, 0, 0)


def test_the_first_good_lines_are_found(blobs: DiskBlobs) -> None:
    """Blank lines and line ends are none of them, and no more are told than were asked for."""
    texts = [line(name).strip() for name in "abc"]
    content = b"\xef\xbb\xbf\n" + texts[0] + b"\r\n\n" + texts[1] + b"\n" + texts[2]
    put(blobs, content)
    found = check(blobs, first=2).first
    assert [content[offset : offset + length] for offset, length in found] == texts[:2]
    assert len(check(blobs, first=9).first) == 3
    assert check(blobs).first == ()


def test_a_bad_input_has_errors_and_counts(blobs: DiskBlobs) -> None:
    """What is good in it is counted all the same, and no Plan is left of it."""
    put(blobs, line("a") + b"{nope\n" + line("b"))
    found = check(blobs, plan_key="plan")
    assert [(error.code, error.line) for error in found.errors] == [("invalid_json_line", 2)]
    assert (found.plan, found.lines, found.total) == (None, 3, 2)
    assert set(blobs.keys(before=float("inf"))) == {"input"}
