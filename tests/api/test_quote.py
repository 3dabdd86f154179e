"""Quotes: what a batch would be, before it is there; and their trials, which are batches of their own."""

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

import batchmill.api.quote as api_quote
from api.served import LINE, Answer, Served, Tenant
from batchmill.blobs.blobs import BlobMissing
from batchmill.blobs.space import Boundless
from batchmill.engine.loop import Bell
from batchmill.engine.validator import Validator
from batchmill.spec.limits import KIMI
from batchmill.spec.models import Catalogue, ModelFacts
from batchmill.spec.objects import Usage
from batchmill.spec.prices import Price
from batchmill.spec.states import Event, Status
from batchmill.store.batch import advance
from batchmill.store.blob import drop_refs
from batchmill.store.database import Transaction
from batchmill.store.file import delete_file
from batchmill.store.model import add_models
from batchmill.store.organisation import Allowance, save_allowance
from batchmill.store.tables import batch, blob, file
from batchmill.store.tally import record_progress
from engine.mill import line

PRICED = Catalogue([ModelFacts(name="echo", aliases=("nick",), price=Price(input=Decimal(1), output=Decimal(2)))])
MIB = 1 << 20


def quote(tenant: Tenant, file_id: str, *, headers: dict[str, str] | None = None, **members: object) -> Answer:
    """Ask for a quote."""
    order = {"input_file_id": file_id, "completion_window": "24h"} | members
    body = json.dumps(order).encode()
    return tenant.call("POST", "/v1/batches/quote", body, Content_Type="application/json", **(headers or {}))


def knows(served: Served, *models: str) -> None:
    """Let these models be known."""
    served.rows(lambda tx: add_models(tx, names=models or ("echo",), now=1))


def made(tenant: Tenant) -> dict[str, int]:
    """Return how many rows of each kind an organisation has."""

    def statements(tx: Transaction) -> dict[str, int]:
        count = select(func.count())
        return {
            table.name: int(
                tx.connection.scalar(count.select_from(table).where(table.c.organisation_id == tenant.id)) or 0
            )
            for table in (file, batch, blob)
        }

    return tenant.served.rows(statements)


def validate_all(served: Served, *, catalogue: Catalogue) -> None:
    """Let every batch that waits be validated, as a worker would."""
    validator = Validator(
        database=served.database,
        blobs=served.blobs,
        room=Boundless(),
        clock=served.clock,
        limits=KIMI,
        worker_id="w",
        lease=15.0,
        accepted=Bell(clock=served.clock),
        catalogue=catalogue,
    )
    while served.run(validator.step()):
        pass


@pytest.fixture
def known(served: Served) -> Served:
    """The API, with a model that is known."""
    knows(served)
    return served


@pytest.mark.usefixtures("known")
def test_a_quote_tells_what_a_batch_would_be_and_makes_nothing(tenant: Tenant) -> None:
    """Lines, bytes and tokens by model; no price is known, so the cost is null."""
    content = line("a", max_tokens=7) + b"\n" + line("b")
    given = tenant.upload(content)
    before = made(tenant)
    told = quote(tenant, given["id"]).json
    now = int(tenant.served.clock.now())
    assert (told["object"], told["input_file_id"], told["valid"], told["errors"]) == (
        "batch.quote",
        given["id"],
        True,
        None,
    )
    assert (told["requests"], told["bytes"], told["completion_tokens"], told["unbounded"]) == (2, len(content), 7, 1)
    assert told["prompt_tokens"] == told["models"][0]["prompt_tokens"] > 20
    assert [(each["model"], each["requests"], each["cost"]) for each in told["models"]] == [("echo", 2, None)]
    assert told["cost"] is told["trial"] is None
    assert told["forecast"]["expires_at"] == now + 86_400
    assert made(tenant) == before


@pytest.mark.usefixtures("known")
def test_a_quote_of_a_bad_input_lists_every_error_and_makes_nothing(tenant: Tenant) -> None:
    """It says what the failed batch would, line by line, and no trial is run."""
    given = tenant.upload(b"\n".join([line("a").strip(), b"{nope", line("a").strip(), line("b", model="x").strip()]))
    before = made(tenant)
    told = quote(tenant, given["id"], trial=2, headers={"Idempotency_Key": "k"}).json
    assert (told["valid"], told["trial"], told["requests"]) == (False, None, 4)
    assert [(error["code"], error["line"]) for error in told["errors"]["data"]] == [
        ("invalid_json_line", 2),
        ("duplicate_custom_id", 3),
        ("model_not_found", 4),
    ]
    assert made(tenant) == before


