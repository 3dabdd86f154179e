"""What checking an input costs beside `orjson.loads` of each of its lines, and how much memory it takes.

    python bench/validation.py --bytes 100000000 --pairs 7

The same text is written once as UTF-8 and once escaped to ASCII, in lines of three lengths. Each is checked by the
Validator's own pass (grammar, UTF-8, envelope, body, repeated custom_ids, Plan written and synced) and read by orjson
in turns; the ratio is the median over the pairs, in CPU time. Memory is by how much the largest resident set of a
process grows that checks one file. orjson comes with `pip install --group bench`.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from batchmill.blobs.disk import DiskBlobs
from batchmill.engine.validation import validate
from batchmill.spec.limits import OPEN

_CHAT = "/v1/chat/completions"
_WORDS = ("the", "answer", "of", "number", "train", "cost", "years", "naïve", "国际", "数学", "问题", "多少", "总共")
_LENGTHS = (880, 3_700, 43_000)  # bytes a line, about (performance, 2.3)
_KEY = "input"


def main() -> None:
    """Measure every kind of file, or be the process whose memory is looked at."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--bytes", type=int, default=100_000_000)
    arguments.add_argument("--pairs", type=int, default=7)
    arguments.add_argument("--memory-of", type=Path)
    given = arguments.parse_args()
    if given.memory_of is not None:
        print(_growth(given.memory_of))
        return
    for ascii_only in (False, True):
        for length in _LENGTHS:
            with tempfile.TemporaryDirectory() as folder:
                blobs = DiskBlobs(folder=Path(folder))
                written = blobs.writer(_KEY)
                lines = 0
                for line in _lines(given.bytes, length=length, ascii_only=ascii_only):
                    written.write(line)
                    lines += 1
                size = written.finish().bytes
                _report("ascii" if ascii_only else "utf-8", length, size, lines, blobs, given.pairs, Path(folder))


def _report(kind: str, length: int, size: int, lines: int, blobs: DiskBlobs, pairs: int, folder: Path) -> None:  # noqa: PLR0917 - what one row says
    ours, theirs = [], []
    for pair in range(pairs):
        theirs.append(_cpu(lambda: _orjson(blobs)))
        ours.append(_cpu(lambda: _check(blobs, f"plan{pair}")))  # noqa: B023 - called at once
    ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    child = subprocess.run(
        [sys.executable, __file__, "--memory-of", folder], check=True, capture_output=True, text=True
    )
    row = {
        "file": kind,
        "line_bytes": length,
        "lines": lines,
        "ours_mb_s": round(size / min(ours) / 1e6),
        "orjson_mb_s": round(size / min(theirs) / 1e6),
        "ratio": round(statistics.median(ratios), 2),
        "spread": [round(ratios[0], 2), round(ratios[-1], 2)],
        "us_per_line": round(min(ours) / lines * 1e6, 2),
        "memory_mib": float(child.stdout),
    }
    print(json.dumps(row), flush=True)


def _lines(size: int, *, length: int, ascii_only: bool) -> Iterator[bytes]:
    words = random.Random(1)  # noqa: S311 - the same text each time
    number = total = 0
    while total < size:
        text = " ".join(words.choices(_WORDS, k=length // 6))
        while len(json.dumps(text, ensure_ascii=ascii_only).encode()) > length - 200:
            text = text[: len(text) * 9 // 10]
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 256, "temperature": 0.7}
        line = {"custom_id": f"request-{number}", "method": "POST", "url": _CHAT, "body": body}
        data = json.dumps(line, ensure_ascii=ascii_only).encode() + b"\n"
        number, total = number + 1, total + len(data)
        yield data


def _check(blobs: DiskBlobs, plan: str) -> None:
    found = validate(blobs=blobs, input_key=_KEY, plan_key=plan, endpoint=_CHAT, limits=OPEN, known_models=["m"])
    if found.errors:
        raise ValueError(found.errors[0].message)


def _orjson(blobs: DiskBlobs) -> None:
    with blobs.open(_KEY) as stream:
        for line in stream:
            orjson.loads(line)


def _cpu(call: Callable[[], None]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def _growth(folder: Path) -> float:
    """Return by how much memory grew at its highest, in MiB; nothing is mapped, so it is all our own."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _check(DiskBlobs(folder=folder), "memory")
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1)


if __name__ == "__main__":
    main()
