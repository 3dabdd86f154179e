"""Keys as strangers and their software send them: group D of the hostile inputs (reliability, 5.4)."""

import re
import socket
import zlib
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, event, select

from api.served import Served, Tenant, file_part, form, text_part
from batchmill.spec.ids import KEY_PREFIX, key_digest, mint_id, mint_key
from batchmill.spec.limits import KIMI
from batchmill.spec.scopes import Scope
from batchmill.spec.states import Status
from batchmill.store.batch import batches_by_id
from batchmill.store.database import Transaction
from batchmill.store.model import add_models
from batchmill.store.organisation import expire_key, list_keys, revoke_key
from batchmill.store.tables import api_key, blob
from engine.mill import Mill

UNAUTHENTICATED = (401, "incorrect_api_key_error", None, "invalid_api_key")
FORBIDDEN = (403, "permission_denied_error", None, "insufficient_permissions")
LIMITED = (429, "rate_limit_reached_error", None, "rate_limit_exceeded")


def key_id(served: Served, key: str) -> str:
    """Return the id of a key."""
    query = api_key.select().where(api_key.c.digest == key_digest(key))
    return str(served.rows(lambda tx: tx.connection.execute(query).one()).id)


def revoke(served: Served, key: str) -> None:
    """Revoke a key."""
    gone = key_id(served, key)
    served.rows(lambda tx: revoke_key(tx, key_id=gone, now=1))


def off_by_one(key: str) -> str:
    """Return the key with its last digit changed."""
    return f"{key[:-1]}{'1' if key[-1] == '0' else '0'}"


def status_of(served: Served, *headers: bytes) -> int:
    """Send raw header lines and return the status that comes back."""
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        lines = [b"GET /v1/files HTTP/1.1", b"Host: t", b"Connection: close", *headers]
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
        return int(connection.recv(1000).split()[1])


_HEADERS: dict[str, tuple[Callable[[bytes], list[bytes]], int]] = {
    "no header": (lambda _: [], 401),
    "Basic": (lambda key: [b"Authorization: Basic " + key], 401),
    "no credentials": (lambda _: [b"Authorization: Bearer"], 401),
    "no scheme": (lambda key: [b"Authorization: " + key], 401),
    "lower case": (lambda key: [b"Authorization: bearer " + key], 200),
    "a tab between": (lambda key: [b"Authorization: Bearer\t" + key], 401),
    "a space behind": (lambda key: [b"Authorization: Bearer " + key + b" "], 200),
    "a word behind": (lambda key: [b"Authorization: Bearer " + key + b" x"], 401),
    "a list": (lambda key: [b"Authorization: Bearer " + key + b", Bearer " + key], 401),
    "not ASCII": (lambda key: [b"Authorization: Bearer " + key + b"\xe9"], 401),
    "NUL": (lambda key: [b"Authorization: Bearer " + key + b"\0"], 400),
    "twice": (lambda key: [b"Authorization: Bearer " + key] * 2, 400),
    "once good, once bad": (lambda key: [b"Authorization: Bearer x", b"Authorization: Bearer " + key], 400),
    "api-key": (lambda key: [b"api-key: " + key, b"x-api-key: " + key], 401),
    "cookie": (lambda key: [b"Cookie: Authorization=Bearer " + key + b"; api_key=" + key], 401),
    "Proxy-Authorization": (lambda key: [b"Proxy-Authorization: Bearer " + key], 401),
}


@pytest.mark.parametrize("name", _HEADERS)
def test_a_key_counts_in_one_header_alone(tenant: Tenant, name: str) -> None:
    """D1, D2: one `Authorization: Bearer KEY`; whatever else may hold a key is not looked at."""
    headers, status = _HEADERS[name]
    assert status_of(tenant.served, *headers(tenant.key.encode())) == status


def test_a_key_in_the_query_or_the_body_is_none(served: Served, tenant: Tenant) -> None:
    """D2: the 401 of a call without any key."""
    expected = served.call("GET", "/v1/files").without_ids()
    for name in ("key", "api_key", "api-key", "access_token", "authorization"):
        assert served.call("GET", f"/v1/files?{name}={tenant.key}").without_ids() == expected
        body = f'{{"{name}": "{tenant.key}"}}'.encode()
        assert served.call("POST", "/v1/batches", body, Content_Type="application/json").without_ids() == expected


