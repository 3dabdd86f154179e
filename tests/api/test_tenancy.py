"""Every place of an id × whose id it is × every kind of key (invariants S1, S4; D9, D10)."""

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest

from api.served import Answer, Served, Tenant
from batchmill.spec.ids import mint_id
from batchmill.spec.objects import FileObject
from batchmill.spec.scopes import Scope
from batchmill.store.database import Transaction
from batchmill.store.file import File, find_file, insert_file
from batchmill.store.model import add_models
from batchmill.store.tables import api_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an id goes: the route and what it asks for, what the id names, the scope, and the statuses it leads to.

    The id stands for `{}` in the path or in the body; one in the query is behind `?`.
    """

    route: str
    prefix: str
    body: Mapping[str, object] | None = None
    scope: Scope = Scope.READ
    own: int = 200
    unknown: int = 404
    malformed: int = 404

    def call(self, tenant: Tenant, name: str) -> Answer:
        """Ask as this tenant for what has this id."""
        method, path = self.route.replace("{}", name).split(" ", maxsplit=1)
        if self.body is None:
            return tenant.call(method, path)
        told = {member: name if value == "{}" else value for member, value in self.body.items()}
        return tenant.call(method, path, json.dumps(told).encode(), Content_Type="application/json")


WRITE, ADMIN = Scope.WRITE, Scope.ADMIN
ORDER = {"input_file_id": "{}", "completion_window": "24h"}
HOOK = {"url": "https://hooks.example.com/"}
PLACES: Mapping[str, Place] = {
    "retrieve": Place(route="GET /v1/files/{}", prefix="file"),
    "content": Place(route="GET /v1/files/{}/content", prefix="file"),
    "delete": Place(route="DELETE /v1/files/{}", prefix="file", scope=WRITE),
    "files after": Place(route="GET /v1/files?after={}", prefix="file", unknown=200, malformed=400),
    "create": Place(route="POST /v1/batches", prefix="file", body=ORDER, scope=WRITE, unknown=400, malformed=400),
    "quote": Place(route="POST /v1/batches/quote", prefix="file", body=ORDER, scope=WRITE, unknown=400, malformed=400),
    "retrieve batch": Place(route="GET /v1/batches/{}", prefix="batch"),
    "progress": Place(route="GET /v1/batches/{}/progress", prefix="batch"),
    "results": Place(route="GET /v1/batches/{}/results", prefix="batch"),
    "requests": Place(route="GET /v1/batches/{}/requests?custom_id=row-1", prefix="batch"),
    "retry": Place(route="POST /v1/batches/{}/retry", prefix="batch", scope=WRITE, own=400),
    "cancel": Place(route="POST /v1/batches/{}/cancel", prefix="batch", scope=WRITE),
    "pause": Place(route="POST /v1/batches/{}/pause", prefix="batch", scope=WRITE),
    "resume": Place(route="POST /v1/batches/{}/resume", prefix="batch", scope=WRITE),
    "window": Place(route="POST /v1/batches/{}/window", prefix="batch", body={"completion_window": "48h"}, scope=WRITE),
    "priority": Place(route="POST /v1/batches/{}/priority", prefix="batch", body={"priority": 1}, scope=WRITE),
    "batches after": Place(route="GET /v1/batches?after={}", prefix="batch", unknown=200, malformed=400),
    "retries of": Place(route="GET /v1/batches?parent_id={}", prefix="batch", unknown=200, malformed=400),
    "revoke": Place(route="POST /v1/keys/{}/revoke", prefix="key", scope=ADMIN),
    "rotate": Place(route="POST /v1/keys/{}/rotate", prefix="key", scope=ADMIN),
    "delete webhook": Place(route="DELETE /v1/webhooks/{}", prefix="wh", scope=WRITE),
    "deliveries": Place(route="GET /v1/webhooks/{}/deliveries", prefix="wh"),
    "replay": Place(route="POST /v1/webhooks/{}/deliveries/{}/replay", prefix="wh", scope=WRITE, own=404),
    "webhooks after": Place(route="GET /v1/webhooks?after={}", prefix="wh", unknown=200, malformed=400),
    "webhook of a batch": Place(route="POST /v1/batches/{}/webhooks", prefix="batch", body=HOOK, scope=WRITE),
    "keys after": Place(route="GET /v1/keys?after={}", prefix="key", scope=ADMIN, unknown=200, malformed=400),
}
# Routes that no id of an object goes to, and the scope that each needs; none is any key's.
PLAIN: Mapping[str, Scope | None] = {
    "POST /v1/files": WRITE,
    "GET /v1/files": Scope.READ,
    "POST /v1/batches": WRITE,
    "POST /v1/batches/quote": WRITE,
    "POST /v1/batches/inline": WRITE,
    "GET /v1/batches": Scope.READ,
    "GET /v1/models": Scope.READ,
    "GET /v1/models/{}": Scope.READ,
    "GET /v1/keys": ADMIN,
    "POST /v1/keys": ADMIN,
    "GET /v1/webhooks": Scope.READ,
    "POST /v1/webhooks": WRITE,
    "GET /v1/usage": Scope.READ,
    "GET /v1/backends": Scope.READ,
    "GET /v1/organisation": None,
    "PATCH /v1/files": WRITE,  # these two are no routes
    "GET /v1/none": Scope.READ,
}
_COLLECTIONS = {"file": "/v1/files", "batch": "/v1/batches", "key": "/v1/keys", "wh": "/v1/webhooks"}
_OTHER = {"file": "batch", "batch": "key", "key": "wh", "wh": "file"}
IDS = ("own", "foreign", "foreign result", "unknown", "deleted", "malformed", "of the other kind")
CASES = list(itertools.product(PLACES, IDS))
BAD_KEYS = ("none", "malformed", "unknown", "revoked", "expired")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Two organisations, what each has, and the ids that a caller of the first may name."""

    ours: Tenant
    theirs: Tenant

    def id(self, prefix: str, whose: str) -> str:
        """Return an id: our own or theirs, of what was there or never was, or text that is none."""
        if whose == "own":
            return _make(self.ours, prefix)
        if whose == "foreign":
            return _make(self.theirs, prefix)
        if whose == "foreign result":
            return _result(self.theirs)
        if whose == "deleted":
            gone = _make(self.ours, "file")
            assert self.ours.call("DELETE", f"/v1/files/{gone}").status == 200
            return gone
        if whose == "malformed":
            return f"{prefix}_%00..'--"
        return mint_id(
            prefix if whose == "unknown" else {"file": "batch", "batch": "key", "key": "wh", "wh": "file"}[prefix], 1
        )


