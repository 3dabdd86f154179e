"""The wiring of the policy: `batchmill run` against the simulated engine as an HTTP server."""

import asyncio
import json
from pathlib import Path

from engine_model import Engine, Profile
from engine_server import MODEL, EngineServer, start

from acceptance.serving import FOUND, Processes, clean_environment
from storage import on_one_machine

_SLOTS = 128
_LINES = 2000


@on_one_machine
async def test_a_run_finds_the_window_of_an_engine_that_it_knows_nothing_of(
    processes: Processes, tmp_path: Path
) -> None:
    """All of the engine's slots get work, its queue stays a small part of the batch, and every line is answered."""
    server = EngineServer(engine=Engine(Profile().scaled(_SLOTS)), speed=4.0)
    runner, url = await start(server)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(_line(number)) + "\n" for number in range(_LINES)), encoding="utf-8")
    try:
        ended = await asyncio.to_thread(
            processes.batchmill,
            *("run", source, "-o", output, "--backend", url),
            environment=clean_environment(BATCHMILL_WINDOW=FOUND),
        )
    finally:
        await runner.cleanup()
    assert ended.code == 0, ended.err
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["custom_id"] for line in found] == [f"line-{number}" for number in range(_LINES)]
    print(server.most_running, server.most_waiting)  # noqa: T201 - the figures
    assert server.most_running == _SLOTS
    assert server.most_waiting <= 2 * _SLOTS


def _line(number: int) -> dict[str, object]:
    messages = [{"role": "user", "content": f"Question {number}: what is it worth? " * 8}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 64}
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
