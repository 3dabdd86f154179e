"""Keys by the API: an admin key makes, lists, revokes and rotates those of its organisation."""

import json
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from api.raw import answers, connected, told
from api.served import Answer, Served, Tenant
from batchmill.spec.limits import KIMI
from batchmill.spec.scopes import Scope
from batchmill.store.organisation import revoke_key
from batchmill.store.tables import api_key, replay

MEMBERS = ["object", "id", "name", "hint", "scopes", "created_at", "expires_at", "revoked_at"]


@pytest.fixture
def admin(tenant: Tenant) -> Tenant:
    """Take a key with the scope `admin` alone."""
    return replace(tenant, key=tenant.served.key(tenant.id, scopes={Scope.ADMIN}))


def make(tenant: Tenant, order: object = None, **headers: str) -> Answer:
    """Ask for a key, a second after whatever was before."""
    tenant.served.clock.time += 1
    body = None if order is None else json.dumps(order).encode()
    return tenant.call("POST", "/v1/keys", body, **headers)


def rotate(tenant: Tenant, key_id: str, order: object = None, **headers: str) -> Answer:
    """Ask for a key in the place of this one."""
    tenant.served.clock.time += 1
    body = None if order is None else json.dumps(order).encode()
    return tenant.call("POST", f"/v1/keys/{key_id}/rotate", body, **headers)


def statuses(tenant: Tenant, key: str) -> tuple[int, int]:
    """Read and write with a key."""
    held = replace(tenant, key=key)
    return held.call("GET", "/v1/files").status, held.call("POST", "/v1/batches", b"{}").status


def names(tenant: Tenant) -> Sequence[str | None]:
    """List the names of the organisation's keys."""
    return [key["name"] for key in tenant.call("GET", "/v1/keys").json["data"]]


def test_a_key_is_made_and_told_once(admin: Tenant) -> None:
    """It can do what it was made for at once; the list shows all of it but the key."""
    made = make(admin, {"name": "ci", "scopes": ["read"], "expires_in": "90d"}).json
    assert list(made) == [*MEMBERS, "key"]
    assert (made["object"], made["name"], made["scopes"], made["revoked_at"]) == ("api_key", "ci", ["read"], None)
    assert made["expires_at"] - made["created_at"] == 90 * 86_400
    assert made["key"].startswith(f"sk-bm-{made['hint']}")
    assert statuses(admin, made["key"]) == (200, 403)
    shown = admin.call("GET", "/v1/keys")
    assert {name: made[name] for name in MEMBERS} in shown.json["data"]
    assert made["key"][12:30] not in shown.body.decode()


def test_a_key_that_is_not_described_reads_and_writes_for_ever(admin: Tenant) -> None:
    """Without a body, and with an empty object."""
    for order in (None, {}):
        made = make(admin, order).json
        assert (made["name"], made["scopes"], made["expires_at"]) == (None, ["read", "write"], None)
        assert statuses(admin, made["key"]) == (200, 400)


def test_an_admin_key_alone_neither_reads_nor_writes(admin: Tenant) -> None:
    """It may give scopes that it lacks, which it could get by rotating another key anyway, and has none of them."""
    assert statuses(admin, admin.key) == (403, 403)
    made = make(admin, {"scopes": ["write", "admin", "read"]}).json
    assert made["scopes"] == ["read", "write", "admin"]
    assert statuses(admin, made["key"]) == (200, 400)
    assert replace(admin, key=made["key"]).call("GET", "/v1/keys").status == 200


@pytest.mark.parametrize(
    ("order", "param"),
    [({"scopes": ["root"]}, "scopes"), ({"name": ""}, "name"), ({"expires_in": "soon"}, "expires_in"), ([], None)],
)
def test_what_is_no_order_makes_no_key(admin: Tenant, order: object, param: str | None) -> None:
    """The 400 names the member."""
    answer = make(admin, order)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert len(names(admin)) == 2


def test_a_list_has_pages(admin: Tenant) -> None:
    """The newest first, and what is behind a cursor."""
    ids = [make(admin, {"name": str(number)}).json["id"] for number in range(3)]
    page = admin.call("GET", "/v1/keys?limit=2").json
    assert [key["id"] for key in page["data"]] == [ids[2], ids[1]]
    assert (page["has_more"], page["last_id"]) == (True, ids[1])
    rest = admin.call("GET", f"/v1/keys?limit=3&after={ids[1]}").json
    assert (rest["data"][0]["id"], rest["has_more"]) == (ids[0], False)


def test_a_revocation_counts_from_the_next_request_on(admin: Tenant) -> None:
    """Said again it changes nothing; a key may revoke itself."""
    made = make(admin).json
    revoked = admin.call("POST", f"/v1/keys/{made['id']}/revoke")
    assert statuses(admin, made["key"]) == (401, 401)
    at = int(admin.served.clock.time)
    assert revoked.json == {name: made[name] for name in MEMBERS} | {"revoked_at": at}
    admin.served.clock.time += 5
    assert admin.call("POST", f"/v1/keys/{made['id']}/revoke").json == revoked.json
    mine = admin.call("GET", "/v1/organisation").json["key_id"]
    assert admin.call("POST", f"/v1/keys/{mine}/revoke").status == 200
    assert admin.call("GET", "/v1/keys").status == 401


