"""`/metrics` for Prometheus, on a port of its own: a process's numbers, and what the rows say at that moment.

It asks for no key, so no label holds a tenant's text; the port is the operator's to keep inside.
"""

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse, Response

from batchmill.api.gate import Message, Receive, Send
from batchmill.clock import Clock
from batchmill.store.alerts import Alerts, read_alerts
from batchmill.store.backlog import Backlog, read_backlog
from batchmill.store.database import Database, Transaction
from batchmill.store.model import BackendState, list_backends
from batchmill.telemetry import Metrics

_ROWS_SECONDS = 5.0  # Prometheus itself gives up after ten


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Collector):
    """What the rows said, as Prometheus reads it."""

    backlog: Backlog
    alerts: Alerts
    disk: tuple[int, int] | None
    backends: Sequence[BackendState]
    now: float

    def collect(self) -> Iterator[Metric]:
        """Yield each family of numbers."""
        batches = GaugeMetricFamily("batchmill_batches", "Batches by status.", labels=["status"])
        for status, count in self.backlog.batches.items():
            batches.add_metric([status.value], count)
        yield batches
        yield GaugeMetricFamily(
            "batchmill_batches_stuck", "Batches that failed again and again to move on.", value=self.backlog.stuck
        )
        yield GaugeMetricFamily(
            "batchmill_lines_open", "Lines of running batches without a result.", value=self.backlog.open_lines
        )
        for name, text, value in self._alerts():
            yield GaugeMetricFamily(f"batchmill_{name}", text, value=value)
        unwell = GaugeMetricFamily(
            "batchmill_backend_unwell_seconds",
            "For how long a backend has been unwell; 0: it is not.",
            labels=["backend"],
        )
        for backend in self.backends:
            unwell.add_metric([backend.name], 0.0 if backend.well else max(0.0, self.now - backend.since))
        yield unwell

    def _alerts(self) -> Iterator[tuple[str, str, float]]:
        alerts = self.alerts
        yield "batches_at_risk", "Running batches that will miss their deadline if all stays as it is.", alerts.at_risk
        if alerts.margin is not None:
            least = "The least time between a batch's forecast and its deadline; negative: expected miss."
            yield "deadline_margin_seconds", least, alerts.margin
        yield "batches_waiting", "Batches that wait for something other than a resume.", alerts.waiting
        yield "oldest_wait_seconds", "For how long the oldest of those waits.", alerts.oldest_wait
        yield "batches_paused", "Batches that are paused.", alerts.paused
        yield "workers", "Workers that live.", alerts.workers
        yield "workers_away", "Workers that fell silent and did not end in good order.", alerts.away
        if self.disk is not None:
            free, size = self.disk
            yield "disk_free_bytes", "Room on the disk of the data directory.", free
            yield "disk_size_bytes", "Size of the disk of the data directory.", size


class MetricsApp:
    """An ASGI application that answers `GET /metrics` and nothing else; `folder` is on the disk that is watched."""

    def __init__(self, *, metrics: Metrics, database: Database, clock: Clock, folder: Path | None = None) -> None:
        self._metrics = metrics
        self._database = database
        self._clock = clock
        self._folder = folder
        self._log = structlog.get_logger("metrics")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request: 200, 404 for another path or method, or 503 while the database is away.

        `/healthz` says that the process is alive, to whoever starts it again when it is not.
        """
        match scope.get("method"), scope.get("path"):
            case "GET", "/metrics":
                answer = await self._numbers()
            case "GET" | "HEAD", "/healthz":
                answer = PlainTextResponse("ok\n")
            case _:
                answer = PlainTextResponse("Only GET /metrics and /healthz are served here.\n", status_code=404)
        await answer(scope, receive, send)

    async def _numbers(self) -> Response:
        try:
            disk = None if self._folder is None else await asyncio.to_thread(_disk, self._folder)
            rows = await asyncio.wait_for(self._database.read(lambda tx: self._rows(tx, disk)), timeout=_ROWS_SECONDS)
        except Exception:  # noqa: BLE001 - whatever it is, the engine beside must not feel it
            self._log.exception("the database does not answer")
            return PlainTextResponse("The database does not answer.\n", status_code=503)
        content = generate_latest(self._metrics.registry) + generate_latest(rows)
        return Response(content, media_type=CONTENT_TYPE_LATEST)

    def _rows(self, tx: Transaction, disk: tuple[int, int] | None) -> Rows:
        now = self._clock.now()
        alerts = read_alerts(tx, now=now)
        return Rows(backlog=read_backlog(tx), alerts=alerts, disk=disk, backends=list_backends(tx), now=now)


def _disk(folder: Path) -> tuple[int, int] | None:
    """Return free and all bytes of a folder's disk; None where it cannot be asked: the other numbers are told still."""
    try:
        found = shutil.disk_usage(folder)
    except OSError:
        return None
    return found.free, found.total
