"""`batchmill status`: who works, what they hold, what is left to do and why it waits, how the backends are."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy.exc import SQLAlchemyError

from batchmill.assemble.storage import Storage
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.rows import name_of, open_store
from batchmill.cli.verify import refuse_other_version
from batchmill.settings import Settings
from batchmill.store.backlog import Backlog, read_backlog
from batchmill.store.database import DatabaseAway, Transaction
from batchmill.store.lane import Standing as Window
from batchmill.store.lane import list_windows
from batchmill.store.model import BackendState, list_backends
from batchmill.store.overview import WorkerState, list_workers
from batchmill.store.standing import Standing, list_standings

_WAITING = 20  # batches that are named


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything at one moment, from one snapshot."""

    workers: Sequence[WorkerState]
    backlog: Backlog
    waiting: Sequence[Standing]
    backends: Sequence[BackendState]
    windows: Mapping[str, Window]  # by the backends' names


def look(settings: Settings) -> Overview:
    """Return how everything stands; reads only, with or without running servers.

    Raises:
        Stop: there is nothing to look at, or it cannot be read.
    """
    storage = open_store(settings)
    try:
        return asyncio.run(_look(storage))
    except (SQLAlchemyError, DatabaseAway, OSError) as fault:
        raise Stop(f"{name_of(settings)} cannot be read: {fault}.", Exit.DATA_UNUSABLE) from fault


async def _look(storage: Storage) -> Overview:
    def statements(tx: Transaction) -> Overview:
        standings = list_standings(tx, limit=10 * _WAITING)
        return Overview(
            workers=list_workers(tx),
            backlog=read_backlog(tx),
            waiting=[standing for standing in standings if standing.waiting is not None][:_WAITING],
            backends=list_backends(tx),
            windows={window.name: window for window in list_windows(tx)},
        )

    try:
        await refuse_other_version(storage)
        return await storage.database.read(statements)
    finally:
        await storage.database.close()


def as_json(overview: Overview) -> Mapping[str, object]:
    """Return it as JSON's values; times in Unix seconds, `lease_left` in seconds."""
    backlog = overview.backlog
    return {
        "workers": [asdict(worker) for worker in overview.workers],
        "batches": {status.value: count for status, count in backlog.batches.items()},
        "stuck": backlog.stuck,
        "lines_open": backlog.open_lines,
        "waiting": [{"batch": each.batch_id, "reason": each.waiting} for each in overview.waiting],
        "backends": [asdict(backend) | _window(overview, backend.name) for backend in overview.backends],
    }


def as_text(overview: Overview) -> Iterator[str]:
    """Yield the lines for people."""
    now, backlog = time.time(), overview.backlog
    yield f"Workers: {len(overview.workers) or 'none'}"
    for worker in overview.workers:
        lease = f"lease {worker.lease_left:.0f} s" if worker.lease_left > 0 else "its lease has lapsed"
        held = f"{worker.slices} Slices, {worker.batches} batches in hand"
        yield f"  {worker.id}  {worker.place or '-'}  for {_span(now - worker.started_at)}, {lease}, {held}"
    counts = ", ".join(f"{count} {status.value}" for status, count in backlog.batches.items() if count)
    stuck = f"; {backlog.stuck} stuck" if backlog.stuck else ""
    yield f"Batches: {counts or 'none'}{stuck}; {backlog.open_lines:,} lines open"
    for each in overview.waiting:
        yield f"  {each.batch_id}  {each.waiting}"
    yield f"Backends: {len(overview.backends) or 'none'}"
    for backend in overview.backends:
        how = "well" if backend.well else f"unwell for {_span(now - backend.since)}: {backend.reason}"
        told = _window(overview, backend.name)
        shared = f"; {told['in_flight']} in flight of {told['window']}" if told["window"] else ""
        yield f"  {backend.name}  {how}{shared}"


def _window(overview: Overview, name: str) -> dict[str, int | None]:
    """Return the window that workers share; none is told by a worker that is alone."""
    window = overview.windows.get(name)
    if window is None or not window.total:
        return {"window": None, "in_flight": None}
    return {"window": window.total, "in_flight": window.in_flight}


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
