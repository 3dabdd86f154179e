"""Rounds on a small disk that something fills up: a real `serve` pauses, says why, and goes on when there is space.

    python -m faults.disk_full --rounds 5 --seed 1

runs in the namespaces of `sandbox.enter`. What fills the disk, and when, comes from the seed; every moment and every
filling comes up within five rounds.
"""

import argparse
import hashlib
import io
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import APIStatusError, OpenAI

from acceptance.lines import joined, plain_lines
from acceptance.serving import Processes, Server, processes_in, query, until
from faults.sandbox import fast_folder, loopback, run

MOMENTS = ("uploading", "validating", "running", "finalizing", "running")
FILLINGS = ("bytes", "bytes", "bytes", "inodes")
_DISK = "size=160m,nr_inodes=3000"
_RESERVE = 8 << 20  # a twentieth of it
_LINES = 6_000
_PADDING = 3_000  # characters of reply: the result file takes long enough to be hit
_RESUMES = 30.0  # seconds (invariant R11)
_SOON = 60.0
_PROMPT = 10.0  # seconds until the reserve is dropped: it is looked at once a second, on a machine that is not busy
_PAUSED = 4.0  # seconds for which the disk stays full
_AT_ONCE = 2  # rounds: each has a disk of its own, and waits most of the time


@dataclass(slots=True, kw_only=True)
class Round:
    """One server on one small disk."""

    server: Server
    client: OpenAI
    disk: Path
    filling: str
    kept: dict[str, str] = field(default_factory=dict)  # acknowledged Files and the SHA-256 of their bytes
    seen: list[str] = field(default_factory=list)

    def upload(self, content: bytes) -> str:
        """Upload a file, and remember what was acknowledged."""
        file_id = self.client.files.create(file=("in.jsonl", content), purpose="batch").id
        self.kept[file_id] = hashlib.sha256(content).hexdigest()
        return file_id

    def create(self, file_id: str) -> str:
        """Create a batch."""
        made = self.client.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        return made.id

    def row(self, batch_id: str) -> dict[str, Any]:
        """Return a batch as its row says."""
        names = ("status", "completed", "failed", "total", "waiting")
        ((*values,),) = query(self.server.data, f"SELECT {', '.join(names)} FROM batch WHERE id = ?", batch_id)  # noqa: S608 - our own names
        return dict(zip(names, values, strict=True))

    def fill(self) -> None:
        """Take all that is left of the disk."""
        place = self.disk / "ballast"
        place.mkdir(exist_ok=True)
        with suppress(OSError):
            number = 0
            while self.filling == "inodes":
                number += 1
                (place / str(number)).touch()
        if self.filling == "bytes":
            with (place / "bytes").open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(1 << 20)):
                    pass

    def fill_up(self) -> None:
        """Take what has become free since, but for what the reserve gave: rows are written there."""
        with (self.disk / "ballast" / "more").open("wb", buffering=0) as file:
            while (found := os.statvfs(self.disk)).f_bavail * found.f_frsize > _RESERVE:
                file.write(bytes(1 << 20))

    def free(self) -> None:
        """Give it back."""
        run("rm", "-rf", self.disk / "ballast")


def play(round_: Round, moment: str) -> None:
    """Fill the disk at a moment, look at what goes on and what does not, free it, and see everything end well."""
    content = joined(plain_lines(_LINES))
    spare = round_.upload(content[:1_000_000])
    file_id = round_.upload(content)
    batch_id, victim = _arrive(round_, moment, file_id)
    _full(round_, batch_id, victim, spare)
    before = round_.row(batch_id)
    round_.free()
    began = time.monotonic()
    moved = (before["status"], before["completed"])
    until(lambda: (r := round_.row(batch_id)) and (r["status"], r["completed"]) != moved, _RESUMES)
    round_.seen.append(f"resumed after {time.monotonic() - began:.1f} s")
    until(lambda: round_.row(batch_id)["status"] == "completed", _SOON)
    until(lambda: round_.row(victim)["status"] == "cancelled", _SOON)
    assert round_.upload(content)
    for ended in (batch_id, victim):
        _check_batch(round_, ended)
    for kept, digest in round_.kept.items():
        assert hashlib.sha256(round_.client.files.content(kept).content).hexdigest() == digest, "an upload has changed"


