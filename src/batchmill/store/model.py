"""What is known of models and backends: operators' rows, kept so that a restart forgets nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select, update

from batchmill.store.database import Transaction
from batchmill.store.tables import backend, model


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendState:
    """How a backend is: `reason` says why it is unwell, `since` (Unix seconds) from when on it is as it is."""

    name: str
    well: bool
    reason: str | None
    since: int
    models: tuple[str, ...] = ()  # that it told last


def add_models(tx: Transaction, *, names: Iterable[str], now: int) -> tuple[str, ...]:
    """Keep models that a backend serves; return those that are new."""
    known = {name for name, _ in list_models(tx)}
    new = tuple(dict.fromkeys(name for name in names if name not in known))
    for name in new:
        tx.connection.execute(tx.insert(model).values(name=name, created_at=now).on_conflict_do_nothing())
    return new


def list_models(tx: Transaction) -> Sequence[tuple[str, int]]:
    """Return every model configured or ever seen, with the Unix second in which it was first."""
    return [(row.name, row.created_at) for row in tx.connection.execute(select(model).order_by(model.c.name))]


def save_backend(tx: Transaction, state: BackendState) -> None:
    """Keep how a backend is now."""
    values = {"well": state.well, "reason": state.reason, "since": state.since}
    added = tx.insert(backend).values(name=state.name, **values)
    tx.connection.execute(added.on_conflict_do_update(index_elements=[backend.c.name], set_=values))


def keep_models(tx: Transaction, *, name: str, models: Iterable[str]) -> None:
    """Keep which models a backend tells, if that is news."""
    told = "\n".join(models)
    news = update(backend).where(backend.c.name == name, backend.c.models.is_distinct_from(told))
    tx.connection.execute(news.values(models=told))


def has_backend(tx: Transaction, *, name: str) -> bool:
    """Say whether there is a row of this backend."""
    return tx.connection.execute(select(backend.c.name).where(backend.c.name == name)).first() is not None


def list_backends(tx: Transaction) -> Sequence[BackendState]:
    """Return how each backend was when it was last heard of."""
    rows = tx.connection.execute(select(backend).order_by(backend.c.name))
    return [
        BackendState(
            name=row.name,
            well=row.well,
            reason=row.reason,
            since=row.since,
            models=tuple(row.models.split("\n")) if row.models else (),
        )
        for row in rows
    ]
