"""`batchmill run`: one input through one worker into one output, without a server; the same command goes on.

All that is known stands in `OUTPUT.run/`, a data directory. The loops are those of `batchmill serve`.
"""

import asyncio
import io
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import structlog
import uvloop

from batchmill.assemble.backends import build_backends
from batchmill.assemble.limits import limits_of
from batchmill.assemble.storage import Storage, build_clock
from batchmill.assemble.worker import build_worker
from batchmill.backends.backend import Backend
from batchmill.blobs.in_place import FileChanged, OutsideFile, measure
from batchmill.blobs.space import is_full
from batchmill.cli import data_directory
from batchmill.cli.check import describe, refuse_unknown_endpoint
from batchmill.cli.engine import start_engine
from batchmill.cli.exit import RunExit, Stop
from batchmill.cli.process import raise_descriptors, spare_garbage_collection
from batchmill.cli.progress import Display, Moment, display
from batchmill.cli.run_files import RunFiles
from batchmill.cli.run_state import Known, begin_run, find_run, result_keys
from batchmill.cli.supervisor import Supervisor
from batchmill.clock import Clock
from batchmill.engine.worker import LeaseLost
from batchmill.schedule.forecast import UNKNOWN
from batchmill.settings import BadSettings, Settings
from batchmill.spec.lines import likely_endpoint, read_lines
from batchmill.spec.states import FINAL, Status
from batchmill.store.batch import Batch, batches_by_id, pass_over, unstick
from batchmill.store.blob import doomed_keys
from batchmill.store.database import Transaction
from batchmill.store.forecast import with_forecasts
from batchmill.store.migrate import NewerDatabase, migrate
from batchmill.store.model import BackendState, list_backends
from batchmill.telemetry import Metrics, set_up_logs

T = TypeVar("T")

_LOOK_SECONDS = 0.25
_LOCK_SECONDS = 2.0  # the processes of a killed run need a moment to notice
_TIDY_SECONDS = 10.0  # once all is done, the Sweeper has so long to remove what nobody needs
_FULL_SECONDS = 5.0  # a full disk is tried again after so long


def run_file(settings: Settings, files: RunFiles, *, endpoint: str | None, again: bool, quiet: bool) -> RunExit:
    """Run an input, or go on with it; return how it ended.

    Raises:
        Stop: it cannot be done, or not now; the sentence says what to do.
    """
    files.check()
    _prepare(files, settings, endpoint)
    lock = _lock(files)
    if again:
        files.start_over()
    with io.TextIOWrapper(_Log(files.log, "ab"), write_through=True) as log:
        set_up_logs(process="run", json=settings.log_format == "json", stream=log)
        shown = display(quiet=quiet)
        try:
            run = _Run(settings=settings, files=files, endpoint=endpoint, lock=lock, shown=shown, clock=build_clock())
            # uvloop cannot start the engine in a process group of its own, which Ctrl-C does not reach.
            loop = uvloop.new_event_loop if settings.backend else asyncio.new_event_loop
            spare_garbage_collection()
            raise_descriptors()
            with asyncio.Runner(loop_factory=loop) as runner:
                return runner.run(run.run())
        except Stop:
            raise
        except KeyboardInterrupt:
            return RunExit.INTERRUPTED
        except Exception as fault:
            structlog.get_logger("run").error("the run ended with a fault", exc_info=fault)
            sentence = f"The run ended with a fault: {fault!r}. {files.log} has more. The same command goes on."
            raise Stop(sentence, RunExit.FAULT) from fault
        finally:
            shown.close()


def _prepare(files: RunFiles, settings: Settings, endpoint: str | None) -> None:
    """Find what is wrong with the command before anything is made; then make the state's folder."""
    refuse_unknown_endpoint(endpoint, limits_of(settings))
    try:
        build_backends(settings=settings, engine=None, clock=build_clock())
        data_directory.prepare(files.state)
    except BadSettings as fault:
        raise Stop(str(fault), RunExit.USAGE) from fault
    except Stop as stop:
        raise Stop(str(stop), RunExit.USAGE) from stop


def _lock(files: RunFiles) -> int:
    try:
        return data_directory.lock(files.state, patience=_LOCK_SECONDS)
    except Stop as stop:
        raise Stop(f"Another `batchmill run` is working on {files.output}.", RunExit.IN_USE) from stop


class _Log(io.FileIO):
    """The log's file. While the disk is full its lines are dropped: the run waits, and must not fail over its log."""

    def write(self, data: "bytes | memoryview") -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as fault:
            if not is_full(fault):
                raise
            return len(data)


class _Interrupted(Exception):  # noqa: N818 - it states what happened
    """A signal came while the run waited for room on the disk."""


