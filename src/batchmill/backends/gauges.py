"""What an inference server says of itself at `/metrics`: requests that wait and run in it, and its cache's use."""

from prometheus_client.parser import text_string_to_metric_families

from batchmill.schedule.window import Gauges

__all__ = ["read_gauges"]

# The names that servers use, as their sources have them; a server with several engines has a sample of each.
_WAITING = frozenset({"vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred"})
_LLAMA = "llamacpp:requests_processing"  # whose slots each have a cache of their own
_RUNNING = frozenset({"vllm:num_requests_running", "sglang:num_running_reqs", _LLAMA})
_CACHE = frozenset(
    {
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",  # vLLM before 0.10
        "sglang:token_usage",
    }  # none of llama.cpp's: what its idle slots keep counts there, too
)


def read_gauges(text: str) -> Gauges | None:
    """Return the gauges in a page of Prometheus's text format; None where they are not there, or it is no such page."""
    waiting, running, cache, apart = [], [], [], False
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in _WAITING:
                    waiting.append(sample.value)
                elif sample.name in _RUNNING:
                    running.append(sample.value)
                    apart = sample.name == _LLAMA
                elif sample.name in _CACHE:
                    cache.append(sample.value)
    except ValueError:
        return None
    if not (waiting and running):
        return None
    return Gauges(waiting=sum(waiting), running=sum(running), kv=max(cache, default=0.0), apart=apart)
