"""What batches have cost: usage by model, times the prices configured now."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import select

from batchmill.spec.models import Catalogue
from batchmill.spec.objects import Usage
from batchmill.store.batch import Batch
from batchmill.store.database import Transaction
from batchmill.store.tables import batch_usage

_TOKENS = ("input_tokens", "cached_tokens", "output_tokens")


def count_models(tx: Transaction, *, batch_id: str, organisation_id: str, usages: Mapping[str, Usage]) -> None:
    """Add what one group commit used of each model of a batch that has several.

    It follows the batch's own count, whose lock keeps other commits of the batch out.
    """
    rows = [
        {"batch_id": batch_id, "model": model, "organisation_id": organisation_id, **_tokens(usage)}
        for model, usage in sorted(usages.items())
    ]
    added = tx.insert(batch_usage)
    sums = {name: batch_usage.c[name] + added.excluded[name] for name in _TOKENS}
    if rows:
        key = list(batch_usage.primary_key)
        tx.connection.execute(added.on_conflict_do_update(index_elements=key, set_=sums), rows)


def with_costs(tx: Transaction, batches: Sequence[Batch], *, catalogue: Catalogue) -> Sequence[Batch]:
    """Return these batches with what they have cost so far; with no price configured there is nothing to look up.

    Null stays the cost of a batch that has used nothing, or a model without a price, or whose parts are not known in
    full since an older version counted some of it.
    """
    if not catalogue.has_prices:
        return batches
    mixed = [found.id for found in batches if found.object.usage is not None and found.object.model is None]
    parts = _parts(tx, mixed) if mixed else {}
    return [_with_cost(found, parts.get(found.id, {}), catalogue) for found in batches]


def _with_cost(found: Batch, parts: Mapping[str, Usage], catalogue: Catalogue) -> Batch:
    facts, usage = found.object, found.object.usage
    if usage is None:
        return found
    if facts.model is not None:
        parts = {facts.model: usage}
    elif _sum(parts) != _tokens(usage):
        return found
    return replace(found, object=replace(facts, cost=catalogue.cost(parts)))


def _parts(tx: Transaction, batch_ids: Sequence[str]) -> dict[str, dict[str, Usage]]:
    parts: dict[str, dict[str, Usage]] = defaultdict(dict)
    for row in tx.connection.execute(select(batch_usage).where(batch_usage.c.batch_id.in_(batch_ids))):
        parts[row.batch_id][row.model] = Usage(
            input_tokens=row.input_tokens, cached_tokens=row.cached_tokens, output_tokens=row.output_tokens
        )
    return parts


def _sum(parts: Mapping[str, Usage]) -> dict[str, int]:
    return {name: sum(getattr(usage, name) for usage in parts.values()) for name in _TOKENS}


def _tokens(usage: Usage) -> dict[str, int]:
    return {name: getattr(usage, name) for name in _TOKENS}
