"""Checks the inputs of new batches: accepted with a Plan and Slices, or failed with every bad line named."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog

from batchmill.blobs.blobs import Blobs, Written
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.engine.attempt import Attempts
from batchmill.engine.loop import Bell
from batchmill.schedule.planner import Ordering
from batchmill.spec.limits import Limits
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue
from batchmill.spec.states import Event, Status
from batchmill.store.batch import Batch, advance, claim_batch, has_batch, release_batch
from batchmill.store.blob import blob_bytes, copy_key, doom_blob, drop_refs, insert_writing, publish_blob
from batchmill.store.database import Database, Transaction
from batchmill.store.model import list_models
from batchmill.store.organisation import find_allowance
from batchmill.store.slice import Slice, insert_slices
from batchmill.telemetry import UNTRACED, Traces
from batchmill.validation.budget import beyond_budgets
from batchmill.validation.child import run_beside
from batchmill.validation.validation import Validation, validate

_ORDERING = Ordering()
_NEW = (Status.VALIDATING,)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claimed:
    """A batch in this Validator's hands, the bytes of its input, and the models that its organisation may use."""

    batch: Batch
    size: int
    known: Collection[str]


class Validator:
    """Moves batches out of `validating`."""

    def __init__(
        self,
        *,
        database: Database,
        blobs: Blobs,
        room: Room,
        clock: Clock,
        limits: Limits,
        worker_id: str,
        lease: float,
        accepted: Bell,
        catalogue: Catalogue = NOTHING_CONFIGURED,
        ordering: Ordering = _ORDERING,
        traces: Traces = UNTRACED,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._limits = limits
        self._catalogue = catalogue
        self._ordering = ordering
        self._worker_id = worker_id
        self._lease = lease
        self._accepted = accepted
        self._attempts = Attempts(doing="validating", database=database, room=room, clock=clock, traces=traces)
        self._log = structlog.get_logger("validator")

    async def step(self) -> bool:
        """Validate the oldest new batch, if there is one and a model is known to check it against."""
        claimed = await self._attempts.begin(waits=_waits, claim=self._claim)
        if claimed is None:
            return False
        batch = claimed.batch
        async with self._attempts.over(batch, keys=self._keys(batch)):
            validation = await self._validate(claimed)
            await self._database.write(lambda tx: self._conclude(tx, batch, validation))
            self._log.info("validated", batch=batch.id, lines=validation.total, errors=len(validation.errors))
            self._accepted.ring()
        return True

    def _claim(self, tx: Transaction) -> _Claimed | None:
        batch = claim_batch(tx, worker_id=self._worker_id, statuses=_NEW, lease=self._lease)
        if batch is None:
            return None
        now = int(self._clock.now())
        for key in self._keys(batch):
            insert_writing(tx, key=key, organisation_id=batch.organisation_id, now=now)
        permits = find_allowance(tx, organisation_id=batch.organisation_id).permits
        known = {name for name, _ in list_models(tx) if permits(name)}
        return _Claimed(batch=batch, size=blob_bytes(tx, key=_input_key(batch)), known=known)

    async def _validate(self, claimed: _Claimed) -> Validation:
        batch = claimed.batch
        call = partial(
            validate,
            blobs=self._blobs,
            input_key=_input_key(batch),
            plan_key=_plan_key(batch),
            endpoint=batch.object.endpoint,
            limits=self._limits,
            known_models=claimed.known,
            catalogue=self._catalogue,
            ordering=self._ordering,
            copy_key=None if self._blobs.is_local else _copy_key(batch),
        )
        return await run_beside(call, size=claimed.size)

    def _keys(self, batch: Batch) -> list[str]:
        """Return the keys that validating may write to."""
        return [_plan_key(batch)] if self._blobs.is_local else [_plan_key(batch), _copy_key(batch)]

    def _conclude(self, tx: Transaction, batch: Batch, validation: Validation) -> None:
        """Write what validation found, if the batch still waits for it and the lease still stands."""
        now = int(self._clock.now())
        mine = batch.organisation_id
        if beyond := beyond_budgets(tx, validation, organisation_id=mine, catalogue=self._catalogue, adds=True):
            validation = Validation(errors=beyond)
        if validation.plan is None:
            event = Event.REJECTED
            values: dict[str, object] = {"errors": msgspec.json.encode(validation.errors).decode()}
        else:
            event = Event.ACCEPTED
            values = {
                "total": validation.total,
                "open_slices": len(validation.cuts),
                "slice_tokens": max(1, validation.tokens // len(validation.cuts)),
                "plan_key": _plan_key(batch),
                "model": validation.models[0] if len(validation.models) == 1 else None,
            }
            if validation.copy is not None:
                values["input_key"] = _copy_key(batch)
        values |= {"owner": None, "lease_until": None}
        moved = advance(
            tx, batch_id=batch.id, status=Status.VALIDATING, event=event, now=now, epoch=batch.epoch, values=values
        )
        if moved and validation.plan is not None:
            self._publish(tx, batch, validation.plan, validation.copy)
            insert_slices(tx, _slices(batch, validation))
        else:
            for key in self._keys(batch):
                doom_blob(tx, key=key)
        if not moved:
            release_batch(tx, batch_id=batch.id, epoch=batch.epoch)

    def _publish(self, tx: Transaction, batch: Batch, plan: Written, copy: Written | None) -> None:
        """Let the batch refer to its Plan, and to the copy in place of the input, if one was made."""
        publish_blob(tx, key=_plan_key(batch), size=plan.bytes, sha256=plan.sha256)
        if copy is not None:
            publish_blob(tx, key=_copy_key(batch), size=copy.bytes, sha256=copy.sha256)
            drop_refs(tx, key=_input_key(batch))
        elif not self._blobs.is_local:
            doom_blob(tx, key=_copy_key(batch))


def _waits(tx: Transaction) -> bool:
    """Say whether a new batch waits, and a model is known to check it against; without one the Sweeper tells it so."""
    return has_batch(tx, statuses=_NEW) and bool(list_models(tx))


def _plan_key(batch: Batch) -> str:
    return f"{batch.id}-{batch.epoch}-plan"


def _copy_key(batch: Batch) -> str:
    return copy_key(batch.id, epoch=batch.epoch)


def _input_key(batch: Batch) -> str:
    if batch.input_key is None:
        raise ValueError(f"{batch.id} is validating and has no input")
    return batch.input_key


def _slices(batch: Batch, validation: Validation) -> list[Slice]:
    return [
        Slice(
            batch_id=batch.id,
            organisation_id=batch.organisation_id,
            ordinal=ordinal,
            model=validation.models[cut.model],
            first=cut.first,
            lines=cut.lines,
            bytes=cut.bytes,
            tokens=cut.tokens,
            done=bytes((cut.lines + 7) // 8),
            epoch=0,
        )
        for ordinal, cut in enumerate(validation.cuts)
    ]
