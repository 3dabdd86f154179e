"""Hostile uploads, group A of the reliability page, row by row.

Elsewhere: A8 (order of parts), A13, A17, A30 in test_upload; A15, A21, A29 in test_slow; A19, A20, A33 and the framing
of A18 in test_protocol; A28 in test_faults; A31 in test_ranges; what A10, A11, A14 take of memory in
acceptance/test_memory.
"""

import gzip
import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import unquote

import pytest
from structlog.testing import capture_logs

from api.raw import connected, exchange, told
from api.served import LINE, Served, Tenant, file_part, form, text_part
from batchmill.spec.limits import KIMI

BATCH = text_part("purpose", "batch")
FILE = file_part(LINE)
REFUSED = (400, "invalid_request_error")


def named(filename: bytes) -> bytes:
    """Return a file's part whose disposition ends like this."""
    return b'Content-Disposition: form-data; name="file"; ' + filename + b"\r\n\r\n" + LINE


FORMS: dict[str, tuple[tuple[bytes, ...], int, str | None]] = {  # parts, status, param
    "A1 a path": ((BATCH, file_part(LINE, "../../etc/passwd")), 400, "file"),
    "A1 a path that ends well": ((BATCH, file_part(LINE, "../../etc/passwd.jsonl")), 200, None),
    "A2 absolute": ((BATCH, file_part(LINE, "/abs.jsonl")), 200, None),
    "A2 Windows": ((BATCH, file_part(LINE, "C:\\x\\y.jsonl")), 200, None),
    "A2 a dot": ((BATCH, file_part(LINE, ".")), 400, "file"),
    "A2 no filename": ((BATCH, text_part("file", "{}")), 400, "file"),
    "A2 no file": ((BATCH,), 400, "file"),
    "A3 percent-coded line break": ((BATCH, file_part(LINE, "a%0d%0aSet-Cookie: x=1.jsonl")), 200, None),
    "A3 raw line break": ((BATCH, named(b'filename="a\r\nSet-Cookie: x=1.jsonl"')), 400, "file"),
    "A4 quotes": ((BATCH, file_part(LINE, 'a\\"b;c.jsonl')), 200, None),
    "A4 right to left": ((BATCH, file_part(LINE, "a\u202elnosj.jsonl")), 200, None),
    "A4 line separator": ((BATCH, file_part(LINE, "a\u2028b.jsonl")), 400, "file"),
    "A4 300 characters": ((BATCH, file_part(LINE, "a" * 300 + ".jsonl")), 400, "file"),
    "A4 64 KB": ((BATCH, file_part(LINE, "a" * 65_536 + ".jsonl")), 400, None),
    "A5 two spellings": ((BATCH, named(b"filename=\"a.jsonl\"; filename*=UTF-8''b.exe")), 200, None),
    "A5 in pieces": ((BATCH, named(b'filename*0="a"; filename*1=".jsonl"')), 400, "file"),
    "A5 two filenames": ((BATCH, named(b'filename="a.jsonl"; filename="b.jsonl"')), 400, "file"),
    "A5 a bad filename first": ((BATCH, named(b'filename="b.exe";FILENAME ="a.jsonl"')), 400, "file"),
    "A5 a filename inside a filename": ((BATCH, file_part(LINE, r"a\"; filename=b.jsonl")), 200, None),
    "A5 two names": ((BATCH, named(b'name="colour"; filename="a.jsonl"')), 400, "colour"),
    "A6 NUL": ((BATCH, file_part(LINE, "a\x00.jsonl")), 400, "file"),
    "A7 no purpose": ((FILE,), 400, "purpose"),
    "A7 another purpose": ((text_part("purpose", "assistants"), FILE), 400, "purpose"),
    "A7 a purpose of 1 MB": ((text_part("purpose", "b" * (1 << 20)), FILE), 400, "purpose"),
    "A7 two purposes": ((BATCH, text_part("purpose", "vision"), FILE), 400, "purpose"),
    "A9 10,000 parts": ((BATCH, FILE, *[text_part(f"p{n}", "") for n in range(10_000)]), 400, None),
    "A10 100,000 headers": ((b"X-A: 1\r\n" * 100_000 + FILE, BATCH), 400, None),
    "A10 a header of 10 MB": ((b"X-A: " + b"1" * (10 << 20) + b"\r\n" + FILE, BATCH), 400, None),
    "A24 PNG": ((BATCH, file_part(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))), 200, None),
    "A24 ZIP": ((BATCH, file_part(b"PK\x03\x04" + bytes(1000))), 200, None),
    "A25 nothing": ((BATCH, file_part(b"")), 400, "file"),
    "A27 a week of text": ((BATCH, text_part("expires_after[seconds]", "week"), FILE), 400, "expires_after[anchor]"),
}


@pytest.mark.parametrize("row", FORMS)
def test_a_form_has_its_answer(tenant: Tenant, row: str) -> None:
    """The status is the row's, the part that is wrong is named, a refused one leaves nothing, no log has its name."""
    parts, status, param = FORMS[row]
    with capture_logs() as logs:
        answer = tenant.send_form(*parts)
    assert answer.status == status, answer.body[:500]
    assert not [entry for entry in logs if entry["log_level"] in {"error", "critical"}]
    assert "passwd" not in str(logs)
    assert len(answer.body) < 1000
    if status == 200:
        assert all(key.startswith("upload") for key in tenant.bytes_on_disk())
    else:
        assert answer.json["error"]["param"] == param
        assert tenant.bytes_on_disk() == set()


