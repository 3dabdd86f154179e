"""A batch is cancelled at any moment of its life: one outcome, nothing done is lost, and soon nothing is sent."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import isnan
from pathlib import Path
from typing import NamedTuple

import pytest
from openai import APIStatusError, OpenAI

from acceptance.serving import Processes, Server, Witness, processes_in, query, until
from batchmill.spec.results import result_id
from faults.input import Line, make_lines
from witness import answer

RACES = 20
LINES = 500
WINDOW = 16
LATENCY_MS = 15
_STOP_SECONDS = 1.0  # after an acknowledged cancel nothing may be sent for longer (design, "Closing")
_AT_ONCE = 50
_SIDE_BY_SIDE = 4
_FINAL = ("completed", "cancelled")
_CONFLICT = (400, 409)
_AFTER = (RACES - 1) / (RACES - 3)  # the last race's: the batch has ended


class _Race(NamedTuple):
    """A batch, the moment at which its cancel was acknowledged (None if it came too late), and what became of it."""

    batch_id: str
    acknowledged: float | None
    ended: str


@pytest.fixture
def races(tmp_path: Path) -> Iterator[Processes]:
    """Processes that end with the test."""
    with processes_in(tmp_path) as started:
        yield started


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_each_of_twenty_cancels_has_one_outcome(
    races: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, during and after its run a batch is completed, or cancelled with all that was done; sends stop in 1 s."""
    witness = races.witness(log=tmp_path / "witness.log", latency_ms=LATENCY_MS)
    server = races.serve("--backend", witness.url, "--window", WINDOW)
    client = races.client(server, server.key)
    until(lambda: client.models.list().data, 30.0)
    lines = make_lines("race", ["ok"] * LINES)

    def race(moment: int) -> _Race:
        life = moment / (RACES - 3)  # the last two: while it is sealed, and after its end
        return _race(client, server, lines, life, calls=_AT_ONCE if moment % 5 == 0 else 1)

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        raced = list(pool.map(race, range(RACES)))
    last_send = 0.0
    for ended in raced:
        last_send = max(last_send, _check(client, witness, ended, lines))
    outcomes = Counter(ended.ended for ended in raced)
    with capsys.disabled():
        print(f"\n{RACES} cancels: {dict(outcomes)}, last send {last_send:.2f} s after the answer")  # noqa: T201 - the measure of the promise
    assert set(outcomes) == set(_FINAL), "the moments must cover the batch's life and its end"


def _race(client: OpenAI, server: Server, lines: list[Line], life: float, *, calls: int) -> _Race:
    """Create a batch, cancel it by so many calls at once when it has come so far in its life, and wait for its end.

    `life` is 0 as it is created and 1 when all its lines are done; a little more is its sealing, and then its end.
    """
    content = b"".join(line.text for line in lines)
    file = client.files.create(file=("race.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    until(lambda: _has_come(server, batch.id, life), 60.0, every=0.001)

    def cancel(_: int) -> float | None:
        try:
            status = client.batches.cancel(batch.id).status
        except APIStatusError as refused:
            return None if refused.status_code in _CONFLICT else float("nan")
        assert status in ("cancelling", "cancelled")
        return time.monotonic()

    with ThreadPoolExecutor(calls) as pool:
        answers = list(pool.map(cancel, range(calls)))
    acknowledged = [at for at in answers if at is not None]
    assert not any(map(isnan, acknowledged)), "a cancel is taken or refused, nothing else"
    ended = until(lambda: (b := client.batches.retrieve(batch.id)).status in _FINAL and b.status, 60.0, every=0.1)
    assert bool(acknowledged) == (ended == "cancelled")
    return _Race(batch.id, min(acknowledged) if acknowledged else None, str(ended))


def _has_come(server: Server, batch_id: str, life: float) -> bool:
    sql = "SELECT status, completed + failed FROM batch WHERE id = ?"
    ((status, recorded),) = query(server.data, sql, batch_id)
    if life <= 1:
        return bool(recorded >= life * LINES)
    return status in (("finalizing", "completed") if life < _AFTER else ("completed",))


def _check(client: OpenAI, witness: Witness, race: _Race, lines: list[Line]) -> float:
    """Check a batch's files and sends; return how many seconds after the answer to its cancel a line was last sent."""
    batch = client.batches.retrieve(race.batch_id)
    assert batch.status == race.ended, "an outcome stands"
    counts = batch.request_counts
    assert counts is not None
    output = _texts(client, batch.output_file_id)
    error = _texts(client, batch.error_file_id)
    if counts.total:  # it was accepted before the cancel came
        assert (counts.completed, counts.failed, counts.total) == (len(output), len(error), LINES)
    by_id = {line.custom_id: line for line in lines}
    for text in output:
        line = by_id[_custom_id(text)]
        assert text.endswith(b',"body":%s},"error":null}' % answer(line.body))
    assert all(json.loads(text)["error"]["code"] == "batch_cancelled" for text in error)
    ids = [_custom_id(text) for text in (*output, *error)]
    assert len(set(ids)) == len(ids)
    keys = {result_id(race.batch_id, line.number) for line in lines}
    log = [entry.split() for entry in witness.log.read_text().splitlines()]
    sends = [float(entry[4]) for entry in log if entry[0] == "start" and entry[1] in keys]
    assert len(sends) <= len(lines), "nothing is sent twice"
    answered = sum(entry[0] == "done" and entry[1] in keys for entry in log)
    assert len(output) >= answered - WINDOW, "what was answered is kept, but for calls that were open too long"
    if race.acknowledged is None or not sends:
        return 0.0
    after = max(sends) - race.acknowledged
    assert after <= _STOP_SECONDS
    return after


def _texts(client: OpenAI, file_id: str | None) -> list[bytes]:
    return client.files.content(file_id).content.split(b"\n")[:-1] if file_id else []


def _custom_id(text: bytes) -> bytes:
    return text.partition(b',"custom_id":')[2].partition(b',"response":')[0]
