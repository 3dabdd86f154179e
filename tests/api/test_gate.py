import socket
from collections.abc import Callable

import pytest

from api.served import Answer, Served, Tenant, form
from batchmill.spec.ids import key_digest, mint_id, mint_key
from batchmill.store.tables import api_key

MISSING = mint_id("file", 1)
ROUTES = [
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/x"),
    ("DELETE", "/v1/files/x"),
    ("GET", "/v1/files/x/content"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches"),
    ("GET", "/v1/batches/x"),
    ("POST", "/v1/batches/x/cancel"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/x"),
    ("GET", "/v1/organisation"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/backends"),
    ("POST", "/v1/keys"),
    ("POST", "/v1/keys/x/revoke"),
    ("PUT", "/v1/files"),
    ("GET", "/"),
    ("GET", "/v1/none"),
]


def revoked(served: Served) -> str:
    """Make a key that was revoked."""
    key = served.tenant().key
    gone = api_key.update().where(api_key.c.digest == key_digest(key)).values(revoked_at=1)
    served.rows(lambda tx: tx.connection.execute(gone))
    return key


def test_a_bad_key_has_one_answer(served: Served, tenant: Tenant) -> None:
    """A missing, malformed, unknown and revoked key cannot be told apart."""
    bad = {
        "no scheme": tenant.key,
        "another scheme": f"Basic {tenant.key}",
        "no key": "Bearer",
        "malformed": "Bearer sk-bm-1",
        "not ASCII": "Bearer \xe9",
        "wrong checksum": f"Bearer {tenant.key[:-1]}{'1' if tenant.key[-1] == '0' else '0'}",
        "unknown": f"Bearer {mint_key()}",
        "revoked": f"Bearer {revoked(served)}",
        "empty": "",
    }
    expected = served.call("GET", "/v1/files")
    assert expected.error == (401, "incorrect_api_key_error", None, "invalid_api_key")
    for name, value in bad.items():
        assert served.call("GET", "/v1/files", Authorization=value).without_ids() == expected.without_ids(), name


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_nothing_answers_without_a_key(served: Served, method: str, path: str) -> None:
    """Without a key every route, and every path that is none, is the same 401."""
    assert served.call(method, path).without_ids() == served.call("GET", "/v1/models").without_ids()


def test_the_scheme_may_be_spelt_in_any_case(tenant: Tenant) -> None:
    """`bearer` is `Bearer`."""
    assert tenant.call("GET", "/v1/models", Authorization=f"bearer {tenant.key}").status == 200


def test_no_body_is_read_before_the_key_is_known(served: Served) -> None:
    """A client that asks before it sends gets the 401 at once, and is never told to go on."""
    head = f"POST /v1/files HTTP/1.1\r\nHost: t\r\nContent-Type: {form()[0]}\r\nContent-Length: 99999999\r\n"
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


def _file(tenant: Tenant) -> str:
    return str(tenant.upload()["id"])


def _batch(tenant: Tenant) -> str:
    return str(tenant.create()["id"])


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (_file, lambda t, name: t.call("GET", f"/v1/files/{name}")),
        (_file, lambda t, name: t.call("GET", f"/v1/files/{name}/content")),
        (_file, lambda t, name: t.call("DELETE", f"/v1/files/{name}")),
        (_file, lambda t, name: t.call("GET", f"/v1/files?after={name}")),
        (_file, lambda t, name: t.send_json({"input_file_id": name, "completion_window": "24h"})),
        (_batch, lambda t, name: t.call("GET", f"/v1/batches/{name}")),
        (_batch, lambda t, name: t.call("POST", f"/v1/batches/{name}/cancel")),
        (_batch, lambda t, name: t.call("GET", f"/v1/batches?after={name}")),
    ],
    ids=["retrieve", "content", "delete", "files after", "create", "retrieve batch", "cancel", "batches after"],
)
def test_the_id_of_another_organisation_is_an_unknown_id(
    tenant: Tenant, other: Tenant, make: Callable[[Tenant], str], call: Callable[[Tenant, str], Answer]
) -> None:
    """Byte for byte the same answer, and the other's object is untouched."""
    foreign = make(other)
    prefix = foreign.partition("_")[0]
    assert call(tenant, foreign).without_ids() == call(tenant, mint_id(prefix, 1)).without_ids()
    assert other.call("GET", f"/v1/{'files' if prefix == 'file' else 'batches'}/{foreign}").status == 200


def test_organisations_do_not_see_each_other(tenant: Tenant, other: Tenant) -> None:
    """Lists hold what is one's own."""
    other.create()
    assert tenant.call("GET", "/v1/files").json["data"] == []
    assert tenant.call("GET", "/v1/batches").json["data"] == []


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "GZIP"])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_an_encoded_body_is_refused(tenant: Tenant, path: str, encoding: str) -> None:
    """We never expand what a client sends."""
    answer = tenant.call("POST", path, b"\x1f\x8b", Content_Encoding=encoding)
    assert answer.error == (415, "invalid_request_error", None, "unsupported_media_type")
