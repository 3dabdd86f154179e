"""`batchmill doctor`: what it finds sound, what it finds wrong, and that it changes nothing."""

import asyncio
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from batchmill.blobs.bucket import BucketBlobs
from batchmill.cli import data_directory
from batchmill.cli.checkup import storage
from batchmill.cli.doctor import check_names, run_doctor
from batchmill.cli.finding import Verdict
from batchmill.settings import load_settings
from bucket import Bucket
from postgres import Cluster


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("BATCHMILL_"):
            monkeypatch.delenv(name)


def _found(flags: dict[str, Any], **more: str) -> dict[str, dict[str, str]]:
    said: list[str] = []
    sound = run_doctor(flags, server=more.get("server"), key=more.get("key"), as_json=True, say=said.append)
    (answer,) = map(json.loads, said)
    assert answer["sound"] is sound
    assert sound is not any(finding["verdict"] == "problem" for finding in answer["findings"])
    assert all((finding["advice"] is None) is (finding["verdict"] == "ok") for finding in answer["findings"])
    return {finding["check"]: finding for finding in answer["findings"]}


def test_a_new_machine_is_sound_and_stays_as_it_is(tmp_path: Path) -> None:
    """Nothing is made where nothing was."""
    found = _found({"data": str(tmp_path / "data"), "backend": ["echo:"], "port": 0})
    assert {finding["verdict"] for finding in found.values()} == {"ok"}
    assert found["backend echo:"]["sentence"].endswith(": echo.")
    assert "not made yet" in found["data"]["sentence"]
    assert [*tmp_path.iterdir()] == []


def test_what_is_wrong_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is away, one whose key is not set, a port that is taken: each is told, with what to do."""
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        backends = ["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"]
        flags = {"data": str(tmp_path), "port": port, "metrics_port": 0}
        found = _found(flags | {"backend": backends, "backend_key_env": ["-", "NO_SUCH_KEY"]})
    for check, words in {
        "port": "cannot be listened on",
        "backend http://127.0.0.1:1/v1": "cannot be connected to",
        "backend http://127.0.0.1:2/v1": "NO_SUCH_KEY, which should hold a key, is not set",
    }.items():
        assert found[check]["verdict"] == "problem"
        assert words in found[check]["sentence"]


def test_settings_that_make_no_sense_are_told(tmp_path: Path) -> None:
    """Each by its name; what depends on them is not looked at."""
    found = _found({"data": str(tmp_path), "port": "many"}, server="http://127.0.0.1:1")
    assert found["settings"]["verdict"] == "problem"
    assert found["settings"]["sentence"].startswith("port: ")
    assert found["server"]["verdict"] == "problem"
    assert "data" not in found


def test_names_that_are_no_settings_are_told() -> None:
    """With the one that was perhaps meant; those of settings and of the client are well."""
    names = {
        "BATCHMILL_BACKENDS": "",
        "BATCHMILL_PORT": "",
        "BATCHMILL_API_KEY": "",
        "OTHER": "",
        "BATCHMILL_XYZZY": "",
    }
    found = list(check_names(names))
    assert [finding.verdict for finding in found] == [Verdict.WARNING, Verdict.WARNING]
    assert found[0].sentence == "BATCHMILL_BACKENDS is no setting: it does nothing."
    assert found[0].advice == "Perhaps BATCHMILL_BACKEND is meant"


def test_a_folder_that_cannot_serve_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its place, and a network filesystem."""
    (tmp_path / "file").touch()
    assert _found({"data": str(tmp_path / "file" / "data"), "backend": ["echo:"]})["data"]["verdict"] == "problem"
    monkeypatch.setattr(data_directory, "filesystem", lambda _: "nfs4")
    assert "network filesystem (nfs4)" in _found({"data": str(tmp_path), "backend": ["echo:"]})["data"]["sentence"]


def test_rows_and_bytes_elsewhere_are_tried(cluster: Cluster, bucket: Bucket, tmp_path: Path) -> None:
    """PostgreSQL tells its tables and its clock, the bucket keeps nothing of the probe; wrong names are problems."""
    database = asyncio.run(cluster.new_database(migrated=False))
    place = bucket.new_url()
    settings = load_settings({"data": str(tmp_path), "database": database, "blobs": place})
    assert "fsync=off" in next(each.sentence for each in storage(settings) if each.check == "database")
    settings = settings.model_copy(update={"allow_unsafe_database": True})
    found = {finding.check: finding for finding in storage(settings)}
    assert {name: str(finding.verdict) for name, finding in found.items()} == {
        "data": "ok",
        "database": "warning",  # no table is there yet
        "clock": "ok",
        "bucket": "ok",
    }
    assert list(BucketBlobs(url=place, scratch=tmp_path / "scratch").keys(before=time.time() + 60)) == []
    missing = {"database": f"{database}-not-there", "blobs": "s3://no-such-bucket/x"}
    found = {finding.check: finding for finding in storage(settings.model_copy(update=missing))}
    assert {str(found[check].verdict) for check in ("database", "bucket")} == {"problem"}
