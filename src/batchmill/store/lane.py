"""The rows of lanes: what each worker has to do with each backend, and what all of them together say of it.

A lane counts while its worker's lease holds. Workers that tell about the same backend do so one by one: its row is
locked before any lane of it is read, so that what one has taken of the window the next one sees.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import Row, and_, delete, exists, select, update

from batchmill.schedule.measure import Measure
from batchmill.schedule.share import Heard, Part, Total, settle
from batchmill.store.database import Transaction
from batchmill.store.tables import backend, lane, worker

_PART = ("in_flight", "wanted", "held", "round", "pressed")


class Told(NamedTuple):
    """What a worker tells of one backend: see `schedule.share.settle`."""

    part: Part
    judged: tuple[int, int] | None
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a backend stands at all workers together.

    `total` is their window (0: nobody has said it), `leader` the worker that judges it, `workers` how many send to it.
    """

    name: str
    total: int
    leader: str | None
    in_flight: int
    workers: int


def say_health(tx: Transaction, *, worker_id: str, name: str, reason: str | None, now: int) -> None:
    """Keep how one worker finds a backend, `reason` None for well; it is well if any worker finds it so."""
    mine = {"well": reason is None, "reason": reason}
    # The row is there before it is locked; whoever comes second waits, and sees what the first has said.
    tx.connection.execute(tx.insert(backend).values(name=name, since=now, **mine).on_conflict_do_nothing())
    row = tx.connection.execute(select(backend).where(backend.c.name == name).with_for_update()).one()
    added = tx.insert(lane).values(worker_id=worker_id, backend=name, **mine)
    tx.connection.execute(added.on_conflict_do_update(index_elements=list(lane.primary_key), set_=mine))
    _agree(tx, row, _said(_lanes(tx, [name]), worker_id), now)


def forget_backends(tx: Transaction, *, worker_id: str, names: Iterable[str]) -> None:
    """Forget every backend but these of this worker's and those that another worker that lives has a lane for."""
    counts = _alive(tx) & (lane.c.worker_id != worker_id)
    held = select(lane.c.backend).join(worker, worker.c.id == lane.c.worker_id).where(counts)
    gone = backend.c.name.not_in(list(names)) & backend.c.name.not_in(held)
    tx.connection.execute(delete(backend).where(gone))


def leave_lane(tx: Transaction, *, worker_id: str, name: str) -> None:
    """Take a worker's lane away; the backend is forgotten where no other worker has one."""
    tx.connection.execute(delete(lane).where(lane.c.worker_id == worker_id, lane.c.backend == name))
    _forget(tx, [name])


def look(tx: Transaction, *, worker_id: str, told: Mapping[str, Told]) -> tuple[Mapping[str, Heard], bool]:
    """Return what a worker hears if it tells nothing, and whether it has something to `tell`. Nothing is written."""
    rows, lanes = _rows(tx, told, locked=False)
    heard, is_news = {}, False
    for row in rows:
        beside = lanes.get(row.name, [])
        before, part, heard[row.name] = _settled(row, beside, told[row.name], worker_id)
        held = sum(each.held for each in beside if each.worker_id == worker_id)
        is_dead = any(not each.counts for each in beside if each.worker_id != worker_id)
        is_news = is_news or is_dead or _said(beside, worker_id) not in {None, (row.well, row.reason)}
        is_news = is_news or part.held != held or heard[row.name].total != before
    return heard, is_news


def tell(tx: Transaction, *, worker_id: str, told: Mapping[str, Told], now: int) -> Mapping[str, Heard]:
    """Keep what a worker tells of its backends, and return what it hears.

    Left out are backends without a row, and those that another worker tells about in this very moment. Lanes of dead
    workers go, and with them backends that nobody has a lane for. The fence of the total is its leader: the id of a
    worker is never used twice.
    """
    rows, lanes = _rows(tx, told, locked=True)
    heard, kept = {}, []
    for row in rows:
        beside = lanes.get(row.name, [])
        before, part, heard[row.name] = _settled(row, beside, told[row.name], worker_id)
        total = heard[row.name].total
        if total != before:
            fence = and_(backend.c.name == row.name, backend.c.leader.is_not_distinct_from(before.leader))
            values = {"leader": total.leader, "total": total.total, "round": total.round}
            tx.connection.execute(update(backend).where(fence).values(**values))
        kept.append({"worker_id": worker_id, "backend": row.name} | _values(part))
        _agree(tx, row, _said(beside, worker_id), now)
    if kept:
        added = tx.insert(lane)
        columns = {name: added.excluded[name] for name in (*_PART, *Measure._fields)}
        tx.connection.execute(added.on_conflict_do_update(index_elements=list(lane.primary_key), set_=columns), kept)
    living = select(worker.c.id).where(_alive(tx))
    dead = delete(lane).where(lane.c.worker_id != worker_id, lane.c.worker_id.not_in(living))
    if tx.connection.execute(dead).rowcount:
        _forget(tx)
    return heard


