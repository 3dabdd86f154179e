import asyncio
import math
import socket
import struct
from collections.abc import AsyncIterator, Callable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.served import LINE, Served, Tenant, file_part, form, text_part
from batchmill.api.upload import form_boundary, receive_upload
from batchmill.blobs.disk import DiskBlobs
from batchmill.spec.limits import KIMI

BATCH = text_part("purpose", "batch")
FILE = file_part(LINE)
REFUSED = (400, "invalid_request_error")


def test_an_upload_answers_with_the_whole_file_object(tenant: Tenant) -> None:
    """Every key of a File is there, null where there is nothing to say."""
    made = tenant.upload(b"x\n", "a.jsonl")
    assert list(made.items())[1:] == [
        ("object", "file"),
        ("bytes", 2),
        ("created_at", int(tenant.served.clock.now())),
        ("filename", "a.jsonl"),
        ("purpose", "batch"),
        ("status", "processed"),
        ("status_details", None),
        ("expires_at", None),
    ]


@pytest.mark.parametrize("parts", [(BATCH, FILE), (FILE, BATCH)], ids=["purpose first", "file first"])
@pytest.mark.parametrize("chunked", [False, True])
def test_parts_come_in_any_order_with_or_without_a_length(
    tenant: Tenant, parts: tuple[bytes, ...], *, chunked: bool
) -> None:
    """Python and curl send the purpose first, Node the file first, chunked and without a length."""
    answer = tenant.send_form(*parts, chunked=chunked)
    assert answer.status == 200
    assert tenant.call("GET", f"/v1/files/{answer.json['id']}/content").body == LINE


def test_a_form_that_ends_at_its_last_boundary_is_whole(tenant: Tenant) -> None:
    """The line break after the closing boundary may be missing, and what follows it is ignored."""
    content_type, body = form(BATCH, FILE)
    for sent in (body.removesuffix(b"\r\n"), body + b"epilogue"):
        assert tenant.call("POST", "/v1/files", sent, Content_Type=content_type).status == 200


def test_unknown_parts_are_ignored(tenant: Tenant) -> None:
    """A text part that we do not know changes nothing."""
    assert tenant.send_form(text_part("colour", "红"), BATCH, FILE).status == 200


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        pytest.param((FILE,), "purpose", "missing_required_parameter", id="no purpose"),
        pytest.param((text_part("purpose", ""), FILE), "purpose", "invalid_value", id="empty purpose"),
        pytest.param((text_part("purpose", "file-extract"), FILE), "purpose", "invalid_value", id="another purpose"),
        pytest.param((text_part("purpose", "batch\n"), FILE), "purpose", "invalid_value", id="purpose, line break"),
        pytest.param((text_part("purpose", "b" * 2000), FILE), "purpose", "invalid_value", id="endless purpose"),
        pytest.param((BATCH, BATCH, FILE), "purpose", "invalid_value", id="two purposes"),
        pytest.param((BATCH,), "file", "missing_required_parameter", id="no file"),
        pytest.param((BATCH, text_part("file", "{}")), "file", "invalid_value", id="file without a filename"),
        pytest.param((BATCH, file_part(LINE, "")), "file", "invalid_value", id="empty filename"),
        pytest.param((BATCH, file_part(LINE, "a\x00.jsonl")), "file", "invalid_value", id="NUL in the filename"),
        pytest.param((BATCH, file_part(LINE, "a\x1b[2J.jsonl")), "file", "invalid_value", id="escape in the filename"),
        pytest.param((BATCH, file_part(LINE, "长" * 90 + ".jsonl")), "file", "invalid_value", id="endless filename"),
        pytest.param((BATCH, file_part(LINE, "input.json")), "file", "invalid_value", id="another extension"),
        pytest.param((BATCH, file_part(b"")), "file", "invalid_value", id="empty file"),
        pytest.param((BATCH, FILE, FILE), "file", "invalid_value", id="two files"),
        pytest.param((BATCH, FILE, *[text_part(f"p{n}", "") for n in range(15)]), None, None, id="too many parts"),
    ],
)
def test_a_form_with_one_thing_wrong_names_it(
    tenant: Tenant, parts: tuple[bytes, ...], param: str | None, code: str | None
) -> None:
    """Whatever is wrong with a part is a 400 with its name and a code, and no bytes are kept."""
    assert tenant.send_form(*parts).error == (*REFUSED, param, code)
    assert {state for state, _ in tenant.blobs().values()} == {"doomed"}
    assert tenant.bytes_on_disk() == set()


@pytest.mark.parametrize(
    ("anchor", "seconds", "param", "code"),
    [
        (None, "3600", "anchor", "missing_required_parameter"),
        ("created_at", None, "seconds", "missing_required_parameter"),
        ("now", "3600", "anchor", "invalid_value"),
        ("created_at", "3599", "seconds", "invalid_value"),
        ("created_at", "2592001", "seconds", "invalid_value"),
        ("created_at", "-1", "seconds", "invalid_type"),
        ("created_at", "1e309", "seconds", "invalid_type"),
        ("created_at", "9" * 400, "seconds", "invalid_type"),
        ("created_at", "٣٦٠٠", "seconds", "invalid_type"),
    ],
)
def test_a_bad_expiry_is_named(tenant: Tenant, anchor: str | None, seconds: str | None, param: str, code: str) -> None:
    """`expires_after` needs its anchor and a number of seconds from 3,600 to 2,592,000."""
    given = {"expires_after[anchor]": anchor, "expires_after[seconds]": seconds}
    parts = [text_part(name, value) for name, value in given.items() if value is not None]
    assert tenant.send_form(BATCH, *parts, FILE).error == (*REFUSED, f"expires_after[{param}]", code)


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=b"],
)
def test_what_is_no_form_is_refused(tenant: Tenant, content_type: str) -> None:
    """Without a form and its boundary there is no file; nothing is begun for it."""
    answer = tenant.call("POST", "/v1/files", b"{}", Content_Type=content_type)
    assert answer.error == (*REFUSED, "file", "invalid_value")
    assert tenant.blobs() == {}


