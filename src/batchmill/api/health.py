"""What operators and their machines ask: is the process alive, is the service ready, and if not, why."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog
from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from batchmill.api.answer import json_answer
from batchmill.blobs.blobs import BlobMissing, Blobs, BlobsAway
from batchmill.clock import Clock
from batchmill.spec.ids import mint_id
from batchmill.store.database import Database, DatabaseAway, Transaction
from batchmill.store.model import BackendState, list_backends
from batchmill.store.worker import has_live_worker

_ROWS_SECONDS = 2.0  # who asks whether the service is ready waits no longer than that


def health_routes(*, database: Database, blobs: Blobs, clock: Clock, apart: bool = False) -> APIRouter:
    """Return `/healthz` and `/readyz`; both answer without a key, and to HEAD, which many a balancer sends.

    `apart`: the workers are elsewhere, and uploads go on without any: worker and backends are told, not judged.
    """
    judged = {"database", "blobs"} if apart else {"database", "blobs", "worker", "backends"}
    router = APIRouter(tags=["health"])
    log = structlog.get_logger("health")

    @router.head("/healthz")
    @router.get("/healthz")
    async def healthz() -> Response:
        """Say that this process is alive."""
        return json_answer({"status": "ok"})

    @router.head("/readyz")
    @router.get("/readyz")
    async def readyz() -> Response:
        """Say for each part whether it is ready, with a reason where it is not: 200 if those judged are, else 503."""
        try:
            worker, backends = await asyncio.wait_for(database.read(_facts), timeout=_ROWS_SECONDS)
            reasons = {
                "database": None,
                "blobs": await asyncio.to_thread(_try_blobs, blobs, mint_id("probe", clock.now())),
                "worker": None if worker else "no worker has a living heartbeat",
                "backends": _backends_reason(backends),
            }
        except (DatabaseAway, SQLAlchemyError, TimeoutError):
            log.exception("the database does not answer")
            reasons = {"database": "the database does not answer"}
        ready = not any(reasons.get(name) for name in judged)
        checks = {name: {"ready": reason is None, "reason": reason} for name, reason in reasons.items()}
        return json_answer({"ready": ready, "checks": checks}, status=200 if ready else 503)

    return router


def _facts(tx: Transaction) -> tuple[bool, Sequence[BackendState]]:
    return has_live_worker(tx), list_backends(tx)


def _try_blobs(blobs: Blobs, key: str) -> str | None:
    try:
        writer = blobs.writer(key)
        try:
            writer.write(b"probe")
        finally:
            writer.discard()
        with suppress(BlobMissing):  # a bucket is asked for nothing by a writer that never finishes
            blobs.read(key, offset=0, length=1)
    except BlobsAway:
        return "the storage of files does not answer"
    except OSError as fault:
        return f"bytes cannot be written: {fault.strerror}"
    return None


def _backends_reason(backends: Sequence[BackendState]) -> str | None:
    if not backends:
        return "no backend has been asked yet"
    unwell = [f"{backend.name}: {backend.reason}" for backend in backends if not backend.well]
    return "; ".join(unwell) or None