def show_window(tx: Transaction, *, worker_id: str, name: str, in_flight: int, window: int) -> bool:
    """Keep what the only worker has in flight at a backend, and its window; False where the backend has no row yet."""
    mine = update(backend).where(backend.c.name == name).values(leader=worker_id, total=window)
    if tx.connection.execute(mine).rowcount != 1:
        return False
    added = tx.insert(lane).values(worker_id=worker_id, backend=name, in_flight=in_flight)
    changed = added.on_conflict_do_update(index_elements=list(lane.primary_key), set_={"in_flight": in_flight})
    tx.connection.execute(changed)
    return True


def list_windows(tx: Transaction) -> Sequence[Standing]:
    """Return how each backend stands at all workers that live, by name."""
    rows = tx.connection.execute(select(backend).order_by(backend.c.name)).all()
    lanes = _by_backend(row for row in _lanes(tx, [row.name for row in rows]) if row.counts)
    return [
        Standing(
            name=row.name,
            total=row.total,
            leader=row.leader,
            in_flight=sum(each.in_flight for each in lanes.get(row.name, ())),
            workers=len(lanes.get(row.name, ())),
        )
        for row in rows
    ]


def _alive(tx: Transaction) -> Any:  # noqa: ANN401 - SQLAlchemy's own type of a comparison
    return worker.c.lease_until > tx.lease_now


def _lanes(tx: Transaction, names: Collection[str]) -> Sequence[Row[Any]]:
    """Return the lanes of these backends, each with whether its worker lives (`counts`)."""
    alive = exists().where(worker.c.id == lane.c.worker_id, _alive(tx))
    found = select(lane, alive.label("counts")).where(lane.c.backend.in_(names))
    return tx.connection.execute(found.order_by(lane.c.backend, lane.c.worker_id)).all()


def _by_backend(rows: Iterable[Row[Any]]) -> dict[str, list[Row[Any]]]:
    return {name: list(group) for name, group in groupby(rows, key=lambda row: str(row.backend))}


def _others(rows: Iterable[Row[Any]], worker_id: str) -> dict[str, Part]:
    """Return the parts of the other workers that live."""
    return {
        row.worker_id: Part(
            **{name: getattr(row, name) for name in _PART},
            measure=Measure(*(getattr(row, name) for name in Measure._fields)),
        )
        for row in rows
        if row.counts and row.worker_id != worker_id
    }


def _values(part: Part) -> dict[str, float]:
    return {name: getattr(part, name) for name in _PART} | part.measure._asdict()


def _rows(
    tx: Transaction, names: Collection[str], *, locked: bool
) -> tuple[Sequence[Row[Any]], dict[str, list[Row[Any]]]]:
    """Return the backends' rows, and the lanes of each, read once those are locked."""
    found = select(backend).where(backend.c.name.in_(names)).order_by(backend.c.name)
    rows = tx.connection.execute(found.with_for_update(skip_locked=True) if locked else found).all()
    return rows, _by_backend(_lanes(tx, [row.name for row in rows]))


def _settled(row: Row[Any], lanes: Iterable[Row[Any]], mine: Told, worker_id: str) -> tuple[Total, Part, Heard]:
    """Return a backend's window as its row has it, what a worker's part becomes, and what it hears."""
    before = Total(row.leader, row.total, row.round)
    _, part, heard = settle(
        before,
        worker=worker_id,
        mine=mine.part,
        others=_others(lanes, worker_id),
        judged=mine.judged,
        size=mine.size,
    )
    return before, part, heard


def _said(lanes: Iterable[Row[Any]], worker_id: str) -> tuple[bool, str | None] | None:
    """Return whether a backend is well to any that has asked it, and else why not; None if nobody has."""
    said = [row for row in lanes if row.well is not None and (row.counts or row.worker_id == worker_id)]
    if not said:
        return None
    well = any(row.well for row in said)
    return well, None if well else said[0].reason


def _agree(tx: Transaction, row: Row[Any], said: tuple[bool, str | None] | None, now: int) -> None:
    """Keep what all that have asked a backend say of it together, if it is news."""
    if said is None or said == (row.well, row.reason):
        return
    well, reason = said
    values = {"well": well, "reason": reason, "since": row.since if row.well == well else now}
    tx.connection.execute(update(backend).where(backend.c.name == row.name).values(**values))


def _forget(tx: Transaction, names: Collection[str] | None = None) -> None:
    """Forget the backends that nobody has a lane for, of all or of these."""
    gone = delete(backend).where(backend.c.name.not_in(select(lane.c.backend)))
    tx.connection.execute(gone if names is None else gone.where(backend.c.name.in_(names)))
