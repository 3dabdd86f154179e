"""The API and its metrics, out of their parts."""

from collections.abc import Callable
from importlib.metadata import version

from batchmill.api.app import create_app
from batchmill.api.gate import App
from batchmill.api.metrics import MetricsApp
from batchmill.api.rate import Buckets, SharedBuckets
from batchmill.assemble.limits import limits_of, retention_of
from batchmill.assemble.storage import Storage
from batchmill.clock import Clock
from batchmill.dashboard.pages import dashboard_pages
from batchmill.settings import Settings
from batchmill.telemetry import Metrics, Traces


def build_api(
    *,
    settings: Settings,
    storage: Storage,
    clock: Clock,
    broken: Callable[[], None],
    stopping: Callable[[], bool] = lambda: False,
    traces: Traces | None = None,
) -> App:
    """Build the API; `broken` is called when the disk fails beneath it, `stopping` says that the process is to end."""
    return create_app(
        database=storage.database,
        blobs=storage.blobs,
        room=storage.room,
        clock=clock,
        limits=limits_of(settings),
        version=version("batchmill"),
        broken=broken,
        traces=traces,
        access_log=settings.access_log,
        retention=retention_of(settings),
        redirect=settings.download_redirect,
        catalogue=settings.catalogue,
        apart=not settings.worker,
        public_webhooks=settings.webhook_urls == "public",
        stopping=stopping,
        calls=Buckets(clock=clock) if settings.is_embedded else SharedBuckets(database=storage.database),
        pages=dashboard_pages() if settings.dashboard else {},
    )


def build_metrics(*, settings: Settings, metrics: Metrics, storage: Storage, clock: Clock) -> App:
    """Build what answers `/metrics`."""
    return MetricsApp(metrics=metrics, database=storage.database, clock=clock, folder=settings.data)
