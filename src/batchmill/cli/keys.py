"""`batchmill keys`: make, list, revoke and rotate API keys, with or without a running server."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from batchmill.assemble.storage import build_clock
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.rows import in_rows
from batchmill.settings import Seconds, Settings
from batchmill.spec.ids import mint_id
from batchmill.spec.keys import LONGEST_NAME, LONGEST_SECONDS, is_name
from batchmill.spec.scopes import DEFAULT_SCOPES, Scope, in_order
from batchmill.store.database import Transaction
from batchmill.store.organisation import (
    Key,
    add_key,
    find_organisation,
    insert_organisation,
    list_keys,
    replace_key,
    revoke_key,
)

_Lasts = Annotated[Seconds, Field(le=LONGEST_SECONDS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeKey:
    """A new key: `key` is shown once and kept nowhere."""

    id: str
    key: str
    org: str


def make_key(
    tx: Transaction,
    *,
    org: str,
    now: float,
    name: str | None = None,
    scopes: Collection[Scope] = DEFAULT_SCOPES,
    expires_in: float | None = None,
) -> MadeKey:
    """Make a key for the organisation of this name, which is made if it is new; `expires_in` in seconds."""
    organisation_id = find_organisation(tx, name=org)
    if organisation_id is None:
        organisation_id = mint_id("org", now)
        insert_organisation(tx, organisation_id=organisation_id, name=org, now=int(now))
    key_id, key = add_key(tx, organisation_id=organisation_id, now=now, name=name, scopes=scopes, expires_in=expires_in)
    return MadeKey(id=key_id, key=key, org=org)


def create_key(
    settings: Settings, *, org: str, name: str | None, scopes: Sequence[str], expires_in: str | None
) -> MadeKey:
    """Make a key in a data directory, which is made if it is new; the server may run meanwhile.

    Raises:
        Stop: a name, a scope or a duration is none.
    """
    read_name("--org", org)
    if name is not None:
        read_name("--name", name)
    try:
        chosen = {Scope(scope) for scope in scopes} or DEFAULT_SCOPES
    except ValueError as fault:
        raise Stop(f"--scope: {fault}; there are {', '.join(Scope)}.", Exit.USAGE) from fault
    now, lasts = build_clock().now(), None if expires_in is None else read_seconds("--expires-in", expires_in)
    if lasts == 0:
        raise Stop("--expires-in: a key that lasts for no time is good for nothing.", Exit.USAGE)
    return in_rows(settings, lambda tx: make_key(tx, org=org, now=now, name=name, scopes=chosen, expires_in=lasts))


def show_keys(settings: Settings) -> list[dict[str, object]]:
    """Return what may be shown of every key, the oldest first; times in Unix seconds."""
    return [
        {
            "id": key.id,
            "org": key.org,
            "name": key.name,
            "hint": key.hint,
            "scopes": in_order(key.scopes),
            "created_at": key.created_at,
            "expires_at": key.expires_at,
            "revoked_at": key.revoked_at,
        }
        for key in in_rows(settings, list_keys, there=True)
    ]


def end_key(settings: Settings, *, key_id: str) -> None:
    """Revoke a key: the next request with it is refused. Said again, it changes nothing.

    Raises:
        Stop: there is no such key.
    """

    def statements(tx: Transaction) -> None:
        revoke_key(tx, key_id=_known(tx, key_id).id, now=now)

    now = int(build_clock().now())
    in_rows(settings, statements, there=True)


def rotate_key(settings: Settings, *, key_id: str, overlap: str) -> MadeKey:
    """Make a key like another one, which is good for the `overlap` more and then expires.

    Raises:
        Stop: there is no such key, it is not good any more, or it was replaced already.
    """

    def statements(tx: Transaction) -> MadeKey:
        old = _known(tx, key_id)
        if old.replaced_at is not None:
            raise Stop(f"The key {key_id} was replaced already: rotate the one that replaced it.", Exit.FAULT)
        if not old.is_live(int(now)):
            raise Stop(f"The key {key_id} is revoked or expired: make a new one with `keys create`.", Exit.FAULT)
        made_id, key = replace_key(tx, old, now=now, overlap=more)
        return MadeKey(id=made_id, key=key, org=old.org)

    now, more = build_clock().now(), read_seconds("--overlap", overlap)
    return in_rows(settings, statements, there=True)


def read_name(option: str, text: str) -> str:
    """Return the name of an organisation or a key, which stands in tables and messages.

    Raises:
        Stop: it is blank, longer than a line, or holds what no terminal can show.
    """
    if not is_name(text):
        raise Stop(
            f"{option}: {text!r} is no name: 1 to {LONGEST_NAME} characters that can be seen, no space at either end.",
            Exit.USAGE,
        )
    return text


def read_seconds(option: str, text: str) -> float:
    """Return the seconds of a duration such as 90d; 0 is no time at all.

    Raises:
        Stop: it is none.
    """
    try:
        return 0.0 if text == "0" else TypeAdapter(_Lasts).validate_python(text)
    except ValidationError as fault:
        raise Stop(
            f"{option}: {text!r} is not a duration such as 90d, 24h or 30m, of 100 years at most.", Exit.USAGE
        ) from fault


def _known(tx: Transaction, key_id: str) -> Key:
    for key in list_keys(tx, key_id=key_id) if key_id.isprintable() else ():  # else no database takes the text
        return key
    raise Stop(f"There is no key {key_id!r}: `batchmill keys list` shows them all.", Exit.FAULT)
