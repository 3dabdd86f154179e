"""The routes of webhooks."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from api.served import Answer, Served, Tenant
from batchmill.spec.ids import mint_id
from batchmill.spec.limits import KIMI
from batchmill.spec.states import Event, Status
from batchmill.store.batch import advance
from batchmill.store.webhook import list_deliveries

URL = "https://hooks.example.com/batchmill"


def add(tenant: Tenant, path: str = "/v1/webhooks", **more: object) -> Answer:
    """Order a webhook."""
    return tenant.call("POST", path, json.dumps({"url": URL, **more}).encode(), Content_Type="application/json")


def made(tenant: Tenant, path: str = "/v1/webhooks", **more: object) -> Mapping[str, Any]:
    """Order a webhook, and return it."""
    answer = add(tenant, path, **more)
    assert answer.status == 200, answer.body
    return answer.json  # type: ignore[no-any-return]


def test_a_secret_is_shown_once(tenant: Tenant) -> None:
    """The answer to the order has it; the list has all else."""
    webhook = made(tenant, events=["batch.failed"])
    assert webhook["secret"].startswith("whsec_")
    (listed,) = tenant.call("GET", "/v1/webhooks").json["data"]
    assert listed == {name: value for name, value in webhook.items() if name != "secret"}
    assert listed["events"] == ["batch.failed"]


def test_a_webhook_can_be_removed(tenant: Tenant) -> None:
    """Then it is nowhere: a second delete is a 404."""
    webhook = made(tenant)
    gone = tenant.call("DELETE", f"/v1/webhooks/{webhook['id']}")
    assert gone.json == {"id": webhook["id"], "object": "webhook", "deleted": True}
    assert tenant.call("DELETE", f"/v1/webhooks/{webhook['id']}").status == 404
    assert tenant.call("GET", f"/v1/webhooks/{webhook['id']}/deliveries").status == 404
    assert tenant.call("GET", "/v1/webhooks").json["data"] == []


def test_a_batch_that_is_over_is_told_at_once(served: Served, tenant: Tenant) -> None:
    """A webhook that comes after its batch's end hears of it; one that comes before waits for it."""
    batch = tenant.create()["id"]
    early = made(tenant, f"/v1/batches/{batch}/webhooks")
    path = f"/v1/webhooks/{early['id']}/deliveries"
    assert early["batch_id"] == batch
    assert tenant.call("GET", path).json["data"] == []
    served.rows(
        lambda tx: advance(tx, batch_id=batch, status=Status.VALIDATING, event=Event.REJECTED, now=1_800_000_000)
    )
    late = made(tenant, f"/v1/batches/{batch}/webhooks")
    other = made(tenant, f"/v1/batches/{batch}/webhooks", events=["batch.completed"])
    for webhook in (early, late):
        (delivery,) = tenant.call("GET", f"/v1/webhooks/{webhook['id']}/deliveries").json["data"]
        assert (delivery["event"], delivery["batch_id"], delivery["status"]) == ("batch.failed", batch, "pending")
    assert tenant.call("GET", f"/v1/webhooks/{other['id']}/deliveries").json["data"] == []


def test_a_delivery_can_be_replayed(served: Served, tenant: Tenant) -> None:
    """The answer is the delivery, pending from the start; one that is not there is a 404."""
    batch = tenant.create()["id"]
    webhook = made(tenant)
    served.rows(
        lambda tx: advance(tx, batch_id=batch, status=Status.VALIDATING, event=Event.REJECTED, now=1_800_000_000)
    )
    (delivery,) = served.rows(lambda tx: list_deliveries(tx, webhook_id=webhook["id"], after=None, limit=9))
    path = f"/v1/webhooks/{webhook['id']}/deliveries/{delivery.id}/replay"
    again = tenant.call("POST", path)
    assert (again.status, again.json["status"], again.json["attempts"]) == (200, "pending", 0)
    missing = f"/v1/webhooks/{webhook['id']}/deliveries/{mint_id('whd', 1.0)}/replay"
    assert tenant.call("POST", missing).status == 404


def test_there_are_only_so_many(tenant: Tenant) -> None:
    """The one beyond the limit is refused, with both numbers."""
    for _ in range(KIMI.max_webhooks):
        made(tenant)
    refused = add(tenant)
    assert refused.status == 400
    assert str(KIMI.max_webhooks) in refused.json["error"]["message"]


def test_an_order_that_is_repeated_makes_one(tenant: Tenant) -> None:
    """The same Idempotency-Key gets the same answer, secret included."""
    body = json.dumps({"url": URL}).encode()
    first, second = (
        tenant.call("POST", "/v1/webhooks", body, Content_Type="application/json", Idempotency_Key="k")
        for _ in range(2)
    )
    assert first.json == second.json
    assert len(tenant.call("GET", "/v1/webhooks").json["data"]) == 1


def test_a_webhook_that_was_removed_is_told_by_no_retry(tenant: Tenant) -> None:
    """A client that orders it again, and has to try twice, gets a new one."""
    first = made(tenant)
    tenant.call("DELETE", f"/v1/webhooks/{first['id']}")
    body = json.dumps({"url": URL}).encode()
    again = tenant.call("POST", "/v1/webhooks", body, Content_Type="application/json", x_stainless_retry_count="1")
    assert [each["id"] for each in tenant.call("GET", "/v1/webhooks").json["data"]] == [again.json["id"]]


@pytest.mark.parametrize("url", ["http://hooks.example.com/", "https://10.0.0.1/", "https://localhost/"])
def test_an_inward_url_is_refused(tenant: Tenant, url: str) -> None:
    """By default only https to public hosts."""
    assert add(tenant, url=url).json["error"]["param"] == "url"


def test_webhooks_are_their_organisations_own(tenant: Tenant, other: Tenant) -> None:
    """Nobody else sees, replays or removes one, or adds one to a foreign batch."""
    webhook = made(other)
    assert tenant.call("GET", "/v1/webhooks").json["data"] == []
    assert tenant.call("DELETE", f"/v1/webhooks/{webhook['id']}").status == 404
    assert tenant.call("GET", f"/v1/webhooks/{webhook['id']}/deliveries").status == 404
    assert tenant.call("POST", f"/v1/webhooks/{webhook['id']}/deliveries/{mint_id('whd', 1.0)}/replay").status == 404
    assert add(tenant, f"/v1/batches/{other.create()['id']}/webhooks").status == 404
