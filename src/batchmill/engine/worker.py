"""A process that runs the loops, alive while its lease is; the composition of the engine."""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from batchmill.blobs.space import is_full
from batchmill.clock import Clock
from batchmill.engine.lease import Lease
from batchmill.engine.loop import Bell, Step, run_steps
from batchmill.engine.runner import Runner
from batchmill.store.database import Database, Transaction
from batchmill.store.worker import delete_worker, insert_worker, release_leases, renew_leases, void_leases
from batchmill.telemetry import Metrics


class LeaseLost(Exception):  # noqa: N818 - it states what happened
    """The worker could not renew its lease in time: whatever it holds may be someone else's by now."""


class Worker:
    """Runs the loops until it is told to stop, and drains then.

    `place` tells people where it runs. `alone`: this worker knows that no other is alive (it holds an embedded data
    directory), so every other lease ends.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        worker_id: str,
        lease: Lease,
        alone: bool,
        place: str | None = None,
        metrics: Metrics,
        runner: Runner,
        loops: Sequence[tuple[Step, Bell, float]],
    ) -> None:
        self._database = database
        self._clock = clock
        self._worker_id = worker_id
        self._lease = lease
        self._alone = alone
        self._place = place
        self._metrics = metrics
        self._runner = runner
        self._loops = loops
        self._log = structlog.get_logger("worker")

    async def run(self, *, stopping: asyncio.Event, drain: float) -> None:
        """Work until `stopping` is set, then drain for at most `drain` seconds. A fault of any loop is raised."""
        await self._begin()
        sending = asyncio.create_task(self._runner.run())
        running = [asyncio.create_task(self._renew()), sending]
        running += [asyncio.create_task(run_steps(loop, bell=bell, idle=idle)) for loop, bell, idle in self._loops]
        stop = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait([*running, stop], return_when=asyncio.FIRST_COMPLETED)
            if not stop.done():
                await _raise_first(running)
            self._log.info("draining", seconds=drain)
            self._runner.halt()
            await sending
            await _cancel(running[2:], self._log)  # the lease is renewed to the end
            draining = asyncio.create_task(self._runner.drain(seconds=drain))
            await asyncio.wait([running[0], draining], return_when=asyncio.FIRST_COMPLETED)
            running.append(draining)
            await _raise_first([running[0], draining])
        finally:
            self._runner.halt()
            await _cancel([*running, stop], self._log)
            await self._runner.abort()
        await self._database.write(self._end)

    async def _begin(self) -> None:
        def statements(tx: Transaction) -> int:
            insert_worker(
                tx,
                worker_id=self._worker_id,
                lease=self._lease.seconds,
                now=int(self._clock.now()),
                place=self._place,
            )
            return void_leases(tx, worker_id=self._worker_id) if self._alone else 0

        began = self._clock.boot()
        taken_over = await self._database.write(statements)
        self._lease.renewed(began)
        self._metrics.takeovers.inc(taken_over)
        self._log.info("worker started", worker=self._worker_id, taken_over=taken_over)

    async def _renew(self) -> None:
        """Renew three times a lease; a worker that could not for a whole one aborts."""
        while True:
            await self._clock.sleep(self._lease.seconds / 3)
            began = self._clock.boot()
            if not self._lease.holds:  # this process was stopped, or starved: others may own its Slices by now
                raise LeaseLost(f"the lease was not renewed for {self._lease.seconds} s")
            try:
                known = await asyncio.wait_for(self._write_renewal(), timeout=self._lease.left)
            except TimeoutError as late:
                raise LeaseLost(f"the lease could not be renewed for {self._lease.seconds} s") from late
            if known is False:
                raise LeaseLost("another process has ended this worker's leases")
            if known or self._alone:  # where others work, one of them may be the first to find space again, and claim
                self._lease.renewed(began)

    async def _write_renewal(self) -> bool | None:
        """Renew in the rows; None where the disk is full, which is no lapse for a worker that is alone."""
        try:
            return await self._database.write(
                lambda tx: renew_leases(tx, worker_id=self._worker_id, lease=self._lease.seconds)
            )
        except OSError as fault:
            if not is_full(fault):
                raise
            self._log.warning("the lease could not be renewed", reason=str(fault))
            return None

    def _end(self, tx: Transaction) -> None:
        release_leases(tx, worker_id=self._worker_id)
        delete_worker(tx, worker_id=self._worker_id)


async def _raise_first(running: Sequence[asyncio.Task[None]]) -> None:
    for task in running:
        if task.done():
            await task


async def _cancel(tasks: Sequence[asyncio.Task[Any]], log: FilteringBoundLogger) -> None:
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            log.error("a loop ended with a fault", exc_info=ended)
