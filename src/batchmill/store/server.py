"""What a PostgreSQL server must be to be trusted with rows: new enough, in UTF-8, and safe from a power cut."""

from sqlalchemy import text

from batchmill.store.database import Transaction

OLDEST = 14  # the oldest that is maintained
_FACTS = """SELECT current_setting('server_version_num')::int / 10000 AS version,
 current_setting('server_encoding') AS encoding, current_setting('fsync') AS fsync,
 current_setting('full_page_writes') AS full_page_writes"""


class RefusedDatabase(Exception):  # noqa: N818 - it states what is so
    """The server is too old, or keeps text in another encoding than UTF-8; the message says which."""


class UnsafeDatabase(RefusedDatabase):
    """In a power cut the server may lose or damage what it has said is committed; the message says why."""


def check_server(tx: Transaction, *, allow_unsafe: bool = False) -> None:
    """Refuse a PostgreSQL that nothing may be entrusted to; SQLite does what it is told by each connection.

    `synchronous_commit` is not looked at: every transaction of ours sets it.

    Raises:
        RefusedDatabase: it is too old or keeps no UTF-8.
        UnsafeDatabase: `fsync` or `full_page_writes` is off, and that is not allowed.
    """
    if tx.connection.dialect.name != "postgresql":
        return
    facts = tx.connection.execute(text(_FACTS)).one()
    if facts.version < OLDEST:
        raise RefusedDatabase(f"PostgreSQL {facts.version} is too old: {OLDEST} or newer is needed")
    if facts.encoding != "UTF8":
        raise RefusedDatabase(f"the database's encoding is {facts.encoding}: create it with ENCODING 'UTF8'")
    off = [name for name in ("fsync", "full_page_writes") if facts._mapping[name] == "off"]  # noqa: SLF001 - SQLAlchemy's public view of a row
    if off and not allow_unsafe:
        raise UnsafeDatabase(
            f"the server runs with {' and '.join(f'{name}=off' for name in off)}: "
            "a power cut may cost it what it has said is committed"
        )


def server_time(tx: Transaction) -> float | None:
    """Return the Unix second by a PostgreSQL server's clock; None for SQLite, whose clock is ours."""
    if tx.connection.dialect.name != "postgresql":
        return None
    return float(tx.connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
