"""The API over a bucket: what a client hears while that is away, and downloads that are sent on to it."""

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from api.served import LINE, Served, file_part, text_part
from bucket import Bucket, bucket, toxic
from faults.toxic import Fault, Toxic

__all__ = ["bucket", "toxic"]

BATCH = text_part("purpose", "batch")
MANY = LINE * 120_000  # some 17 MB: sent in parts


@pytest.fixture
def on_bucket(serve: Callable[..., Served], toxic: Toxic, bucket: Bucket, tmp_path: Path) -> Callable[..., Served]:
    """Run an API over a bucket behind the proxy."""
    assert toxic.port
    return lambda **settings: serve(blobs=bucket.blobs(tmp_path, patience=0.3), **settings)


@pytest.mark.parametrize("content", [LINE, MANY], ids=["few", "many"])
@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.SLOW_DOWN, Fault.RESET], ids=lambda fault: fault.value)
def test_a_bucket_that_is_away_is_a_503(
    on_bucket: Callable[..., Served], toxic: Toxic, fault: Fault, content: bytes
) -> None:
    """Uploads and downloads ask for a later retry, facts are told meanwhile, nothing is left, and all goes on after."""
    served = on_bucket()
    tenant = served.tenant()
    made = tenant.upload(content)
    toxic.fail(fault)
    for answer in (
        tenant.send_form(BATCH, file_part(content)),
        tenant.call("GET", f"/v1/files/{made['id']}/content"),
        tenant.call("GET", f"/v1/files/{made['id']}/content", Range="bytes=0-9"),
    ):
        assert answer.error == (503, "server_unavailable", None, "unavailable")
        assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert tenant.call("GET", f"/v1/files/{made['id']}").status == 200
    checks = served.call("GET", "/readyz").json["checks"]
    assert checks["blobs"] == {"ready": False, "reason": "the storage of files does not answer"}
    assert not served.broken.is_set()
    toxic.heal()
    assert served.call("GET", "/readyz").json["checks"]["blobs"]["ready"]
    assert tenant.call("GET", f"/v1/files/{made['id']}/content").body == content
    assert tenant.upload(content)["bytes"] == len(content)
    served.sweep()
    assert len(tenant.bytes_on_disk()) == 2


def test_a_download_is_sent_on_to_the_bucket(on_bucket: Callable[..., Served], toxic: Toxic) -> None:
    """Where the operator wants it, GET is a 302 to a link to the same bytes under the same name, without a key."""
    served = on_bucket(redirect=True)
    tenant = served.tenant()
    made = tenant.upload(LINE, filename="雨.jsonl")
    path = f"/v1/files/{made['id']}/content"
    toxic.requests.clear()
    answer = tenant.call("GET", path)
    assert (answer.status, answer.body, answer.headers["cache-control"]) == (302, b"", "no-store")
    assert toxic.requests == []  # no byte, not even a question, passes through the API
    with urllib.request.urlopen(answer.headers["location"]) as got:  # noqa: S310 - our own server
        assert got.read() == LINE
        assert got.headers["Content-Disposition"].endswith("filename*=UTF-8''%E9%9B%A8.jsonl")
        assert got.headers["Content-Type"] == "text/plain; charset=utf-8"
    head = tenant.call("HEAD", path)
    assert (head.status, int(head.headers["content-length"])) == (200, len(LINE))
    assert tenant.openai().files.content(made["id"]).content == LINE
    assert tenant.call("GET", f"{path}?redirect=false").body == LINE  # for a page that may ask no other host
    assert served.tenant().call("GET", path).status == 404


def test_a_disk_has_nowhere_to_send_on(serve: Callable[..., Served]) -> None:
    """With the setting on and bytes on a disk, the API gives them itself."""
    tenant = serve(redirect=True).tenant()
    made = tenant.upload(LINE)
    assert tenant.call("GET", f"/v1/files/{made['id']}/content").body == LINE


def test_a_bucket_that_hangs_is_a_503_in_seconds(on_bucket: Callable[..., Served], toxic: Toxic) -> None:
    """A client does not wait for ever for a bucket that says nothing."""
    tenant = on_bucket().tenant()
    toxic.fail(Fault.HANG)
    began = time.monotonic()
    assert tenant.send_form(BATCH, file_part(LINE)).status == 503
    assert time.monotonic() - began < 10
