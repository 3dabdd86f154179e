"""How a Plan is laid down while a File is read."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from batchmill.schedule.plan import Cut, Record, is_scattered, line_numbers, line_spans, pack, record_at, unpack
from batchmill.schedule.planner import Copy, Ordering, Planner

ANYHOW = Ordering()
DOCUMENTS = [bytes([65 + number]) * 40_000 for number in range(40)]  # more than half a small engine's cache


def record(line: int, *, model: int = 0, tokens: int = 10_100) -> Record:
    """Return the record of a line; only these matter."""
    return Record(line * 100, 99, line, 0, 0, 0, 0, model, tokens, 0)


def plan(
    records: list[Record],
    prompts: list[bytes],
    *,
    piece: int = 1000,
    by: Ordering = ANYHOW,
    bodies: Sequence[bytes] = (),
    copy: Copy | None = None,
    copied: int = 1 << 30,
) -> tuple[list[Record], tuple[Cut, ...]]:
    """Return the Plan of these lines."""
    data = bytearray()
    planner = Planner(write=data.extend, ordering=by, copy=copy, piece=piece, copied=copied)
    for one, prompt, body in zip(records, prompts, bodies or prompts, strict=True):
        planner.add(one, prompt=prompt, output=100, body=body)
    cuts = planner.finish()
    return list(unpack(bytes(data))), cuts


def test_lines_that_share_a_document_stand_together() -> None:
    """A shuffled file is grouped where its documents do not fit an engine's cache, and says what is left to compute."""
    records = [record(line) for line in range(1, 121)]
    prompts = [DOCUMENTS[line % 40] for line in range(120)]
    planned, cuts = plan(records, prompts, piece=1000)
    assert [one.line % 40 for one in planned] == [line % 40 for line in range(1, 41) for _ in range(3)]
    assert [len({one.prefix for one in planned[at : at + 3]}) for at in range(0, 120, 3)] == [1] * 40
    assert all(one.prefix for one in planned)
    assert planned[0].prefill == 10_000
    assert planned[1].prefill < 2_000
    assert [(c.first, c.lines, c.bytes) for c in cuts] == [(0, 120, 120 * 99)]


def test_no_line_leaves_its_piece() -> None:
    """Two pieces of sixty lines each hold the lines of the file's two halves, whatever these share."""
    records = [record(line) for line in range(1, 121)]
    prompts = [DOCUMENTS[line % 40] for line in range(120)]
    planned, cuts = plan(records, prompts, piece=60)
    assert sorted(one.line for one in planned[:60]) == list(range(1, 61))
    assert [one.line for one in planned[:60]] != list(range(1, 61))
    assert [(c.first, c.lines) for c in cuts] == [(0, 60), (60, 60)]


def test_models_that_alternate_stand_apart() -> None:
    """A file that changes its model from line to line makes a Slice of each model, not one of each line."""
    records = [record(line, model=line % 3) for line in range(1, 301)]
    planned, cuts = plan(records, [b""] * 300, piece=1000)
    assert [one.line for one in planned] == [line for model in (1, 2, 0) for line in range(1, 301) if line % 3 == model]
    assert [(c.first, c.lines, c.model) for c in cuts] == [(0, 100, 1), (100, 100, 2), (200, 100, 0)]


def test_where_nothing_is_shared_the_order_is_the_files() -> None:
    """Such a Plan is the file, line by line."""
    records = [record(line) for line in range(1, 601)]
    planned, cuts = plan(records, [b""] * 600, piece=250)
    assert [one.line for one in planned] == list(range(1, 601))
    assert [one.prefix for one in planned] == [0] * 600
    assert sum(c.lines for c in cuts) == 600


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(0, 12_000)), max_size=60),
    st.integers(1, 70),
)
def test_a_plan_has_each_line_once(lines: list[tuple[int, int, int]], piece: int) -> None:
    """Whatever the lines share, all of each record but its marks stands in the Plan once, and its Slices hold all."""
    records = [record(n, model=model, tokens=tokens) for n, (model, _, tokens) in enumerate(lines, start=1)]
    prompts = [DOCUMENTS[document % 40][: document * 1000] for _, document, _ in lines]
    planned, cuts = plan(records, prompts, piece=piece)
    assert sorted(one[:9] for one in planned) == [one[:9] for one in records]
    assert [c.first for c in cuts] == [sum(c.lines for c in cuts[:at]) for at in range(len(cuts))]
    assert all({one.model for one in planned[c.first : c.first + c.lines]} == {c.model} for c in cuts)
    assert sum(c.lines for c in cuts) == len(planned)


@given(st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=5))
def test_a_plan_is_read_at_any_place(numbers: list[int]) -> None:
    """Its line numbers alone, and the record at a place, are those of the whole."""
    planned, _ = plan([record(0)._replace(line=number) for number in numbers], [b""] * len(numbers))
    data = b"".join(map(pack, planned))
    assert line_numbers(data) == numbers
    assert [record_at(data, place).line for place in range(len(numbers))] == numbers