@pytest.mark.usefixtures("known")
def test_a_trial_runs_the_first_lines_as_they_are(tenant: Tenant) -> None:
    """A File holds them byte for byte; the batch over it says what it is a trial of; asked twice, it is one."""
    first = b'{ "custom_id":"a","method":"POST", "url":"/v1/chat/completions","body":{"model":"echo","messages":[1]}}'
    given = tenant.upload(b"\n" + first + b"\r\n" + line("b") + line("c"))
    headers = {"Idempotency_Key": "again"}
    answer = quote(tenant, given["id"], trial=2, metadata={"mine": "x"}, headers=headers)
    tried = answer.json["trial"]
    assert (tried["status"], tried["metadata"]) == ("validating", {"trial_of": given["id"]})
    copied = tenant.call("GET", f"/v1/files/{tried['input_file_id']}").json
    assert (copied["filename"], copied["purpose"]) == (f"{given['id']}_trial.jsonl", "batch")
    content = tenant.call("GET", f"/v1/files/{tried['input_file_id']}/content").body
    assert content == first + b"\n" + line("b")
    assert tenant.call("GET", f"/v1/batches/{tried['id']}").json == tried
    again = quote(tenant, given["id"], trial=2, metadata={"mine": "x"}, headers=headers)
    assert (again.body, again.headers["x-idempotent-replay"]) == (answer.body, "true")
    assert quote(tenant, given["id"], trial=1, headers=headers).status == 409
    counts = made(tenant)
    assert (counts["file"], counts["batch"]) == (2, 1)
    assert sorted(state for state, _ in tenant.blobs().values()) == ["ready", "ready"]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("first", [{"Idempotency_Key": "k"}, {"x_stainless_retry_count": "0"}])
def test_a_trial_whose_answer_was_lost_is_told_of_whatever_has_changed(tenant: Tenant, first: dict[str, str]) -> None:
    """It runs: that the input is beyond a budget by now, or gone, is no answer to the same call."""
    given = tenant.upload(line("a"))
    lost = quote(tenant, given["id"], trial=1, headers=first)
    budgets = Allowance(enqueued_tokens=1)
    tenant.served.rows(lambda tx: save_allowance(tx, organisation_id=tenant.id, allowance=budgets))
    again = {name: "1" if value == "0" else value for name, value in first.items()}
    told = quote(tenant, given["id"], trial=1, headers=again)
    assert (told.body, told.headers["x-idempotent-replay"]) == (lost.body, "true")
    tenant.call("DELETE", f"/v1/files/{given['id']}")
    again = {name: "2" if value == "1" else value for name, value in again.items()}
    assert quote(tenant, given["id"], trial=1, headers=again).body == lost.body
    assert made(tenant)["batch"] == 1


@pytest.mark.usefixtures("known")
def test_a_trial_that_a_quota_does_not_allow_makes_nothing(served: Served) -> None:
    """The whole call is refused, and its bytes are given up; the same key may be used again."""
    tenant = served.tenant(max_files=1)
    given = tenant.upload(line("a"))
    for _ in range(2):
        assert quote(tenant, given["id"], trial=1, headers={"Idempotency_Key": "k"}).error[0] == 400
    assert made(tenant) == {"file": 1, "batch": 0, "blob": 3}
    assert sorted(state for state, _ in tenant.blobs().values()) == ["doomed", "doomed", "ready"]
    assert quote(tenant, given["id"]).status == 200


@pytest.mark.usefixtures("known")
def test_an_input_of_somebody_else_is_none(tenant: Tenant, other: Tenant) -> None:
    """Its id says as much as one that never was; nor is the output of a batch an input."""
    given = other.upload(line("a"))
    assert quote(tenant, given["id"]).error == quote(tenant, "file_none").error
    assert quote(tenant, given["id"]).error == (400, "invalid_request_error", "input_file_id", "invalid_value")


