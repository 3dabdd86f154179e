"""A real S3-speaking server for the tests, and places for bytes in it: a prefix each, in one bucket."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from batchmill.blobs.bucket import BucketBlobs
from faults.toxic import Toxic

_START_SECONDS = 60.0
_NAME = "batchmill-tests"
# The library's own variables: how processes that a test starts find the server, too. The keys open nothing else.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


class Bucket:
    """moto's server with one bucket, on a free port of 127.0.0.1; it keeps objects in memory and dies with us."""

    def __init__(self) -> None:
        log = open(os.devnull, "wb")  # noqa: SIM115, PTH123 - the server's, to its end
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, __file__]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        log.close()
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the S3 server did not start")
        self.port = int(line)
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._numbers = count()
        os.environ.update(ENVIRONMENT, AWS_ENDPOINT=self.endpoint)
        asked = urllib.request.Request(f"{self.endpoint}/{_NAME}", method="PUT")  # noqa: S310 - our own server
        urllib.request.urlopen(asked, timeout=_START_SECONDS).close()  # noqa: S310 - the same

    def stop(self) -> None:
        """End the server, and all objects."""
        self._server.kill()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()
        for name in (*ENVIRONMENT, "AWS_ENDPOINT"):
            os.environ.pop(name, None)

    def new_url(self) -> str:
        """Return a place that holds nothing yet."""
        return f"s3://{_NAME}/test-{next(self._numbers)}"

    def blobs(self, folder: Path, *, patience: float = 5.0) -> BucketBlobs:
        """Return a place for bytes that holds none."""
        return BucketBlobs(url=self.new_url(), scratch=folder / "scratch", patience=patience)


_BUCKET = pytest.StashKey[Bucket]()


def bucket_of(config: pytest.Config) -> Bucket:
    """Return the session's one bucket, started when it is first asked for and stopped at the end."""
    if _BUCKET not in config.stash:
        bucket = Bucket()
        config.add_cleanup(bucket.stop)
        config.stash[_BUCKET] = bucket
    return config.stash[_BUCKET]


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """The session's bucket."""
    return bucket_of(request.config)


@pytest.fixture
def toxic(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toxic]:
    """A proxy with faults that every request to the bucket goes through."""
    proxy = Toxic(bucket.port)
    monkeypatch.setenv("AWS_ENDPOINT", proxy.url)
    yield proxy
    proxy.close()


def _serve() -> None:
    """Serve S3 on a free port, and say which; moto logs each request."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: PLC0415 - this process only
    from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: PLC0415 - the same

    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # connections are kept, as S3 keeps them
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    print(server.server_port, flush=True)  # noqa: T201 - who started us reads it
    server.serve_forever()


if __name__ == "__main__":
    _serve()
