"""The quote: what is known of a batch before it is created, on the wire."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchmill.schedule.forecast import Outlook
from batchmill.spec.create import CreateOrder
from batchmill.spec.models import Catalogue
from batchmill.spec.objects import LineError, Usage, error_list


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the good lines of one model come to.

    `completion_tokens` are those that lines allow by `max_tokens` and the like; of `unbounded` ones, which say nothing
    of that, nobody knows, and they count as none.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    unbounded: int

    @property
    def usage(self) -> Usage:
        """The tokens as usage that can be priced: nothing is cached, and every answer is as long as it may be."""
        return Usage(input_tokens=self.prompt_tokens, output_tokens=self.completion_tokens)

    def wire(self) -> dict[str, object]:
        """Return the counts of an entry of `models`."""
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "unbounded": self.unbounded,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What validation found, what it would cost, and when it would be done. Times are Unix seconds."""

    order: CreateOrder
    bytes: int
    requests: int  # lines, good or bad
    errors: Sequence[LineError]
    estimates: Mapping[str, Estimate]
    queue_position: int  # batches that are there already
    outlook: Outlook
    expires_at: int

    def wire(self, catalogue: Catalogue, *, trial: Mapping[str, object] | None = None) -> dict[str, object]:
        """Return the object, with the prices of this catalogue and the batch that was made of the first lines."""
        costs = {model: catalogue.cost({model: each.usage}) for model, each in self.estimates.items()}
        total = catalogue.cost({model: each.usage for model, each in self.estimates.items()})
        return {
            "object": "batch.quote",
            "input_file_id": self.order.input_file_id,
            "endpoint": self.order.endpoint,
            "completion_window": self.order.completion_window,
            "valid": not self.errors,
            "errors": error_list(self.errors) if self.errors else None,
            "requests": self.requests,
            "bytes": self.bytes,
            "models": [
                {"model": model, **each.wire(), "cost": None if (cost := costs[model]) is None else cost.wire()}
                for model, each in self.estimates.items()
            ],
            "prompt_tokens": sum(each.prompt_tokens for each in self.estimates.values()),
            "completion_tokens": sum(each.completion_tokens for each in self.estimates.values()),
            "unbounded": sum(each.unbounded for each in self.estimates.values()),
            "cost": None if total is None else total.wire(),
            "forecast": {
                "tokens_per_second": self.outlook.tokens_per_second,
                "queue_position": self.queue_position,
                "eta": self.outlook.eta,
                "expires_at": self.expires_at,
                "margin": self.outlook.margin,
            },
            "trial": trial,
        }