def _arrive(round_: Round, moment: str, file_id: str) -> tuple[str, str]:
    """Bring a batch, and another that will be cancelled, to the moment, and fill the disk there."""
    if moment == "uploading":
        batch_id, victim = round_.create(file_id), round_.create(file_id)
        until(lambda: round_.row(batch_id)["completed"] > 0, _SOON, every=0.001)
        body = _Filling(round_, b"x" * (8 << 20))
        refused(lambda: round_.client.files.create(file=("in.jsonl", body), purpose="batch"))
        return batch_id, victim
    if moment == "validating":
        with _paused(round_.server):  # the worker looks at them when the disk is full
            batch_id, victim = round_.create(file_id), round_.create(file_id)
            round_.fill()
        return batch_id, victim
    batch_id = round_.create(file_id)
    if moment == "running":
        victim = round_.create(file_id)
        until(lambda: round_.row(batch_id)["completed"] > _LINES // 10, _SOON, every=0.001)
    else:
        until(lambda: round_.row(batch_id)["completed"] > _LINES * 9 // 10, _SOON, every=0.001)
        victim = round_.create(file_id)
        until(lambda: round_.row(batch_id)["status"] == "finalizing", _SOON, every=0.0005)
    round_.fill()
    if moment == "finalizing":  # what its unfinished files held is free once it has given up
        until(lambda: is_waiting(round_, batch_id), _PAUSED * 3)
        round_.fill_up()
    return batch_id, victim


def is_waiting(round_: Round, batch_id: str) -> bool:
    """Say whether a batch waits for the disk, by its own word."""
    return "disk" in (round_.row(batch_id)["waiting"] or "")


def _full(round_: Round, batch_id: str, victim: str, spare: str) -> None:
    """While the disk is full: no uploads; reads, cancels and deletes; the batch waits, and says for what."""
    before = {file.id for file in round_.client.files.list()}
    refused(lambda: round_.client.files.create(file=("in.jsonl", b"x" * 100_000), purpose="batch"))
    assert {file.id for file in round_.client.files.list()} == before, "a refused upload is visible"
    assert round_.client.batches.retrieve(batch_id).id == batch_id
    until(lambda: cancelled(round_, victim), _PROMPT)
    assert round_.client.files.content(spare).content
    assert round_.client.files.delete(spare).deleted  # the reserve has been dropped by now
    del round_.kept[spare]
    until(lambda: is_waiting(round_, batch_id), _PAUSED * 3)
    paused = round_.row(batch_id)
    time.sleep(_PAUSED)
    later = round_.row(batch_id)
    round_.seen.append(f"{later['status']} at {later['completed']}: {later['waiting']}")
    moved = f"the batch did not pause: {paused['status']}, then {later['status']}"
    assert later["status"] == paused["status"] != "completed", moved
    refused(lambda: round_.client.files.create(file=("in.jsonl", b"x" * 100_000), purpose="batch"))


def refused(upload: Callable[[], object]) -> None:
    """Check that an upload is answered 507 in a way that the client does not try at once again."""
    try:
        upload()
    except APIStatusError as answer:
        said = (answer.status_code, answer.response.headers.get("x-should-retry"))
        assert said == (507, "false"), said
        assert int(answer.response.headers["retry-after"]) > 0  # noqa: PT017 - the same
    else:
        raise AssertionError("an upload was taken although the disk is full")


def cancelled(round_: Round, batch_id: str) -> bool:
    """Cancel a batch; False if there was no space for its row: the reserve is dropped within a second."""
    try:
        return round_.client.batches.cancel(batch_id).status in ("cancelling", "cancelled")
    except APIStatusError as answer:
        if answer.status_code != 507:
            raise
        return False


def _check_batch(round_: Round, batch_id: str) -> None:
    """Every line stands once, in one of the two files."""
    batch = round_.client.batches.retrieve(batch_id)
    ids: Counter[str] = Counter()
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        lines = round_.client.files.content(file_id).content.splitlines()
        ids.update(json.loads(line)["custom_id"] for line in lines)
    total = batch.request_counts.total if batch.request_counts else 0
    assert ids == Counter(f"line-{n}" for n in range(total)), "a line is lost, doubled or invented"
    assert total == _LINES or batch.status == "cancelled"


class _Filling(io.BytesIO):
    """A file in whose middle the disk is filled."""

    def __init__(self, round_: Round, content: bytes) -> None:
        super().__init__(content)
        self._round = round_
        self._filled = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not self._filled and self.tell() > len(self.getbuffer()) // 2:
            self._filled = True
            self._round.fill()
        return data


@contextmanager
def _paused(server: Server) -> Iterator[None]:
    worker = server.child("worker")
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def main() -> None:
    """Play the rounds; print what was seen in each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    loopback()
    draw = random.Random(arguments.seed)  # noqa: S311 - only the choice of moments
    moments, fillings = ([*names] * arguments.rounds for names in (MOMENTS, FILLINGS))
    offset = draw.randrange(len(FILLINGS))

    def play_one(number: int) -> str:
        moment, filling = moments[number], fillings[number + offset]
        with fast_folder() as folder, processes_in(folder) as processes:
            seen = _play_one(folder, processes, moment, filling)
        return f"disk-full round {number + 1}: {moment}, {filling}: {'; '.join(seen)}"

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for said in pool.map(play_one, range(arguments.rounds)):
            print(said, flush=True)  # noqa: T201 - the report
    print(f"disk-full rounds: {arguments.rounds}, 0 lost, 0 partial files (seed {arguments.seed})")  # noqa: T201 - the same
    print("NOT RUN remount,ro: the kernel refuses it (EBUSY) while the database has its files open")  # noqa: T201 - never green by silence


def _play_one(folder: Path, processes: Processes, moment: str, filling: str) -> list[str]:
    disk = folder / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", _DISK, "tmpfs", disk)
    witness = processes.witness(log=folder / "witness.log", padding=_PADDING, latency_ms=2)
    server = processes.serve("--backend", witness.url, "--window", 16, data=disk / "data")
    round_ = Round(server=server, client=processes.client(server, server.key), disk=disk, filling=filling)
    play(round_, moment)
    assert server.stop() == 0
    verified = processes.batchmill("verify", "--data", server.data)
    assert verified.code == 0, verified.out + verified.err
    return round_.seen


if __name__ == "__main__":
    sys.exit(main())
