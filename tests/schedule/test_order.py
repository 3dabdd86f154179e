"""In which order lines go: what groups them, what leaves the file's order alone, and what goes first."""

import random
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.schedule.order import DEPTHS, KV_PART, Order, Orderer, fingerprint

TEXT = random.Random(1).randbytes(1 << 17)  # noqa: S311 - text, not a secret


def prompt(*parts: tuple[int, int], own: int = 0, length: int = 400) -> bytes:
    """Return a prompt of parts, each so many bytes of the text named by a number, then its own."""
    text = b"".join(TEXT[7919 * which % 50_000 :][:size] for which, size in parts)
    return text + own.to_bytes(8, "big") * (length // 8)


def ordered(prompts: list[bytes], outputs: list[int] | None = None, *, kv_tokens: int = 0, backends: int = 1) -> Order:
    """Order prompts of four bytes a token."""
    orderer = Orderer()
    for at, text in enumerate(prompts):
        orderer.add(fingerprint(text), prompt=len(text) // 4, output=outputs[at] if outputs else 100)
    return orderer.order(kv_tokens=kv_tokens, backends=backends)


def shuffled(documents: int, each: int, size: int) -> tuple[list[bytes], list[int]]:
    """Return prompts about documents, shuffled, and which document each is about."""
    about = [document for document in range(documents) for _ in range(each)]
    random.Random(2).shuffle(about)  # noqa: S311 - a workload
    return [prompt((document, size), own=at) for at, document in enumerate(about)], about


def test_a_fingerprint_is_of_the_beginning() -> None:
    """Prompts have as many checksums in common as whole depths; what they do not reach is 0."""
    one, other = fingerprint(prompt((1, 5000), own=1)), fingerprint(prompt((1, 5000), own=2, length=9000))
    assert one[:4] == other[:4]
    assert one[4:] == (0, 0, 0, 0)
    assert other[4] != 0
    assert len(one) == len(DEPTHS)
    assert fingerprint(b"short") == (0,) * len(DEPTHS)


def test_a_checksum_is_of_what_was_before_it() -> None:
    """Prompts that differ from their first byte on have nothing in common, whatever follows."""
    text = prompt((1, 70_000))
    assert not set(fingerprint(text)) & set(fingerprint(b"x" + text[1:]))


def test_lines_about_a_document_go_together() -> None:
    """Each document is one run, in the order of its first line, and within it the file's order."""
    prompts, about = shuffled(300, 4, 4200)
    lines = list(ordered(prompts).lines)
    runs = [lines[at : at + 4] for at in range(0, 1200, 4)]
    assert [about[run[0]] for run in runs] == list(dict.fromkeys(about))
    assert all(run == sorted(run) and len({about[line] for line in run}) == 1 for run in runs)


def test_every_line_of_a_group_has_its_mark() -> None:
    """Neighbours that share a beginning have the same mark, others another one; a lone line has none."""
    prompts, about = shuffled(20, 5, 4200)
    order = ordered([*prompts, prompt((99, 4200))])
    marks = {about[line]: mark for line, mark in zip(order.lines, order.prefix, strict=True) if line < 100}
    assert len(set(marks.values())) == 20
    assert all(
        mark == (marks[about[line]] if line < 100 else 0) for line, mark in zip(order.lines, order.prefix, strict=True)
    )


def test_only_the_first_of_a_group_pays_for_its_beginning() -> None:
    """What is told of the prompts' tokens is what the engine's cache will not have."""
    order = ordered(shuffled(20, 5, 4096)[0])
    whole = (4096 + 400) // 4
    assert list(order.prefill) == [whole, *[100] * 4] * 20


def test_beginnings_within_beginnings_stay_together() -> None:
    """A tree of prompts is walked branch by branch: the shared system prompt, the document, the question."""
    about = [(system, document) for system in range(3) for document in range(8) for _ in range(4)]
    random.Random(3).shuffle(about)  # noqa: S311 - a workload
    prompts = [prompt((system, 1100), (10 + document, 9000), own=at) for at, (system, document) in enumerate(about)]
    order = ordered(prompts)
    walked = [about[line] for line in order.lines]
    assert len(list(groupby(walked))) == 24
    assert len(list(groupby(system for system, _ in walked))) == 3


def test_lines_without_a_document_stay_where_they_are_among_groups() -> None:
    """A line that shares only what all share is a group of its own, in the place of its first line."""
    prompts = [prompt((0, 600), (each % 2 + 1, 9000), own=each) for each in range(4)]
    prompts.insert(1, prompt((0, 600), own=9, length=9000))
    assert list(ordered(prompts).lines) == [0, 3, 1, 2, 4]


@pytest.mark.parametrize(
    ("prompts", "kv_tokens"),
    [
        pytest.param([prompt(own=each, length=9000) for each in range(60)], 0, id="nothing is shared"),
        pytest.param(shuffled(10, 6, 4200)[0], int(10 * 1024 / KV_PART), id="all beginnings fit the cache"),
        pytest.param([prompt((each // 6, 4200), own=each) for each in range(60)], 0, id="it is grouped already"),
        pytest.param(
            [prompt((each % 9, 260), own=each, length=60_000) for each in range(60)], 0, id="little is shared"
        ),
        pytest.param([prompt((1, 70_000))] * 9, 10_000, id="all lines are one"),
        pytest.param([], 0, id="no lines"),
    ],
)
def test_the_files_order_stays_where_another_gains_nothing(prompts: list[bytes], kv_tokens: int) -> None:
    """Lines are then read from one end to the other, and placed one by one."""
    order = ordered(prompts, kv_tokens=kv_tokens)
    assert list(order.lines) == list(range(len(prompts)))
    assert not any(order.prefix) or kv_tokens == 0


def test_the_longest_go_first_where_one_could_outlast_the_batch() -> None:
    """But for some ordinary ones, by which windows are found; equal lengths keep the file's order."""
    outputs = [100] * 800
    outputs[500], outputs[700], outputs[750] = 4000, 8000, 4001
    order = ordered([b"short"] * 800, outputs)
    assert list(order.lines[:100]) == list(range(100))
    assert list(order.lines[100:103]) == [700, 500, 750]
    assert list(order.lines[103:]) == [line for line in range(100, 800) if outputs[line] == 100]


def test_the_longest_stay_where_they_are_in_a_large_batch() -> None:
    """Where no line is long beside the whole, the file's order stays; more Backends make the whole shorter."""
    outputs = [100] * 10_000 + [300]
    assert list(ordered([b"short"] * 10_001, outputs, backends=1).lines) == list(range(10_001))
    assert list(ordered([b"short"] * 10_001, outputs, backends=8).lines)[1250] == 10_000


def test_groups_with_the_longest_lines_go_first() -> None:
    """Length is the second key: among groups, and within one."""
    prompts, about = shuffled(20, 5, 4200)
    outputs = [10] * 100
    long = max(line for line in range(100) if about[line] == 7)
    outputs[long] = 5000
    order = ordered(prompts, outputs)
    assert order.lines[0] == long
    assert [about[line] for line in order.lines[:5]] == [7] * 5


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 9000), st.integers(0, 900)), max_size=40)
)
def test_an_order_has_every_line_once(lines: list[tuple[int, int, int, int]]) -> None:
    """Whatever the prompts and outputs are."""
    prompts = [prompt((a, 700), (b, 3000), own=at, length=own) for at, (a, b, _, own) in enumerate(lines)]
    order = ordered(prompts, [output for _, _, output, _ in lines])
    assert sorted(order.lines) == list(range(len(lines)))
    assert len(order.prefix) == len(order.prefill) == len(lines)
    assert all(prefill >= 1 for prefill in order.prefill)
