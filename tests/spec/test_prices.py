"""Prices: what usage comes to, to the last digit."""

from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.spec.models import Catalogue, ModelFacts
from batchmill.spec.objects import Usage
from batchmill.spec.prices import Cost, Price, total_cost

_PRICE = Price(input=Decimal("0.5"), cached=Decimal("0.25"), output=Decimal("1.5"))
_CATALOGUE = Catalogue([ModelFacts(name="big", aliases=("b",), price=_PRICE), ModelFacts(name="free")], currency="EUR")


def _of(price: Price, *, read: int = 0, cached: int = 0, written: int = 0) -> Decimal:
    return price.of(input_tokens=read, cached_tokens=cached, output_tokens=written)


@pytest.mark.parametrize(
    ("tokens", "amount"),
    [
        ({}, "0"),
        ({"read": 1_000_000}, "0.5"),
        ({"read": 1_000_000, "cached": 400_000}, "0.4"),
        ({"written": 2_000_000}, "3"),
        ({"read": 1, "written": 1}, "0.000002"),
        ({"read": 10, "cached": 20}, "0.0000025"),
    ],
)
def test_tokens_come_to_their_parts_by_the_million(tokens: dict[str, int], amount: str) -> None:
    """Cached input is a part of the input, and no more is cached than was read."""
    assert _of(_PRICE, **tokens) == Decimal(amount)


def test_cached_input_costs_what_other_input_does_where_no_price_says_otherwise() -> None:
    """A price without `cached` knows two kinds of tokens."""
    price = Price(input=Decimal(3), output=Decimal(6))
    assert _of(price, read=1_000_000, cached=600_000) == 3
    assert _of(Price(input=Decimal(3), output=Decimal(6), cached=Decimal(0)), read=5, cached=5) == 0


_amounts = st.decimals(min_value=0, max_value=10**9, places=9)
_counts = st.integers(min_value=0, max_value=2**62)


@given(paid=_amounts, cached=_amounts, generated=_amounts, read=_counts, reread=_counts, written=_counts)
def test_amounts_are_exact(  # noqa: PLR0917 - one for each number
    paid: Decimal, cached: Decimal, generated: Decimal, read: int, reread: int, written: int
) -> None:
    """Whatever the price and the count, the amount is the rational number that it should be."""
    reread = min(reread, read)
    price = Price(input=paid, cached=cached, output=generated)
    exact = Fraction(paid) * (read - reread) + Fraction(cached) * reread + Fraction(generated) * written
    assert Fraction(_of(price, read=read, cached=reread, written=written)) == exact / 1_000_000


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("0", b"0.0"),
        ("0.1", b"0.1"),
        ("0.30000000000000004", b"0.3"),
        ("0.000002", b"2e-6"),
        ("0.000000014", b"1e-8"),
        ("1234567.89", b"1234567.89"),
    ],
)
def test_an_amount_is_a_number_on_the_wire(amount: str, shown: bytes) -> None:
    """Eight digits behind the point, and none that only a binary fraction brings."""
    wire = Cost(amount=Decimal(amount), currency="USD").wire()
    assert msgspec.json.encode(wire["amount"]) == shown
    assert wire["currency"] == "USD"


def test_a_sum_is_known_if_all_of_its_parts_are() -> None:
    """What is not known of one is not known of all; of nothing there is no sum."""
    one, two = Cost(amount=Decimal("0.1"), currency="USD"), Cost(amount=Decimal("0.2"), currency="USD")
    assert total_cost([one, two]) == Cost(amount=Decimal("0.3"), currency="USD")
    assert total_cost([one, None]) is None
    assert total_cost([]) is None


def test_a_name_costs_what_its_model_does() -> None:
    """An alias has its target's price, in the one currency; a model without a price makes the whole unknown."""
    million = Usage(input_tokens=1_000_000)
    assert _CATALOGUE.cost({"b": million}) == _CATALOGUE.cost({"big": million})
    assert _CATALOGUE.cost({"b": million, "big": million}) == Cost(amount=Decimal(1), currency="EUR")
    assert _CATALOGUE.cost({"big": million, "free": Usage()}) is None
    assert _CATALOGUE.cost({"unheard-of": million}) is None
    assert _CATALOGUE.cost({}) is None


def test_tokens_of_reasoning_are_output() -> None:
    """They are counted there already, and cost nothing beside."""
    assert _CATALOGUE.cost({"b": Usage(output_tokens=10, reasoning_tokens=7)}) == Cost(
        amount=Decimal("0.000015"), currency="EUR"
    )


def test_a_catalogue_knows_whether_there_is_any_price() -> None:
    """Where there is none nobody needs to look for usage."""
    assert _CATALOGUE.has_prices
    assert not Catalogue([ModelFacts(name="free")]).has_prices
