import io

import openai
import pytest

from api.served import LINE, Tenant
from batchmill.store.model import add_models

CHINESE = "输入 ü.jsonl"
CONTENT = LINE + b"\xef\xbb\xbf not JSON at all \x00\xff\r\n" + LINE  # bytes are kept whatever they are


def test_the_client_uploads_retrieves_downloads_and_deletes_a_file(tenant: Tenant) -> None:
    """A file comes back byte for byte under its Chinese name, and is gone after a delete."""
    with tenant.openai() as client:
        made = client.files.create(file=(CHINESE, io.BytesIO(CONTENT)), purpose="batch")
        assert (made.filename, made.bytes, made.purpose, made.status) == (CHINESE, len(CONTENT), "batch", "processed")
        assert made.id.startswith("file_")
        assert made.expires_at is None
        assert client.files.retrieve(made.id) == made
        assert client.files.wait_for_processing(made.id) == made
        assert client.files.content(made.id).content == CONTENT
        gone = client.files.delete(made.id)
        assert (gone.id, gone.object, gone.deleted) == (made.id, "file", True)
        with pytest.raises(openai.NotFoundError) as missing:
            client.files.retrieve(made.id)
    assert missing.value.type == "resource_not_found_error"
    assert missing.value.request_id == missing.value.response.headers["msh-request-id"]


def test_the_client_reads_chinese_text(tenant: Tenant) -> None:
    """The text of a download is read as UTF-8."""
    with tenant.openai() as client:
        assert client.files.content(tenant.upload()["id"]).text == LINE.decode()


def test_the_client_sets_an_expiry(tenant: Tenant) -> None:
    """`expires_after` counts from the creation."""
    with tenant.openai() as client:
        expiry = {"anchor": "created_at", "seconds": 3600}
        made = client.files.create(file=("a.jsonl", LINE), purpose="batch", expires_after=expiry)
    assert made.expires_at == made.created_at + 3600


def test_bare_bytes_are_refused_with_a_clear_message(tenant: Tenant) -> None:
    """Bytes without a name go out as "upload", which is no .jsonl."""
    with tenant.openai() as client, pytest.raises(openai.BadRequestError, match=r"\.jsonl") as refused:
        client.files.create(file=LINE, purpose="batch")
    assert refused.value.param == "file"


def test_the_client_pages_through_files(tenant: Tenant) -> None:
    """Iterating over a list with a small limit yields every file once, the newest first, or the oldest."""
    ids = [tenant.upload()["id"] for _ in range(5)]
    with tenant.openai() as client:
        assert [f.id for f in client.files.list(limit=2)] == ids[::-1]
        assert [f.id for f in client.files.list(limit=2, order="asc")] == ids
        assert [f.id for f in client.files.list()] == ids[::-1]
        assert list(client.files.list(purpose="batch_output")) == []


def test_the_client_creates_retrieves_and_cancels_a_batch(tenant: Tenant) -> None:
    """A batch begins in `validating` with its deadline; a cancel leads to `cancelling`, and twice is as once."""
    file_id = tenant.upload()["id"]
    with tenant.openai() as client:
        made = client.batches.create(
            input_file_id=file_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"项目": "雨"},
            output_expires_after={"anchor": "created_at", "seconds": 86_400},
        )
        assert made.status == "validating"
        assert made.id.startswith("batch_")
        assert made.expires_at == made.created_at + 86_400
        assert made.metadata == {"项目": "雨"}
        assert client.batches.retrieve(made.id) == made
        cancelled = client.batches.cancel(made.id)
        assert cancelled.status == "cancelling"
        assert cancelled.cancelling_at == made.created_at
        tenant.served.clock.time += 1
        assert client.batches.cancel(made.id) == cancelled


def test_the_client_sends_null_metadata(tenant: Tenant) -> None:
    """Metadata that is null on the way in is null on the way out."""
    file_id = tenant.upload()["id"]
    with tenant.openai() as client:
        made = client.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", metadata=None
        )
    assert made.metadata is None


def test_the_client_pages_through_batches(tenant: Tenant) -> None:
    """Iterating over batches with a small limit yields every one once, the newest first."""
    file_id = tenant.upload()["id"]
    ids = [tenant.create(file_id)["id"] for _ in range(5)]
    with tenant.openai() as client:
        assert [b.id for b in client.batches.list(limit=2)] == ids[::-1]
        assert [b.id for b in client.batches.list()] == ids[::-1]


def test_the_client_lists_and_retrieves_models(tenant: Tenant) -> None:
    """A model that a backend serves is listed and retrieved, even with a slash in its name."""
    tenant.served.rows(lambda tx: add_models(tx, names=["echo", "org/model-7b"], now=1_800_000_000))
    with tenant.openai() as client:
        assert {"echo", "org/model-7b"} <= {model.id for model in client.models.list()}
        assert client.models.retrieve("org/model-7b").created == 1_800_000_000
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("none/such")


async def test_the_asynchronous_client_sees_the_same(tenant: Tenant) -> None:
    """Upload, create, lists, cancel, download and delete work with asyncio, too."""
    async with tenant.async_openai() as client:
        made = await client.files.create(file=(CHINESE, CONTENT), purpose="batch")
        batch = await client.batches.create(
            input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        assert [file.id async for file in client.files.list(limit=1)] == [made.id]
        assert [b.id async for b in client.batches.list(limit=1)] == [batch.id]
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        assert (await client.files.content(made.id)).content == CONTENT
        assert (await client.files.delete(made.id)).deleted
        assert (await client.batches.retrieve(batch.id)).input_file_id == made.id
