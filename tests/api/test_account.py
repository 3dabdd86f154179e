"""Who asks, what was used, which backends there are; and the day's budget of tokens."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from itertools import product
from typing import Any

import pytest

from api.served import Served, Tenant
from batchmill.spec.limits import KIMI
from batchmill.spec.models import Catalogue, ModelFacts
from batchmill.spec.objects import Usage
from batchmill.spec.prices import Price
from batchmill.spec.scopes import Scope
from batchmill.spec.usage import DAY_SECONDS, Used, day_end, day_of, day_text
from batchmill.store.database import Transaction
from batchmill.store.lane import say_health
from batchmill.store.model import BackendState, keep_models, save_backend
from batchmill.store.organisation import Allowance, list_keys, save_allowance
from batchmill.store.roster import Entry, add_backend, drain_backend
from batchmill.store.tables import batch
from batchmill.store.usage import Whose, count_usage
from batchmill.store.worker import insert_worker

TOKENS = Usage(input_tokens=1_000, cached_tokens=0, output_tokens=500, reasoning_tokens=7)
USED = Used(requests=3, failed=1, tokens=TOKENS)


def key_of(tenant: Tenant, **facts: object) -> Tenant:
    """Make another key for the organisation."""
    return replace(tenant, key=tenant.served.key(tenant.id, **facts))


def use(tenant: Tenant, *, day: int, key_id: str = "", model: str = "m", used: Used = USED) -> None:
    """Count some use."""
    tenant.served.rows(lambda tx: count_usage(tx, {Whose(tenant.id, key_id, model): used}, day=day))


def allow(tenant: Tenant, **allowance: Any) -> None:  # noqa: ANN401 - the fields of Allowance
    """Say what the organisation may use from now on."""
    tenant.served.rows(lambda tx: save_allowance(tx, organisation_id=tenant.id, allowance=Allowance(**allowance)))


def test_who_asks_is_told(tenant: Tenant) -> None:
    """Organisation and key by their ids, the key's scopes in one order, and every limit: also without any scope."""
    allow(tenant, models=("a",), max_files=5, tokens_per_day=9, batch_cost=Decimal("0.5"))
    told = key_of(tenant, key_id="key_told", scopes={Scope.ADMIN, Scope.READ}).call("GET", "/v1/organisation").json
    assert list(told) == ["object", "id", "name", "key_id", "scopes", "limits"]
    assert (told["id"], told["key_id"], told["scopes"]) == (tenant.id, "key_told", ["read", "admin"])
    limits = told["limits"]
    assert (limits["models"], limits["max_files"], limits["max_bytes"]) == (["a"], 5, KIMI.max_stored_bytes)
    assert (limits["tokens_per_day"], limits["enqueued_tokens"], limits["batch_cost"]) == (9, None, 0.5)
    assert (limits["endpoints"], limits["window_min"]) == (["/v1/chat/completions"], 43_200)
    assert key_of(tenant, scopes=()).call("GET", "/v1/organisation").json["scopes"] == []


def test_a_batch_remembers_the_key_that_made_it(tenant: Tenant) -> None:
    """Each the one that asked for it, whoever uploaded its file."""
    other = key_of(tenant, key_id=f"key_of_{tenant.id}")
    file_id = tenant.upload()["id"]
    mine, theirs = tenant.create(file_id)["id"], other.create(file_id)["id"]
    rows = tenant.served.rows(lambda tx: {row.id: row.key_id for row in tx.connection.execute(batch.select())})
    first = next(key.id for key in tenant.served.rows(list_keys) if key.organisation_id == tenant.id)
    assert (rows[mine], rows[theirs]) == (first, f"key_of_{tenant.id}")


