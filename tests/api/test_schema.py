"""What is served is what the OpenAPI document says, for the requests that schemathesis makes up."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from api.served import Served
from batchmill.spec.ids import mint_id
from batchmill.spec.limits import KIMI
from batchmill.spec.scopes import Scope
from batchmill.store.database import Transaction
from batchmill.store.model import BackendState, add_models, save_backend
from batchmill.store.worker import insert_worker
from fakeclock import FakeClock

_SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
_KEY_ID = mint_id("key", 1)  # that asks
_CONFIG = Path(__file__).with_name("schemathesis.toml")

_OURS = r"^/v1/(?!files|models|batches)|^/v1/batches/(quote|inline)$|^/v1/batches/[^/]+/(?!cancel$)"


def test_no_request_is_answered_otherwise_than_documented(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Single calls and chains of them, right and wrong: every answer is in the document, and none is a fault.

    The chains get somewhere: files are uploaded, and batches made over them.
    """
    served = _ready(serve)
    tenant = served.tenant()
    given = tenant.create()["input_file_id"]
    key = f"Authorization: Bearer {tenant.key}"
    _run(served, tmp_path, given, "--max-examples=20", "--header", key, "--exclude-path-regex", _OURS)
    with tenant.openai() as client:
        batches = list(client.batches.list(limit=100))
    assert len({batch.input_file_id for batch in batches}) > 1


def test_our_own_routes_answer_as_documented(serve: Callable[..., Served], tmp_path: Path) -> None:
    """The same of the routes beside the contract's, in a run of their own: its chains would be lost among them."""
    served = _ready(serve)
    tenant = served.tenant()
    tenant = replace(tenant, key=served.key(tenant.id, key_id=_KEY_ID, scopes=set(Scope)))
    given = tenant.create()["input_file_id"]
    key = f"Authorization: Bearer {tenant.key}"
    _run(served, tmp_path, given, "--max-examples=10", "--header", key, "--include-path-regex", _OURS)


def test_without_a_key_every_answer_is_documented_too(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Whatever is asked for, and however: no fault, and nothing but a 401 that is not in the document."""
    _run(_ready(serve), tmp_path, "none", "--max-examples=10", "--phases=coverage,fuzzing")


def _run(served: Served, folder: Path, given: str, *options: str) -> None:
    """Let schemathesis ask what it likes; it fails on the first answer that is not documented.

    It may send again what was cut off: the body of who has no key is not read, so that its answer may be lost.
    """
    command = [_SCHEMATHESIS, "--config-file", _CONFIG, "run", f"{served.url}/openapi.json", "--seed=4", "--no-color"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"} | {
        "INPUT_FILE_ID": given,
        "KEY_ID": _KEY_ID,
    }
    done = subprocess.run(
        [*command, *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,  # 20 s by itself, 95 beside a busy loop on each core and other tests
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class _Ticking(FakeClock):
    """A clock that goes on by a millisecond with each look at it, so that ids sort by creation and nothing by chance.

    While it stood still, lists came in the order of the ids' random bits. A link takes what is in a list by its place,
    and what is asked for next depends on the answers: so no seed made two runs alike, and in some of them the File that
    is given to all was deleted early.
    """

    def now(self) -> float:
        """Unix time in seconds."""
        self.time += 0.001
        return self.time


def _ready(serve: Callable[..., Served]) -> Served:
    """Serve with a worker, a model and a well backend: `/readyz` is a 503 without."""

    def statements(tx: Transaction) -> None:
        insert_worker(tx, worker_id="worker_1", lease=1e6, now=1)
        save_backend(tx, BackendState(name="echo", well=True, reason=None, since=1))
        add_models(tx, names=["echo"], now=1)

    limits = replace(KIMI, failed_auth_per_minute=None)  # a 401 each, never the 429 of too many
    served = serve(limits=limits, clock=_Ticking())
    served.rows(statements)
    return served
