"""What is wanted of a batch and of those that retry it."""

import pytest

from batchmill.spec.family import (
    FAILED,
    NOTHING,
    Child,
    Wanted,
    left_to_retry,
    parse_taken,
    shown_in_place,
    still_shown,
    taken_text,
)
from batchmill.spec.groups import group_of
from batchmill.spec.results import answered, unanswered

LINES = {code: unanswered("batch_req_1", b'"a"', code, f"It is {code}.") for code in ("a", "b", "c")}
GROUP = {code: group_of(text)[1].id for code, text in LINES.items()}


def shown(wanted: Wanted) -> str:
    """Return which lines are wanted: S for those that succeeded, and each failed one by its code."""
    failed = "".join(code for code, text in LINES.items() if wanted.takes(failed=True, text=text))
    return "S" * wanted.takes(failed=False, text=b"") + failed


def only(*codes: str) -> Wanted:
    """Want the failed lines of these groups."""
    return Wanted(succeeded=False, groups=frozenset(GROUP[code] for code in codes))


def but(*codes: str) -> Wanted:
    """Want the failed lines of all groups but these."""
    return Wanted(succeeded=False, besides=frozenset(GROUP[code] for code in codes))


def child(number: int, taken: Wanted = FAILED, *, is_void: bool = False) -> Child:
    """Return a child that has these lines."""
    return Child(f"batch_{number}", taken, is_void)


def test_filters_narrow() -> None:
    """What two filters want together is what both want."""
    a, not_b = Wanted(groups=frozenset({GROUP["a"]})), Wanted(besides=frozenset({GROUP["b"]}))
    a_or_c = Wanted(succeeded=False, groups=frozenset({GROUP["a"], GROUP["c"]}))
    assert shown(Wanted()) == "Sabc"
    assert (shown(a), shown(not_b), shown(a_or_c)) == ("Sa", "Sac", "ac")
    assert shown(a.within(not_b)) == shown(not_b.within(a)) == "Sa"
    assert shown(a.within(a_or_c)) == "a"
    assert shown(a.within(Wanted(failed=False))) == "S"
    assert Wanted().within(Wanted()).is_all
    assert not any(each.is_all for each in (a, not_b, FAILED, NOTHING, Wanted(failed=False)))


def test_what_cannot_be_read_is_in_no_group() -> None:
    """It is one of all, and of all that are left when groups are taken; no filter fails over it."""
    deep = b'{"detail":' + b"[" * 2000 + b"]" * 2000 + b"}"
    text = answered("batch_req_1", b'"a"', 400, "req_1", deep)
    assert all(wanted.takes(failed=True, text=text) for wanted in (Wanted(), FAILED, but("a")))
    assert not any(wanted.takes(failed=True, text=text) for wanted in (only("a"), NOTHING))


@pytest.mark.parametrize("taken", [FAILED, only("a"), only("a", "c"), but("b"), but("a", "b")])
def test_what_a_child_has_is_written_down_and_read(taken: Wanted) -> None:
    """By groups, or by those that are left out."""
    assert parse_taken(taken_text(taken)) == taken


@pytest.mark.parametrize(
    ("children", "wanted", "left"),
    [
        ([], FAILED, "abc"),
        ([], only("b"), "b"),
        ([child(1, only("a")), child(2, only("b"), is_void=True)], FAILED, "bc"),
        ([child(1, only("a")), child(2, only("b"), is_void=True)], only("b"), "b"),
        ([child(1, only("a"))], only("a"), ""),
        ([child(1, only("a")), child(2, but("a"))], FAILED, ""),
        ([child(1, only("a"), is_void=True), child(2, but("a"))], FAILED, "a"),
        ([child(1, only("a"), is_void=True), child(2, but("a"))], only("a"), "a"),
        ([child(1, only("a"), is_void=True), child(2, but("a"))], only("c"), ""),
        ([child(1, but("a", "b")), child(2, only("b"))], FAILED, "a"),
        ([child(1, is_void=True)], FAILED, "abc"),
    ],
)
def test_each_failed_line_is_retried_by_one_child(children: list[Child], wanted: Wanted, left: str) -> None:
    """What a child has is not left; a void one has nothing, whatever the others left to it."""
    found = left_to_retry(children, wanted)
    assert shown(found) == left
    assert found.failed == bool(left)


@pytest.mark.parametrize(
    ("children", "of_parent", "in_place"),
    [
        ([], "Sabc", []),
        ([child(1, only("a"))], "Sbc", []),
        ([child(1, only("a")), child(2, but("a"))], "S", []),
        ([child(1, only("a"), is_void=True)], "Sbc", ["a"]),
        ([child(1, only("a"), is_void=True), child(2, only("a"))], "Sbc", [""]),
        ([child(1, only("a"), is_void=True), child(2, is_void=True)], "S", ["", "abc"]),
        ([child(1, only("a"), is_void=True), child(2, but("a"))], "S", ["a"]),
        ([child(1, only("a")), child(2, but("a"), is_void=True), child(3, only("b"))], "S", ["c"]),
        ([child(1, is_void=True), child(2, only("b"), is_void=True), child(3)], "S", ["", ""]),
    ],
)
def test_beside_its_children_each_failed_line_stands_once(
    children: list[Child], of_parent: str, in_place: list[str]
) -> None:
    """With the parent, or with the last void child that had it, or else it is a child's own."""
    assert shown(still_shown(children)) == of_parent
    assert [shown(shown_in_place(children, each)) for each in children if each.is_void] == in_place
