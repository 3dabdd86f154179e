"""A batch followed, its results and its files: by our routes, by those of the contract alone, through outages."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from batchmill.client.again import run_again
from batchmill.client.download import fetch
from batchmill.client.events import events_of
from batchmill.client.failure import Failed, Refused, Unreachable
from batchmill.client.follow import follow
from batchmill.client.http import Client
from batchmill.client.patience import Patience
from batchmill.client.results import Chosen, results
from client.odd import Odd, broken, lost, refused, text, told

_LINES = [json.dumps({"custom_id": f"r{at}", "response": {"status_code": 200}}).encode() + b"\n" for at in range(6)]


def _progress(status: str, done: int) -> dict[str, Any]:
    return {"batch_id": "b", "status": status, "request_counts": {"completed": done, "failed": 0, "total": 9}}


def _event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def _followed(odd: Odd, client: Client) -> list[int]:
    found = [each async for each in follow(client, "b", say=odd.said.append, sleep=odd.sleep)]
    return [each["request_counts"]["completed"] for each in found]


async def _listed(odd: Odd, client: Client, chosen: Chosen) -> list[bytes]:
    return [line async for line in results(client, "b", chosen, say=odd.said.append, sleep=odd.sleep)]


async def test_events_are_read_however_they_are_cut() -> None:
    """Comments, CRLF, several lines of data; one that the end cuts off is none."""
    stream = b": hello\r\nevent: a\r\ndata: 1\r\ndata:2\r\n\r\nid: 4\n\ndata: x\n\nevent: cut\ndata: y"

    async def bytewise() -> Any:  # noqa: ANN401 - an async generator
        for at in range(len(stream)):
            yield stream[at : at + 1]

    assert [(event.name, event.data) async for event in events_of(bytewise())] == [("a", b"1\n2"), ("message", b"x")]


async def test_a_stream_that_breaks_off_is_taken_up_again(server: tuple[Odd, Client]) -> None:
    """Through a lost connection, a restart and a stream that ends too early, until the batch is final."""
    odd, client = server
    sse = "text/event-stream"
    odd.answers = [
        broken(_event("progress", _progress("in_progress", 1)), media_type=sse),
        lost,
        text(_event("progress", _progress("in_progress", 2)), media_type=sse),
        text(_event("progress", _progress("completed", 9)) + _event("end", {}), media_type=sse),
    ]
    assert await _followed(odd, client) == [1, 2, 9]
    assert {request.headers["Accept"] for request in odd.asked} == {"text/event-stream"}
    assert odd.said == ["The answer broke off: the connection was lost. Waiting until it is back."]


async def test_a_server_that_has_been_there_is_waited_for(server: tuple[Odd, Client]) -> None:
    """Also where a proxy says that it is away, or it that its database is; a refusal and a quota are no outage."""
    odd, client = server
    final = [told({"id": "b", "status": "completed", "output_file_id": "file_o"}), text(b"".join(_LINES))]
    away = [refused(status) for status in [503] * 6 + [502, 504, 429] * 2]
    odd.answers = [told(_progress("in_progress", 1)), *away, told(_progress("completed", 9))]
    assert await _followed(odd, client) == [1, 9]
    odd.answers = [*away, text(b"".join(_LINES), x_next_cursor="C", x_has_more="false", x_complete="true")]
    assert await _listed(odd, client, Chosen(follow=True)) == _LINES
    odd.answers = [refused(404), *away, told({"id": "b", "status": "in_progress"}), *away, *final]
    assert await _listed(odd, client, Chosen(follow=True)) == _LINES
    for answer in (refused(403), refused(500), refused(429, code="insufficient_quota")):
        odd.answers = [told(_progress("in_progress", 1)), answer]
        with pytest.raises(Refused):
            await _followed(odd, client)


async def test_a_server_that_never_was_there_is_not_waited_for(server: tuple[Odd, Client]) -> None:
    """It is more likely that the address is wrong."""
    odd, client = server
    odd.answers = [lost]
    with pytest.raises(Unreachable):
        await _followed(odd, client)
    with pytest.raises(Unreachable):
        await _listed(odd, client, Chosen(follow=True))


async def test_without_a_route_the_batch_is_looked_at(server: tuple[Odd, Client]) -> None:
    """404 for the route and not for the batch: it is asked for again and again, and that is said once."""
    odd, client = server
    running = {"id": "b", "status": "in_progress", "request_counts": {"completed": 3, "failed": 0, "total": 9}}
    done = running | {"status": "completed", "request_counts": {"completed": 9, "failed": 0, "total": 9}}
    odd.answers = [refused(404), told(running), told(running), refused(503), told(done)]
    assert await _followed(odd, client) == [3, 9]
    assert odd.said == ["This server does not tell of progress: its Batch is looked at every 2 s."]


async def test_a_batch_that_is_not_there_is_refused(server: tuple[Odd, Client]) -> None:
    """404 for both is no missing route."""
    odd, client = server
    odd.answers = [refused(404, "No such batch.")]
    with pytest.raises(Refused, match="No such batch"):
        await _followed(odd, client)
    with pytest.raises(Refused, match="No such batch"):
        await _listed(odd, client, Chosen())


async def test_no_result_comes_twice(server: tuple[Odd, Client]) -> None:
    """A page that breaks off is asked for again behind the same cursor, and what came of it is passed over."""
    odd, client = server
    first, second = b"".join(_LINES[:4]), b"".join(_LINES[4:])
    odd.answers = [
        broken(first[: len(_LINES[0]) + len(_LINES[1]) + 5]),
        text(first, x_next_cursor="C1", x_has_more="true", x_complete="false"),
        text(second, x_next_cursor="C2", x_has_more="false", x_complete="false"),
        text(b"", x_next_cursor="C2", x_has_more="false", x_complete="true"),
    ]
    assert await _listed(odd, client, Chosen(follow=True, status="succeeded")) == _LINES
    asked = [dict(request.query) for request in odd.asked]
    changed = [broken(b"".join(_LINES[:2])), text(_LINES[1] + _LINES[2], x_next_cursor="C", x_complete="true")]
    odd.answers = changed  # of a page with its retries in, the first line has been retried meanwhile
    assert await _listed(odd, client, Chosen(merged=True)) == _LINES[:3]
    assert [each.get("after") for each in asked] == [None, None, "C1", "C2"]
    assert all(each["status"] == "succeeded" and each["wait"] == "30" for each in asked)


async def test_results_come_from_the_files_where_there_is_no_route(server: tuple[Odd, Client]) -> None:
    """They are filtered by the same groups; a batch that is not final yet says to follow."""
    odd, client = server
    failed = b'{"custom_id":"x","response":{"status_code":500,"body":{"error":{"message":"m 1","code":"c"}}}}\n'
    batch = {"id": "b", "status": "completed", "output_file_id": "file_o", "error_file_id": "file_e"}
    asked = [refused(404), told(batch | {"status": "in_progress"})]
    odd.answers = [*asked, told(batch), text(b"".join(_LINES)), text(failed)]
    assert await _listed(odd, client, Chosen(follow=True)) == [*_LINES, failed]
    odd.answers = [refused(404), told(batch), text(failed)]
    assert await _listed(odd, client, Chosen(status="failed")) == [failed]
    odd.answers = [refused(404), told(batch), text(failed)]
    assert await _listed(odd, client, Chosen(error_group="nothing")) == []
    odd.answers = [*asked]
    with pytest.raises(Failed, match="--follow"):
        await _listed(odd, client, Chosen())
    odd.answers = [refused(404), told(batch)]
    with pytest.raises(Failed, match="cannot merge"):
        await _listed(odd, client, Chosen(merged=True))


async def test_what_failed_runs_again_without_a_route(server: tuple[Odd, Client]) -> None:
    """The failed lines go byte for byte, as the parent's: its endpoint, window and metadata."""
    odd, client = server
    batch = {
        "id": "../b",
        "status": "completed",
        "input_file_id": "file_i",
        "error_file_id": "file_e",
        "metadata": {"a": "b"},
    }
    batch |= {"endpoint": "/v1/embeddings", "completion_window": "24h"}
    failed = b'{"custom_id":"x","response":{"status_code":500,"body":{}}}\n'
    first = b'{ "custom_id":"x",\t"body": {"n": 1E+0} }'
    odd.answers = [
        text(failed),
        text(b'{"custom_id":"y"}\r\n\n' + first),
        told({"id": "file_n"}),
        told({"id": "batch_n"}),
    ]
    child = await run_again(client, batch, error_group=None, window=None, say=odd.said.append)
    assert child == {"id": "batch_n"}
    assert first + b"\n\r\n" in odd.bodies[2]
    assert b'"y"' not in odd.bodies[2]
    made = {"input_file_id": "file_n", "endpoint": "/v1/embeddings", "completion_window": "24h", "metadata": {"a": "b"}}
    assert json.loads(odd.bodies[3]) == made
    for wrong, said in (
        ({"status": "in_progress"}, "at its end"),
        ({"error_file_id": None}, "None of its lines failed"),
    ):
        with pytest.raises(Failed, match=said):
            await run_again(client, batch | wrong, error_group=None, window=None, say=odd.said.append)
    odd.answers = [text(b"nonsense")]
    with pytest.raises(Failed, match="no result"):
        await run_again(client, batch, error_group=None, window=None, say=odd.said.append)


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_download_goes_on_where_it_broke_off(
    server: tuple[Odd, Client], tmp_path: Path, *, ranges: bool
) -> None:
    """A part of an earlier try counts, a break costs nothing, and the file has its name when it is whole."""
    odd, client = server
    whole = bytes(range(256)) * 1000
    patience, path = Patience(client, say=odd.said.append, sleep=odd.sleep), tmp_path / "out.jsonl"
    (tmp_path / ".out.jsonl.file_1.part").write_bytes(whole[:100])
    sizes = iter([50_000, 100_000])

    async def serve(request: web.Request) -> web.StreamResponse:
        start = int(request.headers.get("Range", "bytes=0-")[6:-1]) if ranges else 0
        most = next(sizes, None)
        status = 206 if start else 200
        if most is not None:
            return await broken(whole[start:most], status=status)(request)
        return await text(whole[start:], status=status)(request)

    odd.answers = [serve]
    assert await fetch(client, "file_1", path, size=len(whole), patience=patience, told=lambda _: None)
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["out.jsonl"]  # noqa: PTH208 - a test may block
    assert odd.asked[0].headers["Range"] == "bytes=100-"
    assert not await fetch(client, "file_1", path, size=len(whole), patience=patience, told=lambda _: None)
    odd.answers = [text(b"other")]
    with pytest.raises(Failed, match="sends 5 bytes of file_2, which has 9"):
        await fetch(client, "file_2", tmp_path / "two", size=9, patience=patience, told=lambda _: None)
