import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from api.served import LINE, Served, Tenant
from batchmill.spec.ids import mint_id
from batchmill.spec.objects import FileObject, LineError, Usage
from batchmill.spec.states import Event, Status
from batchmill.store.batch import advance
from batchmill.store.blob import insert_ready
from batchmill.store.database import Transaction
from batchmill.store.file import File, insert_file
from batchmill.store.tables import batch
from batchmill.store.tally import record_progress

REFUSED = (400, "invalid_request_error")


def move(tenant: Tenant, batch_id: str, status: Status, event: Event, **values: object) -> None:
    """Move a batch as a loop would."""
    now = int(tenant.served.clock.now()) + 7 * 86_400 * (event is Event.WINDOW_PASSED)  # the longest window there is
    moved = tenant.served.rows(
        lambda tx: advance(tx, batch_id=batch_id, status=status, event=event, now=now, values=values)
    )
    assert moved


def reject(tenant: Tenant, errors: list[LineError]) -> str:
    """Let the validation of a new batch fail with these errors."""
    batch_id = str(tenant.create()["id"])
    move(tenant, batch_id, Status.VALIDATING, Event.REJECTED, errors=msgspec.json.encode(errors).decode())
    return batch_id


def test_a_new_batch_has_every_key(tenant: Tenant) -> None:
    """A batch is shown with all of its keys, null where nothing has happened, and lists show it the same."""
    made = tenant.create(completion_window="3d", metadata={"a": "b"})
    now = int(tenant.served.clock.now())
    assert made == {
        "id": made["id"],
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "input_file_id": made["input_file_id"],
        "completion_window": "3d",
        "status": "validating",
        "created_at": now,
        "request_counts": {"completed": 0, "failed": 0, "total": 0},
        "output_file_id": None,
        "error_file_id": None,
        "in_progress_at": None,
        "expires_at": now + 3 * 86_400,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "metadata": {"a": "b"},
        "expired_at": None,
        "errors": None,
        "model": None,
        "usage": None,
        "progress": None,
        "paused_at": None,
        "priority": 0,
        "cost": None,
        "parent_id": None,
    }
    assert tenant.call("GET", f"/v1/batches/{made['id']}").json == made
    assert tenant.call("GET", "/v1/batches").json == {
        "object": "list",
        "data": [made],
        "has_more": False,
        "first_id": made["id"],
        "last_id": made["id"],
    }


def test_a_batch_in_progress_says_when_it_will_be_done(tenant: Tenant) -> None:
    """Rates, end and miss are told once they are known, alone and in the list; the strict client takes them."""
    batch_id, served = str(tenant.create()["id"]), tenant.served
    move(tenant, batch_id, Status.VALIDATING, Event.ACCEPTED, total=100_000, open_slices=400)
    unknown = dict.fromkeys(("lines_per_second", "tokens_per_second", "eta", "misses_by"))
    assert tenant.call("GET", f"/v1/batches/{batch_id}").json["progress"] == unknown
    usage = Usage(input_tokens=300, output_tokens=100)
    for _ in range(2):
        served.clock.time, served.clock.uptime = served.clock.time + 40, served.clock.uptime + 40
        served.rows(
            lambda tx: record_progress(tx, batch_id=batch_id, completed=20, failed=0, closed_slices=0, usage=usage)
        )
    found = tenant.call("GET", f"/v1/batches/{batch_id}").json
    eta = int(served.clock.now()) + 2 * (100_000 - 40)
    assert found["progress"] == {
        "lines_per_second": 0.5,
        "tokens_per_second": 10.0,
        "eta": eta,
        "misses_by": eta - found["expires_at"],
    }
    assert tenant.call("GET", "/v1/batches").json["data"] == [found]
    extra = tenant.openai().batches.retrieve(batch_id).model_extra
    assert extra is not None
    assert extra["progress"] == found["progress"]


def test_a_file_may_serve_several_batches(tenant: Tenant) -> None:
    """Each batch holds a reference of its own to the same bytes."""
    file_id = tenant.upload()["id"]
    assert tenant.create(file_id)["id"] != tenant.create(file_id)["id"]
    assert list(tenant.blobs().values()) == [("ready", 3)]


EXPIRY = "output_expires_after"
GOOD = {"input_file_id": "file_", "completion_window": "24h"}


