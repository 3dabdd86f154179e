"""What is asked for when a key is made or replaced: `POST /v1/keys` and `POST /v1/keys/{id}/rotate`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from batchmill.spec import errors
from batchmill.spec.scopes import DEFAULT_SCOPES, Scope

LONGEST_NAME = 100  # characters
LONGEST_SECONDS = 100 * 365 * 86_400  # a hundred years: every calendar holds their end
OVERLAP_SECONDS = 86_400  # that an old key stays good for, where nothing else is said
_DURATION = re.compile(r"(\d{1,10})([smhd]?)", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOrder:
    """A key as it is asked for; `expires_in` in seconds, None for a key that is good for ever."""

    name: str | None
    scopes: frozenset[Scope]
    expires_in: int | None


def parse_key_order(value: object) -> KeyOrder:
    """Return the order in a decoded JSON body; ApiError for the first thing wrong. Unknown members are ignored."""
    members = _members(value)
    name = members.get("name")
    if name is not None and not isinstance(name, str):
        raise errors.invalid_type("name", "a string or null")
    if name is not None and not is_name(name):
        message = f"'name' must have 1 to {LONGEST_NAME} characters that can be seen, and no space at either end."
        raise errors.invalid_value("name", message)
    lasts = members.get("expires_in")
    return KeyOrder(
        name=name,
        scopes=_scopes(members.get("scopes")),
        expires_in=None if lasts is None else _seconds("expires_in", lasts, least=1),
    )


def parse_overlap(value: object) -> int:
    """Return for how many seconds a key that is replaced stays good: a day, unless the body says other."""
    overlap = _members(value).get("overlap")
    return OVERLAP_SECONDS if overlap is None else _seconds("overlap", overlap, least=0)


def is_name(text: str) -> bool:
    """Say whether a text can be the name of a key or an organisation, which stands in tables and messages."""
    return text.isprintable() and text == text.strip() and 1 <= len(text) <= LONGEST_NAME


def _members(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise errors.invalid_type(None, "a JSON object")
    return value


def _scopes(value: object) -> frozenset[Scope]:
    if value is None:
        return DEFAULT_SCOPES
    if not isinstance(value, list):
        raise errors.invalid_type("scopes", "an array or null")
    if not value or not all(isinstance(word, str) and word in set(Scope) for word in value):
        raise errors.invalid_value("scopes", f"'scopes' must name one or more of: {', '.join(Scope)}.")
    return frozenset(Scope(word) for word in value)


def _seconds(name: str, value: object, *, least: int) -> int:
    """Return a duration, which is seconds as a whole number, or a text such as 90d."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON knows one kind of number
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise errors.invalid_type(name, "a duration such as '90d', or whole seconds")
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        value = -1 if match is None else int(match[1]) * _UNITS[match[2]]
    if not least <= value <= LONGEST_SECONDS:
        message = (
            f"'{name}' must be a duration such as '90d', '24h', '30m' or whole seconds, from {least} s to 100 years."
        )
        raise errors.invalid_value(name, message)
    return value
