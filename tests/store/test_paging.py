"""A page of a long list is one short look into an index, however much there is and however far back it begins (C12)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy import Case, Connection, Integer, String, case, cast, event, insert, literal, select, text

from batchmill.store.batch import list_batches
from batchmill.store.database import Database, Transaction
from batchmill.store.file import list_files
from batchmill.store.tables import batch, file
from store.rows import MINE, NOW, THEIRS, add_blob, add_organisations

COUNT = 100_000  # rows of each table, every second one of another organisation
PAGE = 20
PARENT = "batch_1"
RETRIES = 40  # of PARENT, the newest of all, every second one of another organisation

Page = Callable[[Transaction, str | None], Sequence[object]]


def _batches(tx: Transaction, after: str | None) -> Sequence[object]:
    return list_batches(tx, organisation_id=MINE, after=after, limit=PAGE)


def _retries(tx: Transaction, after: str | None) -> Sequence[object]:
    return list_batches(tx, organisation_id=MINE, after=after, limit=PAGE, parent_id=PARENT)


def _files(tx: Transaction, after: str | None, *, ascending: bool = False) -> Sequence[object]:
    return list_files(tx, organisation_id=MINE, now=NOW, purpose="batch", after=after, ascending=ascending, limit=PAGE)


def _first_files(tx: Transaction, after: str | None) -> Sequence[object]:
    return _files(tx, after, ascending=True)


class Look(NamedTuple):
    """A page that was read: how many it holds, its statement, and the database's plan of it."""

    table: str
    length: int
    statement: str
    parameters: Sequence[object]
    plan: str


async def test_a_page_is_one_look_into_an_index(database: Database) -> None:
    """From either end, from the middle and past the last row: nothing is sorted, skipped or read from the top.

    Of a batch's retries nothing else is read, though a server's SQLite has no statistics to know their index by.
    """

    def statements(tx: Transaction) -> tuple[list[Look], list[Look]]:
        _fill(tx)
        if tx.connection.dialect.name == "postgresql":
            tx.connection.execute(text("ANALYZE"))
        retries = [_look(tx, "batch", _retries, place) for place in (None, COUNT - 20, COUNT)]
        tx.connection.execute(text("ANALYZE"))
        pages: list[tuple[str, Page]] = [("batch", _batches), ("file", _files), ("file", _first_files)]
        places = (None, 1, COUNT // 2, COUNT)
        return [_look(tx, table, page, place) for table, page in pages for place in places], retries

    looks, retries = await database.write(statements)
    assert [look.length for look in looks] == [PAGE, 0, PAGE, PAGE] * 2 + [PAGE, PAGE, PAGE, 0]
    for table, _, statement, parameters, plan in looks:
        if plan.startswith("Limit"):  # PostgreSQL, which chooses between two indexes by statistics
            assert f"using ix_{table}_organisation" in plan or f"using pk_{table}" in plan, plan
            assert not [word for word in ("Seq Scan", "Sort") if word in plan], plan
            assert "OFFSET" not in statement
        else:
            assert f"SEARCH {table} USING INDEX ix_{table}_organisation (organisation_id=?" in plan, plan
            assert "TEMP B-TREE" not in plan, plan
            assert parameters[-1] == 0  # SQLAlchemy gives SQLite's LIMIT an OFFSET, always
    assert [look.length for look in retries] == [PAGE, 9, 19]
    for look in retries:
        assert "ix_batch_parent_id" in look.plan, look.plan
        assert not [word for word in ("Seq Scan", "SCAN", "(organisation_id=?)") if word in look.plan], look.plan


def _fill(tx: Transaction) -> None:
    """Add the rows, with one statement a table."""
    add_organisations(tx)
    add_blob(tx, "bytes")
    numbers = select(literal(1, Integer).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < COUNT))
    shared = {"organisation_id": case((numbers.c.n % 2 == 0, MINE), else_=THEIRS), "created_at": literal(NOW)}
    rows = {
        file: {"blob_key": "bytes", "filename": "a.jsonl", "purpose": "batch", "bytes": 1},
        batch: {
            "input_file_id": "file_1",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "status": "validating",
            "expires_at": NOW,
            "parent_id": case((numbers.c.n > COUNT - RETRIES, PARENT)),
        },
    }
    for table, fixed in rows.items():
        values = {"id": literal(f"{table.name}_") + cast(numbers.c.n + COUNT, String)} | shared
        values |= {name: value if isinstance(value, Case) else literal(value) for name, value in fixed.items()}
        tx.connection.execute(insert(table).from_select([*values], select(*values.values())))


def _look(tx: Transaction, table: str, page: Page, place: int | None) -> Look:
    word = "EXPLAIN" if tx.connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    seen: list[tuple[str, Sequence[object], str]] = []

    def explain(connection: Connection, _cursor: object, sql: str, parameters: Sequence[object], *_: object) -> None:
        if not sql.startswith("EXPLAIN"):
            steps = connection.exec_driver_sql(f"{word} {sql}", tuple(parameters))
            seen.append((sql, parameters, "\n".join(str(step[-1]) for step in steps)))

    event.listen(tx.connection, "before_cursor_execute", explain)
    found = page(tx, None if place is None else f"{table}_{COUNT + place}")
    event.remove(tx.connection, "before_cursor_execute", explain)
    [(statement, parameters, plan)] = seen
    return Look(table, len(found), statement, parameters, plan)
