"""The numbers of a process, for Prometheus."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The numbers of one process, for Prometheus. Labels hold names of ours and of backends, never a tenant's text.

    Each is counted where the event is: by the Ledger, the Runner, the Scout, the disk. What the rows say (batches by
    status, backlog) is not kept here but read from the Store when somebody asks.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        named: dict[str, Any] = {"namespace": "batchmill", "registry": self.registry}
        self.sends = Counter("sends", "Requests sent to a backend.", ["backend"], **named)
        self.replies = Counter("replies", "Replies by what they meant for the line.", ["backend", "verdict"], **named)
        self.lines = Counter("lines", "Lines made durable.", ["outcome"], **named)
        self.in_flight = Gauge("in_flight", "Requests sent and not yet answered.", ["backend"], **named)
        self.window = Gauge("window", "The most requests in flight now.", ["backend"], **named)
        self.backend_well = Gauge("backend_well", "1 while a backend is well, 0 while it is not.", ["backend"], **named)
        self.takeovers = Counter(
            "lease_takeovers", "Slices taken from an owner that died, and batches at a worker's start.", **named
        )
        self.stale_writes = Counter("stale_writes_refused", "Group commits' Slices whose fence had fallen.", **named)
        self.commit_seconds = Histogram("commit_seconds", "Group commits, from blob to commit.", **named)
        self.fsync_seconds = Histogram("fsync_seconds", "Fsyncs of blobs and their folders.", **named)
        self.disk_short = Gauge("disk_short", "1 while there is too little space to go on.", **named)
        self.deliveries = Counter("webhook_deliveries", "Tries to deliver an event, by outcome.", ["outcome"], **named)
        self.disk_pauses = Counter("disk_pauses", "Times that work stopped for want of space.", **named)
        # Told from the start, as 0: Prometheus sees no increase in a number that is 1 when it is first seen.
        for outcome in ("succeeded", "failed"):
            self.lines.labels(outcome)
        for outcome in ("delivered", "retried", "failed"):
            self.deliveries.labels(outcome)
