"""Hostile batches, group C of the reliability page, through the served API; where the two differ, the contract wins."""

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

from api.served import Served, Tenant

_ORDER = {"completion_window": "24h"}
_BAD = (400, "invalid_request_error")


def order(tenant: Tenant, **members: object) -> Any:  # noqa: ANN401 - an answer
    """Create a batch over a new file, some members being others."""
    return tenant.send_json(_ORDER | {"input_file_id": tenant.upload()["id"]} | members)


@pytest.mark.parametrize(
    ("name", "value", "param", "code"),
    [
        *(
            ("input_file_id", value, "input_file_id", "invalid_value")
            for value in ("file_unknown", "file-' OR 1=1--", "", "x" * (1 << 20), "../../etc/passwd", "\0", "😀")
        ),
        *(("input_file_id", value, "input_file_id", "invalid_type") for value in (7, None, [], {})),
        *(
            ("endpoint", value, "endpoint", "invalid_value")
            for value in ("/v1/nope", "http://evil/v1/chat/completions", "/v1/chat/completions/", "//evil", "")
        ),
        *(("endpoint", value, "endpoint", "invalid_type") for value in (["/v1/chat/completions"], 1, None)),
        *(
            ("completion_window", value, "completion_window", "invalid_value")
            for value in (
                "24",
                "1h",
                "8d",
                "-24h",
                "24H",
                " 24h",
                "24h\n",
                "1e9h",
                "٢٤h",
                "0024h",
                "",
                "9" * 10_000 + "h",
            )
        ),
        *(("completion_window", value, "completion_window", "invalid_type") for value in (86400, None, ["24h"], True)),
        ("metadata", {str(n): "" for n in range(17)}, "metadata", "invalid_value"),
        ("metadata", {"k" * 65: "v"}, "metadata." + "k" * 64, "invalid_value"),
        ("metadata", {"k": "v" * 513}, "metadata.k", "invalid_value"),
        ("metadata", {"k": {"n": "v"}}, "metadata.k", "invalid_type"),
        ("metadata", {"k": 1}, "metadata.k", "invalid_type"),
        ("metadata", {"": "v"}, "metadata.", "invalid_value"),
    ],
)
def test_a_hostile_member_is_named(tenant: Tenant, name: str, value: object, param: str, code: str) -> None:
    """C1 to C4: a 400 that names the member, and no batch is made."""
    assert order(tenant, **{name: value}).error == (*_BAD, param, code)
    assert tenant.call("GET", "/v1/batches").json["data"] == []


def test_a_foreign_file_is_an_unknown_one(tenant: Tenant, other: Tenant) -> None:
    """C1: whose file it is cannot be told from the answer."""
    foreign, unknown = (order(tenant, input_file_id=name) for name in (other.upload()["id"], "file_" + "0" * 46))
    assert foreign.without_ids() == unknown.without_ids()


def test_odd_metadata_is_text(tenant: Tenant) -> None:
    """C4, B30: names that mean something elsewhere are text here, and come back as they went in."""
    metadata = {"__proto__": "{0.__class__}", "constructor": "\x1b[31m", "😀": "<script>", "\u202e": "%n%s", "k": ""}
    assert order(tenant, metadata=metadata).json["metadata"] == metadata


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"[" * 100_000,
        b'{"metadata":{"k":"\\ud800"}}',
        b"\xef\xbb\xbf{}",
        '{"completion_window":"24h"}'.encode("utf-16"),
        b" " * (10 << 20),
        b'{"a":' * 400 + b"1" + b"}" * 400,
    ],
)
def test_a_hostile_body_is_refused(tenant: Tenant, body: bytes) -> None:
    """C5: whatever is no order of ours is a 400 in the envelope."""
    answer = tenant.call("POST", "/v1/batches", body, Content_Type="application/json")
    assert answer.error[:2] == _BAD


def test_a_compressed_body_is_refused(tenant: Tenant) -> None:
    """C5, choice 11: nothing is unpacked."""
    answer = tenant.call("POST", "/v1/batches", b"\x1f\x8b", Content_Type="application/json", Content_Encoding="gzip")
    assert answer.status == 415


def test_of_a_repeated_member_the_last_counts(tenant: Tenant) -> None:
    """C5, C6: a body may repeat members, and hold those of later versions."""
    text = json.dumps(_ORDER | {"input_file_id": tenant.upload()["id"], "priority": {"later": [1]}})
    body = b'{"completion_window":"1h",' + text.encode()[1:]
    assert tenant.call("POST", "/v1/batches", body, Content_Type="application/json").json["completion_window"] == "24h"


@pytest.mark.parametrize("key", ["", "x" * 256, "x" * 10_000, "é"])
def test_a_hostile_idempotency_key_is_refused(tenant: Tenant, key: str) -> None:
    """C8: 1 to 255 visible ASCII characters are a key; anything else is a 400 and makes nothing."""
    body = json.dumps(_ORDER | {"input_file_id": tenant.upload()["id"]}).encode()
    answer = tenant.call("POST", "/v1/batches", body, Content_Type="application/json", Idempotency_Key=key)
    assert answer.error[:2] == _BAD
    assert tenant.call("GET", "/v1/batches").json["data"] == []