@pytest.mark.parametrize(("order", "seconds"), [(None, 86_400), ({"overlap": "1h"}, 3_600), ({"overlap": 0}, 0)])
def test_a_rotated_key_ends_after_the_overlap(admin: Tenant, order: object, seconds: int) -> None:
    """The new key is like it, and has its life anew."""
    old = make(admin, {"name": "ci", "scopes": ["read"], "expires_in": "30d"}).json
    new = rotate(admin, old["id"], order).json
    assert [new[name] for name in ("name", "scopes")] == [old[name] for name in ("name", "scopes")]
    assert new["expires_at"] - new["created_at"] == 30 * 86_400
    assert new["id"] != old["id"]
    admin.served.clock.time += max(0, seconds - 1)
    assert (statuses(admin, old["key"])[0], statuses(admin, new["key"])[0]) == (200 if seconds else 401, 200)
    admin.served.clock.time += 1
    assert (statuses(admin, old["key"])[0], statuses(admin, new["key"])[0]) == (401, 200)
    again = rotate(admin, old["id"])
    assert again.error == (400, "invalid_request_error", None, "invalid_key_state")


def test_a_key_may_rotate_itself(admin: Tenant) -> None:
    """Its answer arrives, and with no overlap it was its last."""
    mine = admin.call("GET", "/v1/organisation").json["key_id"]
    new = rotate(admin, mine, {"overlap": 0}).json
    assert admin.call("GET", "/v1/keys").status == 401
    assert replace(admin, key=new["key"]).call("GET", "/v1/keys").status == 200


def test_a_key_is_replaced_once(admin: Tenant) -> None:
    """The new one has the old one's whole time: cut short by a rotation, the old one's own time tells it no more."""
    old = make(admin, {"name": "ci"}).json
    assert rotate(admin, old["id"]).json["expires_at"] is None
    again = rotate(admin, old["id"])
    assert again.error == (400, "invalid_request_error", None, "invalid_key_state")
    assert statuses(admin, old["key"])[0] == 200  # its overlap goes on


@pytest.mark.parametrize("what", ["", "/{id}/rotate"])
def test_who_is_revoked_meanwhile_makes_no_key(admin: Tenant, what: str) -> None:
    """A body that comes slowly is no way to outlive one's own end."""
    served, old = admin.served, make(admin).json["id"]
    mine = admin.call("GET", "/v1/organisation").json["key_id"]
    before = names(replace(admin, key=served.key(admin.id, scopes={Scope.ADMIN})))
    head = f"POST /v1/keys{what.format(id=old)} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {admin.key}\r\n"
    with connected(served) as connection:
        connection.sendall(head.encode() + b"Content-Length: 2\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100")  # it has passed the gate
        served.rows(lambda tx: revoke_key(tx, key_id=mine, now=1))
        connection.sendall(b"{}")
        (answer,) = answers(told(connection))
    assert answer.status == 401
    assert names(replace(admin, key=served.key(admin.id, scopes={Scope.ADMIN})))[1:] == before


@pytest.mark.parametrize("again", [{"Idempotency_Key": "k1"}, {"x_stainless_retry_count": "1"}], ids=["key", "retry"])
@pytest.mark.parametrize("what", ["made", "rotated"])
def test_a_repeated_call_makes_no_second_key(admin: Tenant, again: dict[str, str], what: str) -> None:
    """It is answered with the key's facts, and without the key: that is kept nowhere."""
    old = make(admin, {"name": "old"}).json["id"]
    ask: Callable[..., Answer] = make if what == "made" else lambda held, order, **h: rotate(held, old, order, **h)
    first = again if "Idempotency_Key" in again else {}
    made = ask(admin, {"name": "ci"}, **first)
    told = ask(admin, {"name": "ci"}, **again)
    assert (made.status, told.status, told.headers["x-idempotent-replay"]) == (200, 200, "true")
    assert told.json == {name: value for name, value in made.json.items() if name != "key"}
    assert statuses(admin, made.json["key"])[0] == 200
    assert len(names(admin)) == 4
    rows = admin.served.rows(
        lambda tx: [*tx.connection.execute(select(replay)), *tx.connection.execute(select(api_key))]
    )
    assert made.json["key"][12:] not in repr([tuple(row) for row in rows])


def test_a_repeated_rotation_is_that_of_the_same_key(admin: Tenant) -> None:
    """An Idempotency-Key that was used for another one is refused."""
    first, second = make(admin).json["id"], make(admin).json["id"]
    assert rotate(admin, first, Idempotency_Key="k").status == 200
    assert rotate(admin, second, Idempotency_Key="k").status == 409


def test_no_key_is_logged(admin: Tenant, logged: list[MutableMapping[str, Any]]) -> None:
    """Neither the new one nor the one that asks, whatever becomes of the call."""
    made = make(admin).json
    rotated = rotate(admin, made["id"]).json
    admin.call("POST", f"/v1/keys/{made['id']}/revoke")
    make(admin, {"scopes": 1})
    for key in (made["key"], rotated["key"], admin.key):
        assert key[12:] not in repr(logged)


def test_keys_that_are_good_are_limited(serve: Callable[..., Served]) -> None:
    """One more is refused, and nothing is made, until one is revoked."""
    tenant = serve(limits=replace(KIMI, max_keys=3)).tenant()
    admin = replace(tenant, key=tenant.served.key(tenant.id, scopes={Scope.ADMIN}))
    made = make(admin).json["id"]
    for answer in (make(admin), rotate(admin, made)):
        assert answer.error == (400, "invalid_request_error", None, "too_many_keys")
    assert len(names(admin)) == 3
    assert rotate(admin, made, {"overlap": 0}).status == 200  # as many as before
    assert make(admin).status == 400
    last = admin.call("GET", "/v1/keys?limit=1").json["data"][0]["id"]
    assert admin.call("POST", f"/v1/keys/{last}/revoke").status == 200
    assert make(admin).status == 200