@pytest.mark.parametrize(
    ("changed", "param", "code"),
    [
        ({"input_file_id": ...}, "input_file_id", "missing_required_parameter"),
        ({"completion_window": ...}, "completion_window", "missing_required_parameter"),
        ({"input_file_id": None}, "input_file_id", "invalid_type"),
        ({"input_file_id": 7}, "input_file_id", "invalid_type"),
        ({"endpoint": None}, "endpoint", "invalid_type"),
        ({"completion_window": 24}, "completion_window", "invalid_type"),
        ({"endpoint": "/v1/embeddings"}, "endpoint", "invalid_value"),
        ({"completion_window": "11h"}, "completion_window", "invalid_value"),
        ({"completion_window": "8d"}, "completion_window", "invalid_value"),
        ({"completion_window": "24H"}, "completion_window", "invalid_value"),
        ({"metadata": []}, "metadata", "invalid_type"),
        ({"metadata": {"n": 7}}, "metadata.n", "invalid_type"),
        ({"metadata": {"n": "x" * 513}}, "metadata.n", "invalid_value"),
        ({"metadata": {"": "x"}}, "metadata.", "invalid_value"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
        ({"output_expires_after": {"seconds": 3600}}, f"{EXPIRY}.anchor", "missing_required_parameter"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": True}}, f"{EXPIRY}.seconds", "invalid_type"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, f"{EXPIRY}.seconds", "invalid_value"),
        ({"input_file_id": "file_none"}, "input_file_id", "invalid_value"),
        ({"input_file_id": "\0"}, "input_file_id", "invalid_value"),
    ],
)
def test_an_order_with_one_thing_wrong_names_it(tenant: Tenant, changed: dict[str, Any], param: str, code: str) -> None:
    """Whatever is wrong with a member is a 400 with its name and a code, and no batch is made."""
    order = GOOD | {"input_file_id": tenant.upload()["id"]} | changed
    refused = tenant.send_json({name: value for name, value in order.items() if value is not ...})
    assert refused.error == (*REFUSED, param, code)
    assert tenant.call("GET", "/v1/batches").json["data"] == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nonsense", b'{"a":NaN}', b'"\xff"', b'"\\ud800"', b"[" * 100_000, b'{"a":1}{}', b"\xff\xfe{"]
)
def test_a_body_that_is_no_json_is_refused(tenant: Tenant, body: bytes) -> None:
    """Anything but JSON in UTF-8 is a 400, however deep it is nested."""
    answer = tenant.call("POST", "/v1/batches", body, Content_Type="application/json")
    assert answer.error == (*REFUSED, None, None)


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"1"])
def test_a_body_that_is_no_object_is_refused(tenant: Tenant, body: bytes) -> None:
    """JSON that is no object has the wrong type."""
    answer = tenant.call("POST", "/v1/batches", body, Content_Type="application/json")
    assert answer.error == (*REFUSED, None, "invalid_type")


def test_a_json_body_has_a_cap(tenant: Tenant) -> None:
    """4 MiB are read, a byte more is a 400."""
    order = json.dumps(GOOD | {"input_file_id": tenant.upload()["id"]}).encode()
    body = order.ljust(4 << 20)
    assert tenant.call("POST", "/v1/batches", body, Content_Type="application/json").status == 200
    refused = tenant.call("POST", "/v1/batches", body + b" ", Content_Type="application/json")
    assert refused.error == (*REFUSED, None, "invalid_value")


def test_unknown_members_of_an_order_are_ignored(tenant: Tenant) -> None:
    """What we do not know does not stop a batch; of a repeated member the last one counts."""
    file_id = tenant.upload()["id"]
    body = f'{{"colour":"red","input_file_id":"none","input_file_id":"{file_id}","completion_window":"1d"}}'
    made = tenant.call("POST", "/v1/batches", body.encode(), Content_Type="application/json")
    assert (made.status, made.json["completion_window"]) == (200, "1d")
    assert "colour" not in made.json


def test_a_result_file_is_no_input(tenant: Tenant) -> None:
    """An input file must have the purpose `batch`."""
    now = tenant.served.clock.now()
    made = FileObject(id=mint_id("file", now), bytes=1, created_at=int(now), filename="o.jsonl", purpose="batch_output")

    def statements(tx: Transaction) -> None:
        key = mint_id("out", now)
        insert_ready(tx, key=key, organisation_id=tenant.id, size=1, refs=1, now=int(now))
        insert_file(tx, File(organisation_id=tenant.id, blob_key=key, object=made))

    tenant.served.rows(statements)
    refused = tenant.send_json(GOOD | {"input_file_id": made.id})
    assert refused.error == (*REFUSED, "input_file_id", "invalid_value")


def test_a_deleted_file_is_no_input(tenant: Tenant) -> None:
    """A file that was deleted is like one that never was."""
    file_id = tenant.upload(LINE)["id"]
    tenant.call("DELETE", f"/v1/files/{file_id}")
    deleted, unknown = (tenant.send_json(GOOD | {"input_file_id": name}) for name in (file_id, "file_none"))
    assert deleted.without_ids() == unknown.without_ids()


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("after=x", "after"),
        ("after=file_1", "after"),
        ("parent_id=", "parent_id"),
        ("parent_id=file_1", "parent_id"),
    ],
)
def test_a_bad_query_is_named(tenant: Tenant, query: str, param: str) -> None:
    """A page has 1 to 100 batches, and a cursor is the id of one."""
    assert tenant.call("GET", f"/v1/batches?{query}").error == (*REFUSED, param, "invalid_value")


