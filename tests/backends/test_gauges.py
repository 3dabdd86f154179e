"""What inference servers say of themselves, in the words that each of them uses."""

from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from batchmill.backends.gauges import read_gauges
from batchmill.backends.http import HttpBackend
from batchmill.backends.transport import Transport
from batchmill.schedule.window import Gauges


@pytest.fixture
def backend_at(transport: Transport) -> Callable[..., HttpBackend]:
    """Make a backend that uses the transport under test."""
    return lambda url: HttpBackend(url=url, transport=transport, deadline=20.0)


VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1e+06
"""
SGLANG = "sglang:num_running_reqs 5\nsglang:num_queue_reqs 2\nsglang:token_usage 0.9\n"
LLAMA = "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 2\nllamacpp:requests_deferred 7\n"


@pytest.mark.parametrize(
    ("text", "gauges"),
    [
        (VLLM, Gauges(waiting=1, running=7, kv=0.5)),
        (SGLANG, Gauges(waiting=2, running=5, kv=0.9)),
        (LLAMA, Gauges(waiting=7, running=2, apart=True)),
        ("", None),
        ("sglang:num_running_reqs 5\n", None),
        ("<html>not found</html>", None),
        ("http_requests_total 5\n", None),
        ("vllm:num_requests_running{ 5\n", None),
    ],
)
def test_a_page_is_read(text: str, gauges: Gauges | None) -> None:
    """The engines of a server count together; a page without both numbers says nothing; llama.cpp's slots are apart."""
    assert read_gauges(text) == gauges


async def test_gauges_stand_at_the_servers_root(
    backend_at: Callable[..., HttpBackend], serve: Callable[..., Awaitable[str]]
) -> None:
    """Beside /v1, not below it; a server that has none, or another page there, says nothing."""
    pages = {"/metrics": VLLM.encode()}

    async def answer(request: web.Request) -> web.Response:
        page = pages.get(request.path)
        return web.Response(status=404) if page is None else web.Response(body=page)

    url = await serve(answer)
    assert await backend_at(url).gauges() == Gauges(waiting=1, running=7, kv=0.5)
    pages["/metrics"] = b"# " + b"x" * (2 << 20)
    assert await backend_at(url).gauges() is None
    pages.clear()
    assert await backend_at(url).gauges() is None
    assert await backend_at("http://127.0.0.1:9/v1").gauges() is None
