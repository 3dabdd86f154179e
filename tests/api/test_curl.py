import json
import subprocess
from pathlib import Path

from api.served import LINE, Tenant


def curl(tenant: Tenant, path: str, *options: str, cwd: Path) -> tuple[int, bytes]:
    """Run curl with the key; return the status and the body."""
    command = ["curl", "-sS", f"{tenant.served.url}{path}", "-H", f"Authorization: Bearer {tenant.key}", *options]
    done = subprocess.run([*command, "-w", "\n%{http_code}"], cwd=cwd, capture_output=True, check=True, timeout=60)
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body


def test_the_published_commands_work_as_printed(tenant: Tenant, tmp_path: Path) -> None:
    """The two published samples upload a file and create a batch, without an endpoint."""
    (tmp_path / "input.jsonl").write_bytes(LINE)
    status, body = curl(tenant, "/v1/files", "-F", "purpose=batch", "-F", "file=@input.jsonl", cwd=tmp_path)
    assert status == 200
    order = json.dumps({"input_file_id": json.loads(body)["id"], "completion_window": "24h"})
    status, body = curl(tenant, "/v1/batches", "-H", "Content-Type: application/json", "-d", order, cwd=tmp_path)
    assert status == 200
    assert json.loads(body)["endpoint"] == "/v1/chat/completions"
    assert json.loads(body)["status"] == "validating"


def test_a_large_upload_waits_for_100_continue(tenant: Tenant, tmp_path: Path) -> None:
    """Curl asks before it sends 3 MB, is told to go on, and the bytes come back the same."""
    content = LINE * (3_000_000 // len(LINE))
    (tmp_path / "input.jsonl").write_bytes(content)
    form = ("-F", "purpose=batch", "-F", "file=@input.jsonl", "--expect100-timeout", "60")
    status, body = curl(tenant, "/v1/files", *form, cwd=tmp_path)
    assert status == 200
    assert json.loads(body)["bytes"] == len(content)
    assert curl(tenant, f"/v1/files/{json.loads(body)['id']}/content", cwd=tmp_path) == (200, content)


def test_a_download_is_saved_under_its_own_name(tenant: Tenant, tmp_path: Path) -> None:
    """`curl -OJ` saves a download under its filename, and never above its folder."""
    file_id = tenant.upload(filename="../../up.jsonl")["id"]
    assert curl(tenant, f"/v1/files/{file_id}/content", "-OJ", cwd=tmp_path)[0] == 200
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [LINE]


def test_a_refused_large_upload_is_answered(tenant: Tenant, tmp_path: Path) -> None:
    """Curl gets the 400 for a wrong purpose after 3 MB, not a reset."""
    (tmp_path / "input.jsonl").write_bytes(LINE * (3_000_000 // len(LINE)))
    status, body = curl(tenant, "/v1/files", "-F", "file=@input.jsonl", "-F", "purpose=vision", cwd=tmp_path)
    assert status == 400
    assert json.loads(body)["error"]["param"] == "purpose"
