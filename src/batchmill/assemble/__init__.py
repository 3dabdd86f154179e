"""The composition root: the only room that names a concrete database, disk, bucket or backend."""

from batchmill.assemble.api import build_api, build_metrics
from batchmill.assemble.backends import Engine, backend_name, build_backends, build_hook, connections_of
from batchmill.assemble.limits import limits_of
from batchmill.assemble.storage import Storage, build_clock, rows_path
from batchmill.assemble.traces import traces_of, wants_traces
from batchmill.assemble.worker import BUCKET_BOUNDS, build_worker

__all__ = [
    "BUCKET_BOUNDS",
    "Engine",
    "Storage",
    "backend_name",
    "build_api",
    "build_backends",
    "build_clock",
    "build_hook",
    "build_metrics",
    "build_worker",
    "connections_of",
    "limits_of",
    "rows_path",
    "traces_of",
    "wants_traces",
]
