"""What tokens cost: a model's price, and what usage comes to by it, in exact decimals."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal

_MILLION = 6  # prices are per so many zeros of tokens
_SHOWN = Decimal("1e-8")  # an amount on the wire is rounded to that: a hundredth of a token at a cent a thousand
_EXACT = Context(prec=100)  # more digits than any price times any count of tokens has


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a million tokens of a model cost. None for `cached`: input read from a cache costs what other input does."""

    input: Decimal
    output: Decimal
    cached: Decimal | None = None

    def of(self, *, input_tokens: int, cached_tokens: int, output_tokens: int) -> Decimal:
        """Return what these tokens come to; cached ones are a part of the input, those of reasoning of the output."""
        cached = min(cached_tokens, input_tokens)  # a server that counts them apart is not paid twice
        parts = (
            (input_tokens - cached, self.input),
            (cached, self.input if self.cached is None else self.cached),
            (output_tokens, self.output),
        )
        total = Decimal(0)
        for tokens, price in parts:
            total = _EXACT.add(total, _EXACT.multiply(Decimal(tokens), price))
        return _EXACT.scaleb(total, -_MILLION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """An amount of money, exact; the currency is the one that all prices of the operator are in."""

    amount: Decimal
    currency: str

    def wire(self) -> dict[str, object]:
        """Return `cost`: the amount as a JSON number with at most eight digits behind the point."""
        shown = self.amount.quantize(_SHOWN, rounding=ROUND_HALF_EVEN, context=_EXACT)
        return {"amount": float(shown), "currency": self.currency}


def total_cost(costs: Iterable[Cost | None]) -> Cost | None:
    """Return the sum; None if one of them is not known, or there is none: a part would be taken for the whole."""
    total: Cost | None = None
    for cost in costs:
        if cost is None:
            return None
        total = cost if total is None else Cost(amount=_EXACT.add(total.amount, cost.amount), currency=cost.currency)
    return total