@pytest.mark.usefixtures("known")
def test_a_model_that_the_organisation_may_not_use_is_not_found(served: Served) -> None:
    """A quote knows the models that a batch of this organisation would."""
    tenant = served.tenant(models=("other",))
    told = quote(tenant, tenant.upload(line("a"))["id"]).json
    assert [error["code"] for error in told["errors"]["data"]] == ["model_not_found"]


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"trial": 101}, "trial"),
        ({"trial": "1"}, "trial"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"endpoint": "/x"}, "endpoint"),
    ],
)
def test_what_a_create_refuses_a_quote_refuses(tenant: Tenant, members: dict[str, object], param: str) -> None:
    """The same 400, before the input is looked at; a trial has its own range."""
    assert quote(tenant, "file_none", **members).error[:3] == (400, "invalid_request_error", param)


def test_a_quote_and_a_receipt_have_prices(serve: Callable[..., Served]) -> None:
    """What the tokens cost is told before and after, by the prices of now, alone and in the list."""
    served = serve(catalogue=PRICED)
    knows(served)
    tenant = served.tenant()
    given = tenant.upload(line("a", model="nick", max_tokens=500_000))
    told = quote(tenant, given["id"]).json
    assert told["models"][0]["model"] == "echo"
    assert told["cost"] == {"amount": round(1.0 + told["prompt_tokens"] / 1e6, 8), "currency": "USD"}
    batch_id = str(tenant.create(given["id"])["id"])
    values = {"total": 9, "open_slices": 1, "model": "echo"}
    now = int(served.clock.now())
    assert served.rows(
        lambda tx: advance(
            tx, batch_id=batch_id, status=Status.VALIDATING, event=Event.ACCEPTED, now=now, values=values
        )
    )
    usage = Usage(input_tokens=100, output_tokens=50)
    served.rows(lambda tx: record_progress(tx, batch_id=batch_id, completed=1, failed=0, closed_slices=0, usage=usage))
    cost = {"amount": 0.0002, "currency": "USD"}
    assert tenant.call("GET", f"/v1/batches/{batch_id}").json["cost"] == cost
    assert [each["cost"] for each in tenant.call("GET", "/v1/batches").json["data"]] == [cost]
    assert tenant.call("POST", f"/v1/batches/{batch_id}/cancel").json["cost"] == cost


@pytest.mark.parametrize(
    ("less", "most", "codes"),
    [
        (0, "1", []),
        (0, "1e-6", ["batch_cost_exceeded"]),
        (1, None, ["token_limit_exceeded"]),
        (1, "1e-6", ["batch_cost_exceeded", "token_limit_exceeded"]),
    ],
)
def test_a_quote_beyond_a_budget_is_not_valid(
    serve: Callable[..., Served], less: int, most: str | None, codes: list[str]
) -> None:
    """It says word for word what the batch would fail with, and no trial is run."""
    served = serve(catalogue=PRICED)
    knows(served)
    tenant = served.tenant()
    given = tenant.upload(line("a", max_tokens=500) + line("b", max_tokens=500))
    free = quote(tenant, given["id"]).json
    tokens = free["prompt_tokens"] + free["completion_tokens"] - less
    budgets = Allowance(enqueued_tokens=tokens, batch_cost=None if most is None else Decimal(most))
    served.rows(lambda tx: save_allowance(tx, organisation_id=tenant.id, allowance=budgets))
    told = quote(tenant, given["id"], trial=1).json
    assert [error["code"] for error in (told["errors"] or {"data": []})["data"]] == codes
    assert (told["valid"], told["trial"] is None) == (not codes, bool(codes))
    batch_id = str(tenant.create(given["id"])["id"])
    validate_all(served, catalogue=PRICED)
    made = tenant.call("GET", f"/v1/batches/{batch_id}").json
    if codes:
        assert (made["status"], made["errors"]) == ("failed", told["errors"])
    # Else the trial was enqueued before it, and leaves too little room.


def test_a_quote_knows_what_stands_before_it(serve: Callable[..., Served]) -> None:
    """Batches of its model and those that are not checked yet come first; their tokens go at the rate of late."""
    served = serve()
    knows(served, "echo", "other")
    tenant = served.tenant()
    ids = [str(tenant.create()["id"]) for _ in range(3)]
    now = int(served.clock.now())
    for batch_id, model in zip(ids, ("echo", "other"), strict=False):
        values = {"total": 9000, "open_slices": 10, "slice_tokens": 1000, "model": model}

        def accept(tx: Transaction, batch_id: str = batch_id, values: dict[str, Any] = values) -> bool:
            return advance(
                tx, batch_id=batch_id, status=Status.VALIDATING, event=Event.ACCEPTED, now=now, values=values
            )

        assert served.rows(accept)
    usage = Usage(input_tokens=300, output_tokens=100)
    for _ in range(2):
        served.clock.time, served.clock.uptime = served.clock.time + 40, served.clock.uptime + 40
        served.rows(
            lambda tx: record_progress(tx, batch_id=ids[0], completed=20, failed=0, closed_slices=0, usage=usage)
        )
    told = quote(tenant, tenant.upload(line("a", max_tokens=1000))["id"]).json
    forecast = told["forecast"]
    assert (forecast["tokens_per_second"], forecast["queue_position"]) == (10.0, 2)
    tokens = 10 * 1000 + len(LINE) // 4 + told["prompt_tokens"] + 1000
    assert forecast["eta"] - int(served.clock.now()) == pytest.approx(tokens / 10, abs=2)
    assert forecast["margin"] == forecast["expires_at"] - forecast["eta"]


