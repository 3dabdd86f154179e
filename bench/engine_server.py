"""The simulated engine as an HTTP server on real time, with vLLM's gauges: for wiring, not for figures.

    python bench/engine_server.py --slots 32 --speed 10

It prints its URL for `--backend`. Time goes `--speed` times as fast in the engine as outside. A prompt is four bytes a
token, and shares the cache with others by blocks of BLOCK bytes from its beginning; a request generates all of its
`max_tokens`, and its answer says how many tokens of its prompt were cached. Streaming is not known.
"""

import argparse
import asyncio
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from aiohttp import web
from engine_model import Engine, Profile, Sequence

MODEL = "simulated"
BLOCK = 1024  # bytes
_TOKEN = 4  # bytes
_OUTPUT = 16  # tokens, where a request does not say
_TICK = 0.002  # seconds between two looks at an engine that has something to do


@dataclass(slots=True, kw_only=True)
class EngineServer:
    """One engine; `most_running` and `most_waiting` are the highest gauges since it began."""

    engine: Engine
    speed: float
    most_running: int = 0
    most_waiting: int = 0
    _ends: dict[Sequence, "asyncio.Future[None]"] = field(default_factory=dict)
    _began: float = 0.0
    _driving: "asyncio.Task[None] | None" = None

    def app(self) -> web.Application:
        """Return what answers."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/metrics", self._metrics)
        self._began = asyncio.get_running_loop().time()
        return app

    async def _models(self, _: web.Request) -> web.Response:
        listed = {"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "bench"}
        return web.json_response({"object": "list", "data": [listed]})

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        asked = sequence(_prompt(body["messages"]), output=int(body.get("max_tokens") or _OUTPUT))
        if asked.prompt + asked.output > 0.9 * self.engine.profile.kv_tokens:  # some room is kept free
            return web.json_response({"error": {"message": "The prompt is too long.", "type": "invalid"}}, status=400)
        end = self._ends[asked] = asyncio.get_running_loop().create_future()
        self.engine.submit(asked, self._now())
        self._run()
        if self._driving is None or self._driving.done():
            self._driving = asyncio.create_task(self._drive())
        await end
        return web.json_response(_answer(asked))

    async def _metrics(self, _: web.Request) -> web.Response:
        self._run()
        gauges = self.engine.gauges()
        named = {"num_requests_waiting": gauges.waiting, "num_requests_running": gauges.running}
        shown = {**named, "kv_cache_usage_perc": gauges.kv}
        return web.Response(text="".join(f"# TYPE vllm:{name} gauge\nvllm:{name} {shown[name]}\n" for name in shown))

    def _now(self) -> float:
        return (asyncio.get_running_loop().time() - self._began) * self.speed

    async def _drive(self) -> None:
        """Let the engine go on for as long as it has something to do."""
        while self._ends:
            self._run()
            await asyncio.sleep(_TICK)

    def _run(self) -> None:
        """Let the engine come as far as its time is; what it has finished is answered when its iteration ends."""
        loop, now = asyncio.get_running_loop(), self._now()
        while self.engine.clock < now:
            for ended in self.engine.run(now):
                late = max(0.0, self.engine.clock - now) / self.speed
                loop.call_later(late, _tell, self._ends.pop(ended))
        gauges = self.engine.gauges()
        self.most_running = max(self.most_running, gauges.running)
        self.most_waiting = max(self.most_waiting, gauges.waiting)


def _tell(end: "asyncio.Future[None]") -> None:
    if not end.done():  # who asked may have gone
        end.set_result(None)


def sequence(prompt: bytes, *, output: int) -> Sequence:
    """Return a request as the engine takes it."""
    marks, mark = [], b""
    for at in range(0, len(prompt) - BLOCK + 1, BLOCK):
        mark = hashlib.blake2b(mark + prompt[at : at + BLOCK], digest_size=7).digest()
        marks.append((int.from_bytes(mark, "big"), BLOCK // _TOKEN))
    return Sequence(tuple(marks), max(1, len(prompt) % BLOCK // _TOKEN), output)


def _prompt(messages: Iterable[dict[str, object]]) -> bytes:
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages).encode()


def _answer(ended: Sequence) -> dict[str, object]:
    usage = {
        "prompt_tokens": ended.prompt,
        "completion_tokens": ended.output,
        "total_tokens": ended.prompt + ended.output,
        "prompt_tokens_details": {"cached_tokens": max(0, ended.prompt - ended.computed)},
    }
    message = {"role": "assistant", "content": "word " * ended.output}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    return {"id": "x", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}


async def start(server: EngineServer, port: int = 0) -> tuple[web.AppRunner, str]:
    """Listen on a port of 127.0.0.1; return what is to be cleaned up, and the URL for `--backend`."""
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"


async def _serve(profile: Profile, speed: float, port: int) -> None:
    server = EngineServer(engine=Engine(profile), speed=speed)
    runner, url = await start(server, port)
    print(url, flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        shown = {"most_running": server.most_running, "most_waiting": server.most_waiting}
        print(json.dumps({**shown, "prefilled": server.engine.prefilled}))


def main() -> None:
    """Serve until Ctrl-C."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--slots", type=int, default=Profile().slots)
    options.add_argument("--speed", type=float, default=1.0)
    options.add_argument("--port", type=int, default=0)
    chosen = options.parse_args()
    try:
        asyncio.run(_serve(Profile().scaled(chosen.slots), chosen.speed, chosen.port))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
