"""The failed lines of a batch as a batch of their own, put together here where a server has no route for it."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from batchmill.client.download import content_of
from batchmill.client.events import lines_of
from batchmill.client.failure import Failed
from batchmill.client.http import Client, Json
from batchmill.client.patience import Patience
from batchmill.client.progress import is_final
from batchmill.spec.groups import group_of

_NO_ROUTE = "This server has no retry: the failed lines are uploaded as a file of their own."


class _Request(msgspec.Struct):
    custom_id: str


_REQUEST = msgspec.json.Decoder(_Request)


async def run_again(
    client: Client, batch: Json, *, error_group: str | None, window: str | None, say: Callable[[str], None]
) -> Json:
    """Return a new Batch of a final one's failed lines, byte for byte as they were; of one cause if that is named.

    A server that knows nothing of it does not keep anyone from doing so twice.

    Raises:
        Failed: the batch is not final, none of its lines failed so, or its input is gone.
        OSError: the lines cannot be kept meanwhile.
    """
    if not is_final(batch):
        raise Failed(f"The batch is {batch.get('status')} yet: what failed is known at its end.")
    patience = Patience(client, say=say)
    failed = await _failed(client, batch, error_group, patience)
    if not failed:
        raise Failed("None of its lines failed" + ("." if error_group is None else " for this reason."))
    say(_NO_ROUTE)
    with tempfile.NamedTemporaryFile(prefix="batchmill-", suffix="-retry.jsonl") as stream:
        async for line in lines_of(content_of(client, str(batch.get("input_file_id")), patience=patience)):
            if line.strip() and _custom_id(line) in failed:
                stream.write(line + b"\n")
        stream.flush()
        uploaded = await client.upload(Path(stream.name), purpose="batch", told=lambda _: None)
    body: Json = {
        "input_file_id": uploaded.get("id"),
        "endpoint": batch.get("endpoint"),
        "completion_window": window or batch.get("completion_window"),
    }
    if batch.get("metadata"):
        body["metadata"] = batch["metadata"]
    return await client.post("/batches", body)


async def _failed(client: Client, batch: Json, error_group: str | None, patience: Patience) -> set[str]:
    """Return the custom_ids of the lines that failed, of one cause if that is named."""
    file_id, failed = batch.get("error_file_id"), set[str]()
    if file_id is None:
        return failed
    async for line in lines_of(content_of(client, file_id, patience=patience)):
        try:
            cause = group_of(line)
        except ValueError as fault:
            raise Failed("The error file holds a line that is no result.") from fault
        if error_group in {None, cause.group.id}:
            failed.add(cause.custom_id)
    return failed


def _custom_id(line: bytes) -> str:
    try:
        return _REQUEST.decode(line).custom_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise Failed("The input holds a line that is no request.") from fault
