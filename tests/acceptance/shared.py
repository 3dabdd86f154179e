"""An installation past one machine: PostgreSQL and a bucket, and how a test looks at both behind the product's back."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import boto3

from acceptance.serving import Row
from bucket import ENVIRONMENT, Bucket
from postgres import Cluster

_LEASE = "2s"  # nothing else says that a worker has died
_OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"


class Shared:
    """See `acceptance.serving.Installation`. All data directories see the same rows and bytes."""

    prints_key = False

    def __init__(self, *, url: str, bucket: Bucket, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._connection: asyncpg.Connection = runner.run(asyncpg.connect(url))
        self._s3 = boto3.client("s3", endpoint_url=bucket.endpoint)  # not the product's library
        blobs = bucket.new_url()
        self._place = urlsplit(blobs)
        self.environment: Mapping[str, str] = {
            **ENVIRONMENT,
            "AWS_ENDPOINT": bucket.endpoint,
            "BATCHMILL_DATABASE": url,
            "BATCHMILL_BLOBS": blobs,
            "BATCHMILL_ALLOW_UNSAFE_DATABASE": "1",
            "BATCHMILL_LEASE": _LEASE,
        }

    def query(self, data: Path, sql: str, *values: object) -> list[Row]:  # noqa: ARG002 - as said
        """See `Installation`."""
        numbers = count(1)
        numbered = re.sub(r"\?", lambda _: f"${next(numbers)}", sql)
        return [tuple(row) for row in self._runner.run(self._connection.fetch(numbered, *values))]

    def sizes(self, data: Path) -> dict[str, int]:  # noqa: ARG002 - as said
        """See `Installation`."""
        bucket, prefix = self._place.netloc, self._place.path.lstrip("/") + "/"
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {
            found["Key"].removeprefix(prefix): found["Size"] for page in pages for found in page.get("Contents", ())
        }

    def unsound(self, data: Path) -> list[Row]:  # noqa: ARG002 - as said
        """See `Installation`: no kill of a client touches PostgreSQL's own files."""
        return []

    def settle(self) -> None:
        """See `Installation`: PostgreSQL ends what a killed client has begun."""
        while self._runner.run(self._connection.fetchval(_OTHERS)):
            pass

    def close(self) -> None:
        """End the test's own connections."""
        self._runner.run(self._connection.close())
        self._s3.close()


@contextmanager
def shared_installation(cluster: Cluster, bucket: Bucket) -> Iterator[Shared]:
    """Give a test a database with all tables and no row, and a place in the bucket."""
    with asyncio.Runner() as runner:
        url = runner.run(cluster.new_database())
        shared = Shared(url=url, bucket=bucket, runner=runner)
        yield shared
        shared.settle()
        shared.close()
        runner.run(cluster.give_back(url))
