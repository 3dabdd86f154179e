"""The batch runners of others, each by the leanest way that its documentation names: a JSONL file in, results on disk.

    python bench/peers.py NAME INPUT URL FOLDER

Runs in a venv that has the runner, and has nothing else of ours in it. Prints its version and what a line cost: CPU of
the whole process, its children too, from the first byte read to the last result written, without the imports.
"""

import argparse
import asyncio
import importlib
import importlib.metadata
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_IN_FLIGHT = 256


def _lines(source: Path) -> Iterator[dict[str, Any]]:
    with source.open("rb") as stream:
        yield from map(json.loads, stream)


def _openai(openai: ModuleType, source: Path, url: str, folder: Path) -> int:
    """The SDK's client behind a semaphore, as most scripts have it; a result is written when it comes."""

    async def run() -> int:
        admitted, answered = asyncio.Semaphore(_IN_FLIGHT), 0
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            with (folder / "results.jsonl").open("w", encoding="utf-8") as results:

                async def ask(line: dict[str, Any]) -> None:
                    nonlocal answered
                    async with admitted:
                        answer = await client.chat.completions.create(**line["body"])
                    results.write(json.dumps({"custom_id": line["custom_id"], "body": answer.to_dict()}) + "\n")
                    answered += 1

                await asyncio.gather(*map(ask, _lines(source)))
        return answered

    return asyncio.run(run())


def _saturate(saturate: ModuleType, source: Path, url: str, folder: Path) -> int:
    """Its `pump`, told its window, without gauges, a Parquet part each 1,000 rows instead of each 10."""
    stats = saturate.pump(
        ((line["custom_id"], line["body"]) for line in _lines(source)),
        to_request=lambda body: body,
        parse=lambda _, answer: {"text": answer["choices"][0]["message"]["content"]},
        endpoint=url,
        output=str(folder / "results"),
        window=saturate.Fixed(_IN_FLIGHT),
        flush_every=1000,
        signal_source="none",
    )
    return int(stats.rows_processed)


def _flexllm(flexllm: ModuleType, source: Path, url: str, folder: Path) -> int:
    """Its `chat_batch` with a checkpoint, without inputs and progress."""
    client = flexllm.LLMClient(model="m", base_url=url, api_key="none", concurrency_limit=_IN_FLIGHT)
    asked = [line["body"]["messages"] for line in _lines(source)]
    results = client.chat_batch_sync(
        asked, output_jsonl=str(folder / "results.jsonl"), save_input=False, show_progress=False
    )
    return int(results.success_count)


_RUN: dict[str, Callable[[ModuleType, Path, str, Path], int]] = {
    "openai": _openai,
    "saturate": _saturate,
    "flexllm": _flexllm,
}


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Run one of them on a core of its own."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("name", choices=_RUN)
    options.add_argument("input", type=Path)
    options.add_argument("url")
    options.add_argument("folder", type=Path)
    chosen = options.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    runner = importlib.import_module(chosen.name)
    lines = chosen.input.read_bytes().count(b"\n")
    before = _cpu()
    answered = _RUN[chosen.name](runner, chosen.input, chosen.url, chosen.folder)
    us = (_cpu() - before) / lines * 1e6
    if answered != lines:
        raise SystemExit(f"{chosen.name}: {answered} of {lines} lines were answered")
    print(json.dumps({"us": us, "version": importlib.metadata.version(chosen.name)}))


if __name__ == "__main__":
    main()
