"""What checking an input costs beside `orjson.loads` of each of its lines, and how much memory it takes.

    python bench/validation.py --bytes 100000000 --pairs 7 --memory-bytes 1000000000

The same text is written once as UTF-8 and once escaped to ASCII, in lines of three lengths. Each is checked by the
Validator's own pass (grammar, UTF-8, envelope, body, repeated custom_ids, Plan written and synced) and read by orjson
in turns; the ratio is that of CPU times. Memory is by how much the largest resident set of a process grows that checks
one large file of the shortest lines, of which there are most. orjson comes with `pip install --group bench`.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import orjson
from figure import Figure, arguments, report

from batchmill.blobs.disk import DiskBlobs
from batchmill.spec.limits import OPEN
from batchmill.validation.validation import validate

_CHAT = "/v1/chat/completions"
_WORDS = ("the", "answer", "of", "number", "train", "cost", "years", "naïve", "国际", "数学", "问题", "多少", "总共")
_LENGTHS = (880, 3_700, 43_000)  # bytes a line, about (performance, 2.3)
_KEY = "input"
_GROUP = "Validation"
_GOALS = {"UTF-8": 1.0, "ASCII": 1.5}  # MB/s, / orjson's
_MEMORY_MIB = 64  # the goal at 1 GB
_INTERPRETER = "Most of it is what a line costs the interpreter, however short it is."
_ESCAPES = "msgspec takes about as long to decode the escapes as orjson takes for the whole line."
_LIMITED = {
    ("UTF-8", 880): _INTERPRETER,
    ("UTF-8", 3_700): _INTERPRETER,
    ("ASCII", 880): _INTERPRETER,
    ("ASCII", 3_700): _ESCAPES,
    ("ASCII", 43_000): _ESCAPES,
}
_TEXTS = 512  # different ones in a file


def main() -> None:
    """Measure every kind of file, or be the process whose memory is looked at."""
    options = arguments(__doc__)
    options.add_argument("--bytes", type=int, default=100_000_000)
    options.add_argument("--pairs", type=int, default=7)
    options.add_argument("--memory-bytes", type=int, default=1_000_000_000)
    options.add_argument("--memory-of", type=Path, help="measure one folder's file in this process")
    given = options.parse_args()
    if given.memory_of is not None:
        print(_growth(given.memory_of))
        return
    report(_figures(given.bytes, given.pairs, given.memory_bytes), given.json)


def _figures(size: int, pairs: int, memory_bytes: int) -> Iterator[Figure]:
    for kind, length in product(_GOALS, _LENGTHS):
        with tempfile.TemporaryDirectory() as folder:
            yield _speed(kind, length, DiskBlobs(folder=Path(folder)), size, pairs)
    with tempfile.TemporaryDirectory() as folder:
        lines = _write(DiskBlobs(folder=Path(folder)), memory_bytes, length=_LENGTHS[0], ascii_only=False)
        command = [sys.executable, __file__, "--memory-of", folder]
        grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        name = f"memory at {memory_bytes / 1e9:g} GB, {lines:,} lines"
        yield Figure(group=_GROUP, name=name, value=float(grown), unit="MiB", goal=_MEMORY_MIB)


def _speed(kind: str, length: int, blobs: DiskBlobs, size: int, pairs: int) -> Figure:
    lines = _write(blobs, size, length=length, ascii_only=kind == "ASCII")
    ours, theirs = [], []
    for pair in range(pairs):
        theirs.append(_cpu(partial(_orjson, blobs)))
        ours.append(_cpu(partial(_check, blobs, f"plan{pair}")))
    print(
        f"{kind}, {lines:,} lines of {length:,} B: {size / min(ours) / 1e6:.0f} MB/s "
        f"({min(ours) / lines * 1e6:.2f} us a line), orjson {size / min(theirs) / 1e6:.0f} MB/s"
    )
    return Figure.of_pairs(
        [a / b for a, b in zip(theirs, ours, strict=True)],
        group=_GROUP,
        name=f"MB/s / orjson.loads, {kind}, lines of {length:,} B",
        goal=_GOALS[kind],
        at_least=True,
        note=_LIMITED.get((kind, length), ""),
    )


def _write(blobs: DiskBlobs, size: int, *, length: int, ascii_only: bool) -> int:
    """Write an input of about so many bytes; return how many lines it has."""
    words = random.Random(1)  # noqa: S311 - the same text each time
    rests = [_rest(words, length, ascii_only=ascii_only) for _ in range(_TEXTS)]
    written = blobs.writer(_KEY)
    number = total = 0
    while total < size:
        line = b'{"custom_id": "request-%d", %b\n' % (number, rests[number % _TEXTS])
        number, total = number + 1, total + len(line)
        written.write(line)
    written.finish()
    return number


def _rest(words: random.Random, length: int, *, ascii_only: bool) -> bytes:
    """Return what comes after the custom_id of one line."""
    text = " ".join(words.choices(_WORDS, k=length // 6))
    while len(json.dumps(text, ensure_ascii=ascii_only).encode()) > length - 200:
        text = text[: len(text) * 9 // 10]
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 256, "temperature": 0.7}
    return json.dumps({"method": "POST", "url": _CHAT, "body": body}, ensure_ascii=ascii_only).encode()[1:]


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
    before = _peak()
    _check(DiskBlobs(folder=folder), "memory")
    return _peak() - before


def _peak() -> float:
    """Return the largest resident set so far, in MiB; not that of getrusage, which the parent hands down."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