def test_a_page_has_twenty_batches_unless_asked(tenant: Tenant) -> None:
    """The default page is 20; the cursor leads through the rest and past the end to an empty page."""
    file_id = tenant.upload()["id"]
    ids = [tenant.create(file_id)["id"] for _ in range(21)]
    page = tenant.call("GET", "/v1/batches").json
    assert [b["id"] for b in page["data"]] == ids[:0:-1]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, ids[20], ids[1])
    rest = tenant.call("GET", f"/v1/batches?after={ids[1]}").json
    assert ([b["id"] for b in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    assert tenant.call("GET", f"/v1/batches?after={ids[0]}").json["data"] == []


@pytest.mark.parametrize("body", [None, b"", b"{}", b"no JSON"])
def test_a_cancel_needs_no_body(tenant: Tenant, body: bytes | None) -> None:
    """A JSON Content-Type without a body is no JSON error, and nobody reads what is there."""
    batch_id = tenant.create()["id"]
    cancelled = tenant.call("POST", f"/v1/batches/{batch_id}/cancel", body, Content_Type="application/json")
    assert (cancelled.status, cancelled.json["status"]) == (200, "cancelling")


@pytest.mark.parametrize("status", [Status.IN_PROGRESS, Status.FINALIZING])
def test_a_running_batch_can_be_cancelled(tenant: Tenant, status: Status) -> None:
    """A cancel is accepted until the result files are there, and stamped once."""
    batch_id = tenant.create()["id"]
    move(tenant, batch_id, Status.VALIDATING, Event.ACCEPTED, total=1)
    if status is Status.FINALIZING:
        move(tenant, batch_id, Status.IN_PROGRESS, Event.DRAINED)
    tenant.served.clock.time += 5
    cancelled = tenant.call("POST", f"/v1/batches/{batch_id}/cancel").json
    assert cancelled["status"] == "cancelling"
    assert cancelled["cancelling_at"] == cancelled["in_progress_at"] + 5
    tenant.served.clock.time += 5
    assert tenant.call("POST", f"/v1/batches/{batch_id}/cancel").json == cancelled


def test_fifty_cancels_at_once_are_one(tenant: Tenant) -> None:
    """All are answered 200 with the same batch: one of them moved it, at its own second, and the others saw that."""
    batch_id = tenant.create()["id"]

    def cancel(_: int) -> tuple[int, str, int]:
        tenant.served.clock.time += 1  # so that a second move would leave another stamp
        answer = tenant.call("POST", f"/v1/batches/{batch_id}/cancel")
        return answer.status, answer.json["status"], answer.json["cancelling_at"]

    with ThreadPoolExecutor(max_workers=50) as pool:
        answers = list(pool.map(cancel, range(50)))
    assert {(status, state) for status, state, _ in answers} == {(200, "cancelling")}
    assert len({stamp for *_, stamp in answers}) == 1


@pytest.mark.parametrize(
    "events",
    [
        [(Status.VALIDATING, Event.REJECTED)],
        [(Status.VALIDATING, Event.WINDOW_PASSED)],
        [(Status.VALIDATING, Event.CANCEL), (Status.CANCELLING, Event.SEALED)],
        [
            (Status.VALIDATING, Event.ACCEPTED),
            (Status.IN_PROGRESS, Event.DRAINED),
            (Status.FINALIZING, Event.SEALED),
        ],
    ],
    ids=["failed", "expired", "cancelled", "completed"],
)
def test_a_final_batch_cannot_be_cancelled(tenant: Tenant, events: list[tuple[Status, Event]]) -> None:
    """A cancel in a final state is a 400 (never 409, which clients would retry), and changes nothing."""
    batch_id = tenant.create()["id"]
    for status, event in events:
        move(tenant, batch_id, status, event)
    before = tenant.call("GET", f"/v1/batches/{batch_id}").json
    refused = tenant.call("POST", f"/v1/batches/{batch_id}/cancel")
    assert refused.error == (*REFUSED, None, "invalid_batch_state")
    assert tenant.call("GET", f"/v1/batches/{batch_id}").json == before


def test_a_failed_batch_says_what_is_wrong(tenant: Tenant) -> None:
    """`errors` is a list of entries with code, message, param and line; the strict client reads it."""
    batch_id = reject(
        tenant,
        [
            LineError(code="duplicate_custom_id", message="Used on line 3.", param="custom_id", line=9),
            LineError(code="empty_file", message="No lines."),
        ],
    )
    shown = tenant.call("GET", f"/v1/batches/{batch_id}").json
    assert shown["status"] == "failed"
    assert shown["failed_at"] == shown["created_at"]
    assert shown["errors"] == {
        "object": "list",
        "data": [
            {"code": "duplicate_custom_id", "message": "Used on line 3.", "param": "custom_id", "line": 9},
            {"code": "empty_file", "message": "No lines.", "param": None, "line": None},
        ],
    }
    with tenant.openai() as client:
        failed = client.batches.retrieve(batch_id)
    assert failed.errors is not None
    assert [entry.line for entry in failed.errors.data or []] == [9, None]


@pytest.mark.parametrize(("wrong", "shown"), [(10, 10), (12, 11)])
def test_a_list_shows_ten_errors_and_counts_the_rest(tenant: Tenant, wrong: int, shown: int) -> None:
    """In a list a batch shows its first ten errors and, if there are more, an entry that says how many."""
    batch_id = reject(
        tenant, [LineError(code="invalid_json_line", message="Bad.", line=n) for n in range(1, wrong + 1)]
    )
    [listed] = tenant.call("GET", "/v1/batches").json["data"]
    whole = tenant.call("GET", f"/v1/batches/{batch_id}").json
    assert len(whole["errors"]["data"]) == wrong
    assert len(listed["errors"]["data"]) == shown
    assert listed["errors"]["data"][:10] == whole["errors"]["data"][:10]
    if wrong > 10:
        assert listed["errors"]["data"][10]["message"].startswith("2 ")


def test_retries_of_a_batch_are_listed(tenant: Tenant, served: Served) -> None:
    """Those of one batch, newest first and page by page, with the other filters; other organisations' are not."""
    other = served.tenant()
    parent, *children = (str(tenant.create()["id"]) for _ in range(4))
    foreign = str(other.create()["id"])
    is_retry = batch.update().where(batch.c.id.in_([*children, foreign])).values(parent_id=parent)
    served.rows(lambda tx: tx.connection.execute(is_retry))
    move(tenant, children[1], Status.VALIDATING, Event.ACCEPTED)

    def listed(query: str, by: Tenant = tenant) -> list[str]:
        return [each["id"] for each in by.call("GET", f"/v1/batches?{query}").json["data"]]

    assert listed(f"parent_id={parent}") == children[::-1]
    assert listed(f"parent_id={parent}&limit=1&after={children[2]}") == [children[1]]
    assert listed(f"parent_id={parent}&status=in_progress") == [children[1]]
    assert listed(f"parent_id={children[0]}") == []
    assert listed(f"parent_id={parent}", other) == [foreign]
