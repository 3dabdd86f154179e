"""Cursors, whatever stands in them, and pages while others add and remove what is paged through (C11, C13; S11)."""

import re
from collections.abc import Sequence
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.served import Served, Tenant

_ID = re.compile(rb"[0-9a-f]{46}")
ROUTES = {"/v1/batches": b"batch_", "/v1/files": b"file_"}
_HEX = st.text("0123456789abcdef", min_size=46, max_size=46)
_NEARLY = st.builds(
    lambda prefix, digits, at, other: (prefix + digits)[:at].encode() + other + (prefix + digits)[at:].encode(),
    st.sampled_from(["batch_", "file_", "BATCH_", "batch-", ""]),
    _HEX,
    st.integers(0, 60),
    st.binary(max_size=2),
)
CURSORS = st.one_of(
    st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")), _NEARLY
)


@pytest.fixture(scope="module")
def stocked(served: Served) -> Tenant:
    """Make an organisation with three files and a batch over each, and another one with as many."""
    ours, theirs = served.tenant(), served.tenant()
    for _ in range(3):
        ours.create()
        theirs.create()
    return ours


@pytest.mark.parametrize("path", ROUTES)
@settings(max_examples=150, deadline=None)
@given(cursor=CURSORS)
def test_any_bytes_are_a_cursor_or_a_400(stocked: Tenant, path: str, cursor: bytes) -> None:
    """What has the form of an id of that kind is a place in the list; anything else is refused by name."""
    answer = stocked.served.ask(
        "GET", f"{path}?after={quote_from_bytes(cursor)}", Authorization=f"Bearer {stocked.key}"
    )
    prefix = ROUTES[path]
    if cursor.startswith(prefix) and _ID.fullmatch(cursor.removeprefix(prefix)):
        ids = [item["id"] for item in stocked.call("GET", path).json["data"]]
        assert [item["id"] for item in answer.json["data"]] == [name for name in ids if name.encode() < cursor]
    else:
        assert answer.error == (400, "invalid_request_error", "after", "invalid_value")


@pytest.mark.parametrize("path", ROUTES)
@settings(max_examples=50, deadline=None)
@given(digits=_HEX, near=st.booleans())
def test_a_cursor_is_a_place_whoever_it_belongs_to(stocked: Tenant, path: str, digits: str, near: bool) -> None:
    """An id that nobody has, anywhere in time, or right beside one of ours: the page holds ours behind it, no more."""
    ids = [item["id"] for item in stocked.call("GET", path).json["data"]]
    prefix = ROUTES[path].decode()
    cursor = f"{ids[1][:-32]}{digits[-32:]}" if near else prefix + digits
    page = stocked.call("GET", f"{path}?after={cursor}").json
    behind = [name for name in ids if name < cursor]
    assert [item["id"] for item in page["data"]] == behind
    assert (page["has_more"], page["first_id"]) == (False, behind[0] if behind else None)


_MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.sampled_from([-1.0, 0.0, 1e-6, 1.0])),  # the clock may stand, or step back
        st.tuples(st.just("delete"), st.floats(0, 1, exclude_max=True)),
        st.tuples(st.just("page"), st.integers(1, 4).map(float)),
    ),
    min_size=4,
    max_size=24,
)


@settings(max_examples=40, deadline=None)
@given(moves=_MOVES, order=st.sampled_from(["asc", "desc"]))
def test_pages_neither_skip_nor_repeat(served: Served, moves: Sequence[tuple[str, float]], order: str) -> None:
    """C13: whatever is created and deleted meanwhile, what was there and stays is seen once, and nothing twice."""
    tenant = served.tenant()
    there = [tenant.upload()["id"] for _ in range(6)]
    lasting, seen, more = set(there), list[str](), True
    for move, number in [*moves, *[("page", 4.0)] * 10]:
        if move == "create":
            served.clock.time += number - 1  # an upload takes a second
            there.append(tenant.upload()["id"])
        elif move == "delete" and there:
            gone = there.pop(int(number * len(there)))
            lasting.discard(gone)
            assert tenant.call("DELETE", f"/v1/files/{gone}").status == 200
        elif move == "page" and more:
            after = f"&after={seen[-1]}" if seen else ""
            page = tenant.call("GET", f"/v1/files?order={order}&limit={number:.0f}{after}").json
            seen += [item["id"] for item in page["data"]]
            more = page["has_more"]
    assert not more
    assert len(seen) == len(set(seen))
    assert lasting <= set(seen)
