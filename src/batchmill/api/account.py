"""The routes of an organisation's account: who asks and what it may use, and what it has used."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from batchmill.api.answer import json_answer, query_limit, query_word
from batchmill.clock import Clock
from batchmill.spec.budgets import cost_budget, day_budget, queue_budgets
from batchmill.spec.limits import Limits
from batchmill.spec.models import Catalogue
from batchmill.spec.scopes import Scope, in_order
from batchmill.spec.usage import DayUse, Place, day_of, day_text, parse_place, read_days
from batchmill.store.database import Database, Transaction
from batchmill.store.organisation import Allowance, find_name
from batchmill.store.usage import list_usage, tokens_enqueued, tokens_used

_Budgets = list[dict[str, object]]


def account_routes(*, database: Database, clock: Clock, limits: Limits, catalogue: Catalogue) -> APIRouter:
    """Return both routes; costs are by the prices of today."""
    router = APIRouter(prefix="/v1", tags=["account"])

    @router.get("/organisation")
    async def organisation(request: Request) -> Response:
        """Tell who asks: the organisation, what this key may do, and the limits that hold."""
        state = request.state
        name = await database.read(lambda tx: find_name(tx, organisation_id=state.organisation_id))
        return json_answer(
            {
                "object": "organisation",
                "id": state.organisation_id,
                "name": name,
                "key_id": state.key_id,
                "scopes": in_order(state.scopes),
                "limits": _limits(limits, state.allowance),
            }
        )

    @router.get("/usage")
    async def usage(request: Request) -> Response:
        """Tell what was used by day, key and model; which key it was is for admin keys to know, others get the sum."""
        mine, allowance, now = request.state.organisation_id, request.state.allowance, clock.now()
        first, last = read_days(
            query_word(request, "from"), query_word(request, "to"), today=day_of(now), most=limits.usage_days
        )
        limit, place = query_limit(request, default=limits.usage_page, most=limits.max_usage_page), _after(request)
        by_key = Scope.ADMIN in request.state.scopes

        def statements(tx: Transaction) -> tuple[Sequence[DayUse], _Budgets]:
            span = {"first": first, "last": last, "limit": limit + 1}
            found = list_usage(tx, organisation_id=mine, after=place, by_key=by_key, **span)
            return found, _budgets(tx, mine, allowance, catalogue, now=now)

        found, budgets = await database.read(statements)
        page = found[:limit]
        return json_answer(
            {
                "object": "usage",
                "from": day_text(first),
                "to": day_text(last),
                "data": [use.wire(catalogue.cost({use.model: use.used.tokens})) for use in page],
                "last_id": page[-1].place.text() if page else None,
                "has_more": len(found) > limit,
                "budgets": budgets,
            }
        )

    return router


def _after(request: Request) -> Place | None:
    """Return where the page before ended."""
    text = query_word(request, "after")
    return None if text is None else parse_place(text)


def _budgets(
    tx: Transaction, organisation_id: str, allowance: Allowance, catalogue: Catalogue, *, now: float
) -> _Budgets:
    """Return those that the organisation has."""
    budgets: _Budgets = []
    if allowance.tokens_per_day is not None:
        used = tokens_used(tx, organisation_id=organisation_id, day=day_of(now))
        budgets.append(day_budget(used=used, limit=allowance.tokens_per_day, now=now))
    if allowance.enqueued_tokens is not None:
        enqueued = tokens_enqueued(tx, organisation_id=organisation_id)
        budgets += queue_budgets(enqueued=enqueued, limit=allowance.enqueued_tokens)
    if allowance.batch_cost is not None:
        budgets.append(cost_budget(limit=allowance.batch_cost, currency=catalogue.currency))
    return budgets


def _limits(limits: Limits, allowance: Allowance) -> dict[str, object]:
    """Return what holds for an organisation: its own limit, where it has one, else the server's; null is none."""
    return {
        "endpoints": list(limits.endpoints),
        "models": None if allowance.models is None else list(allowance.models),
        "window_min": limits.window_min,
        "window_max": limits.window_max,
        "max_input_bytes": limits.max_input_bytes,
        "max_lines": limits.max_lines,
        "max_files": limits.max_files if allowance.max_files is None else allowance.max_files,
        "max_bytes": limits.max_stored_bytes if allowance.max_bytes is None else allowance.max_bytes,
        "max_keys": limits.max_keys,
        "requests_per_minute": allowance.requests_per_minute,
        "tokens_per_day": allowance.tokens_per_day,
        "enqueued_tokens": allowance.enqueued_tokens,
        "batch_cost": None if allowance.batch_cost is None else float(allowance.batch_cost),
    }
