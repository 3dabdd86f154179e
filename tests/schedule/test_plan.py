"""The Plan's records and how it is cut into Slices."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.schedule.plan import RECORD_BYTES, Cut, Record, cut, pack, unpack

SMALL = st.integers(0, 2**32 - 1)
LARGE = st.integers(0, 2**64 - 1)
RECORDS = st.builds(
    Record,
    offset=LARGE,
    length=SMALL,
    line=SMALL,
    id_offset=SMALL,
    id_length=SMALL,
    body_offset=SMALL,
    body_length=SMALL,
    model=SMALL,
    tokens=SMALL,
    prefix=SMALL,
    prefill=SMALL,
)


def record(length: int = 10, model: int = 0) -> Record:
    """Return a record of which only its length and model matter."""
    return Record(0, length, 1, 2, 3, 4, 5, model, 6, 7)


@given(st.lists(RECORDS))
def test_records_come_back_as_they_were_packed(records: list[Record]) -> None:
    """A Plan is its records, one after the other, each of the same size."""
    data = b"".join(map(pack, records))
    assert len(data) == RECORD_BYTES * len(records)
    assert list(unpack(data)) == records
    assert list(unpack(memoryview(data))) == records


def test_a_record_is_forty_eight_bytes() -> None:
    """A million lines plan into 48 MB."""
    assert RECORD_BYTES == 48


def test_a_torn_plan_is_a_fault() -> None:
    """A part that does not end with a whole record is refused."""
    with pytest.raises(struct.error):
        list(unpack(pack(record())[:-1]))


def test_a_slice_ends_with_its_model() -> None:
    """Two models never share a Slice."""
    cuts = list(cut([record(model=0), record(model=0), record(model=1), record(model=0)]))
    assert [(c.first, c.lines, c.model) for c in cuts] == [(0, 2, 0), (2, 1, 1), (3, 1, 0)]


def test_a_slice_holds_at_most_so_many_lines_and_bytes() -> None:
    """A limit that is reached exactly is kept, and one more line starts a new Slice."""
    assert [c.lines for c in cut([record()] * 5, max_lines=2)] == [2, 2, 1]
    assert [c.lines for c in cut([record(10)] * 5, max_bytes=20)] == [2, 2, 1]
    assert [c.lines for c in cut([record(10)] * 5, max_bytes=19)] == [1] * 5


def test_a_line_above_the_limit_is_a_slice_by_itself() -> None:
    """A line longer than a whole Slice may be is still sent."""
    assert list(cut([record(5), record(99), record(5)], max_bytes=20)) == [
        Cut(first=0, lines=1, bytes=5, model=0, tokens=6),
        Cut(first=1, lines=1, bytes=99, model=0, tokens=6),
        Cut(first=2, lines=1, bytes=5, model=0, tokens=6),
    ]


def test_the_limits_are_256_lines_and_8_mib() -> None:
    """The defaults are the design's."""
    assert [c.lines for c in cut([record(1)] * 257)] == [256, 1]
    assert [c.lines for c in cut([record(3 << 20)] * 3)] == [2, 1]


def test_nothing_is_cut_into_nothing() -> None:
    """A Plan without records has no Slices."""
    assert list(cut([])) == []


@given(
    st.lists(st.builds(record, length=st.integers(1, 50), model=st.integers(0, 2)), max_size=60),
    st.integers(1, 10),
    st.integers(1, 200),
)
def test_slices_cover_the_plan_once_in_order(records: list[Record], max_lines: int, max_bytes: int) -> None:
    """Every record is in exactly one Slice, of its own model, and no Slice is too large."""
    at = 0
    for piece in cut(records, max_lines, max_bytes):
        inside = records[piece.first : piece.first + piece.lines]
        assert piece.first == at
        assert {r.model for r in inside} == {piece.model}
        assert sum(r.length for r in inside) == piece.bytes
        assert 1 <= piece.lines <= max_lines
        assert piece.bytes <= max_bytes or piece.lines == 1
        at += piece.lines
    assert at == len(records)
