"""Downloads in parts."""

from contextlib import closing
from http.client import HTTPConnection

import pytest

from api.served import LINE, Tenant

SIZE = len(LINE)


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=-1", SIZE - 1, SIZE),
        ("bytes=7-", 7, SIZE),
        ("bytes=7-99999999999999999999", 7, SIZE),
    ],
)
def test_one_range_is_a_206_with_those_bytes(tenant: Tenant, asked: str, start: int, stop: int) -> None:
    """The answer tells which bytes it holds, and of how many."""
    answer = tenant.call("GET", f"/v1/files/{tenant.upload()['id']}/content", Range=asked)
    assert (answer.status, answer.body) == (206, LINE[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize("asked", ["bytes=" + "0-," * 1_000, "bytes=0-0,-1", "items=0-1", "bytes=x"])
def test_what_is_not_one_range_of_bytes_gets_the_whole_once(tenant: Tenant, asked: str) -> None:
    """A thousand ranges are not a thousand times the file."""
    answer = tenant.call("GET", f"/v1/files/{tenant.upload()['id']}/content", Range=asked)
    assert (answer.status, answer.body) == (200, LINE)
    assert answer.headers["accept-ranges"] == "bytes"
    assert "content-range" not in answer.headers


def test_two_headers_are_two_ranges(tenant: Tenant) -> None:
    """Neither of them is picked."""
    path = f"/v1/files/{tenant.upload()['id']}/content"
    with closing(HTTPConnection("127.0.0.1", tenant.served.port)) as connection:
        connection.putrequest("GET", path)
        connection.putheader("Authorization", f"Bearer {tenant.key}")
        for asked in ("bytes=0-0", "bytes=1-1"):
            connection.putheader("Range", asked)
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, LINE)


@pytest.mark.parametrize("asked", ["bytes=5-2", f"bytes={SIZE}-", "bytes=99999999999999999999-", "bytes=-0"])
def test_a_range_that_is_not_there_is_a_416(tenant: Tenant, asked: str) -> None:
    """In the envelope, with the file's size."""
    answer = tenant.call("GET", f"/v1/files/{tenant.upload()['id']}/content", Range=asked)
    assert answer.error == (416, "invalid_request_error", None, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


def test_a_download_goes_on_only_if_it_is_the_same_file(tenant: Tenant) -> None:
    """An `If-Range` with the file's ETag gets the range, any other the whole, also where the range is not there."""
    first, second = (f"/v1/files/{tenant.upload()['id']}/content" for _ in range(2))
    etag = tenant.call("GET", first).headers["etag"]
    assert tenant.call("GET", first, Range="bytes=1-", If_Range=etag).status == 206
    assert tenant.call("GET", second, Range="bytes=1-", If_Range=etag).body == LINE
    assert tenant.call("GET", second, Range="bytes=9999-", If_Range=etag).status == 200
    assert tenant.call("GET", first, Range="bytes=1-", If_Range=f"W/{etag}").status == 200


def test_head_tells_what_a_download_would(tenant: Tenant, other: Tenant) -> None:
    """The headers are those of GET, a Range changes nothing, and a stranger's file is not there."""
    path = f"/v1/files/{tenant.upload()['id']}/content"
    answer, got = tenant.call("HEAD", path, Range="bytes=0-0"), tenant.call("GET", path)
    assert answer.without_ids() == (got.status, got.without_ids()[1], b"")
    assert other.call("HEAD", path).status == 404
    assert tenant.call("POST", path).headers["allow"] == "GET, HEAD"
