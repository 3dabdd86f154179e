"""`batchmill verify`: checks all rows and bytes, with or without a running server."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from sqlalchemy.exc import DatabaseError

from batchmill.assemble.storage import Storage, build_clock
from batchmill.blobs.blobs import BlobsAway
from batchmill.blobs.in_place import FileChanged, OutsideFile, measure
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.rows import check_bytes, open_store
from batchmill.cli.run_state import find_run
from batchmill.ledger.audit import Audit
from batchmill.ledger.finding import Finding
from batchmill.settings import Settings
from batchmill.store.database import DatabaseAway
from batchmill.store.migrate import NewerDatabase, is_current


def run_verify(settings: Settings, *, source: Path | None, as_json: bool, say: Callable[[str], None]) -> bool:
    """Check a data directory and tell what is found; return whether it is sound. `source` is the input of a `run`.

    Raises:
        Stop: there is nothing to check, it is another version's, or it went away.
    """
    if not settings.is_embedded and settings.blobs is None:
        raise Stop("Rows are compared with bytes: name the bucket, too, with --blobs.", Exit.USAGE)
    check_bytes(settings)
    storage = open_store(settings)
    try:
        return asyncio.run(_verify(storage, source=source, as_json=as_json, say=say))
    except (DatabaseAway, BlobsAway) as fault:
        raise Stop(f"The check is not finished: {fault}.", Exit.DATA_UNUSABLE) from fault


async def _verify(storage: Storage, *, source: Path | None, as_json: bool, say: Callable[[str], None]) -> bool:
    try:
        await refuse_other_version(storage)
        key = await input_outside(storage)
        if key is not None:
            if source is None:
                raise Stop("This is the state of a `batchmill run`: name its input with --input.", Exit.USAGE)
            storage.read_in_place(key=key, file=_measure(source))
        return await audit(storage, as_json=as_json, say=say)
    finally:
        await storage.database.close()


async def refuse_other_version(storage: Storage) -> None:
    """Raise `Stop` if the rows are not those of this version's tables; what cannot be read at all, the audit tells."""
    try:
        current = await storage.database.read(is_current)
    except NewerDatabase as newer:
        raise Stop(f"The store was used by a newer Batchmill: {newer}.", Exit.DATA_UNUSABLE) from newer
    except DatabaseError:
        return
    if not current:
        raise Stop(
            "The store was last used by another version of Batchmill: start `batchmill serve` on it first.",
            Exit.DATA_UNUSABLE,
        )


async def input_outside(storage: Storage) -> str | None:
    """Return the key of the input that lies outside, if this is the state of a `batchmill run`."""
    try:
        known = await storage.database.read(find_run)
    except DatabaseError:
        return None
    return None if known is None else known.key


def _measure(source: Path) -> OutsideFile:
    try:
        return measure(source)
    except (OSError, FileChanged) as fault:
        raise Stop(f"The input {source} cannot be read: {fault}.", Exit.USAGE) from fault


async def audit(storage: Storage, *, as_json: bool, say: Callable[[str], None]) -> bool:
    """Check everything, tell each finding and a summary; return whether no damage was found."""
    began = time.monotonic()
    check = Audit(database=storage.database, blobs=storage.blobs, clock=build_clock())
    findings: list[Finding] = []
    async for finding in check.findings():
        findings.append(finding)
        if not as_json:
            say(f"{'damage' if finding.is_damage else 'note'}: {finding.kind}: {finding.what}: {finding.detail}")
    damaged = sum(finding.is_damage for finding in findings)
    seconds = round(time.monotonic() - began, 2)
    tally = check.tally
    if as_json:
        told = [{"damage": finding.is_damage, **asdict(finding)} for finding in findings]
        say(json.dumps({"sound": not damaged, **asdict(tally), "seconds": seconds, "findings": told}))
    else:
        looked = f"{tally.rows} rows, {tally.blobs} blobs, {tally.bytes} bytes, {tally.lines} lines in {seconds} s"
        say(f"{'Damaged' if damaged else 'Sound'}: {looked}; damage: {damaged}, notes: {len(findings) - damaged}.")
    return not damaged