def test_the_files_order_can_be_asked_for() -> None:
    """Whatever the lines share, and however long one of them is."""
    records = [record(line) for line in range(1, 121)]
    planned, _ = plan(records, [DOCUMENTS[line % 40] for line in range(120)], by=Ordering(in_file_order=True))
    assert [one.line for one in planned] == list(range(1, 121))


def test_a_small_cache_is_worth_grouping_for() -> None:
    """What fits one engine's cache twice over, in any order, does not fit another's."""
    records, prompts = [record(line, tokens=600) for line in range(1, 41)], [DOCUMENTS[n % 4][:2048] for n in range(40)]
    planned, _ = plan(records, prompts)
    assert [one.line for one in planned] == list(range(1, 41))
    planned, _ = plan(records, prompts, by=Ordering(kv_tokens=1000))
    assert [one.line % 4 for one in planned] == [1] * 10 + [2] * 10 + [3] * 10 + [0] * 10


def test_twins_stand_side_by_side() -> None:
    """With `coalesce` lines with one body follow the first of them, whatever else the order is."""
    records, bodies = [record(line) for line in range(1, 9)], [b"5", b"a", b"6", b"b", b"5", b"6", b"7", b"5"]
    planned, _ = plan(records, [b""] * 8, bodies=bodies, by=Ordering(coalesce=True))
    assert [one.line for one in planned] == [1, 5, 8, 2, 3, 6, 4, 7]
    planned, _ = plan(records, [b""] * 8, bodies=bodies)
    assert [one.line for one in planned] == list(range(1, 9))


FAR = 10_000  # bytes from line to line: neighbours in the file are close, all others are not


def far(line: int, *, model: int = 0) -> Record:
    """Return the record of a long line."""
    return record(line, model=model)._replace(offset=line * FAR, length=FAR - 1)


def test_a_piece_in_another_order_is_copied() -> None:
    """What copies is given its Plan; that then refers to lines which follow one another from where the copy begins."""
    given: list[list[int]] = []

    def copy(piece: bytes) -> int:
        given.append(line_numbers(piece))
        return min(offset for offset, _ in line_spans(piece))

    prompts = [DOCUMENTS[line % 40] for line in range(120)]
    planned, cuts = plan([far(line) for line in range(1, 121)], prompts, piece=60, copy=copy)
    assert given == [[one.line for one in planned[:60]], [one.line for one in planned[60:]]]
    assert [one.offset for one in planned] == [FAR * n for n in range(1, 121)]
    assert [one.line for one in planned] != list(range(1, 121))
    assert cuts == plan([far(line) for line in range(1, 121)], prompts, piece=60)[1]


def test_without_room_a_piece_keeps_the_files_order() -> None:
    """Its Plan refers to the file, and marks no line as sharing anything; twins are not put side by side either."""
    records, prompts = [far(line) for line in range(1, 121)], [DOCUMENTS[line % 40] for line in range(120)]
    for by in (ANYHOW, Ordering(coalesce=True)):
        planned, cuts = plan(records, prompts, by=by, copy=lambda _piece: None)
        assert planned == [one._replace(prefill=10_000) for one in records]
        assert sum(cut.lines for cut in cuts) == 120


def test_what_is_nearly_in_order_is_not_copied() -> None:
    """A file in order, one with a few lines elsewhere, and one whose models take turns nearby, stay where they are."""

    def copy(_piece: bytes) -> int:
        raise AssertionError

    for records in (
        [far(line) for line in range(1, 601)],
        [record(line, model=line % 3) for line in range(1, 601)],
    ):
        plan(records, [b""] * 600, piece=300, copy=copy)
    bodies = [b"%d" % (line if line >= 10 else 300) for line in range(600)]
    plan([far(line) for line in range(600)], [b""] * 600, bodies=bodies, by=Ordering(coalesce=True), copy=copy)


def test_a_piece_that_may_be_copied_is_bounded_in_bytes() -> None:
    """It ends with the line that reaches the bound; where nothing is copied, lines alone count."""
    given: list[int] = []

    def copy(piece: bytes) -> int:
        given.append(len(line_numbers(piece)))
        return min(offset for offset, _ in line_spans(piece))

    records = [far(line, model=line % 2) for line in range(1, 201)]
    planned, _ = plan(records, [b""] * 200, copy=copy, copied=40 * FAR)
    assert given == [41, 41, 41, 41, 36]
    assert sorted(one.line for one in planned[:41]) == list(range(1, 42))
    assert plan(records, [b""] * 200, copied=40 * FAR) == plan(records, [b""] * 200)


def test_lines_are_scattered_if_many_are_not_behind_the_one_before() -> None:
    """Of sixty lines more than sixteen; a run of them that goes backwards begins with one that is elsewhere."""
    for back in range(60):
        order = [*reversed(range(back)), *range(back, 60)]
        jumps = sum(line != before + 1 for before, line in zip([-1, *order], order, strict=False))
        assert is_scattered(b"".join(pack(far(line)) for line in order)) is (jumps > 16), back
