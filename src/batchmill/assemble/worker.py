"""A worker out of its loops."""

import os
import random
import socket
from functools import partial
from typing import Any

from batchmill.assemble.backends import added_lane, connections_of, pace_of
from batchmill.assemble.limits import limits_of, retention_of
from batchmill.assemble.storage import Storage
from batchmill.backends.backend import Backend
from batchmill.backends.builtin import BUILTIN_KV_TOKENS
from batchmill.backends.hook import Hook
from batchmill.backends.router import Router
from batchmill.clock import Clock
from batchmill.engine.courier import Courier
from batchmill.engine.feed import Feed
from batchmill.engine.finalizer import Finalizer
from batchmill.engine.gauging import Gauging
from batchmill.engine.group import GroupBounds
from batchmill.engine.lanes import Lane, Lanes
from batchmill.engine.lease import Lease
from batchmill.engine.loop import Bell, Doorbell
from batchmill.engine.roster import Roster
from batchmill.engine.runner import Runner
from batchmill.engine.scout import Scout
from batchmill.engine.sender import Sender
from batchmill.engine.sharing import Sharing, Showing
from batchmill.engine.sweeper import Sweeper
from batchmill.engine.validator import Validator
from batchmill.engine.worker import Worker
from batchmill.ledger.ledger import Ledger
from batchmill.schedule.order import KV_TOKENS
from batchmill.schedule.planner import Ordering
from batchmill.settings import Settings
from batchmill.spec.ids import mint_id
from batchmill.telemetry import UNTRACED, Metrics, Traces

# A bucket takes its time for a commit, and money; small Results may be many meanwhile, their bytes are what is bounded.
BUCKET_BOUNDS = GroupBounds(wait=1.0, gap=0.25, most_results=16_384)
_LOOK_SECONDS = 0.25  # how often somebody looks whether rows have changed, or a backend wants a probe
_IDLE_SECONDS = 5.0  # how long a loop that found nothing waits for the bell
_SWEEP_SECONDS = 1.0
_GAUGE_SECONDS = 1.0
_SHARE_SECONDS = 1.0  # how often workers tell each other what they have in flight
_ROSTER_SECONDS = 1.0


def build_worker(
    *,
    settings: Settings,
    storage: Storage,
    backends: list[tuple[Backend, int | None]],
    clock: Clock,
    alone: bool,
    metrics: Metrics,
    hook: Hook | None = None,
    traces: Traces | None = None,
) -> Worker:
    """Build a worker with its loops; `alone` as in `Worker`.

    Without a `hook` no event of a batch is told to anybody.
    What the operator adds while it runs is added to `backends`: whoever closes those closes it, too.
    """
    database, blobs, room = storage.database, storage.blobs, storage.room
    worker_id = mint_id("worker", clock.now())
    here: dict[str, Any] = {"database": database, "clock": clock, "worker_id": worker_id}
    mine = here | {"lease": settings.lease}
    told: dict[str, Any] = {"database": database, "clock": clock, "metrics": metrics}
    lease = Lease(clock=clock, seconds=settings.lease)
    connections = connections_of(max(1, len(backends)))
    given = [
        Lane(backend=backend, pace=pace_of(window, polite=settings.polite, alone=alone, connections=connections))
        for backend, window in backends
    ]
    once = settings.on_unknown_outcome == "fail"
    router = Router([lane.backend for lane in given])
    lanes, feed = Lanes(lanes=given, router=router, shared=not alone), Feed()
    sharing = Sharing(lanes=lanes, pending=feed.pending, **here)
    make_lane = partial(added_lane, backends=backends, lanes=lanes, settings=settings, alone=alone, clock=clock)
    validate, run, finalize, scout, share, tell = (Bell(clock=clock) for _ in range(6))
    runner = Runner(
        ledger=Ledger(blobs=blobs, metrics=metrics, traces=traces or UNTRACED, **mine),
        database=database,
        blobs=blobs,
        room=storage.room,
        lanes=lanes,
        feed=feed,
        sender=Sender(
            clock=clock,
            draw=random.random,
            once=once,
            unwell=scout,
            metrics=metrics,
            catalogue=settings.catalogue,
            traces=traces,
        ),
        lease=lease,
        clock=clock,
        bell=run,
        bounds=GroupBounds() if settings.blobs is None else BUCKET_BOUNDS,
        metrics=metrics,
        once=once,
        coalesce=settings.coalesce,
    )
    return Worker(
        database=database,
        clock=clock,
        worker_id=worker_id,
        place=f"{socket.gethostname()}:{os.getpid()}",
        lease=lease,
        alone=alone,
        metrics=metrics,
        runner=runner,
        loops=(
            (
                Validator(
                    blobs=blobs,
                    room=room,
                    limits=limits_of(settings),
                    accepted=run,
                    catalogue=settings.catalogue,
                    ordering=Ordering(
                        backends=len(backends),
                        kv_tokens=KV_TOKENS if settings.backends else BUILTIN_KV_TOKENS,
                        in_file_order=settings.order == "file",
                        coalesce=settings.coalesce,
                    ),
                    traces=traces or UNTRACED,
                    **mine,
                ),
                validate,
                _IDLE_SECONDS,
            ),
            (
                Finalizer(blobs=blobs, room=room, retention=retention_of(settings), traces=traces or UNTRACED, **mine),
                finalize,
                _IDLE_SECONDS,
            ),
            (
                Sweeper(database=database, blobs=blobs, room=room, router=router, clock=clock, worker_id=worker_id),
                Bell(clock=clock),
                _SWEEP_SECONDS,
            ),
            (
                Scout(lanes=lanes, router=router, learned=(run, validate, share), metrics=metrics, **here),
                scout,
                _LOOK_SECONDS,
            ),
            (Gauging(lanes=lanes, clock=clock), Bell(clock=clock), _GAUGE_SECONDS),
            (Showing(lanes=lanes, database=database, worker_id=worker_id) if alone else sharing, share, _SHARE_SECONDS),
            (
                Roster(lanes=lanes, feed=feed, make_lane=make_lane, unknown=scout, metrics=metrics, **here),
                Bell(clock=clock),
                _ROSTER_SECONDS,
            ),
            *([] if hook is None else [(Courier(hook=hook, **told), tell, _IDLE_SECONDS)]),
            (
                Doorbell(database=database, bells=(validate, run, finalize, tell)),
                Bell(clock=clock),
                _LOOK_SECONDS,
            ),
        ),
    )