def test_where_no_model_is_known_a_quote_waits(serve: Callable[..., Served]) -> None:
    """As a batch would: nobody could tell a name that is misspelt."""
    tenant = serve().tenant()
    refused = quote(tenant, tenant.upload(line("a"))["id"])
    assert (refused.status, refused.headers["retry-after"]) == (503, "5")


def test_only_so_many_quotes_are_made_at_a_time(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is a 429 with a Retry-After, and its turn comes when one is over."""
    served = serve(limits=replace(KIMI, max_quotes=1))
    knows(served)
    tenant, other = served.tenant(), served.tenant()
    given, theirs = tenant.upload(line("a"))["id"], other.upload(line("a"))["id"]
    begun, go_on, beside = threading.Event(), asyncio.Event(), api_quote.run_beside

    async def slow(*call: Any, **size: Any) -> Any:  # noqa: ANN401 - whatever is run
        begun.set()
        await go_on.wait()
        return await beside(*call, **size)

    monkeypatch.setattr(api_quote, "run_beside", slow)
    body = json.dumps({"input_file_id": given, "completion_window": "24h"}).encode()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(served.ask, "POST", "/v1/batches/quote", body, Authorization=f"Bearer {tenant.key}")
        assert begun.wait(30)
        body = json.dumps({"input_file_id": theirs, "completion_window": "24h"}).encode()
        refused = served.ask("POST", "/v1/batches/quote", body, Authorization=f"Bearer {other.key}")
        served._loop.call_soon_threadsafe(go_on.set)  # the event is the loop's
        assert first.result().status == 200
    assert (refused.status, refused.headers["retry-after"]) == (429, "5")
    assert quote(other, theirs).status == 200


@pytest.mark.parametrize("reads", ["run_beside", "_lines"])
def test_an_input_that_is_deleted_meanwhile_is_no_fault(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    """Its bytes may go while they are checked, or copied for a trial: it is a 400 then, as it would be soon."""
    served = serve()
    knows(served)
    tenant = served.tenant()
    given = tenant.upload(line("a"))["id"]

    def delete(tx: Transaction) -> None:
        key = delete_file(tx, organisation_id=tenant.id, file_id=given)
        assert key is not None
        drop_refs(tx, key=key)

    async def checked(*_: Any, **__: Any) -> Any:  # noqa: ANN401
        await served.database.write(delete)
        raise BlobMissing("gone")

    def copied(*_: Any) -> Any:  # noqa: ANN401
        served.rows(delete)
        raise BlobMissing("gone")

    monkeypatch.setattr(api_quote, reads, checked if reads == "run_beside" else copied)
    assert quote(tenant, given, trial=1).error[:3] == (400, "invalid_request_error", "input_file_id")
    assert made(tenant)["batch"] == 0


def test_a_large_input_is_quoted_beside_the_api(serve: Callable[..., Served]) -> None:
    """A hundred megabytes raise the API's memory by less than 64 MiB: another process reads them."""
    served = serve()
    knows(served)
    tenant = served.tenant()
    many = b"".join(line(f"r-{n}", "x" * 100_000) for n in range(990))
    given = tenant.upload(many)
    size = len(many)
    del many
    before, keys = _resident(), len(tenant.bytes_on_disk())
    _reset_peak()
    told = quote(tenant, given["id"]).json
    grown = _peak() - before
    assert (told["valid"], told["requests"], told["bytes"]) == (True, 990, size)
    assert grown < 64 * MIB
    assert len(tenant.bytes_on_disk()) == keys


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    return _status("VmHWM")


def _resident() -> int:
    return _status("VmRSS")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) for row in text.splitlines() if row.startswith(name)) << 10
