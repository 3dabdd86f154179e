"""`batchmill orgs`: make and list organisations, and say what each may use."""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from decimal import Decimal
from typing import Any

from batchmill.assemble.storage import build_clock
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.keys import read_name
from batchmill.cli.rows import in_rows
from batchmill.settings import Settings
from batchmill.spec.ids import mint_id
from batchmill.store.database import Transaction
from batchmill.store.organisation import (
    Organisation,
    find_organisation,
    insert_organisation,
    list_organisations,
    save_allowance,
)

_NONE = "none"  # takes a limit away
_LEAST = {
    "max_files": 0,
    "max_bytes": 0,
    "requests_per_minute": 1,
    "weight": 1,
    "tokens_per_day": 0,
    "enqueued_tokens": 0,
}
_MOST = 1 << 53  # every reader of JSON knows whole numbers up to here
_AMOUNT = re.compile(r"\d{1,12}(\.\d{1,8})?", re.ASCII)  # of money, as exact as costs are shown


def create_org(settings: Settings, *, name: str, limits: Mapping[str, str | None]) -> dict[str, object]:
    """Make an organisation; `limits` as in `set_org`.

    Raises:
        Stop: there is one of this name, it is no name, or a limit makes no sense.
    """
    read_name("NAME", name)
    now, values = build_clock().now(), _values(limits)

    def statements(tx: Transaction) -> dict[str, object]:
        if find_organisation(tx, name=name) is not None:
            raise Stop(f"There is an organisation {name!r} already.", Exit.FAULT)
        insert_organisation(tx, organisation_id=mint_id("org", now), name=name, now=int(now))
        return _changed(tx, name, values)

    return in_rows(settings, statements)


def set_org(settings: Settings, *, name: str, limits: Mapping[str, str | None]) -> dict[str, object]:
    """Change what an organisation may use: numbers, or names of models with commas; `none` takes a limit away.

    Raises:
        Stop: there is no such organisation, or a limit makes no sense.
    """
    read_name("NAME", name)
    values = _values(limits)
    return in_rows(settings, lambda tx: _changed(tx, name, values), there=True)


def show_orgs(settings: Settings) -> list[dict[str, object]]:
    """Return every organisation, by name."""
    return [_shown(organisation) for organisation in in_rows(settings, list_organisations, there=True)]


def _changed(tx: Transaction, name: str, values: Mapping[str, Any]) -> dict[str, object]:
    for found in list_organisations(tx):
        if found.name == name:
            changed = replace(found, allowance=replace(found.allowance, **values))
            save_allowance(tx, organisation_id=found.id, allowance=changed.allowance)
            return _shown(changed)
    raise Stop(f"There is no organisation {name!r}: `batchmill orgs list` shows them all.", Exit.FAULT)


def _values(limits: Mapping[str, str | None]) -> dict[str, Any]:
    return {name: _value(name, text) for name, text in limits.items() if text is not None}


def _value(name: str, text: str) -> object:
    if text == _NONE:
        return None
    if name == "models":
        return _models(text)
    if name == "batch_cost":
        return _amount(text)
    least = _LEAST[name]
    if not (text.isascii() and text.isdigit() and least <= int(text[:17]) <= _MOST and len(text) <= len(str(_MOST))):
        option = f"--{name.replace('_', '-')}"
        raise Stop(
            f"{option}: {text!r} is neither a whole number from {least} to {_MOST} nor the word none.", Exit.USAGE
        )
    return int(text)


def _models(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or not text.isprintable():
        raise Stop(f"--models: {text!r} names no model; the word none allows all of them again.", Exit.USAGE)
    return names


def _amount(text: str) -> Decimal:
    if not _AMOUNT.fullmatch(text):
        raise Stop(f"--batch-cost: {text!r} is neither an amount such as 12.50 nor the word none.", Exit.USAGE)
    return Decimal(text)


def _shown(organisation: Organisation) -> dict[str, object]:
    facts = {"id": organisation.id, "name": organisation.name, "created_at": organisation.created_at}
    most = organisation.allowance.batch_cost
    return facts | asdict(organisation.allowance) | {"batch_cost": None if most is None else float(most)}
