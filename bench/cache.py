"""What the order of lines is worth on the built-in engine: prompt tokens computed, CPU and wall time, to the file's.

    python bench/cache.py --passages 40 --questions 3

A shuffled batch of short questions about long passages, each passage the beginning of its questions' prompts, goes
through `batchmill run` twice on the built-in model (llama.cpp with its prefix cache): with `order = "file"`, and as
Batchmill orders it with nothing configured.

What was computed is read from the answers: `usage.prompt_tokens` less `usage.prompt_tokens_details.cached_tokens`. The
least that any order computes is each passage once, and of each line what is its own. Wall time is of the whole command.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from figure import Figure, arguments, report
from served import ENDPOINT

_MODEL = "smollm2-135m-instruct"
_OUTPUT = 8  # tokens
_WORDS = (
    "river",
    "town",
    "market",
    "keeper",
    "lamp",
    "winter",
    "sister",
    "boat",
    "harbour",
    "letter",
    "island",
    "year",
)
_ENV = {name: value for name, value in os.environ.items() if not name.startswith("BATCHMILL_")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a run took: seconds, CPU seconds of all its processes, prompt tokens asked for and computed."""

    wall: float
    cpu: float
    asked: int
    computed: int


def shuffled(passages: int, questions: int, passage_bytes: int) -> list[bytes]:
    """Return the lines."""
    draw = random.Random(1)  # noqa: S311 - a workload, not a secret
    lines = []
    for passage in range(passages):
        text = f"Passage {passage}. "
        while len(text) < passage_bytes:
            text += " ".join(draw.choices(_WORDS, k=12)).capitalize() + ". "
        for question in range(questions):
            asked = f"{text}\n\nQuestion {question}: how many {draw.choice(_WORDS)} are there?"
            messages = [{"role": "user", "content": asked}]
            body = {"model": _MODEL, "messages": messages, "max_tokens": _OUTPUT, "temperature": 0}
            custom_id = f"{passage}-{question}"
            lines.append({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body})
    draw.shuffle(lines)
    return [json.dumps(line).encode() + b"\n" for line in lines]


def run(lines: Sequence[bytes], *, order: str) -> Cost:
    """Run a file of these lines; `order` is the setting of that name."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        source.write_bytes(b"".join(lines))
        command = [sys.executable, "-m", "batchmill", "run", str(source), "-o", str(output), "--quiet"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, check=True, env=_ENV | {"BATCHMILL_ORDER": order})
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
        results = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    told = [result["response"]["body"]["usage"] for result in results]
    asked = sum(usage["prompt_tokens"] for usage in told)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in told)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cost = Cost(wall=wall, cpu=cpu, asked=asked, computed=asked - cached)
    print(f"{len(results)} lines: {cost}", flush=True)
    return cost


def figures(chosen: argparse.Namespace) -> Iterator[Figure]:
    """Run each order in turns."""
    lines = shuffled(chosen.passages, chosen.questions, chosen.passage_bytes)
    pairs = [(run(lines, order="auto"), run(lines, order="file")) for _ in range(chosen.pairs)]
    ours, theirs = pairs[0]
    note = f"{ours.computed} and {theirs.computed} of {theirs.asked} prompt tokens"
    for what, note_ in (("computed", note), ("cpu", ""), ("wall", "")):
        ratios = [getattr(ours, what) / getattr(theirs, what) for ours, theirs in pairs]
        name = {"computed": "prompt tokens computed", "cpu": "CPU", "wall": "wall time"}[what]
        yield Figure.of_pairs(ratios, group="cache", name=f"{name}, built-in engine: ordered / as it lies", note=note_)


def main() -> None:
    """Compare the two orders."""
    options = arguments(__doc__)
    options.add_argument("--passages", type=int, default=40)
    options.add_argument("--questions", type=int, default=3, help="10 take half an hour on slow cores")
    options.add_argument("--passage-bytes", type=int, default=2_600)
    options.add_argument("--pairs", type=int, default=1)
    chosen = options.parse_args()
    report(figures(chosen), chosen.json)


if __name__ == "__main__":
    main()
