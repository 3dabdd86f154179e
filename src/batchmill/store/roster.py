"""What the operator has said of backends while the workers run: which are added, and which get no more lines."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, update

from batchmill.store.database import Transaction
from batchmill.store.tables import backend, lane, roster, worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A backend that the operator has added or drained; `name` is what it is called everywhere.

    `url` is None for one that the settings name: the rest says nothing then. `models` as in the settings, () where it
    tells them itself; `key_env` is the NAME of the environment variable that holds its key, in each worker; `window`
    is the most requests in flight at all workers together, None where it is found; `timeout` in seconds, None for the
    settings' own. `since` (Unix seconds): when it was added, or drained.
    """

    name: str
    url: str | None
    models: tuple[str, ...] = ()
    key_env: str | None = None
    window: int | None = None
    timeout: float | None = None
    draining: bool = False
    since: int = 0


def add_backend(tx: Transaction, entry: Entry) -> None:
    """Let every worker send to this backend, within about a second, until it is removed.

    One that was added before under this name becomes as it is given now, and one that was drained is drained no more.
    """
    values = {
        "url": entry.url,
        "models": "\n".join(entry.models),
        "key_env": entry.key_env,
        "window": entry.window,
        "timeout": entry.timeout,
        "draining": entry.draining,
        "since": entry.since,
    }
    if not tx.connection.execute(update(roster).where(roster.c.name == entry.name).values(**values)).rowcount:
        tx.connection.execute(insert(roster).values(name=entry.name, **values))


def drain_backend(tx: Transaction, *, name: str, draining: bool = True, now: int) -> bool:
    """Let no worker send to this backend any more, or again with `draining=False`; whoever named it, flags included.

    What is in flight ends in its time. Returns False for a backend that nobody has added and no worker knows.
    """
    moved = update(roster).where(roster.c.name == name).values(draining=draining, since=now)
    if tx.connection.execute(moved).rowcount:
        ours = roster.c.url.is_(None) & roster.c.draining.is_(False)  # there is nothing left to say of it
        tx.connection.execute(delete(roster).where(ours))
        return True
    known = select(backend.c.name).where(backend.c.name == name)
    if tx.connection.execute(known).first() is None:
        return False
    if draining:
        tx.connection.execute(insert(roster).values(name=name, url=None, models="", draining=True, since=now))
    return True


def remove_backend(tx: Transaction, *, name: str) -> bool:
    """Take away what was said of a backend: one that was added goes from all workers, once nothing is in flight there.

    One that the settings name is drained no more; it goes with the settings. Returns False if nothing was said of it.
    """
    return tx.connection.execute(delete(roster).where(roster.c.name == name)).rowcount > 0


def list_roster(tx: Transaction) -> Sequence[Entry]:
    """Return all that was said, by name."""
    return [
        Entry(
            name=row.name,
            url=row.url,
            models=tuple(row.models.split("\n")) if row.models else (),
            key_env=row.key_env,
            window=row.window,
            timeout=row.timeout,
            draining=row.draining,
            since=row.since,
        )
        for row in tx.connection.execute(select(roster).order_by(roster.c.name))
    ]


def workers_at(tx: Transaction, *, name: str) -> int:
    """Return how many workers that live still have a lane for a backend: none when its drain is over."""
    alive = worker.c.lease_until > tx.lease_now
    found = select(func.count()).select_from(lane).join(worker, worker.c.id == lane.c.worker_id)
    return int(tx.connection.execute(found.where(alive, lane.c.backend == name)).scalar_one())