def test_usage_is_told_by_day_and_model(tenant: Tenant, other: Tenant) -> None:
    """Keys are told apart for an admin key; for every other they are one. Nothing is another organisation's."""
    today = day_of(tenant.served.clock.time)
    named = f"key_of_{tenant.id}"
    admin = key_of(tenant, key_id=named, name="ci", scopes={Scope.READ, Scope.ADMIN})
    use(tenant, day=today, key_id=named)
    use(tenant, day=today)
    use(tenant, day=today - 29, model="n")
    use(tenant, day=today - 30)
    use(other, day=today, model="secret")
    told = admin.call("GET", "/v1/usage").json
    assert (told["object"], told["from"], told["to"]) == ("usage", day_text(today - 29), day_text(today))
    assert [(row["day"], row["model"], row["key_id"], row["key_name"]) for row in told["data"]] == [
        (day_text(today - 29), "n", None, None),
        (day_text(today), "m", None, None),
        (day_text(today), "m", named, "ci"),
    ]
    assert {row["cost"] for row in told["data"]} == {None}
    assert told["budgets"] == []
    summed = tenant.call("GET", "/v1/usage").json["data"]
    assert [(row["model"], row["key_id"], row["requests"], row["output_tokens"]) for row in summed] == [
        ("n", None, 3, 500),
        ("m", None, 6, 1_000),
    ]


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("by_key", [True, False], ids=["admin", "reader"])
def test_usage_comes_page_by_page(tenant: Tenant, size: int, *, by_key: bool) -> None:
    """Together the pages are what one page has, whatever the models are called; the last one says that it is."""
    today = day_of(tenant.served.clock.time)
    for day, model, key in product((today - 1, today), ("m", "M", "ä/b", "'"), ("", "key_a", "key_b")):
        use(tenant, day=day, model=model, key_id=key)
    asking = key_of(tenant, scopes={Scope.READ, Scope.ADMIN} if by_key else {Scope.READ})
    whole = asking.call("GET", "/v1/usage").json
    assert (len(whole["data"]), whole["has_more"]) == (24 if by_key else 8, False)
    pages, after = [asking.call("GET", f"/v1/usage?limit={size}").json], ""
    while pages[-1]["has_more"]:
        after = pages[-1]["last_id"]
        pages.append(asking.call("GET", f"/v1/usage?limit={size}&after={after}").json)
    assert [len(page["data"]) for page in pages[:-1]] == [size] * (len(pages) - 1)
    assert [row for page in pages for row in page["data"]] == whole["data"]
    beyond = asking.call("GET", f"/v1/usage?after={whole['last_id']}").json
    assert (beyond["data"], beyond["last_id"], beyond["has_more"]) == ([], None, False)


@pytest.mark.parametrize(("query", "param"), [("limit=0", "limit"), ("limit=10001", "limit"), ("after=m", "after")])
def test_a_page_that_is_none_is_refused(tenant: Tenant, query: str, param: str) -> None:
    """As in every list."""
    assert tenant.call("GET", f"/v1/usage?{query}").error == (400, "invalid_request_error", param, "invalid_value")


@pytest.mark.parametrize(("query", "days"), [("from={0}", 2), ("from={0}&to={0}", 1), ("to={0}", 1), ("from={1}", 1)])
def test_usage_is_that_of_the_days_asked_for(tenant: Tenant, query: str, days: int) -> None:
    """Both ends included."""
    today = day_of(tenant.served.clock.time)
    for day in (today - 1, today):
        use(tenant, day=day)
    path = "/v1/usage?" + query.format(day_text(today - 1), day_text(today))
    assert len(tenant.call("GET", path).json["data"]) == days


@pytest.mark.parametrize(
    ("query", "param"),
    [("from=today", "from"), ("to=2026-02-30", "to"), ("from=2000-01-01", "from"), ("to=1&to=2", "to")],
)
def test_days_that_are_none_are_refused(tenant: Tenant, query: str, param: str) -> None:
    """As every other value in a query."""
    assert tenant.call("GET", f"/v1/usage?{query}").error == (400, "invalid_request_error", param, "invalid_value")


def test_what_was_used_has_its_price_of_today(serve: Callable[..., Served]) -> None:
    """In the operator's currency; a model without a price costs nobody knows what."""
    price = Price(input=Decimal(2), output=Decimal(10))
    catalogue = Catalogue([ModelFacts(name="m", price=price)], currency="EUR")
    tenant = serve(catalogue=catalogue).tenant(batch_cost=Decimal("12.50"))
    for model in ("m", "n"):
        use(tenant, day=day_of(tenant.served.clock.time), model=model)
    told = tenant.call("GET", "/v1/usage").json
    assert [row["cost"] for row in told["data"]] == [{"amount": 0.007, "currency": "EUR"}, None]
    assert told["budgets"] == [{"kind": "batch_cost", "limit": 12.5, "currency": "EUR"}]


