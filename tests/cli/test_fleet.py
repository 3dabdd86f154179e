import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from acceptance.serving import Running, clean_environment
from batchmill.backends.builtin import BUILTIN_MODEL
from batchmill.blobs.disk import DiskBlobs
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.fleet import FleetWork, _environment, namespace_of, run_fleet
from batchmill.settings import Settings
from batchmill.spec.states import FINAL, Status
from batchmill.store.postgres import PostgresDatabase
from engine.mill import Mill, lines
from fakeclock import FakeClock
from postgres import cluster_of

_SHARED: dict[str, Any] = {"database": "postgresql://me:pw@127.0.0.1:1/db", "blobs": "s3://bucket/v1"}
_WITNESS = Path(__file__).parents[1] / "witness.py"


@pytest.mark.parametrize(
    ("settings", "flags", "says"),
    [
        ({}, {}, "name a PostgreSQL server with --database and a bucket"),
        ({"database": _SHARED["database"], "backend": "echo:"}, {}, "and a bucket with --blobs"),
        (_SHARED, {}, "either --backend URL, or --engine"),
        (_SHARED | {"backend": "echo:"}, {"engine": "builtin"}, "either --backend URL, or --engine"),
        (_SHARED, {"engine": "sglang"}, "--engine is builtin or vllm, not sglang"),
        (_SHARED, {"engine": "vllm"}, "--engine vllm needs --model"),
        (_SHARED | {"backend": "http://gpu/v1", "backend_key_env": "NOT_THERE"}, {}, "NOT_THERE"),
        (_SHARED | {"backend": "echo:"}, {"least": 3, "most": 2}, "--min and --max: from 3 to 2 workers"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], flags: dict[str, Any], says: str) -> None:
    """Each with a sentence, before a database or a cluster is asked for anything."""
    with pytest.raises(Stop, match=says) as stopped:
        run_fleet(Settings(**settings), **flags)
    assert stopped.value.code == Exit.USAGE


def test_a_fleet_is_its_database_s() -> None:
    """Another spelling of user, password and port is the same fleet; another database is another."""
    names = [
        namespace_of(Settings(database=f"postgresql://{url}"))
        for url in ("me:pw@host/rows", "you@host:5432/rows", "me:pw@host/others", "me:pw@else/rows")
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert not any("pw" in name or "host" in name for name in names)


def test_secrets_go_along_unseen() -> None:
    """A worker elsewhere gets the keys that it needs and no others, and none is shown by what carries them."""
    settings = Settings(backend="http://gpu/v1", backend_key_env="GPU_KEY", database="postgresql://me:pw@host/rows")
    here = {
        "GPU_KEY": "sk-1",
        "OTHER_KEY": "sk-2",
        "AWS_SECRET_ACCESS_KEY": "sk-3",
        "PGPASSFILE": "/f",
        "HOME": "/root",
    }
    handed = _environment(settings, here)
    assert set(handed) == {"GPU_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSFILE"}
    work = FleetWork(settings=settings.model_dump_json(), environment=handed)
    assert not any(secret in repr(work) for secret in ("sk-", "pw"))


# As the actor does it: on a thread that is not the main one.
_WORK = """
import asyncio, signal, sys, threading
from pathlib import Path
from batchmill.cli.fleet import FleetWork
work = FleetWork(settings=Path(sys.argv[1]).read_text(), environment={}, engine=sys.argv[2], options=["--of-its-own"])
stopping = asyncio.Event()
loop = work.loop()
signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(stopping.set))
with asyncio.Runner(loop_factory=lambda: loop) as runner:
    thread = threading.Thread(target=lambda: runner.run(work.run(stopping)))
    thread.start()
    thread.join()
"""

# Stands in for vLLM: an OpenAI-compatible server on the port that it is given.
_VLLM = """#!{python}
import os, sys
open("{told}", "w").write(" ".join(sys.argv[1:]))
port = next(word.partition("=")[2] for word in sys.argv if word.startswith("--port="))
os.execv(sys.executable, [sys.executable, "{witness}", "--log", "{told}.log", "--port", port])
"""


@pytest.mark.parametrize(("engine", "model"), [("vllm", "witness"), ("builtin", BUILTIN_MODEL)])
async def test_a_worker_has_its_engine_beside_it(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str, model: str
) -> None:
    """It starts the engine, works with it alone, drains and ends it; vLLM's stand-in shows how that is started."""
    stub = tmp_path / "vllm"
    stub.write_text(_VLLM.format(python=sys.executable, told=tmp_path / "told", witness=_WITNESS))
    stub.chmod(stat.S_IRWXU)
    url = await cluster_of(request.config).new_database()
    settings = Settings(
        data=tmp_path / "data",
        database=url,
        allow_unsafe_database=True,
        model=Path("witness") if engine == "vllm" else None,
    )
    (tmp_path / "settings").write_text(settings.model_dump_json())
    clock, database = FakeClock(now=time.time()), PostgresDatabase(url=url)
    mill = Mill(folder=tmp_path, database=database, blobs=DiskBlobs(folder=tmp_path / "data" / "blobs"), clock=clock)
    batch_id = await mill.batch(lines(3, model))
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(  # noqa: ASYNC220 - the loop has nothing else to do
            [sys.executable, "-c", _WORK, str(tmp_path / "settings"), engine],
            stderr=said,
            env=clean_environment(PATH=f"{tmp_path}:{os.environ['PATH']}"),
            start_new_session=True,
        )
    running = Running(process=process, out=tmp_path / "said", err=tmp_path / "said")
    request.addfinalizer(running.kill_everything)
    while (batch := (await mill.look(batch_id)).object).status not in FINAL:
        assert process.poll() is None, (tmp_path / "said").read_text()
        await asyncio.sleep(0.1)
    assert (batch.status, batch.counts.completed) == (Status.COMPLETED, 3)
    assert running.stop(signal.SIGTERM) == 0
    assert running.alive() == []
    await database.close()
    if engine == "vllm":
        told = (tmp_path / "told").read_text()
        assert told.startswith("serve witness --host=127.0.0.1 --port=")
        assert told.endswith(" --served-model-name=witness --tensor-parallel-size=1 --of-its-own")
