"""Everything is killed with -9, again and again, and nothing is lost, doubled or sent once more than it must be."""

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from acceptance.lines import InputLine, joined, odd_lines
from acceptance.serving import Processes, Row, Server, Witness, until
from witness import answer

PADDING = 2_000  # characters of reply: sealing takes long enough to be hit
WINDOW = 16
GROUP = 1_024  # results of one group commit (design, row 8)
LEASED_STATES = ("validating", "finalizing")
_PROMPT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How long a siege is; its input is larger than 8 MiB, so that a process of its own validates it."""

    lines: int
    filling: int  # characters of prompt
    kills: int  # while the batch is in progress
    latency_ms: float = 1  # of the witness


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """What was durable when everything was dead, and how much the witness had logged by then."""

    status: str
    leased: bool
    recorded: frozenset[int]
    logged: int


@dataclass(slots=True, kw_only=True)
class Siege:
    """A batch whose processes are all killed, looked at, and started again."""

    processes: Processes
    scale: Scale
    witness: Witness
    draw: random.Random
    server: Server = field(init=False)
    key: str = field(init=False)
    batch_id: str = ""
    kills: list[Kill] = field(default_factory=list)
    dead: set[str] = field(
        default_factory=set
    )  # workers; where rows are shared, what they held stays theirs for a lease

    def __post_init__(self) -> None:
        """Start everything for the first time."""
        self._start()
        self.key = self.processes.key(self.server)

    def query(self, sql: str, *values: object) -> list[Row]:
        """Read rows."""
        return self.processes.query(self.server, sql, *values)

    def batch(self) -> tuple[str, str | None, int]:
        """Return the batch's status, the owner of its lease, and how many of its lines are recorded."""
        sql = "SELECT status, owner, completed + failed FROM batch WHERE id = ?"
        ((status, owner, recorded),) = self.query(sql, self.batch_id)
        return status, owner, recorded

    def aim(self, status: str) -> bool:
        """Wait until someone who lives holds the batch's lease in that status; False if the batch is past it."""
        order = ("validating", "in_progress", "finalizing", "completed")

        def is_there() -> str | None:
            now, owner, _ = self.batch()
            held = owner is not None and owner not in self.dead
            return now if order.index(now) > order.index(status) or (now == status and held) else None

        return until(is_there, _PROMPT, every=0.001) == status

    def kill(self) -> Kill:
        """Kill everything, see what is durable, and start again."""
        self.server.kill_everything()
        self.processes.installation.settle()
        status, owner, count = self.batch()
        kill = Kill(
            status=status,
            leased=owner is not None and owner not in self.dead,
            recorded=self._recorded(),
            logged=self.witness.log.stat().st_size,
        )
        assert count == len(kill.recorded), "the counts are not those of the bitmaps"
        self.kills.append(kill)
        self.dead |= {worker for (worker,) in self.query("SELECT id FROM worker")}
        self._start()
        return kill

    def has_owned_slice(self) -> bool:
        """Say whether a worker that lives holds Slices."""
        owners = self.query("SELECT DISTINCT owner FROM slice WHERE batch_id = ?", self.batch_id)
        return bool({owner for (owner,) in owners} - self.dead - {None})

    def pause(self, most: float) -> None:
        """Let a random time pass, so that the kill hits anywhere."""
        time.sleep(self.draw.uniform(0, most))

    def _start(self) -> None:
        self.server = self.processes.serve("--backend", self.witness.url, "--window", WINDOW)

    def _recorded(self) -> frozenset[int]:
        """Return the lines, counted from 0, whose bit is set; the Plan is in the file's own order."""
        rows = self.query("SELECT first, lines, done FROM slice WHERE batch_id = ?", self.batch_id)
        return frozenset(first + i for first, lines, done in rows for i in range(lines) if done[i >> 3] >> (i & 7) & 1)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("processes", "scale"),
    [
        pytest.param("sqlite+disk", Scale(lines=16_000, filling=450, kills=8), id="sqlite+disk"),
        pytest.param("postgresql+s3", Scale(lines=6_000, filling=1_400, kills=3, latency_ms=5), id="postgresql+s3"),
    ],
    indirect=["processes"],
)
def test_nothing_is_lost_doubled_or_sent_too_often_when_everything_is_killed(
    processes: Processes, scale: Scale, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """Kills in every state lose no line, double none, and send again what was in flight or in one open group."""
    seed = int(os.environ.get("BATCHMILL_KILL_SEED") or int.from_bytes(os.urandom(4)))
    tell(f"BATCHMILL_KILL_SEED={seed}")  # to run it again
    began = time.monotonic()
    lines = odd_lines(scale.lines, filling=scale.filling)
    witness = processes.witness(log=tmp_path / "witness.log", padding=PADDING, latency_ms=scale.latency_ms)
    draw = random.Random(seed)  # noqa: S311 - only the moments of the kills
    siege = Siege(processes=processes, scale=scale, witness=witness, draw=draw)
    _besiege(siege, joined(lines))
    client = processes.client(siege.server, siege.key)
    batch = until(lambda: (b := client.batches.retrieve(siege.batch_id)).status == "completed" and b, _PROMPT)

    states = Counter(kill.status for kill in siege.kills)
    assert len(siege.kills) >= scale.kills + len(LEASED_STATES)
    assert all(any(kill.status == state and kill.leased for kill in siege.kills) for state in LEASED_STATES), states
    assert states["in_progress"] >= scale.kills

    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (scale.lines, scale.lines, 0)
    assert batch.error_file_id is None
    assert batch.output_file_id is not None
    _check_output(client.files.content(batch.output_file_id).content, lines)
    again = _check_sends(siege, lines)
    _check_rest(siege)
    seconds = time.monotonic() - began
    tell(f"{len(siege.kills)} kills {dict(states)}, {scale.lines} lines, {again} sent again, {seconds:.0f} s")


def _besiege(siege: Siege, text: bytes) -> None:
    client = siege.processes.client(siege.server, siege.key)
    file = client.files.create(file=("input.jsonl", text), purpose="batch")
    siege.batch_id = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    ).id
    while siege.aim("validating") and not any(kill.leased for kill in siege.kills):
        siege.pause(0.3)
        siege.kill()
    for left in range(siege.scale.kills, 0, -1):
        recorded = siege.batch()[2]
        target = recorded + siege.draw.randrange((siege.scale.lines - recorded) // (left + 1))
        until(lambda target=target: _in_progress_with(siege, target), _PROMPT, every=0.002)
        siege.pause(0.05)
        siege.kill()
    while siege.aim("finalizing") and not any(k.leased and k.status == "finalizing" for k in siege.kills):
        siege.kill()


def _in_progress_with(siege: Siege, target: int) -> bool:
    status, _, recorded = siege.batch()
    return status == "in_progress" and recorded >= target and siege.has_owned_slice()


def _check_output(content: bytes, lines: list[InputLine]) -> None:
    """Every line stands once, in the order of the input, with its custom_id and its reply byte for byte."""
    found = content.splitlines(keepends=True)
    assert len(found) == len(lines)
    for line, text in zip(lines, found, strict=True):
        assert b',"custom_id":%s,"response":{"status_code":200,"request_id":"' % line.custom_id in text
        assert text.endswith(b',"body":%s},"error":null}\n' % answer(line.body, padding=PADDING))
    assert len({json.loads(text)["id"] for text in found}) == len(lines)


def _check_sends(siege: Siege, lines: list[InputLine]) -> int:
    """Bodies arrive as they were written, recorded lines never again; return how many sends were in vain."""
    number_of = {line.digest: number for number, line in enumerate(lines)}
    assert len(number_of) == len(lines)
    last_start: dict[int, int] = {}
    starts = at = 0
    with siege.witness.log.open() as log:
        for entry in log:
            word, _, _, digest, *_ = entry.split()
            if word == "start":
                last_start[number_of[digest]] = at
                starts += 1
            at += len(entry)
    assert last_start.keys() == set(number_of.values())
    for before, kill in zip([frozenset[int](), *(k.recorded for k in siege.kills)], siege.kills, strict=False):
        assert before <= kill.recorded, "a recorded line is not recorded any more"
        again = [number for number in kill.recorded if last_start[number] >= kill.logged]
        assert not again, f"recorded before a kill, sent after it: {again[:10]}"
    again_at_most = sum(kill.status == "in_progress" for kill in siege.kills) * (WINDOW + GROUP)
    assert starts - len(lines) <= again_at_most
    return starts - len(lines)


def _check_rest(siege: Siege) -> None:
    """The database is sound, nothing of the batch is left but its Files, and the bytes are those of the rows."""
    leftovers = (
        "SELECT (SELECT count(*) FROM slice) + (SELECT count(*) FROM segment)"
        " + (SELECT count(*) FROM blob WHERE state = 'doomed')"
        " + (SELECT count(*) FROM batch WHERE input_key IS NOT NULL)"
    )
    until(lambda: siege.query(leftovers) == [(0,)], _PROMPT)
    installation, data = siege.processes.installation, siege.server.data
    assert installation.unsound(data) == []
    ready = dict(siege.query("SELECT key, bytes FROM blob WHERE state = 'ready'"))
    owned = "SELECT blob_key FROM file UNION SELECT order_key FROM batch WHERE order_key IS NOT NULL"
    assert set(ready) == {key for (key,) in siege.query(owned)}
    assert siege.query("SELECT count(*) FROM blob WHERE state = 'ready' AND refs != 1") == [(0,)]
    stored = installation.sizes(data)
    assert {key: stored.pop(key) for key in ready} == ready
    # What a kill cut off has an hour to show that it is still wanted; then the Sweeper takes it.
    writing = {key for (key,) in siege.query("SELECT key FROM blob WHERE state != 'ready'")}
    assert all(re.search(r"\.part$", name) or name in writing or name.startswith("commit_") for name in stored), stored
    assert len(writing) <= 2 * len(siege.kills)
    assert len(stored) <= 3 * len(siege.kills)
