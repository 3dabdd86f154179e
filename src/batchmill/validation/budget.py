"""Whether an organisation's budgets have room for a batch whose lines are good: for who runs it, and who quotes it."""

from batchmill.spec.budgets import cost_refusals, queue_refusals
from batchmill.spec.models import Catalogue
from batchmill.spec.objects import LineError, Usage
from batchmill.store.database import Transaction
from batchmill.store.organisation import find_allowance, lock_organisation
from batchmill.store.usage import tokens_enqueued
from batchmill.validation.validation import Validation


def beyond_budgets(
    tx: Transaction, validation: Validation, *, organisation_id: str, catalogue: Catalogue, adds: bool
) -> tuple[LineError, ...]:
    """Return why the budgets have no room for it, as entries of a batch's `errors`; what has errors is not judged.

    All is by estimate: of a line that says nothing of how much may be generated, its prompt only. If the
    transaction `adds` the batch, what is enqueued is counted and added to by one such transaction at a time.
    """
    if validation.errors:
        return ()
    allowance = find_allowance(tx, organisation_id=organisation_id)
    beyond: list[LineError] = []
    if allowance.batch_cost is not None:
        usages = {
            part.model: Usage(input_tokens=part.prompt_tokens, output_tokens=part.completion_tokens)
            for part in validation.parts
        }
        beyond += cost_refusals(cost=catalogue.cost(usages), limit=allowance.batch_cost)
    if allowance.enqueued_tokens is not None:
        if adds:
            lock_organisation(tx, organisation_id=organisation_id)
        asked = {part.model: part.prompt_tokens + part.completion_tokens for part in validation.parts}
        enqueued = tokens_enqueued(tx, organisation_id=organisation_id)
        beyond += queue_refusals(asked=asked, enqueued=enqueued, limit=allowance.enqueued_tokens)
    return tuple(beyond)
