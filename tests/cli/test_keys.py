"""`batchmill keys create`: with and without a running server."""

import json
from pathlib import Path

import pytest
from openai import AuthenticationError, PermissionDeniedError

from acceptance.serving import Processes, clean_environment


def test_a_key_made_beside_a_running_server_works_at_once(processes: Processes) -> None:
    """A new key of a new organisation is good for the next request, and sees nothing of another organisation."""
    server = processes.ready("--backend", "echo:")
    owner = processes.client(server, server.key)
    owner.files.create(file=("input.jsonl", b"{}\n"), purpose="batch")
    ended = processes.batchmill("keys", "create", "--data", server.data, "--org", "lab", "--json")
    assert ended.code == 0
    made = json.loads(ended.out)
    assert list(made) == ["id", "key", "org"]
    assert made["org"] == "lab"
    assert made["id"].startswith("key_")
    stranger = processes.client(server, made["key"])
    assert [model.id for model in stranger.models.list()] == ["echo"]
    assert list(stranger.files.list()) == []
    assert len(list(owner.files.list())) == 1


def test_the_first_key_may_do_everything(processes: Processes) -> None:
    """It is the owner's: keys and usage are open to it, too, and it makes keys that may do less."""
    server = processes.ready("--backend", "echo:")
    owner = processes.client(server, server.key)
    who = owner.get("/organisation", cast_to=object)
    assert isinstance(who, dict)
    assert (who["name"], who["scopes"]) == ("default", ["read", "write", "admin"])
    made = owner.post("/keys", cast_to=object, body={"scopes": ["read"]})
    assert isinstance(made, dict)
    reader = processes.client(server, made["key"])
    assert [model.id for model in reader.models.list()] == ["echo"]
    with pytest.raises(PermissionDeniedError):
        reader.get("/keys", cast_to=object)


def test_a_key_can_be_made_before_the_first_start(processes: Processes, tmp_path: Path) -> None:
    """Without a server the data directory is made, the key alone is printed, and the first start makes no other."""
    data = tmp_path / "new" / "data"
    ended = processes.batchmill("keys", "create", environment=clean_environment(BATCHMILL_DATA=str(data)))
    assert (ended.code, ended.err) == (0, "")
    server = processes.serve("--backend", "echo:", data=data)
    assert "sk-bm-" not in server.out.read_text()
    key = ended.out.removesuffix("\n")
    assert list(processes.client(server, key).files.list()) == []


def test_a_key_with_a_typing_error_is_refused(processes: Processes) -> None:
    """Another key than those made is refused with 401."""
    server = processes.serve("--backend", "echo:")
    wrong = server.key[:-1] + ("0" if server.key[-1] != "0" else "1")
    with pytest.raises(AuthenticationError):
        processes.client(server, wrong).models.list()


def test_no_key_is_kept_or_logged(processes: Processes) -> None:
    """A key is printed once: it is in no log, and in no file of the data directory."""
    server = processes.serve("--backend", "echo:")
    key = server.key
    processes.client(server, key).models.list()
    made = processes.batchmill("keys", "create", "--data", server.data).out.strip()
    assert server.stop() == 0
    kept = b"".join(path.read_bytes() for path in server.data.rglob("*") if path.is_file()) + server.err.read_bytes()
    for secret in (key, made):
        assert secret.startswith("sk-bm-")
        assert secret.encode() not in kept
