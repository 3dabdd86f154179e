"""What is served is what the OpenAPI document says, for the requests that schemathesis makes up."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from api.served import Served
from batchmill.spec.limits import KIMI
from batchmill.store.database import Transaction
from batchmill.store.model import BackendState, save_backend
from batchmill.store.worker import insert_worker

_SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
_CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.parametrize("has_key", [True, False])
def test_no_request_is_answered_otherwise_than_documented(
    serve: Callable[..., Served], tmp_path: Path, has_key: bool
) -> None:
    """Single calls and chains of them, right and wrong: every answer is in the document, and none is a fault."""
    served = serve(limits=replace(KIMI, failed_auth_per_minute=None))  # a 401 each, never the 429 of too many
    served.rows(_ready)
    tenant = served.tenant()
    tenant.create()
    command = [_SCHEMATHESIS, "--config-file", _CONFIG, "run", f"{served.url}/openapi.json"]
    command += ["--max-examples=10", "--seed=4", "--no-color"]
    if not has_key:
        command += ["--phases=coverage"]  # a chain of 401s leads nowhere
    else:
        command += ["--header", f"Authorization: Bearer {tenant.key}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _ready(tx: Transaction) -> None:
    """Let there be a worker and a well backend: `/readyz` is a 503 without."""
    insert_worker(tx, worker_id="worker_1", lease=1e6, now=1)
    save_backend(tx, BackendState(name="echo", well=True, reason=None, since=1))
