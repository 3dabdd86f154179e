"""`batchmill backup`: a whole copy of a data directory, of a running server too, that `serve --data` goes on with."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from batchmill.assemble.storage import Storage, build_clock, rows_path
from batchmill.blobs.disk import sync_folder
from batchmill.cli import data_directory
from batchmill.cli.exit import Exit, Stop
from batchmill.cli.rows import open_store
from batchmill.cli.verify import audit, input_outside, refuse_other_version
from batchmill.ledger.copy import TooBusy, copy_store
from batchmill.settings import Settings
from batchmill.store.copy import settle_copy


def run_backup(settings: Settings, *, folder: Path, say: Callable[[str], None]) -> bool:
    """Copy the data directory to `folder`, check the copy, and return whether it is sound.

    Until its end the copy is locked and has no rows: nobody can serve half of it.

    Raises:
        Stop: there is nothing to copy, or the copy cannot be made there.
    """
    if not settings.is_embedded or settings.blobs is not None:
        raise Stop(
            "A backup copies a data directory. Of a PostgreSQL server and a bucket use pg_dump, and after it a copy of"
            " the bucket, which must keep what is deleted meanwhile (versioning).",
            Exit.USAGE,
        )
    source = open_store(settings)
    target = settings.model_copy(update={"data": folder})
    if folder.resolve().is_relative_to(settings.data.resolve()):  # where the Sweeper clears up, too
        raise Stop(f"The folder {folder} lies in the data directory itself: choose one outside.", Exit.USAGE)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise Stop(f"The folder {folder} is not empty: a backup is made in a folder of its own.", Exit.USAGE)
        data_directory.lock(folder)
        return asyncio.run(_backup(source, target, say))
    except OSError as fault:
        raise Stop(f"The backup in {folder} cannot be made: {fault.strerror}.", Exit.DATA_UNUSABLE) from fault
    except (SQLAlchemyError, sqlite3.Error) as fault:
        raise Stop(f"The rows in {settings.data} cannot be copied: {fault}.", Exit.DATA_UNUSABLE) from fault


async def _backup(source: Storage, target: Settings, say: Callable[[str], None]) -> bool:
    began = time.monotonic()
    storage = Storage(settings=target, clock=build_clock())
    rows = target.data / "rows.part"
    try:
        await refuse_other_version(source)
        if await input_outside(source) is not None:
            raise Stop(
                "This is the state of a `batchmill run`: copy the folder itself, and its input, while nobody runs it.",
                Exit.USAGE,
            )
        copied = await copy_store(database=source.database, blobs=source.blobs, into=storage.blobs, rows=rows, tell=say)
        rows.rename(rows_path(target))
        await storage.database.write(settle_copy)
        sync_folder(target.data)
        sync_folder(target.data.absolute().parent)
        sound = await audit(storage, as_json=False, say=say)
    except TooBusy as fault:
        raise Stop(f"The backup in {target.data} is not whole: {fault}.", Exit.FAULT) from fault
    finally:
        await storage.database.close()
        await source.database.close()
    how = "Backed up" if sound else "Backed up with the damage named above"
    seconds = time.monotonic() - began
    say(f"{how}: {copied.blobs} blobs, {copied.bytes} bytes in {seconds:.1f} s, in {target.data}.")
    return sound
