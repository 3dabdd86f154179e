"""A million lines through a real `batchmill serve`: with kills of its worker, or without a fault, by hand.

    cd tests && python -m faults.million --lines 1000000 --kills 40 [--seed N]
    cd tests && python -m faults.million --lines 1000000 --kills 0 --witness

With `--witness` the lines go over HTTP to the witness, whose log tells how often each was executed; without it to the
echo backend. Every line must stand once, in order, in the output, `batchmill verify` must find the store sound, and
without kills no line may have been executed twice. It prints its figures on one line and exits 1 if anything is wrong.
"""

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from acceptance.serving import Processes, Server, Witness, processes_in, query, until

_CHAT = b"/v1/chat/completions"
_HOUR = 3600.0


def main() -> None:
    """Run once and print the figures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--lines", type=int, default=1_000_000)
    options.add_argument("--kills", type=int, default=40)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--window", type=int, default=64)
    options.add_argument("--witness", action="store_true")
    given = options.parse_args()
    draw = random.Random(given.seed)  # noqa: S311 - only the moments of the kills
    with tempfile.TemporaryDirectory() as folder, processes_in(Path(folder)) as processes:
        witness = processes.witness(log=Path(folder, "witness.log")) if given.witness else None
        backend = "echo:" if witness is None else witness.url
        server = processes.ready("--backend", backend, "--window", given.window, "--limits", "open")
        source = _write_input(Path(folder, "input.jsonl"), given.lines, "echo" if witness is None else "witness")
        began = time.monotonic()
        marks = sorted(draw.randrange(given.lines) for _ in range(given.kills))
        killed, batch_id = _run(processes, server, source, marks=marks, draw=draw)
        seconds = time.monotonic() - began
        wrong = list(_check(processes, server, batch_id, given.lines, echoed=witness is None))
        executions = None if witness is None else _executions(witness)
        if executions is not None and not given.kills and executions != Counter({1: given.lines}):
            wrong.append(f"lines by the number of their executions: {dict(executions)}")
        verified = processes.batchmill("verify", "--data", server.data)
        wrong += [verified.out] if verified.code else []
    told = "" if executions is None else f", executions of a line: {dict(executions)}"
    rate = f"{seconds:.0f} s, {given.lines / seconds:.0f} lines/s"
    kills = f"workers killed: {dict(killed)}"
    print(f"{given.lines} lines, {kills}, {rate}{told}: {wrong or 'all right'}")  # noqa: T201 - the figures
    sys.exit(bool(wrong))


def _write_input(path: Path, lines: int, model: str) -> Path:
    with path.open("wb") as stream:
        for number in range(lines):
            body = b'{"model":"%s","messages":[{"role":"user","content":"line %d"}]}' % (model.encode(), number)
            stream.write(b'{"custom_id":"c-%d","method":"POST","url":"%s","body":%s}\n' % (number, _CHAT, body))
    return path


def _run(
    processes: Processes, server: Server, source: Path, *, marks: list[int], draw: random.Random
) -> tuple[Counter[str], str]:
    """Run the batch to its end; return how many workers were killed in which state, and the batch's id."""
    client = processes.client(server, server.key)
    file = client.with_options(timeout=600).files.create(file=source, purpose="batch")
    batch_id = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id
    killed: Counter[str] = Counter()
    kills = bool(marks)

    def due() -> str | None:
        """Return the state in which it is time for a kill: once in each, and at each mark of recorded lines."""
        sql = "SELECT status, completed + failed FROM batch WHERE id = ?"
        ((state, done),) = query(server.data, sql, batch_id)
        at_mark = bool(marks) and state == "in_progress" and done >= marks[0]
        return str(state) if state == "completed" or at_mark or (kills and not killed[state]) else None

    while (state := until(due, _HOUR, every=0.01)) != "completed":
        if state == "in_progress" and marks:
            marks.pop(0)
        time.sleep(draw.uniform(0, 0.2))
        os.kill(until(lambda: _worker(server), 30), signal.SIGKILL)
        killed[str(state)] += 1
    return killed, batch_id


def _worker(server: Server) -> int | None:
    """Return the worker's pid; None while it is being started again."""
    try:
        return server.child("worker")
    except ValueError:
        return None


def _check(processes: Processes, server: Server, batch_id: str, lines: int, *, echoed: bool) -> Iterator[str]:
    client = processes.client(server, server.key)
    batch = client.batches.retrieve(batch_id)
    counts = batch.request_counts
    if counts is None or (counts.total, counts.completed, counts.failed) != (lines, lines, 0):
        yield f"the counts are {counts}"
    if batch.output_file_id is None:
        yield "there is no output"
        return
    number = 0
    with client.with_options(timeout=600).files.with_streaming_response.content(batch.output_file_id) as content:
        for line in content.iter_lines():
            if f'"custom_id":"c-{number}"' not in line or (echoed and f'line {number}"' not in line):
                yield f"line {number + 1} of the output is another"
                return
            number += 1
    if number != lines:
        yield f"the output has {number} lines"


def _executions(witness: Witness) -> Counter[int]:
    """Return how many lines were executed how often, by the digests of their bodies."""
    starts: Counter[bytes] = Counter()
    with witness.log.open("rb") as log:
        for entry in log:
            if entry.startswith(b"start "):
                starts[hashlib.blake2b(entry.split()[3], digest_size=8).digest()] += 1
    return Counter(starts.values())


if __name__ == "__main__":
    main()
