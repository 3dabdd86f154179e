"""What is wanted of a batch and of those that retry it."""

import pytest

from batchmill.spec.family import FAILED, NOTHING, Child, Wanted, left_to_retry, shown_in_place, still_shown
from batchmill.spec.groups import group_of
from batchmill.spec.results import unanswered

LINES = {code: unanswered("batch_req_1", b'"a"', code, f"It is {code}.") for code in ("a", "b", "c")}
GROUP = {code: group_of(text)[1].id for code, text in LINES.items()}


def shown(wanted: Wanted) -> str:
    """Return which lines are wanted: S for those that succeeded, and each failed one by its code."""
    failed = "".join(code for code, text in LINES.items() if wanted.takes(failed=True, text=text))
    return "S" * wanted.takes(failed=False, text=b"") + failed


def child(number: int, code: str | None = None, *, is_void: bool = False) -> Child:
    """Return a child that has a group, or all that was left."""
    return Child(f"batch_{number}", None if code is None else GROUP[code], is_void)


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


def test_each_failed_line_is_retried_by_one_child() -> None:
    """What a child has is not left; a void one has nothing."""
    some = [child(1, "a"), child(2, "b", is_void=True)]
    assert shown(left_to_retry([], None) or NOTHING) == "abc"
    assert shown(left_to_retry([], GROUP["b"]) or NOTHING) == "b"
    assert shown(left_to_retry(some, None) or NOTHING) == "bc"
    assert shown(left_to_retry(some, GROUP["b"]) or NOTHING) == "b"
    assert left_to_retry(some, GROUP["a"]) is None
    assert left_to_retry([*some, child(3)], GROUP["c"]) is None
    assert left_to_retry([*some, child(3)], None) is None
    assert shown(left_to_retry([child(3, is_void=True)], None) or NOTHING) == "abc"


@pytest.mark.parametrize(
    ("children", "of_parent", "in_place"),
    [
        ([], "Sabc", []),
        ([child(1, "a")], "Sbc", []),
        ([child(1, "a"), child(2)], "S", []),
        ([child(1, "a", is_void=True)], "Sbc", ["a"]),
        ([child(1, "a", is_void=True), child(2, "a")], "Sbc", [""]),
        ([child(1, "a", is_void=True), child(2, is_void=True)], "S", ["", "abc"]),
        ([child(1, "a"), child(2, is_void=True), child(3, "b")], "S", ["c"]),
        ([child(1, is_void=True), child(2, "b", is_void=True), child(3)], "S", ["", ""]),
    ],
)
def test_beside_its_children_each_failed_line_stands_once(
    children: list[Child], of_parent: str, in_place: list[str]
) -> None:
    """With the parent, or with the last void child that had it, or else it is a child's own."""
    assert shown(still_shown(children)) == of_parent
    assert [shown(shown_in_place(children, each)) for each in children if each.is_void] == in_place