def test_bad_keys_of_every_kind_are_one_401(served: Served, tenant: Tenant) -> None:
    """D3: checksum, secret, revocation, expiry, another environment: nothing tells which it was."""
    revoked, expired = served.key(tenant.id), served.key(tenant.id, expires_at=int(served.clock.now()))
    revoke(served, revoked)
    expected = served.call("GET", "/v1/files")
    assert expected.error == UNAUTHENTICATED
    assert expected.headers["www-authenticate"] == "Bearer"
    for bad in (off_by_one(tenant.key), mint_key(), revoked, expired, f"sk-{tenant.key[6:]}", tenant.key.upper()):
        answer = served.call("GET", "/v1/files", Authorization=f"Bearer {bad}")
        assert answer.without_ids() == expected.without_ids()


def test_a_key_revoked_during_an_upload_ends_no_upload(served: Served, tenant: Tenant) -> None:
    """D5: what began with a good key is finished; the next request is refused."""
    content_type, body = form(text_part("purpose", "batch"), file_part(b"{}\n"))
    noted = select(blob.c.key)
    before = set(served.rows(lambda tx: tx.connection.execute(noted).all()))  # of other tests on the same server

    def sending() -> Any:  # noqa: ANN401 - pieces of the body
        yield body[:-40]
        while before.issuperset(served.rows(lambda tx: tx.connection.execute(noted).all())):
            pass  # the server has not begun with it
        revoke(served, tenant.key)
        yield body[-40:]

    assert tenant.call("POST", "/v1/files", sending(), Content_Type=content_type).status == 200
    assert tenant.call("GET", "/v1/files").error == UNAUTHENTICATED


def test_a_key_revoked_during_a_run_ends_no_run(serve: Callable[..., Served]) -> None:
    """D5: a batch belongs to its organisation; it runs to its end, and another key of the same fetches the results."""
    served = serve()
    tenant = served.tenant()
    batch_id = tenant.create()["id"]
    revoke(served, tenant.key)
    assert tenant.call("GET", f"/v1/batches/{batch_id}").error == UNAUTHENTICATED
    mill = Mill(folder=served.folder, database=served.database, blobs=served.blobs, clock=served.clock)
    assert served.run(mill.finish(mill.hand(mill.echo()), batch_id)) is Status.COMPLETED
    heir = replace(tenant, key=served.key(tenant.id))
    output = heir.call("GET", f"/v1/batches/{batch_id}").json["output_file_id"]
    assert heir.call("GET", f"/v1/files/{output}/content").json["custom_id"] == "row-1"


@pytest.mark.parametrize("served", ["sqlite+disk"], indirect=True)  # whose statements can be listened to as they are
def test_a_near_miss_is_as_far_off_as_any_other_key(served: Served, tenant: Tenant) -> None:
    """D4: keys are compared by the database, as digests; whichever digit is wrong, what it compares is another text."""
    given: list[object] = []

    def note(_: object, _cursor: object, sql: str, parameters: tuple[object, ...], *_more: object) -> None:
        if "FROM api_key" in sql:
            assert "api_key.digest = ?" in sql
            given.extend(parameters)

    secret = tenant.key[len(KEY_PREFIX) : -8]
    event.listen(Engine, "before_cursor_execute", note)
    for place in range(len(secret)):
        near = f"{secret[:place]}{'1' if secret[place] == '0' else '0'}{secret[place + 1 :]}"
        key = f"{KEY_PREFIX}{near}{zlib.crc32(near.encode()):08x}"  # its checksum is right: only the look-up can tell
        assert served.call("GET", "/v1/files", Authorization=f"Bearer {key}").error == UNAUTHENTICATED
    event.remove(Engine, "before_cursor_execute", note)
    compared = [value for value in given if isinstance(value, str)]
    assert len(compared) == len(secret) == len({value[:8] for value in compared} - {key_digest(tenant.key)[:8]})
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in compared)


def test_a_rotation_refuses_nobody_before_its_time(served: Served, tenant: Tenant) -> None:
    """D6: during the overlap both keys are good for the same objects; after it the new one alone is."""
    uploaded, new = tenant.upload()["id"], replace(tenant, key=served.key(tenant.id))
    until = int(served.clock.now()) + 60
    old = key_id(served, tenant.key)
    served.rows(lambda tx: expire_key(tx, key_id=old, expires_at=until))
    for holder in (tenant, new):
        assert holder.call("GET", f"/v1/files/{uploaded}").status == 200
    served.clock.time = until
    assert tenant.call("GET", f"/v1/files/{uploaded}").error == UNAUTHENTICATED
    assert new.call("GET", f"/v1/files/{uploaded}").status == 200


