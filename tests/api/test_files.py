import http.client
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest

from api.served import LINE, Served, Tenant, file_part, text_part
from batchmill.store.tables import blob
from blobs.put import put

NOT_FOUND = (404, "resource_not_found_error", None, "resource_not_found")


def test_a_download_has_the_headers_that_clients_need(tenant: Tenant) -> None:
    """Its charset keeps Chinese readable, its length is there, and its name comes in plain and in full."""
    made = tenant.upload(LINE, '输入"1%.jsonl')
    answer = tenant.call("GET", f"/v1/files/{made['id']}/content", Accept="application/binary")
    assert answer.status == 200
    assert answer.body == LINE
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-length"] == str(len(LINE))
    full = quote('输入"1%.jsonl', safe="")
    assert answer.headers["content-disposition"] == (f"attachment; filename=\"___1_.jsonl\"; filename*=UTF-8''{full}")


def test_a_list_has_every_key(tenant: Tenant) -> None:
    """A page names its ends and says whether there is more; an empty one has null ends."""
    empty = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
    assert tenant.call("GET", "/v1/files").json == empty
    first, second = tenant.upload(), tenant.upload()
    ends = {"first_id": second["id"], "last_id": second["id"]}
    assert tenant.call("GET", "/v1/files?limit=1").json == {"object": "list", "data": [second], "has_more": True} | ends
    after = tenant.call("GET", f"/v1/files?after={second['id']}").json
    assert (after["data"], after["has_more"]) == ([first], False)
    assert tenant.call("GET", f"/v1/files?after={first['id']}").json == empty


def test_a_cursor_outlives_its_file(tenant: Tenant) -> None:
    """A client may delete what it lists: the page after a deleted file goes on where that was."""
    ids = [tenant.upload()["id"] for _ in range(3)]
    tenant.call("DELETE", f"/v1/files/{ids[1]}")
    assert [f["id"] for f in tenant.call("GET", f"/v1/files?after={ids[1]}").json["data"]] == [ids[0]]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=", "limit"),
        ("limit=1.5", "limit"),
        ("limit=-1", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=9999999999999999999999", "limit"),
        ("order=newest", "order"),
        ("after=", "after"),
        ("after=file_1", "after"),
        ("after=batch_" + "0" * 46, "after"),
    ],
)
def test_a_bad_query_is_named(tenant: Tenant, query: str, param: str) -> None:
    """A query out of range is a 400 with its name; a list never starts again from the top."""
    assert tenant.call("GET", f"/v1/files?{query}").error == (400, "invalid_request_error", param, "invalid_value")


def test_an_expired_file_is_not_there(tenant: Tenant) -> None:
    """From the second of its expiry on, a file is a 404 everywhere, and no batch can use it."""
    with tenant.openai() as client:
        expiry = {"anchor": "created_at", "seconds": 3600}
        file_id = client.files.create(file=("a.jsonl", LINE), purpose="batch", expires_after=expiry).id
    tenant.served.clock.time += 3600
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert tenant.call(method, f"/v1/files/{file_id}{path}").error == NOT_FOUND
    assert tenant.call("GET", "/v1/files").json["data"] == []
    refused = tenant.send_json({"input_file_id": file_id, "completion_window": "24h"})
    assert refused.error == (400, "invalid_request_error", "input_file_id", "invalid_value")


def test_a_file_lasts_as_long_as_it_says_or_else_as_the_server_keeps_files(serve: Callable[..., Served]) -> None:
    """Past the retention a file without a time of its own is a 404, and the Sweeper removes its bytes."""
    served = serve(retention=7200)
    tenant = served.tenant()
    kept = tenant.upload()
    expiry = (text_part("expires_after[anchor]", "created_at"), text_part("expires_after[seconds]", "86400"))
    own = tenant.send_form(text_part("purpose", "batch"), *expiry, file_part(LINE)).json
    assert kept["expires_at"] == kept["created_at"] + 7200
    assert own["expires_at"] == own["created_at"] + 86_400
    served.clock.time += 7200
    assert tenant.call("GET", f"/v1/files/{kept['id']}/content").error == NOT_FOUND
    served.sweep()
    assert len(tenant.bytes_on_disk()) == 1
    assert tenant.call("GET", f"/v1/files/{own['id']}/content").body == LINE


def test_a_delete_works_as_every_client_sends_it(tenant: Tenant) -> None:
    """A JSON Content-Type without a body is no JSON error; a second delete is a 404."""
    path = f"/v1/files/{tenant.upload()['id']}"
    gone = tenant.call("DELETE", path, Content_Type="application/json")
    assert gone.json == {"id": path.rpartition("/")[2], "object": "file", "deleted": True}
    assert tenant.call("DELETE", path).error == NOT_FOUND
    assert list(tenant.blobs().values()) == [("doomed", 0)]


def test_a_live_batch_keeps_its_deleted_input(tenant: Tenant) -> None:
    """The input of a live batch may be deleted: its content is a 404, and the batch still has the bytes."""
    file_id = tenant.upload()["id"]
    batch_id = tenant.create(file_id)["id"]
    assert tenant.call("DELETE", f"/v1/files/{file_id}").status == 200
    assert tenant.call("GET", f"/v1/files/{file_id}/content").error == NOT_FOUND
    assert tenant.call("GET", f"/v1/batches/{batch_id}").json["input_file_id"] == file_id
    [(key, row)] = tenant.blobs().items()
    assert row == ("ready", 1)
    assert tenant.served.blobs.read(key, offset=0, length=len(LINE)) == LINE


@pytest.mark.parametrize("version", ["2026-09-01-beta", "1", ""])
@pytest.mark.parametrize("path", ["", "/file_1", "/file_1/content"])
def test_a_version_header_is_refused(tenant: Tenant, path: str, version: str) -> None:
    """Files speak one version, and it has no name."""
    answer = tenant.call("GET", f"/v1/files{path}", kimi_api_version=version)
    assert answer.error == (400, "invalid_request_error", "kimi-api-version", "invalid_value")


def test_a_version_header_means_nothing_elsewhere(tenant: Tenant) -> None:
    """Batches and models do not look at it."""
    for path in ("/v1/batches", "/v1/models"):
        assert tenant.call("GET", path, kimi_api_version="1").status == 200


@pytest.fixture
def damaged(tenant: Tenant) -> Iterator[Tenant]:
    """Make an organisation with one file whose bytes end early."""
    tenant.upload(LINE * 1000)
    [key] = tenant.blobs()
    blobs = tenant.served.blobs
    blobs.delete(key)
    put(blobs, key, LINE)
    yield tenant
    blobs.delete(key)
    tenant.served.rows(lambda tx: tx.connection.execute(blob.update().where(blob.c.key == key).values(state="doomed")))


def test_a_damaged_file_never_looks_whole(damaged: Tenant) -> None:
    """A download whose bytes end early ends in a cut connection."""
    [made] = damaged.call("GET", "/v1/files").json["data"]
    with pytest.raises(http.client.IncompleteRead):
        damaged.call("GET", f"/v1/files/{made['id']}/content")