def _make(tenant: Tenant, prefix: str) -> str:
    if prefix == "key":
        return str(tenant.call("POST", "/v1/keys").json["id"])
    if prefix == "wh":
        for old in tenant.call("GET", "/v1/webhooks").json["data"]:  # there may be so many only
            tenant.call("DELETE", f"/v1/webhooks/{old['id']}")
        made = tenant.call("POST", "/v1/webhooks", json.dumps(HOOK).encode(), Content_Type="application/json")
        return str(made.json["id"])
    return str((tenant.upload() if prefix == "file" else tenant.create())["id"])


def _result(tenant: Tenant) -> str:
    """Add a result File, as the Finalizer does, over the bytes of an upload."""
    source, name = tenant.upload()["id"], mint_id("file", tenant.served.clock.now())

    def statements(tx: Transaction) -> None:
        found = find_file(tx, organisation_id=tenant.id, file_id=source, now=1)
        assert found is not None
        facts = FileObject(id=name, bytes=0, created_at=1, filename="o.jsonl", purpose="batch_output", expires_at=None)
        insert_file(tx, File(organisation_id=tenant.id, blob_key=found.blob_key, object=facts))

    tenant.served.rows(statements)
    return name


@pytest.fixture(scope="module")
def stage(served: Served) -> Stage:
    """Make the two organisations, each with a key that may do everything; a quote wants some model to be known."""
    served.rows(lambda tx: add_models(tx, names=["echo"], now=1))
    return Stage(ours=_owner(served), theirs=_owner(served))


def _owner(served: Served) -> Tenant:
    made = served.tenant()
    return replace(made, key=served.key(made.id, scopes=set(Scope)))


@pytest.fixture(scope="module")
def keys(served: Served, stage: Stage) -> Mapping[str, str]:
    """Make an Authorization header of every kind of bad key, and of keys with one scope, all but one, or none."""
    now = int(served.clock.now())
    revoked = served.key(stage.ours.id, key_id="key_revoked")
    gone = api_key.update().where(api_key.c.id == "key_revoked").values(revoked_at=now)
    served.rows(lambda tx: tx.connection.execute(gone))
    made = {
        "none": "",
        "malformed": "sk-bm-x",
        "unknown": f"{stage.ours.key[:-1]}!",
        "revoked": revoked,
        "expired": served.key(stage.ours.id, expires_at=now),
        "scope-less": served.key(stage.ours.id, scopes=()),
        **{scope.value: served.key(stage.ours.id, scopes={scope}) for scope in Scope},
        **{f"not {scope.value}": served.key(stage.ours.id, scopes=set(Scope) - {scope}) for scope in Scope},
    }
    return {name: f"Bearer {key}" for name, key in made.items()}


def _asked(served: Served, stage: Stage, place: Place, name: str, authorization: str) -> Answer:
    key = authorization.removeprefix("Bearer ")
    return place.call(Tenant(served=served, id=stage.ours.id, key=key), name)