@pytest.mark.parametrize(
    "name", ['a"b.jsonl', "a;b.jsonl", "a\\b.jsonl", "a\u202eb.jsonl", "报告.jsonl", "%0d%0a.jsonl"]
)
def test_a_download_names_its_file_safely(tenant: Tenant, name: str) -> None:
    """A3, A4: Content-Disposition is one line of ASCII, with the name in percent-coded UTF-8."""
    made = tenant.send_form(BATCH, file_part(LINE, name.replace("\\", "\\\\").replace('"', '\\"'))).json
    disposition = tenant.call("GET", f"/v1/files/{made['id']}/content").headers["content-disposition"]
    assert disposition.isascii()
    assert disposition.isprintable()
    assert unquote(disposition.partition("filename*=UTF-8''")[2]) == name.replace("\\", "_")


@pytest.mark.parametrize(("boundary", "status"), [(0, 400), (1, 200), (70, 200), (71, 400), (10_000, 400)])
def test_a_boundary_has_1_to_70_characters(tenant: Tenant, boundary: int, status: int) -> None:
    """A12: RFC 2046's own bounds."""
    mark = "b" * boundary
    body = form(BATCH, FILE)[1].replace(form()[0].partition("boundary=")[2].encode(), mark.encode())
    answer = tenant.call("POST", "/v1/files", body, Content_Type=f"multipart/form-data; boundary={mark}")
    assert answer.status == status


def test_a_body_without_length_or_end_is_cut_at_the_limit(serve: Callable[..., Served]) -> None:
    """A16: it is refused as soon as it is too large, and the connection ends; nothing is kept."""
    tenant = serve(limits=replace(KIMI, max_input_bytes=100_000, drain_seconds=0.1)).tenant()
    content_type, body = form(BATCH, file_part(b"x" * 3_000_000))
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {tenant.key}\r\n"
        f"Content-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    (answer,) = exchange(tenant.served, head.encode() + b"%x\r\n" % (1 << 40) + body)
    assert answer.error == (*REFUSED, "file", "invalid_value")
    assert answer.headers["connection"] == "close"
    tenant.served.idle()
    assert tenant.bytes_on_disk() == set()


@pytest.mark.parametrize("off", [-20, 20])
def test_a_length_that_lies_is_no_file(serve: Callable[..., Served], off: int) -> None:
    """A18: too short a length cuts the form, and what is left over is no request; a too long one is not waited for."""
    tenant = serve(limits=replace(KIMI, body_idle=0.2, drain_seconds=0.1)).tenant()
    content_type, body = form(BATCH, FILE)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {tenant.key}\r\nConnection: close\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body) + off}\r\n\r\n"
    )
    answers = exchange(tenant.served, head.encode() + body)
    assert [answer.status for answer in answers] == ([400] if off < 0 else [408])
    tenant.served.idle()
    assert tenant.bytes_on_disk() == set()


def test_who_waits_for_leave_to_send_learns_of_a_bad_key_first(served: Served) -> None:
    """A22: `Expect: 100-continue` with a key that is none is a 401 without a 100, and the body is never asked for."""
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-no\r\nContent-Type: multipart/form-data; "
        b"boundary=b\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
    )
    with connected(served) as connection:
        connection.sendall(head)
        assert told(connection).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "gzip, gzip"])
def test_a_coded_body_is_never_expanded(tenant: Tenant, coding: str) -> None:
    """A23: a bomb is a 415 before a byte of it is looked at."""
    content_type, body = form(BATCH, file_part(bytes(50 << 20)))
    bomb = gzip.compress(body, 1)
    answer = tenant.call("POST", "/v1/files", bomb, Content_Type=content_type, Content_Encoding=coding)
    assert answer.status == 415
    assert tenant.blobs() == {}


def test_an_office_file_is_taken_as_it_is(tenant: Tenant) -> None:
    """A24: what is inside is not looked at here: the batch that uses an archive as its input says what is wrong."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("sheet.xml", "<x/>")
    assert tenant.upload(archive.getvalue())["bytes"] == len(archive.getvalue())


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain", "image/png"])
def test_what_is_no_form_is_not_read(tenant: Tenant, kind: str) -> None:
    """A26: JSON, or a hundred megabytes of another form, is refused by its type; nothing of it is kept."""
    answer = tenant.call("POST", "/v1/files", b"a=b&" * 250_000, Content_Type=kind)
    assert answer.error == (*REFUSED, "file", "invalid_value")
    assert tenant.blobs() == {}


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("PUT", "/v1/files", {405}),
        ("PATCH", "/v1/batches", {405}),
        ("OPTIONS", "/v1/files", {405}),
        ("TRACE", "/v1/files", {405}),
        ("HEAD", "/v1/files", {405}),
        ("GET", "/v1/files/", {404}),
        ("GET", "//v1/files", {404}),
        ("GET", "/v1/files/%2e%2e/batches", {404}),
        ("GET", "/v1/files/../batches", {404}),
        ("GET", "/v1/files/a%00b", {404}),
        ("GET", "/v1/files/a%2Fb", {404}),
        ("GET", "/v1/batches/batch_%0d%0aSet-Cookie:x", {404}),
        ("GET", "/v1/files/" + "a" * 9_000, {414}),
    ],
)
def test_an_odd_path_or_method_is_never_another_route(
    tenant: Tenant, method: str, path: str, statuses: set[int]
) -> None:
    """A32: what is not spelt as a route is none."""
    tenant.create()
    assert tenant.call(method, path).status in statuses