@pytest.mark.parametrize(
    "query",
    [
        *(
            "limit=0",
            "limit=-1",
            "limit=101",
            "limit=1e9",
            "limit=1;drop",
            "limit=",
            "limit=%D9%A1",
            "limit=" + "9" * 400,
        ),
        *("after=", "after=x", "after=%00", "after=batch_%27", "after=file_" + "0" * 46, "after=batch_" + "0" * 45),
    ],
)
def test_a_hostile_query_is_named(tenant: Tenant, query: str) -> None:
    """C11: a page has 1 to 100 batches and begins after the id of one; anything else is a 400 for that parameter."""
    assert tenant.call("GET", f"/v1/batches?{query}").error == (*_BAD, query.partition("=")[0], "invalid_value")


def test_a_foreign_cursor_is_an_unknown_one(tenant: Tenant, other: Tenant) -> None:
    """C11: a foreign id pages as one that never was, and shows nothing of its owner's."""
    mine, foreign = tenant.create()["id"], other.create()["id"]
    page = tenant.call("GET", f"/v1/batches?after={foreign}").json
    assert [batch["id"] for batch in page["data"]] == [mine]


def test_pages_neither_skip_nor_repeat_while_batches_are_created(tenant: Tenant) -> None:
    """C13: what was there before the first page is seen once."""
    file_id = tenant.upload()["id"]
    ids = [tenant.create(file_id)["id"] for _ in range(7)]
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    while page["has_more"]:
        after = f"&after={seen[-1]}" if seen else ""
        page = tenant.call("GET", f"/v1/batches?limit=2{after}").json
        seen += [batch["id"] for batch in page["data"]]
        tenant.create(file_id)
    assert seen == ids[::-1]


@pytest.mark.parametrize("call", [("GET", ""), ("POST", "/cancel")])
@pytest.mark.parametrize("odd", ["%2F", "..;", "%E2%98%83", "upper", "dot", "%00", "unknown", "foreign"])
def test_an_odd_id_is_unknown(tenant: Tenant, other: Tenant, call: tuple[str, str], odd: str) -> None:
    """C10, C14: what is not exactly the id of a batch of one's own is a 404."""
    mine = tenant.create()["id"]
    made = {"upper": mine.upper(), "dot": f"{mine}.", "unknown": "batch_" + "0" * 46, "foreign": other.create()["id"]}
    answer = tenant.call(call[0], f"/v1/batches/{made.get(odd, mine + odd)}{call[1]}")
    assert answer.error[:2] == (404, "resource_not_found_error")


def test_a_cancel_said_twice_is_one(tenant: Tenant) -> None:
    """C10, choice 6: the second answer is the first one."""
    batch_id = tenant.create()["id"]
    first, second = (tenant.call("POST", f"/v1/batches/{batch_id}/cancel") for _ in range(2))
    assert first.status == second.status == 200
    assert first.json == second.json


def test_a_file_may_be_in_a_thousand_batches_and_go(tenant: Tenant) -> None:
    """C16, C17, choice 8: each batch counts as a reference of its own; a deletion takes one away, and no batch's."""
    file_id = tenant.upload()["id"]
    ids = [tenant.create(file_id)["id"] for _ in range(1000)]
    assert list(tenant.blobs().values()) == [("ready", 1001)]
    assert tenant.call("DELETE", f"/v1/files/{file_id}").json["deleted"] is True
    assert list(tenant.blobs().values()) == [("ready", 1000)]
    with tenant.openai() as client:
        assert [(b.id, b.input_file_id) for b in client.batches.list(limit=100)] == [(i, file_id) for i in ids[::-1]]


def test_a_download_goes_on_although_its_file_is_deleted(serve: Callable[..., Served]) -> None:
    """C17: what has begun is read to its last byte, also when the bytes' name is gone from the disk by then."""
    tenant = serve().tenant()
    content = bytes(range(256)) * (64 << 10)  # 16 MiB: more than all buffers on the way hold
    path = f"/v1/files/{tenant.upload(content)['id']}"
    download = http.client.HTTPConnection("127.0.0.1", tenant.served.port)
    download.request("GET", f"{path}/content", headers={"Authorization": f"Bearer {tenant.key}"})
    answer = download.getresponse()
    begun = answer.read(1000)
    assert tenant.served.ask("DELETE", path, Authorization=f"Bearer {tenant.key}").status == 200
    assert tenant.served.ask("GET", f"{path}/content", Authorization=f"Bearer {tenant.key}").status == 404
    tenant.served.sweep()
    assert not tenant.bytes_on_disk()
    assert begun + answer.read() == content
    download.close()


def test_a_flood_of_creates_is_slowed_down_to_its_rate(serve: Callable[..., Served]) -> None:
    """C15: at 10,000 creates a minute an organisation gets its sixty and then one a second; others do not notice."""
    served = serve()
    flood, other = served.tenant(requests_per_minute=60), served.tenant(requests_per_minute=60)
    orders = {tenant: _ORDER | {"input_file_id": tenant.upload()["id"]} for tenant in (flood, other)}
    served.clock.uptime += 60  # the uploads are forgotten
    answers = []
    for _ in range(400):
        answers.append(flood.send_json(orders[flood]))
        served.clock.uptime += 60 / 10_000
    made, refused = ([a for a in answers if (a.status == 200) is good] for good in (True, False))
    assert len(made) == 60 + 2  # and 400 of 10,000 a minute are 2.4 seconds
    assert {a.error for a in refused} == {(429, "rate_limit_reached_error", None, "rate_limit_exceeded")}
    assert {(a.headers["retry-after"], a.headers["x-ratelimit-remaining"]) for a in refused} == {("1", "0")}
    assert {a.headers["x-ratelimit-limit"] for a in answers} == {"60"}
    assert other.send_json(orders[other]).status == 200
    served.clock.uptime += 1
    assert len(flood.call("GET", "/v1/batches?limit=100").json["data"]) == len(made)