@pytest.mark.parametrize(("place", "whose"), CASES)
def test_an_id_tells_nothing_of_others(stage: Stage, place: str, whose: str) -> None:
    """One's own id works; a foreign one, a deleted one and one of another kind are answered as one that never was."""
    spot = PLACES[place]
    name = stage.id(spot.prefix, whose)
    answer = spot.call(stage.ours, name)
    if whose == "own":
        assert answer.status == spot.own
        return
    if whose == "malformed":
        assert answer.status == spot.malformed
        return
    if spot.unknown == 200:
        assert _page_is_ours(stage, answer, kind=spot.prefix, param=re.split("[?=]", spot.route)[1])
        return
    assert answer.status == spot.unknown
    assert answer.without_ids() == spot.call(stage.ours, mint_id(spot.prefix, 1)).without_ids()
    if whose.startswith("foreign"):
        kind = "file" if name.startswith("file") else spot.prefix
        theirs = {item["id"]: item for item in stage.theirs.call("GET", _COLLECTIONS[kind]).json["data"]}
        assert theirs[name].get("revoked_at") is None  # and untouched
        assert theirs[name].get("status") in {"processed", "validating", None}


def _page_is_ours(stage: Stage, answer: Answer, *, kind: str, param: str) -> bool:
    """Say whether a page shows what is ours alone; an id of another kind is refused without a look."""
    if answer.status == 400:
        return answer.error == (400, "invalid_request_error", param, "invalid_value")
    theirs = {item["id"] for item in stage.theirs.call("GET", _COLLECTIONS[kind]).json["data"]}
    return not theirs & {item["id"] for item in answer.json["data"]}


@pytest.mark.parametrize("place", ["files after", "batches after", "webhooks after", "keys after"])
def test_a_foreign_cursor_is_an_unknown_one(stage: Stage, place: str) -> None:
    """What is behind a cursor depends on its time alone: one digit further on, where nothing is, the page is equal."""
    spot = PLACES[place]
    foreign = stage.id(spot.prefix, "foreign")
    beside = f"{foreign[:-1]}{'1' if foreign[-1] == '0' else '0'}"
    assert spot.call(stage.ours, foreign).without_ids() == spot.call(stage.ours, beside).without_ids()


@pytest.mark.parametrize(("place", "whose"), CASES)
def test_a_bad_key_is_one_401_wherever_it_comes(
    served: Served, stage: Stage, keys: Mapping[str, str], place: str, whose: str
) -> None:
    """Whatever is named, and whatever is wrong with the key."""
    spot, expected = PLACES[place], served.call("GET", "/v1/models").without_ids()
    name = stage.id(spot.prefix, whose)
    assert expected[0] == 401
    for key in BAD_KEYS:
        assert _asked(served, stage, spot, name, keys[key]).without_ids() == expected, key


@pytest.mark.parametrize(("place", "whose"), CASES)
def test_a_missing_scope_is_one_403_wherever_it_comes(
    served: Served, stage: Stage, keys: Mapping[str, str], place: str, whose: str
) -> None:
    """It is refused before anything is looked for: the same bytes for an id that is there and one that is not."""
    spot = PLACES[place]
    name = stage.id(spot.prefix, whose)
    for key in ("scope-less", f"not {spot.scope}"):
        answer = _asked(served, stage, spot, name, keys[key])
        assert answer.error == (403, "permission_denied_error", None, "insufficient_permissions")
        assert answer.without_ids() == _asked(served, stage, spot, mint_id(spot.prefix, 1), keys[key]).without_ids()
    works = _asked(served, stage, spot, name, keys[spot.scope.value])
    assert works.status not in {401, 403}


@pytest.mark.parametrize("route", PLAIN)
def test_a_bad_key_is_the_same_401_where_no_id_is(served: Served, keys: Mapping[str, str], route: str) -> None:
    """Routes without an id, and paths that are none, too; a missing scope is a 403 there, before all else."""
    expected = served.call("GET", "/v1/models").without_ids()
    method, path = route.replace("{}", "x").split(" ")
    for key in BAD_KEYS:
        assert served.call(method, path, Authorization=keys[key]).without_ids() == expected, key
    needed = PLAIN[route]
    lacking = ["scope-less"] if needed is None else ["scope-less", f"not {needed}"]
    for key in lacking:
        assert served.call(method, path, Authorization=keys[key]).status == (200 if needed is None else 403), key
    enough = keys["admin" if needed is None else needed.value]
    assert served.call(method, path, Authorization=enough).status not in {401, 403}


def test_every_route_is_in_one_of_the_tables(stage: Stage) -> None:
    """Who adds a route says here where its ids go, and which scope it needs."""
    paths = stage.ours.call("GET", "/openapi.json").json["paths"]
    served = {
        f"{method.upper()} {re.sub('{.*?}', '{}', path)}"
        for path, operations in paths.items()
        for method in operations.keys() - {"parameters", "head"}  # HEAD needs what GET needs
        if path.startswith("/v1/")
    }
    told = {place.route.split("?")[0] for place in PLACES.values()} | PLAIN.keys()
    assert served <= told
    assert told - served == {"PATCH /v1/files", "GET /v1/none"}
    for route in served:
        if "{}" in route and route != "GET /v1/models/{}":
            assert route in {place.route.split("?")[0] for place in PLACES.values()}
