"""What an organisation may use in a day, have waiting, and spend on a batch; and what goes beyond it.

A budget is judged before work begins: a batch that runs goes on to its end, since half of it is of no use to anybody.
"""

from collections.abc import Mapping
from decimal import Decimal

from batchmill.spec import errors
from batchmill.spec.errors import ApiError, clip
from batchmill.spec.objects import LineError
from batchmill.spec.prices import Cost
from batchmill.spec.usage import DAY_SECONDS, day_end, day_of, time_text


def day_refusal(*, used: int, limit: int, now: float) -> ApiError | None:
    """Return the 429 for a new batch where today's tokens are used up; None where some are left."""
    if used < limit:
        return None
    end = day_end(day_of(now))
    return errors.tokens_used_up(
        f"Your organisation has used {used} tokens today, of {limit} that it may use in a day (UTC). "
        f"New batches are taken again at {time_text(end)}; those that run go on.",
        retry_after=min(DAY_SECONDS, max(1, end - int(now))),
    )


def queue_refusals(*, asked: Mapping[str, int], enqueued: Mapping[str, int], limit: int) -> list[LineError]:
    """Return an error for each model of which a batch asks more tokens than may still be enqueued.

    Both are tokens by estimate, by model: `asked` by the batch, `enqueued` by batches that run, of what is not done.
    """
    return [
        LineError(
            code="token_limit_exceeded",  # OpenAI's own (contract c.3)
            message=f"Enqueued token limit reached for model {clip(model)}: {limit} tokens may be enqueued, "
            f"{enqueued.get(model, 0)} are, and this batch has {tokens}, all by estimate. "
            "Try again once batches in progress are further on, or make the batch smaller.",
        )
        for model, tokens in asked.items()
        if enqueued.get(model, 0) + tokens > limit
    ]


def cost_refusals(*, cost: Cost | None, limit: Decimal) -> list[LineError]:
    """Return the error of a batch that would cost more than `limit` by estimate, or of which nobody can tell that."""
    if cost is None:
        unknown = LineError(
            code="batch_cost_unknown",
            message=f"A batch may cost {limit:f} at most, and a model of this one has no price: the operator sets it.",
        )
        return [unknown]
    if cost.amount <= limit:
        return []
    beyond = LineError(
        code="batch_cost_exceeded",
        message=f"This batch would cost {cost.wire()['amount']:.8g} {cost.currency} by estimate; "
        f"a batch may cost {limit:f} {cost.currency} at most.",
    )
    return [beyond]


def day_budget(*, used: int, limit: int, now: float) -> dict[str, object]:
    """Return the budget of tokens a day as `GET /v1/usage` shows it."""
    return {"kind": "tokens_per_day", "limit": limit, "used": used, "resets_at": day_end(day_of(now))}


def queue_budgets(*, enqueued: Mapping[str, int], limit: int) -> list[dict[str, object]]:
    """Return the budget of enqueued tokens, of each model that has some; of none by name where there is none."""
    shown: Mapping[str | None, int] = dict(sorted(enqueued.items())) or {None: 0}
    return [
        {"kind": "enqueued_tokens", "model": model, "limit": limit, "used": tokens} for model, tokens in shown.items()
    ]


def cost_budget(*, limit: Decimal, currency: str) -> dict[str, object]:
    """Return what a batch may cost."""
    return {"kind": "batch_cost", "limit": float(limit), "currency": currency}