@pytest.mark.parametrize("body", [b"", b"{}", form(BATCH, FILE)[1][:-10], form(BATCH, FILE)[1][:60]])
def test_a_truncated_form_is_refused(tenant: Tenant, body: bytes) -> None:
    """A form that ends early, or never begins, is a 400."""
    answer = tenant.call("POST", "/v1/files", body, Content_Type=form()[0])
    assert answer.error == (*REFUSED, None, None)
    assert tenant.bytes_on_disk() == set()


def test_bad_bytes_in_a_filename_are_replaced(tenant: Tenant) -> None:
    """A filename that is no UTF-8 keeps its readable part."""
    answer = tenant.send_form(BATCH, file_part(LINE, b"a\xff\xfe.jsonl"))
    assert answer.json["filename"] == "a��.jsonl"


@pytest.mark.parametrize("name", ["报告　一.jsonl", "👨‍👩‍👧.jsonl", "a b;c.jsonl", "../up.jsonl"])
def test_a_filename_is_kept_as_it_was_given(tenant: Tenant, name: str) -> None:
    """Ideographic spaces, joined emoji and semicolons are part of a name; a path in it leads nowhere."""
    assert tenant.upload(filename=name)["filename"] == name


def test_the_size_limit_is_exact(serve: Callable[..., Served]) -> None:
    """A file of just the limit is taken; one byte more is a 400 (not 413), and so is one that never says its length."""
    tenant = serve(limits=replace(KIMI, max_input_bytes=1000)).tenant()
    assert tenant.send_form(BATCH, file_part(b"x" * 1000)).status == 200
    assert tenant.send_form(BATCH, file_part(b"x" * 1001)).error == (*REFUSED, "file", "invalid_value")
    assert tenant.send_form(file_part(b"x" * 9000), BATCH, chunked=True).error == (*REFUSED, "file", "invalid_value")
    assert len(tenant.bytes_on_disk()) == 1


def test_quotas_refuse_one_file_too_many(serve: Callable[..., Served]) -> None:
    """An organisation may have so many files, and so many bytes; another's do not count, and a delete makes room."""
    served = serve(limits=replace(KIMI, max_files=2, max_stored_bytes=10))
    tenant, other = served.tenant(), served.tenant()
    other.upload(b"1234567890")
    first = tenant.upload(b"1234")
    assert tenant.send_form(BATCH, file_part(b"1234567")).error == (*REFUSED, "file", "invalid_value")
    tenant.upload(b"123456")
    tenant.call("DELETE", f"/v1/files/{first['id']}")
    tenant.upload(b"1")
    assert tenant.send_form(BATCH, file_part(b"1")).error == (*REFUSED, "file", "invalid_value")
    assert len(tenant.call("GET", "/v1/files").json["data"]) == 2


@pytest.mark.parametrize("served", ["sqlite+disk"], indirect=True)  # to a bucket nothing goes before there is much
@pytest.mark.parametrize("linger", [None, struct.pack("ii", 1, 0)], ids=["close", "reset"])
def test_a_client_that_goes_away_leaves_nothing(
    tenant: Tenant, linger: bytes | None, logged: list[MutableMapping[str, Any]]
) -> None:
    """When the connection ends within an upload there is no File, the bytes are gone, and the row is doomed."""
    content_type, body = form(BATCH, file_part(b"x" * 3_000_000))
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {tenant.key}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", tenant.served.port)) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        assert len(tenant.bytes_on_disk()) == 1
        connection.sendall(body[:2_000_000])
        if linger:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    tenant.served.idle()
    assert [entry["event"] for entry in logged] == ["client went away"]
    assert tenant.call("GET", "/v1/files").json["data"] == []
    assert list(tenant.blobs().values()) == [("doomed", 0)]
    assert tenant.bytes_on_disk() == set()


async def test_an_upload_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    """When the server stops in the middle of an upload, the bytes are gone."""
    blobs, half = DiskBlobs(folder=tmp_path), asyncio.Event()
    body = form(BATCH, file_part(b"x" * 3_000_000))[1]

    async def stream() -> AsyncIterator[bytes]:
        yield body[:2_000_000]
        half.set()
        await asyncio.Event().wait()

    boundary = form_boundary(form()[0])
    upload = receive_upload(stream=stream(), boundary=boundary, blobs=blobs, key="upload_1", limits=KIMI)
    running = asyncio.create_task(upload)
    await half.wait()
    assert list(blobs.keys(before=math.inf)) == ["upload_1"]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert list(blobs.keys(before=math.inf)) == []
