"""What a stranger does with the official client, from upload to results: `story.py URL KEY`.

Runs in the interpreter of each client's own venv, so it imports nothing but that client. Every answer is checked
strictly against the client's own types, first with the synchronous client, then with the one for asyncio.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import openai

LINES = "".join(
    f'{{"custom_id":"行-{n}","method":"POST","url":"/v1/chat/completions",'
    f'"body":{{"model":"echo","messages":[{{"role":"user","content":"雨 {n}"}}]}}}}\n'
    for n in range(20)
).encode()
ORDER = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": {"项目": "雨"}}
PATIENCE = 60.0


def synchronous(client: openai.OpenAI) -> None:
    """Walk through every call of the contract."""
    assert "echo" in [model.id for model in client.models.list()]
    assert client.models.retrieve("echo").id == "echo"
    source = client.files.create(file=("输入.jsonl", LINES), purpose="batch")
    assert client.files.wait_for_processing(source.id) == source
    assert client.files.retrieve(source.id) == source
    assert client.files.content(source.id).content == LINES
    made = client.batches.create(input_file_id=source.id, **ORDER)
    end = time.monotonic() + PATIENCE
    while (batch := client.batches.retrieve(made.id)).status != "completed":
        assert batch.status in {"validating", "in_progress", "finalizing"}, batch
        assert time.monotonic() < end, batch
        time.sleep(0.05)
    assert (batch.request_counts.completed, batch.request_counts.failed, batch.error_file_id) == (20, 0, None)
    text = client.files.content(batch.output_file_id).text
    assert [f'"行-{n}"' in line for n, line in enumerate(text.splitlines())] == [True] * 20
    listed = [b.id for b in client.batches.list(limit=1)]
    assert listed == [batch.id]
    assert {source.id, batch.output_file_id} == {f.id for f in client.files.list(limit=1)}
    refused(openai.BadRequestError, lambda: client.batches.cancel(batch.id))
    refused(openai.BadRequestError, lambda: client.batches.create(input_file_id="file_none", **ORDER))
    refused(openai.BadRequestError, lambda: client.files.create(file=("a.txt", LINES), purpose="batch"))
    refused(openai.NotFoundError, lambda: client.batches.retrieve("batch_none"))
    refused(openai.AuthenticationError, client.with_options(api_key="sk-none").files.list)
    for file in client.files.list():
        assert client.files.delete(file.id).deleted
    refused(openai.NotFoundError, lambda: client.files.retrieve(source.id))


def refused(kind: type[openai.APIStatusError], call: Callable[[], object]) -> None:
    """Check that a call raises what the client's users catch, with all that they read of it."""
    seen: openai.APIStatusError | None = None
    try:
        call()
    except kind as fault:
        seen = fault
    assert seen is not None, f"no {kind.__name__}"
    assert seen.type, seen
    assert seen.request_id == seen.response.headers["msh-request-id"], seen


async def asynchronous(client: openai.AsyncOpenAI) -> None:
    """Walk through the same in short, with a cancel."""
    source = await client.files.create(file=("a.jsonl", LINES), purpose="batch")
    made = await client.batches.create(input_file_id=source.id, **ORDER)
    with suppress(openai.BadRequestError):  # the batch may be faster
        await client.batches.cancel(made.id)
    assert (await client.batches.retrieve(made.id)).status in {"cancelling", "cancelled", "finalizing", "completed"}
    assert made.id in [b.id async for b in client.batches.list(limit=1)]
    assert (await client.files.content(source.id)).content == LINES
    assert (await client.files.delete(source.id)).deleted


async def main(url: str, key: str) -> None:
    """Run both."""
    options = {"base_url": f"{url}/v1", "api_key": key, "max_retries": 0, "timeout": 30.0}
    with openai.OpenAI(**options, _strict_response_validation=True) as client:
        synchronous(client)
    async with openai.AsyncOpenAI(**options, _strict_response_validation=True) as client:
        await asynchronous(client)
    print(f"openai-python {openai.__version__}: told to its end")  # noqa: T201 - the answer to the test


asyncio.run(main(*sys.argv[1:]))
