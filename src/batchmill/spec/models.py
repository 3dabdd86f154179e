"""What the operator says of models: other names, prices, who may batch them, what is locked; and what follows."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from batchmill.spec import errors
from batchmill.spec.errors import ApiError, clip
from batchmill.spec.objects import Usage
from batchmill.spec.prices import Cost, Price, total_cost

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:,]', re.DOTALL)  # strings and structure, in valid JSON
_BLANK = b" \t\r\n"


class _Body(msgspec.Struct, gc=False):
    model: msgspec.Raw


_BODY = msgspec.json.Decoder(_Body)
_STRING = msgspec.json.Decoder(str)
_ANY = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is configured of one model; it crosses to the validating process, so its parts are plain."""

    name: str  # what the backends call it
    aliases: tuple[str, ...] = ()
    batch: bool = True  # whether batches may use it (contract c.3, row 26)
    locked: Mapping[str, Sequence[object]] = field(default_factory=dict)  # parameter: the values it may have (c.2)
    owned_by: str = "batchmill"
    extras: Mapping[str, object] = field(default_factory=dict)  # further members of its object on the wire (a.10)
    price: Price | None = None


class Catalogue:
    """All configured models; one that is not configured is served under its own name, with nothing locked.

    Raises:
        ValueError: A name stands for two models.
    """

    def __init__(self, models: Iterable[ModelFacts] = (), *, currency: str = "USD") -> None:
        self.currency = currency  # of every price
        self._models = {model.name: model for model in models}
        self._targets: dict[str, str] = {}
        for model in self._models.values():
            for alias in model.aliases:
                if alias in self._models or self._targets.setdefault(alias, model.name) != model.name:
                    raise ValueError(f"models.{model.name}.aliases: {alias!r} stands for another model, too")

    def resolve(self, name: str) -> str:
        """Return the model that a name stands for: an alias's target, or the name itself."""
        return self._targets.get(name, name)

    def is_configured(self, name: str) -> bool:
        """Say whether anything is configured of the model of this name; an alias is none."""
        return name in self._models

    def facts(self, name: str) -> ModelFacts:
        """Return what is configured of the model that a name stands for."""
        target = self.resolve(name)
        return self._models.get(target) or ModelFacts(name=target)

    @property
    def has_prices(self) -> bool:
        """Whether a price is configured of any model; without one there is nothing to reckon."""
        return any(model.price is not None for model in self._models.values())

    def cost(self, usages: Mapping[str, Usage]) -> Cost | None:
        """Return what usage comes to, given by each model or another name for it.

        None if there is none, or one of the models has no price.
        """
        return total_cost(self._cost(name, usage) for name, usage in usages.items())

    def _cost(self, name: str, usage: Usage) -> Cost | None:
        price = self.facts(name).price
        if price is None:
            return None
        amount = price.of(
            input_tokens=usage.input_tokens, cached_tokens=usage.cached_tokens, output_tokens=usage.output_tokens
        )
        return Cost(amount=amount, currency=self.currency)

    def offers(self, name: str, served: Collection[str] | None) -> bool:
        """Say whether batches may use this name, where these models are known; None takes any."""
        facts = self.facts(name)
        return facts.batch and (served is None or facts.name in served)

    def names(self, served: Iterable[str]) -> Iterator[tuple[str, ModelFacts]]:
        """Yield every name that stands for one of these models, its own before its aliases."""
        for name in served:
            facts = self.facts(name)
            if facts.name == name:
                yield from ((each, facts) for each in (name, *facts.aliases))


NOTHING_CONFIGURED = Catalogue()


class Member(NamedTuple):
    """A member at the top of an object: its name, and where its value's bytes are."""

    name: str
    start: int
    end: int


def with_model(body: bytes, model: str) -> bytes:
    """Return a checked body with `model` as its model, and every other byte as it was.

    A body that names it already is returned untouched; where the member stands more than once, each string is replaced.
    """
    if _STRING.decode(_BODY.decode(body).model) == model:  # of several, the last: so parsers read it, and the check did
        return body
    name = msgspec.json.encode(model)
    pieces: list[bytes] = []
    kept = 0
    for member in members(body):
        if member.name == "model" and body[member.start : member.start + 1] == b'"':
            pieces += (body[kept : member.start], name)
            kept = member.end
    return b"".join((*pieces, body[kept:]))


def refusal(body: bytes, facts: ModelFacts) -> ApiError | None:
    """Return why a checked body is not sent: a locked parameter has another value than it may (contract c.3, row 30).

    A parameter that is null or left out is the backend's to fill in. Numbers are equal whatever their form: 1 is 1.0.
    """
    if not facts.locked:
        return None
    for member in members(body):
        allowed = facts.locked.get(member.name)
        if allowed is not None and not _is_one_of(body[member.start : member.end], allowed):
            values = " or ".join(msgspec.json.encode(value).decode() for value in allowed) or "nothing at all"
            message = f"'{member.name}' is locked for model {clip(facts.name)}: leave it out, or give {values}."
            return errors.invalid_value(member.name, message)
    return None


def _is_one_of(raw: bytes, allowed: Sequence[object]) -> bool:
    if raw == b"null":
        return True
    try:
        value = _ANY.decode(raw)
    except msgspec.DecodeError:  # valid, but a number without an equal here
        return False
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)


def members(body: bytes) -> Iterator[Member]:
    """Yield the members at the top of a valid JSON object, in order, repeated ones each time."""
    depth, last, name, start = 0, b"", "", -1
    for match in _TOKEN.finditer(body):
        token = match[0]
        if depth == 1 and start >= 0 and token in (b",", b"}"):
            value = body[start : match.start()]
            start += len(value) - len(value.lstrip(_BLANK))
            yield Member(name, start, match.start() - len(value) + len(value.rstrip(_BLANK)))
            start = -1
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and token == b":":
            name, start = _STRING.decode(last), match.end()
        else:
            last = token
