"""`batchmill keys` and `batchmill orgs`, beside a running API and without one."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from api.served import LINE, Served, Tenant
from batchmill.cli.exit import Stop
from batchmill.cli.main import app


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command on the test's data directory, in this process, and return what it prints."""

    def run(*words: str) -> str:
        capsys.readouterr()
        app([*words, "--data", str(tmp_path)], standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Run an API on the same data directory."""
    with closing(Served(tmp_path)) as served:
        yield served


def made(command: Callable[..., str], *words: str) -> Any:  # noqa: ANN401 - what the command prints
    """Run a command with --json."""
    return json.loads(command(*words, "--json"))


def status(served: Served, key: str, method: str = "GET") -> int:
    """Ask with a key."""
    return served.call(method, "/v1/files", Authorization=f"Bearer {key}").status


def test_a_revocation_counts_from_the_next_request_on(served: Served, command: Callable[..., str]) -> None:
    """The running API looks each key up for each request; revoked twice is revoked."""
    key = made(command, "keys", "create", "--org", "lab")
    assert status(served, key["key"]) == 200
    assert made(command, "keys", "revoke", key["id"]) == {"id": key["id"], "revoked": True}
    assert status(served, key["key"]) == 401
    assert command("keys", "revoke", key["id"]) == f"{key['id']} is revoked.\n"


def test_a_key_is_made_with_scopes_and_an_end(served: Served, command: Callable[..., str]) -> None:
    """The API holds it to both."""
    key = made(command, "keys", "create", "--scope", "read", "--expires-in", "90d", "--name", "ci")
    (row,) = made(command, "keys", "list")
    assert row["expires_at"] - row["created_at"] == 90 * 86_400
    served.clock.time = row["expires_at"] - 1
    assert (status(served, key["key"]), status(served, key["key"], "POST")) == (200, 403)
    served.clock.time += 1
    assert status(served, key["key"]) == 401


def test_a_list_shows_what_people_know_a_key_by(command: Callable[..., str]) -> None:
    """Id, organisation, name, hint, scopes and times, never the key; without a server, too."""
    first = made(command, "keys", "create")
    second = made(command, "keys", "create", "--org", "lab", "--name", "ci", "--scope", "write", "--scope", "read")
    rows = made(command, "keys", "list")
    assert [(row["id"], row["org"], row["name"], row["scopes"]) for row in rows] == [
        (first["id"], "default", None, ["read", "write"]),
        (second["id"], "lab", "ci", ["read", "write"]),
    ]
    assert list(rows[0]) == ["id", "org", "name", "hint", "scopes", "created_at", "expires_at", "revoked_at"]
    assert second["key"].startswith(f"sk-bm-{rows[1]['hint']}")
    shown = command("keys", "list") + json.dumps(rows)
    assert "read,write\t20" in shown
    for key in (first["key"], second["key"]):
        assert key[6:16] not in shown


@pytest.mark.parametrize(("overlap", "old"), [((), 200), (("--overlap", "1h"), 200), (("--overlap", "0"), 401)])
def test_a_rotated_key_ends_after_the_overlap(
    served: Served, command: Callable[..., str], overlap: tuple[str, ...], old: int
) -> None:
    """The new key has the organisation, the name and the scopes of the old one, which ends when it was told to."""
    first = made(command, "keys", "create", "--org", "lab", "--name", "ci", "--scope", "read")
    second = made(command, "keys", "rotate", first["id"], *overlap)
    before, after = made(command, "keys", "list")
    assert [before[name] for name in ("org", "name", "scopes")] == [after[name] for name in ("org", "name", "scopes")]
    served.clock.time = before["expires_at"] - (old == 200)
    assert (status(served, first["key"]), status(served, second["key"])) == (old, 200)
    served.clock.time = before["expires_at"]
    assert (status(served, first["key"]), status(served, second["key"])) == (401, 200)


def test_an_organisation_is_held_to_what_it_may_use(served: Served, command: Callable[..., str]) -> None:
    """A limit counts from the next request on, and the word none takes it away again."""
    org = made(command, "orgs", "create", "lab", "--max-files", "0", "--models", "a, b", "--requests-per-minute", "100")
    assert (org["max_files"], org["max_bytes"], org["models"]) == (0, None, ["a", "b"])
    tenant = Tenant(served=served, id=org["id"], key=made(command, "keys", "create", "--org", "lab")["key"])
    with pytest.raises(AssertionError, match="at most 0"):
        tenant.upload(LINE)
    changed = made(command, "orgs", "set", "lab", "--max-files", "none", "--max-bytes", "1000", "--weight", "3")
    assert made(command, "orgs", "list") == [changed]
    assert (changed["max_files"], changed["max_bytes"], changed["requests_per_minute"]) == (None, 1000, 100)
    assert tenant.upload(LINE)["object"] == "file"
    assert tenant.call("GET", "/v1/files").headers["x-ratelimit-limit"] == "100"
    assert "\t-\t1000\ta,b\t100\t3\t-\t-\t-\n" in command("orgs", "list")


def test_an_organisation_has_budgets(served: Served, command: Callable[..., str]) -> None:
    """They hold from the next request on, and the word none takes each away."""
    budgets = ("--tokens-per-day", "0", "--enqueued-tokens", "5000", "--batch-cost", "12.50")
    org = made(command, "orgs", "create", "lab", *budgets)
    assert (org["tokens_per_day"], org["enqueued_tokens"], org["batch_cost"]) == (0, 5000, 12.5)
    tenant = Tenant(served=served, id=org["id"], key=made(command, "keys", "create", "--org", "lab")["key"])
    order = {"input_file_id": tenant.upload(LINE)["id"], "completion_window": "24h"}
    assert tenant.send_json(order).status == 429
    kinds = [budget["kind"] for budget in tenant.call("GET", "/v1/usage").json["budgets"]]
    assert kinds == ["tokens_per_day", "enqueued_tokens", "batch_cost"]
    none = made(command, "orgs", "set", "lab", *(word if word.startswith("--") else "none" for word in budgets))
    assert (none["tokens_per_day"], none["enqueued_tokens"], none["batch_cost"]) == (None, None, None)
    assert tenant.send_json(order).status == 200
    assert tenant.call("GET", "/v1/usage").json["budgets"] == []


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["keys", "revoke", "key_1"], 1, "There is no key 'key_1'"),
        (["keys", "rotate", "key_1"], 1, "There is no key 'key_1'"),
        (
            ["keys", "create", "--scope", "root"],
            2,
            "--scope: 'root' is not a valid Scope; there are read,",
        ),
        (["keys", "revoke", "\udcff"], 1, "There is no key '\\udcff'"),
        (["keys", "create", "--expires-in", "0"], 2, "--expires-in: a key that lasts for no time"),
        (["orgs", "create", "lab", "--models", " , "], 2, "--models: ' , ' names no model"),
        (["orgs", "create", "lab", "--models", ""], 2, "--models: '' names no model"),
        (["keys", "create", "--expires-in", "soon"], 2, "--expires-in: 'soon' is not a duration"),
        (["keys", "create", "--expires-in", "99999999999d"], 2, "--expires-in: "),
        (["keys", "rotate", "key_1", "--overlap", "-1h"], 2, "--overlap: '-1h' is not a duration"),
        (["orgs", "set", "lab", "--max-files", "1"], 1, "There is no organisation 'lab'"),
        (
            ["orgs", "create", "lab", "--max-files", "-1"],
            2,
            "--max-files: '-1' is neither a whole number from 0 to",
        ),
        (["orgs", "create", "lab", "--max-bytes", "9" * 5000], 2, "--max-bytes: "),
        (["orgs", "create", "lab", "--tokens-per-day", "1.5"], 2, "--tokens-per-day: '1.5' is neither a whole number"),
        *(
            (["orgs", "create", "lab", "--batch-cost", text], 2, f"--batch-cost: {text!r} is neither an amount such as")
            for text in ("-1", "1e3", "NaN", "", "0.123456789", "١")
        ),
        *(
            (words, 2, f"{words[-2] if words[-2].startswith('--') else 'NAME'}: {words[-1]!r} is no name: 1 to 100")
            for name in ("", " ", "a\tb", " lab", "x" * 101, "\x1b[31mred", "\udcff")
            for words in (
                ["orgs", "create", name],
                ["orgs", "set", name],
                ["keys", "create", "--org", name],
                ["keys", "create", "--name", name],
            )
        ),
        (["orgs", "create", "lab", "--requests-per-minute", "0"], 2, "--requests-per-minute: '0' is neither"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_sentence(
    command: Callable[..., str], words: list[str], code: int, sentence: str
) -> None:
    """An unknown id ends with 1, a wrong option with 2; nothing is made."""
    command("migrate")
    with pytest.raises(Stop) as stop:
        command(*words)
    assert stop.value.code == code
    assert str(stop.value).startswith(sentence)
    assert (made(command, "keys", "list"), made(command, "orgs", "list")) == ([], [])


def test_what_is_over_is_not_done_again(command: Callable[..., str]) -> None:
    """A revoked key is not rotated, one that was rotated is not either, and an organisation's name is given once."""
    key = made(command, "keys", "create", "--org", "lab")
    command("keys", "revoke", key["id"])
    with pytest.raises(Stop, match="is revoked or expired"):
        command("keys", "rotate", key["id"])
    rotated = made(command, "keys", "create", "--org", "lab")
    command("keys", "rotate", rotated["id"])
    with pytest.raises(Stop, match="was replaced already"):
        command("keys", "rotate", rotated["id"])
    with pytest.raises(Stop, match="already"):
        command("orgs", "create", "lab")


@pytest.mark.parametrize(
    "words",
    ["keys list", "keys revoke key_1", "orgs list", "orgs set lab", "backends list", "backends drain http://gpu/v1"],
)
def test_a_wrong_folder_is_told_and_not_made(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str) -> None:
    """What speaks of something that is there makes no data directory where there is none."""
    with pytest.raises(Stop, match="There is no data directory of Batchmill at ") as stop:
        app([*words.split(), "--data", str(tmp_path / "none")], standalone_mode=False)
    assert (stop.value.code, capsys.readouterr().out, [*tmp_path.iterdir()]) == (2, "", [])