_CALLS = [
    ("GET", "/v1/files", Scope.READ),
    ("GET", "/v1/models", Scope.READ),
    ("GET", "/v1/none", Scope.READ),
    ("HEAD", "/v1/files", Scope.READ),
    ("POST", "/v1/files", Scope.WRITE),
    ("POST", "/v1/batches", Scope.WRITE),
    ("POST", "/v1/batches/x/cancel", Scope.WRITE),
    ("DELETE", "/v1/files/x", Scope.WRITE),
    ("PUT", "/v1/files", Scope.WRITE),
]


@pytest.mark.parametrize("scopes", [(), ("read",), ("write",), ("admin",), ("read", "write")], ids=" ".join)
def test_a_key_does_what_its_scopes_say(served: Served, tenant: Tenant, scopes: tuple[str, ...]) -> None:
    """D7: a call outside of them is the 403, whatever it names; a call inside is judged as ever."""
    key = served.key(tenant.id, scopes={Scope(scope) for scope in scopes})
    for method, path, needed in _CALLS:
        answer = served.call(method, path, Authorization=f"Bearer {key}")
        if needed in scopes:
            assert answer.status not in {401, 403}, (method, path)
        elif method == "HEAD":
            assert answer.status == 403
        else:
            assert answer.error == FORBIDDEN, (method, path)


def test_no_header_switches_the_organisation(tenant: Tenant, other: Tenant) -> None:
    """D8: the key alone says who asks; the official client's two headers are ignored."""
    uploaded = other.upload()["id"]
    headers = {"OpenAI_Organization": other.id, "OpenAI_Project": other.id}
    assert tenant.call("GET", "/v1/files", **headers).json["data"] == []
    assert tenant.call("GET", f"/v1/files/{uploaded}", **headers).status == 404


def test_ids_cannot_be_guessed() -> None:
    """D11: 128 random bits behind the time; of 10,000 minted in one microsecond no two share more than chance does."""
    ids = {mint_id("file", 1_800_000_000.0) for _ in range(10_000)}
    assert len({name[-32:] for name in ids}) == 10_000
    assert len({name[-32:-16] for name in ids}) == len({name[-16:] for name in ids}) == 10_000


def test_a_million_guesses_find_nothing(served: Served, tenant: Tenant) -> None:
    """D11: not one hit, although whoever guesses knows the microsecond of fifty batches and asks past the gate."""
    order = {"input_file_id": tenant.upload()["id"], "completion_window": "24h"}
    assert {tenant.send_json(order).status for _ in range(50)} == {200}
    then = served.clock.now()

    def hits(tx: Transaction) -> int:
        return len(batches_by_id(tx, batch_ids=[mint_id("batch", then) for _ in range(10_000)]))

    assert sum(served.rows(hits) for _ in range(100)) == 0


def test_operators_pages_are_not_on_the_api(served: Served, tenant: Tenant) -> None:
    """D13: without a key no path says whether it exists; with one there is no `/metrics`, `/debug` or `/admin`."""
    for path in ("/metrics", "/debug", "/admin", "/v1/admin", "/v1/organizations"):
        assert served.call("GET", path).error == UNAUTHENTICATED
        assert tenant.call("GET", path).error == (404, "resource_not_found_error", None, "unknown_url")


def test_a_page_of_another_origin_is_told_nothing(served: Served, tenant: Tenant) -> None:
    """D14: a preflight is a 401 as any call without a key, and no answer allows an origin."""
    asked = {"Origin": "https://evil.example", "Access_Control_Request_Method": "POST"}
    preflight = served.call("OPTIONS", "/v1/files", **asked)
    assert preflight.error == UNAUTHENTICATED
    for answer in (preflight, tenant.call("GET", "/v1/files", **asked)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("proxies", "together"), [((), True), (("10.0.0.0/8",), True), (("127.0.0.0/8",), False)], ids=repr
)
def test_a_clients_own_word_for_its_address_is_not_believed(
    serve: Callable[..., Served], proxies: tuple[str, ...], *, together: bool
) -> None:
    """D12: X-Forwarded-For gives a new address to nobody but the proxies that the operator trusts."""
    served = serve(limits=replace(KIMI, failed_auth_per_minute=3), trusted_proxies=proxies)
    statuses = [
        served.call("GET", "/v1/files", X_Forwarded_For=f"203.0.113.{n}", X_Forwarded_Host="evil.example").status
        for n in range(5)
    ]
    assert statuses == ([401] * 3 + [429] * 2 if together else [401] * 5)