class _Run:
    """One start of a run, from the look at the input to the output."""

    def __init__(
        self,
        *,
        settings: Settings,
        files: RunFiles,
        endpoint: str | None,
        lock: int,
        shown: Display,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._files = files
        self._endpoint = endpoint
        self._lock = lock
        self._shown = shown
        self._clock = clock
        self._stop = asyncio.Event()

    async def run(self) -> RunExit:
        """Run to the end, or to the first signal."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._interrupt)
        self._shown.show(Moment(status="reading the input"))
        file = await self._measure()
        with suppress(_Interrupted):
            storage = await self._with_room(self._storage)
            try:
                known = await self._with_room(lambda: self._open(storage, file))
                storage.read_in_place(key=known.key, file=file)
                batch = known.batch
                if batch.object.status in FINAL:
                    return await self._finish(storage, batch, before=True)
                batch = await self._work(storage, known, file)
                if batch.object.status in FINAL:
                    return await self._finish(storage, batch, before=False)
            finally:
                await storage.database.close()
        self._shown.close()
        self._shown.say("Stopped. The same command goes on from what is recorded.")
        return RunExit.INTERRUPTED

    def _interrupt(self) -> None:
        """Drain at the first signal; at the second end at once, which loses nothing that is recorded."""
        if self._stop.is_set():
            self._shown.close()
            os._exit(RunExit.INTERRUPTED)
        self._stop.set()
        drain = self._settings.drain
        self._shown.say(f"Stopping: open requests have {drain:g} s to end. A second signal ends at once.")

    async def _measure(self) -> OutsideFile:
        path = self._files.input
        try:
            return await asyncio.to_thread(measure, path)
        except OSError as fault:
            raise Stop(f"The input {path} cannot be read: {fault.strerror}.", RunExit.USAGE) from fault
        except FileChanged as changed:
            raise Stop(f"The input {path} is being written to: run it when it is whole.", RunExit.USAGE) from changed

    async def _storage(self) -> Storage:
        return Storage(settings=self._settings, clock=self._clock)

    async def _open(self, storage: Storage, file: OutsideFile) -> Known:
        """Return the run that the state holds, or begin one; never go on with another input or endpoint."""
        try:
            await storage.database.write(migrate)
            await storage.database.write(unstick)
            await storage.database.write(pass_over)
        except NewerDatabase as fault:
            raise Stop(f"{self._files.state} was used by a newer Batchmill: {fault}.", RunExit.USAGE) from fault
        known = await storage.database.read(find_run)
        if known is None:
            endpoint = await asyncio.to_thread(self._likely_endpoint) if self._endpoint is None else self._endpoint
            now = self._clock.now()
            return await storage.database.write(lambda tx: begin_run(tx, file=file, endpoint=endpoint, now=now))
        self._refuse_other_input(known, file)
        began_with = known.batch.object.endpoint
        if self._endpoint not in (None, began_with):
            sentence = f"This run began with --endpoint {began_with}: leave it so, or start over with --again."
            raise Stop(sentence, RunExit.USAGE)
        return known

    def _refuse_other_input(self, known: Known, file: OutsideFile) -> None:
        if (known.bytes, known.sha256) != (file.bytes, file.sha256):
            raise Stop(
                f"The input {file.path} has changed since this run began. Put it back as it was"
                f" ({known.bytes:,} bytes, SHA-256 {known.sha256}), or start over with --again.",
                RunExit.USAGE,
            )

    def _likely_endpoint(self) -> str:
        limits = limits_of(self._settings)
        with self._files.input.open("rb") as stream:
            first = next(read_lines(stream.readline, limits.max_line_bytes), None)
        return limits.default_endpoint if first is None else likely_endpoint(first.text, limits)

    async def _work(self, storage: Storage, known: Known, file: OutsideFile) -> Batch:
        """Let workers run until the batch is final or a signal comes; return the batch as it is then."""
        supervisor = Supervisor()
        backends: list[tuple[Backend, int | None]] = []
        try:
            engine = None
            if not self._settings.backend:
                engine = await start_engine(self._settings, supervisor, self._stop, self._lock, say=self._shown.say)
            backends = build_backends(settings=self._settings, engine=engine, clock=self._clock)
            while True:
                fault = await self._work_once(storage, known.batch.id, file, backends, supervisor)
                if not file.is_unchanged():  # what was read of it is of the old version; was it only touched?
                    file = await self._measure()
                    self._refuse_other_input(known, file)
                    storage.read_in_place(key=known.key, file=file)
                elif fault is not None and is_full(fault):
                    structlog.get_logger("run").warning("the disk is full", exc_info=fault)
                    await self._wait_for_room()
                elif isinstance(fault, LeaseLost):  # stopped, or asleep with the machine; the next worker takes over
                    structlog.get_logger("run").warning("the run was asleep", reason=str(fault))
                elif fault is not None:
                    raise fault
                batch = await _batch(storage, known.batch.id, self._clock.now())
                if batch.object.status in FINAL or self._stop.is_set():
                    return batch
        finally:
            for backend, _ in backends:
                await backend.close()
            await supervisor.stop(("engine",), asyncio.Event())

    async def _work_once(
        self,
        storage: Storage,
        batch_id: str,
        file: OutsideFile,
        backends: list[tuple[Backend, int | None]],
        supervisor: Supervisor,
    ) -> Exception | None:
        """Run one worker until the batch is final, a signal comes or the input changes; return what broke it."""
        ending = asyncio.Event()
        worker = build_worker(
            settings=self._settings,
            storage=storage,
            backends=backends,
            clock=self._clock,
            alone=True,
            metrics=Metrics(),
        )
        working = asyncio.create_task(worker.run(stopping=ending, drain=self._settings.drain))
        others = [
            asyncio.create_task(self._watch(storage, batch_id, file)),
            asyncio.create_task(supervisor.watch(self._stop)),  # returns at a signal, raises if there is no engine
        ]
        await asyncio.wait([working, *others], return_when=asyncio.FIRST_COMPLETED)
        ending.set()
        await asyncio.wait([working])
        for other in others:
            other.cancel()
        outcomes = await asyncio.gather(*others, working, return_exceptions=True)
        return next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)

    async def _watch(self, storage: Storage, batch_id: str, file: OutsideFile) -> None:
        """Show how the batch goes; return when it is final and rid of what nobody needs, or when its input changed."""
        until = float("inf")
        while file.is_unchanged() and self._clock.boot() < until:
            now = self._clock.now()
            batch = await _batch(storage, batch_id, now)
            short = await asyncio.to_thread(storage.room.short)  # a full disk may take no row that says so
            unwell = _all_unwell(await storage.database.read(list_backends))
            self._shown.show(_moment(batch, short or unwell, now))
            if batch.object.status in FINAL:
                until = min(until, self._clock.boot() + _TIDY_SECONDS)
                if batch.input_key is None and not await storage.database.read(lambda tx: doomed_keys(tx, limit=1)):
                    return
            await self._clock.sleep(_LOOK_SECONDS)

    async def _finish(self, storage: Storage, batch: Batch, *, before: bool) -> RunExit:
        """Give the user the result files, or the list of bad lines; `before`: an earlier start came so far."""
        facts, counts, files = batch.object, batch.object.counts, self._files
        if facts.status is Status.FAILED:
            self._shown.close()
            for error in facts.errors or ():
                print(describe(error), file=sys.stderr)  # noqa: T201 - the command's answer
            return RunExit.BAD_DATA
        output_key, errors_key = await storage.database.read(lambda tx: result_keys(tx, batch))
        publish = partial(files.publish, storage.disk, output_key=output_key, errors_key=errors_key)
        await self._with_room(lambda: asyncio.to_thread(publish))
        storage.room.give()  # 64 MiB that a finished run has no use for
        self._shown.close()
        failed = f"; {counts.failed:,} failed, see {files.errors}" if counts.failed else ""
        done, advice = ("Finished before", " --again starts over.") if before else ("Finished", "")
        self._shown.say(f"{done}: {counts.completed:,} of {counts.total:,} lines in {files.output}{failed}.{advice}")
        return RunExit.LINES_FAILED if counts.failed else RunExit.GOOD

    async def _with_room(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until no full disk is in the way.

        Raises:
            _Interrupted: a signal came meanwhile.
        """
        while True:
            try:
                return await attempt()
            except Exception as fault:
                if not is_full(fault):
                    raise
                structlog.get_logger("run").warning("the disk is full", exc_info=fault)
            await self._wait_for_room()
            if self._stop.is_set():
                raise _Interrupted

    async def _wait_for_room(self) -> None:
        """Say that the disk is full, and give it some seconds."""
        self._shown.show(Moment(status="paused", waiting=f"the disk of {self._files.state} is full"))
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([stopped], timeout=_FULL_SECONDS)
        stopped.cancel()


async def _batch(storage: Storage, batch_id: str, now: float) -> Batch:
    def statements(tx: Transaction) -> Sequence[Batch]:
        return with_forecasts(tx, [batches_by_id(tx, batch_ids=[batch_id])[batch_id]], now=now)

    (found,) = await storage.database.read(statements)
    return found


def _moment(batch: Batch, seen: str | None, now: float) -> Moment:
    """Return how the batch is; `seen` is why it may wait, as long as its row does not say."""
    counts, waiting = batch.object.counts, batch.waiting or seen
    return Moment(
        status=batch.object.status.value,
        now=now,
        total=counts.total,
        done=counts.completed + counts.failed,
        failed=counts.failed,
        waiting=waiting,
        forecast=batch.object.progress and (UNKNOWN if waiting else batch.object.progress),
    )


def _all_unwell(backends: Sequence[BackendState]) -> str | None:
    """Return what keeps every backend from working; None as long as one of them can."""
    if not backends or any(backend.well for backend in backends):
        return None
    return "; ".join(f"backend unwell: {backend.name}: {backend.reason}" for backend in backends)
