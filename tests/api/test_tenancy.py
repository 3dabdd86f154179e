"""Every place of an id × whose id it is × every kind of key (invariants S1, S4; D9, D10)."""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest

from api.served import Answer, Served, Tenant
from batchmill.spec.ids import mint_id
from batchmill.spec.objects import FileObject
from batchmill.spec.scopes import Scope
from batchmill.store.database import Transaction
from batchmill.store.file import File, find_file, insert_file
from batchmill.store.tables import api_key

Call = Callable[[Tenant, str], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an id goes: the prefix of what it names, whether the call reads, and the statuses that it leads to."""

    prefix: str
    call: Call
    reads: bool = True
    own: int = 200
    unknown: int = 404
    malformed: int = 404


def _at(method: str, path: str) -> Call:
    return lambda tenant, name: tenant.call(method, path.format(name))


def _steer(route: str, body: object) -> Call:
    text = json.dumps(body).encode()
    return lambda tenant, name: tenant.call("POST", f"/v1/batches/{name}/{route}", text)


def _create(tenant: Tenant, name: str) -> Answer:
    return tenant.send_json({"input_file_id": name, "completion_window": "24h"})


PLACES: Mapping[str, Place] = {
    "retrieve": Place(prefix="file", call=_at("GET", "/v1/files/{}")),
    "content": Place(prefix="file", call=_at("GET", "/v1/files/{}/content")),
    "delete": Place(prefix="file", call=_at("DELETE", "/v1/files/{}"), reads=False),
    "files after": Place(prefix="file", call=_at("GET", "/v1/files?after={}"), unknown=200, malformed=400),
    "create": Place(prefix="file", call=_create, reads=False, unknown=400, malformed=400),
    "retrieve batch": Place(prefix="batch", call=_at("GET", "/v1/batches/{}")),
    "cancel": Place(prefix="batch", call=_at("POST", "/v1/batches/{}/cancel"), reads=False),
    "pause": Place(prefix="batch", call=_at("POST", "/v1/batches/{}/pause"), reads=False),
    "resume": Place(prefix="batch", call=_at("POST", "/v1/batches/{}/resume"), reads=False),
    "window": Place(prefix="batch", call=_steer("window", {"completion_window": "48h"}), reads=False),
    "priority": Place(prefix="batch", call=_steer("priority", {"priority": 1}), reads=False),
    "batches after": Place(prefix="batch", call=_at("GET", "/v1/batches?after={}"), unknown=200, malformed=400),
}
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
        return mint_id(prefix if whose == "unknown" else {"file": "batch", "batch": "file"}[prefix], 1)


def _make(tenant: Tenant, prefix: str) -> str:
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
    """Make the two organisations."""
    return Stage(ours=served.tenant(), theirs=served.tenant())


@pytest.fixture(scope="module")
def keys(served: Served, stage: Stage) -> Mapping[str, str]:
    """Make an Authorization header of every kind of bad key, and of keys with one scope or none."""
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
        "read": served.key(stage.ours.id, scopes={Scope.READ}),
        "write": served.key(stage.ours.id, scopes={Scope.WRITE}),
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
    if "after" in place:
        assert _page_is_ours(stage, answer, kind=spot.prefix)
        return
    assert answer.status == spot.unknown
    assert answer.without_ids() == spot.call(stage.ours, mint_id(spot.prefix, 1)).without_ids()
    if whose.startswith("foreign"):
        kind = "files" if name.startswith("file") else "batches"
        assert stage.theirs.call("GET", f"/v1/{kind}/{name}").status == 200  # and untouched


def _page_is_ours(stage: Stage, answer: Answer, *, kind: str) -> bool:
    """Say whether a page shows what is ours alone; a cursor of another kind is refused without a look."""
    if answer.status == 400:
        return answer.error == (400, "invalid_request_error", "after", "invalid_value")
    path = "/v1/files" if kind == "file" else "/v1/batches"
    theirs = {item["id"] for item in stage.theirs.call("GET", path).json["data"]}
    return not theirs & {item["id"] for item in answer.json["data"]}


@pytest.mark.parametrize("place", ["files after", "batches after"])
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
    for key in ("scope-less", "write" if spot.reads else "read"):
        answer = _asked(served, stage, spot, name, keys[key])
        assert answer.error == (403, "permission_denied_error", None, "insufficient_permissions")
        assert answer.without_ids() == _asked(served, stage, spot, mint_id(spot.prefix, 1), keys[key]).without_ids()
    works = _asked(served, stage, spot, name, keys["read" if spot.reads else "write"])
    assert works.status not in {401, 403}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/files"),
        ("GET", "/v1/files"),
        ("POST", "/v1/batches"),
        ("GET", "/v1/batches"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/x"),
        ("PATCH", "/v1/files"),
        ("GET", "/v1/none"),
    ],
)
def test_a_bad_key_is_the_same_401_where_no_id_is(
    served: Served, keys: Mapping[str, str], method: str, path: str
) -> None:
    """Routes without an id, and paths that are none, too."""
    expected = served.call("GET", "/v1/models").without_ids()
    for key in BAD_KEYS:
        assert served.call(method, path, Authorization=keys[key]).without_ids() == expected, key
    assert served.call(method, path, Authorization=keys["scope-less"]).status == 403
