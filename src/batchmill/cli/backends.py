"""`batchmill backends`: which backends the workers send to, said while they run."""

from collections.abc import Sequence

from pydantic import ValidationError

from batchmill.assemble.backends import backend_name
from batchmill.assemble.storage import build_clock
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.rows import in_rows
from batchmill.settings import BackendSettings, Settings
from batchmill.store.database import Transaction
from batchmill.store.lane import list_windows
from batchmill.store.model import list_backends
from batchmill.store.roster import Entry, add_backend, drain_backend, list_roster, remove_backend


def add(settings: Settings, *, url: str, key_env: str | None, window: int | None, timeout: str | None) -> str:
    """Let every worker send to this backend from now on; return what it is called. `url` as in `--backend`.

    Raises:
        Stop: it cannot be a backend.
    """
    address, _, models = url.partition("#")
    if "@" in address:
        raise Stop("The URL holds a name or a password, and rows are no place for it: use --key-env.", Exit.USAGE)
    names = [name for name in models.split(",") if name]
    given = {"url": address, "models": names, "key_env": key_env, "window": window}
    try:
        chosen = BackendSettings.model_validate(given if timeout is None else given | {"timeout": timeout})
        name = backend_name(chosen.url)
    except (ValidationError, ValueError) as fault:
        said = fault.errors()[0]["msg"] if isinstance(fault, ValidationError) else str(fault)
        raise Stop(f"It cannot be a backend: {said.removeprefix('Value error, ')}.", Exit.USAGE) from fault
    entry = Entry(
        name=name,
        url=chosen.url,
        models=chosen.models,
        key_env=chosen.key_env,
        window=chosen.window,
        timeout=None if timeout is None else chosen.timeout,
        since=int(build_clock().now()),
    )
    in_rows(settings, lambda tx: add_backend(tx, entry))
    return name


def drain(settings: Settings, *, name: str, draining: bool) -> None:
    """Let no worker send to this backend any more, or again; whoever named it.

    Raises:
        Stop: nobody knows it.
    """
    now, called = int(build_clock().now()), _called(name)
    _known(in_rows(settings, lambda tx: drain_backend(tx, name=called, draining=draining, now=now), there=True), name)


def remove(settings: Settings, *, name: str) -> None:
    """Take away what was said of a backend; one that was added goes, once nothing is in flight there.

    Raises:
        Stop: nothing was said of it.
    """
    called = _called(name)
    _known(in_rows(settings, lambda tx: remove_backend(tx, name=called), there=True), name)


def show(settings: Settings) -> Sequence[dict[str, object]]:
    """Return how each backend is, and what was said of it; `since_at` in Unix seconds."""

    def statements(tx: Transaction) -> list[dict[str, object]]:
        said = {entry.name: entry for entry in list_roster(tx)}
        windows = {standing.name: standing for standing in list_windows(tx)}
        known = {backend.name: backend for backend in list_backends(tx)}
        rows: list[dict[str, object]] = []
        for name in sorted(said.keys() | known.keys()):
            entry, backend, window = said.get(name), known.get(name), windows.get(name)
            rows.append(
                {
                    "name": name,
                    "state": _state(entry, well=None if backend is None else backend.well),
                    "since_at": backend.since if backend is not None else said[name].since,
                    "reason": None if backend is None else backend.reason,
                    "added": entry is not None and entry.url is not None,
                    "workers": 0 if window is None else window.workers,
                    "in_flight": 0 if window is None else window.in_flight,
                    "window": window.total or None if window is not None else None,
                }
            )
        return rows

    return in_rows(settings, statements, there=True)


def _state(entry: Entry | None, *, well: bool | None) -> str:
    if entry is not None and entry.draining:
        return "draining"
    return {None: "not asked yet", True: "well", False: "unwell"}[well]


def _called(name: str) -> str:
    """Return a backend's name, of which a URL is another way to say it."""
    try:
        return backend_name(name)
    except ValueError:
        return name


def _known(found: bool, name: str) -> None:
    if not found:
        raise Stop(f"There is no backend {name!r} to speak of: `batchmill backends list` shows them all.", Exit.FAULT)