def test_a_day_that_is_used_up_ends_at_midnight(tenant: Tenant) -> None:
    """One token short of it a batch is taken; then none is until the next day of UTC. What runs goes on."""
    clock, file_id = tenant.served.clock, tenant.upload()["id"]
    clock.time = day_end(day_of(clock.time)) - 100.0  # 100 s before midnight
    today = day_of(clock.time)
    use(tenant, day=today)
    use(tenant, day=today - 1)
    allow(tenant, tokens_per_day=1_501)
    running = tenant.create(file_id)["id"]
    allow(tenant, tokens_per_day=1_500)
    order = {"input_file_id": file_id, "completion_window": "24h"}
    refused = tenant.send_json(order)
    assert refused.error == (429, "rate_limit_reached_error", None, "token_limit_exceeded")
    assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("99", "false")
    assert "used 1500 tokens today, of 1500" in refused.json["error"]["message"]
    assert tenant.call("GET", f"/v1/batches/{running}").json["status"] == "validating"
    assert tenant.call("GET", "/v1/usage").json["budgets"] == [
        {"kind": "tokens_per_day", "limit": 1_500, "used": 1_500, "resets_at": (today + 1) * DAY_SECONDS}
    ]
    clock.time += 98
    assert tenant.send_json(order).status == 429
    clock.time += 1
    assert tenant.send_json(order).status == 200
    assert tenant.call("GET", "/v1/usage").json["budgets"][0]["used"] == 0


def test_a_refused_batch_may_be_asked_for_again(tenant: Tenant) -> None:
    """A 429 is kept for no Idempotency-Key: the same call makes the batch once there is room."""
    file_id = tenant.upload()["id"]
    allow(tenant, tokens_per_day=0)
    body = f'{{"input_file_id": "{file_id}", "completion_window": "24h"}}'.encode()
    assert tenant.call("POST", "/v1/batches", body, Idempotency_Key="k").status == 429
    allow(tenant)
    assert tenant.call("POST", "/v1/batches", body, Idempotency_Key="k").status == 200


def test_an_empty_queue_is_shown_too(tenant: Tenant) -> None:
    """So that the limit can be seen before anything runs."""
    allow(tenant, enqueued_tokens=7)
    (budget,) = tenant.call("GET", "/v1/usage").json["budgets"]
    assert budget == {"kind": "enqueued_tokens", "model": None, "limit": 7, "used": 0}


def test_backends_are_told(serve: Callable[..., Served]) -> None:
    """Well, unwell, draining or not asked yet; with the models of each that the organisation may use."""
    served = serve()
    tenant = served.tenant(models=("a", "c"))

    def statements(tx: Transaction) -> None:
        insert_worker(tx, worker_id="worker_1", lease=1e6, now=1)
        say_health(tx, worker_id="worker_1", name="well", reason=None, now=5)
        keep_models(tx, name="well", models=["b", "a"])
        save_backend(tx, BackendState(name="unwell", well=False, reason="connection refused", since=6))
        drain_backend(tx, name="unwell", now=7)
        add_backend(tx, Entry(name="new", url="http://new/v1", models=("c",), since=8))

    served.rows(statements)
    told = tenant.call("GET", "/v1/backends").json
    assert told["object"] == "list"
    shown = {one.pop("id"): one for one in told["data"]}
    nothing = {"object": "backend", "window": None, "in_flight": 0, "workers": 0, "draining": False, "models": []}
    assert shown == {
        "well": nothing | {"well": True, "reason": None, "since": 5, "workers": 1, "models": ["a"]},
        "unwell": nothing | {"well": False, "reason": "connection refused", "since": 6, "draining": True},
        "new": nothing | {"well": False, "reason": "not asked yet", "since": 8, "models": ["c"]},
    }
    assert list(shown) == ["new", "unwell", "well"]