def test_many_bad_keys_slow_down_their_sender_alone(serve: Callable[..., Served]) -> None:
    """D15: past the limit the 401 becomes a 429 that says when to come back; right keys pass all the while."""
    served = serve(limits=replace(KIMI, failed_auth_per_minute=20))
    tenant = served.tenant()

    def guess(_: int) -> int:
        return served.ask("GET", "/v1/files", Authorization=f"Bearer {mint_key()}").status

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(guess, range(100))) == [401] * 20 + [429] * 80
    answer = served.call("GET", "/v1/files", Authorization="Bearer sk-bm-1")
    assert answer.error == LIMITED
    assert answer.headers["retry-after"] == "3"
    assert tenant.call("GET", "/v1/files").status == 200
    served.clock.uptime += 3
    assert served.call("GET", "/v1/files").error == UNAUTHENTICATED
    assert served.call("GET", "/v1/files").error == LIMITED


def test_an_organisation_has_a_rate(serve: Callable[..., Served]) -> None:
    """All its keys share one bucket; every answer says how full it is, and another organisation has its own."""
    served = serve()
    tenant, other = served.tenant(requests_per_minute=2), served.tenant(requests_per_minute=2)
    second = replace(tenant, key=served.key(tenant.id))

    def rate(answer: Any) -> list[str | None]:  # noqa: ANN401 - an Answer
        return [answer.headers.get(f"x-ratelimit-{name}") for name in ("limit", "remaining", "reset")]

    assert rate(tenant.call("GET", "/v1/files")) == ["2", "1", "30"]
    assert rate(second.call("GET", "/v1/files/x")) == ["2", "0", "60"]
    refused = tenant.call("POST", "/v1/batches", b"{}")
    assert refused.error == LIMITED
    assert (rate(refused), refused.headers["retry-after"]) == (["2", "0", "60"], "30")
    assert other.call("GET", "/v1/files").status == 200
    served.clock.uptime += 30
    assert second.call("GET", "/v1/files").status == 200
    assert rate(served.tenant().call("GET", "/v1/files")) == [None] * 3


def test_no_key_is_in_a_log_or_an_error(served: Served, tenant: Tenant, logged: list[MutableMapping[str, Any]]) -> None:
    """S5: whatever is done with keys, good or bad, their text is in no answer and no log line."""
    keys = [tenant.key, off_by_one(tenant.key), served.key(tenant.id, scopes=()), mint_key()]
    bodies = []
    for key in keys:
        for method, path in [("GET", "/v1/files"), ("POST", "/v1/files"), ("POST", "/v1/batches"), ("GET", f"/{key}")]:
            answer = served.call(method, path, key.encode(), Authorization=f"Bearer {key}", Content_Type="text/plain")
            bodies.append(answer.body + repr(sorted(answer.headers.items())).encode())
    told = b"".join(bodies) + repr(logged).encode() + repr(served.rows(list_keys)).encode()
    for key in keys:
        assert key.encode() not in told
        assert key[6:40].encode() not in told


def test_an_organisation_sees_the_models_that_it_may_use(served: Served) -> None:
    """A model that it may not use is no different from an unknown one; without a list it sees all."""
    served.rows(lambda tx: add_models(tx, names=["a", "b/c"], now=1))
    every, some, none = served.tenant(), served.tenant(models=("b/c", "later")), served.tenant(models=())

    def seen(tenant: Tenant) -> set[str]:
        return {model["id"] for model in tenant.call("GET", "/v1/models").json["data"]} & {"a", "b/c", "later"}

    assert [seen(tenant) for tenant in (every, some, none)] == [{"a", "b/c"}, {"b/c"}, set()]
    assert some.call("GET", "/v1/models/b/c").status == 200
    unknown = some.call("GET", "/v1/models/none")
    assert unknown.status == 404
    assert some.call("GET", "/v1/models/a").without_ids() == unknown.without_ids()


def test_an_organisation_has_a_quota_of_its_own(served: Served) -> None:
    """Its number of files and of bytes hold in place of the server's, from the first upload too many on."""
    few, small = served.tenant(max_files=1), served.tenant(max_bytes=5)
    few.upload()
    small.upload(b"{}\n")
    for tenant in (few, small):
        answer = tenant.send_form(text_part("purpose", "batch"), file_part(b"{}\n"))
        assert answer.error == (400, "invalid_request_error", "file", "invalid_value")
        assert len(tenant.call("GET", "/v1/files").json["data"]) == 1
