"""What must hold of a simulated run: looked at after every commit, at every send, and when all is quiet.

It reads the rows through a connection of its own, and knows of each line what was sent, answered and made durable.
"""

import json
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchmill.backends.backend import Call
from batchmill.blobs.blobs import Blobs
from batchmill.ledger.segment import unpack_results
from batchmill.schedule.plan import line_numbers
from batchmill.spec.results import result_id
from batchmill.spec.states import FINAL, STAMP, TRANSITIONS, Status
from batchmill.spec.steer import STEERED
from faults.virtual import VirtualClock

STUCK_SECONDS = 150.0  # all is final so long after the last fault: 60 s, and the grace and retry times before them
_PAUSES = 3.0  # the Runner's half second, and a look whose every crossing is delayed
_STOPS_SENDING = 8.0  # of a cancel: the Runner's half second, and a step whose every crossing is delayed
_ATTEMPT = re.compile(r"_(\d+)a\d+$")
_STAMPS = sorted(set(STAMP.values()))
_ENDS = {Status.CANCELLED: "batch_cancelled", Status.EXPIRED: "batch_expired"}
_GAVE_UP = frozenset({"upstream_unavailable", "request_timeout", "invalid_backend_response", "worker_crashed"})


class Violation(AssertionError):  # noqa: N818 - it states what is so
    """An invariant does not hold."""


def hold(truth: object, what: str) -> None:
    """Raise `Violation` with these words unless it is so."""
    if not truth:
        raise Violation(what)


@dataclass(slots=True, kw_only=True)
class Line:
    """One accepted line: its sends, its replies that were no result, the sends that another fault excuses.

    `text` is its Result, once durable.
    """

    batch_id: str
    index: int
    custom_id: str
    sends: int = 0
    bad_replies: int = 0
    excused: int = 0
    text: bytes | None = None
    place: int = 0  # in the Plan


@dataclass(slots=True, kw_only=True)
class Account:
    """One batch: what is in it, and how it was last seen."""

    organisation_id: str
    lines: list[Line]
    valid: bool
    expires_at: float
    seen: dict[str, Any] | None = None
    status_at: float = 0.0
    paused_at: float | None = None  # on the boot clock
    window_at: float = float("-inf")  # when the window became another, on the boot clock
    recorded: int = 0
    planned: list[Line] = field(default_factory=list)  # in the Plan's order, once there is one


@dataclass(slots=True)
class Oracle:
    """Watches one run."""

    path: Path
    blobs: Blobs
    clock: VirtualClock
    once: bool  # on_unknown_outcome = fail
    batches: dict[str, Account] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    takeovers: int = 0
    _segments: set[tuple[str, int, int]] = field(default_factory=set)
    _sent: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _rows: sqlite3.Connection = field(init=False)

    def __post_init__(self) -> None:
        """Open the rows."""
        self._rows = sqlite3.connect(self.path, isolation_level=None)
        self._rows.row_factory = sqlite3.Row

    def close(self) -> None:
        """Close the rows."""
        self._rows.close()

    def query(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """Return the rows of a query."""
        return self._rows.execute(sql, values).fetchall()

    def add(self, batch_id: str, account: Account) -> None:
        """Watch a new batch."""
        self.batches[batch_id] = account
        for line in account.lines:
            line.batch_id = batch_id
            self.lines[result_id(batch_id, line.index + 1)] = line

    def planned(self, batch_id: str) -> list[Line]:
        """Return a batch's lines in the order of its Plan; none as long as it has none."""
        account = self.batches[batch_id]
        plans = self.query(
            "SELECT key, bytes FROM blob WHERE key = (SELECT plan_key FROM batch WHERE id = ?)", batch_id
        )
        if plans and not account.planned:
            plan = self.blobs.read(plans[0]["key"], offset=0, length=plans[0]["bytes"])
            account.planned = [account.lines[number - 1] for number in line_numbers(plan)]
            for place, line in enumerate(account.planned):
                line.place = place
        return account.planned

    def committed(self) -> None:
        """Look at all batches and new Segments after a commit."""
        for batch_id in self.batches:
            self.planned(batch_id)
        for row in self.query("SELECT * FROM segment"):
            key = (row["batch_id"], row["slice"], row["seq"])
            if key not in self._segments:
                self._segments.add(key)
                self._record(row)
        for row in self.query("SELECT * FROM batch"):
            if row["id"] in self.batches:
                self._look(row["id"], dict(row))

    def _record(self, row: sqlite3.Row) -> None:
        """A line is recorded once (R4)."""
        account = self.batches[row["batch_id"]]
        ((first,),) = self.query(
            "SELECT first FROM slice WHERE batch_id = ? AND ordinal = ?", row["batch_id"], row["slice"]
        )
        data = self.blobs.read(row["blob_key"], offset=row["offset"], length=row["bytes"])
        for result in unpack_results(data, crc32=row["crc32"]):
            line = account.planned[first + result.index]
            hold(line.text is None, f"{line.custom_id} is recorded twice")
            line.text = result.text
            account.recorded += 1

    def _look(self, batch_id: str, row: dict[str, Any]) -> None:
        """States move along the table, stamps are written once, counts are what is recorded (R2, R6)."""
        account = self.batches[batch_id]
        before, account.seen = account.seen, row
        status = Status(row["status"])
        done = row["completed"] + row["failed"]
        hold(done <= row["total"], f"{batch_id}: more done than there is")
        if status not in FINAL:
            hold(done == account.recorded, f"{batch_id}: {done} counted, {account.recorded} recorded")
        if before is None or before["status"] != status:
            self.states[status] += 1
            account.status_at = self.clock.boot()
        if row["expires_at"] != account.expires_at:
            account.expires_at, account.window_at = row["expires_at"], self.clock.boot()
        if (row["paused_at"] is None) != (account.paused_at is None):
            account.paused_at = None if row["paused_at"] is None else self.clock.boot()
        hold(row["paused_at"] is None or status in STEERED, f"{batch_id}: {status}, and paused")
        if before is not None:
            was = Status(before["status"])
            hold(status is was or status in TRANSITIONS[was].values(), f"{batch_id}: {was} became {status}")
            hold(was not in FINAL or done == before["completed"] + before["failed"], f"{batch_id}: a final count moved")
            hold(done >= before["completed"] + before["failed"], f"{batch_id}: counts went down")
            for stamp in _STAMPS:
                hold(before[stamp] in (None, row[stamp]), f"{batch_id}: {stamp} was written twice")

    def sends(self, worker_id: str, call: Call, *, awake: float) -> None:
        """Look at a send; `awake` is the time since its process last went on: it cannot know what happened before."""
        line = self.lines[call.idempotency_key]
        account = self.batches[line.batch_id]
        line.sends += 1
        self._sent[worker_id].add(call.idempotency_key)
        attempt = _ATTEMPT.search(call.request_id)
        hold(attempt, f"{call.request_id} does not name its claim")
        assert attempt is not None
        found = self.query(
            "SELECT epoch FROM slice WHERE batch_id = ? AND first <= ? ORDER BY first DESC LIMIT 1",
            line.batch_id,
            line.place,
        )
        mine = bool(found) and found[0]["epoch"] == int(attempt[1])
        hold(not (mine and line.text is not None), f"{line.custom_id} is sent again by the owner who knows its Result")
        known = min(awake, self.clock.boot() - account.window_at)  # for how long its end could be known
        in_time = self.clock.now() < account.expires_at
        hold(awake == 0.0 or in_time or known < _STOPS_SENDING, f"{line.custom_id} is sent after its window")
        paused = 0.0 if account.paused_at is None else min(awake, self.clock.boot() - account.paused_at)
        hold(paused < _PAUSES, f"{line.custom_id} is sent {paused} s after its batch was paused")
        assert account.seen is not None
        late = min(awake, self.clock.boot() - account.status_at)
        closing = account.seen["status"] != Status.IN_PROGRESS
        hold(not closing or late < _STOPS_SENDING, f"{line.custom_id} is sent {late} s after its batch closed")

    def excuse_sent(self, worker_id: str) -> None:
        """A worker died: what it sent and nobody recorded may be sent once more (R5)."""
        for key in self._sent.pop(worker_id, set()):
            line = self.lines[key]
            line.excused += line.text is None

    def excuse_held(self, worker_id: str) -> None:
        """A worker stands still: another may take all that it holds, and both may send it."""
        for row in self.query("SELECT batch_id, first, lines FROM slice WHERE owner = ?", worker_id):
            for line in self.planned(row["batch_id"])[row["first"] : row["first"] + row["lines"]]:
                line.excused += line.text is None

    def statuses(self) -> list[str]:
        """Return the status of each batch that was created."""
        return [account.seen["status"] for account in self.batches.values() if account.seen is not None]

    def is_quiet(self) -> bool:
        """Say whether every batch is final and nothing of it waits to be cleared."""
        if any(status not in FINAL for status in self.statuses()):
            return False
        ((uncleared, doomed),) = self.query(
            "SELECT (SELECT COUNT(*) FROM batch WHERE input_key IS NOT NULL),"
            " (SELECT COUNT(*) FROM blob WHERE state = 'doomed')"
        )
        return uncleared == doomed == 0

    def check_sends(self) -> None:
        """No line was sent more often than its bad replies and the faults explain (R5)."""
        for line in self.lines.values():
            excused = line.bad_replies + (0 if self.once else line.excused)
            hold(line.sends <= 1 + excused, f"{line.custom_id}: {line.sends} sends, {excused} excused")

    def check_files(self, batch_id: str, output: bytes, error: bytes) -> None:
        """Every accepted line is once in one file, in input order, and as it was recorded (R1, R2, R8)."""
        account = self.batches[batch_id]
        row = account.seen
        assert row is not None
        files = {"output": output.splitlines(keepends=True), "error": error.splitlines(keepends=True)}
        lines = account.lines if row["total"] else []
        hold(row["status"] != Status.FAILED or not account.valid, f"{batch_id}: a good input was refused")
        hold(row["total"] in (0, len(account.lines)), f"{batch_id}: total is {row['total']}")
        hold(row["completed"] == len(files["output"]), f"{batch_id}: completed is not the output's lines")
        hold(row["failed"] == len(files["error"]), f"{batch_id}: failed is not the error's lines")
        hold(row["completed"] + row["failed"] == row["total"], f"{batch_id}: counts do not sum to the total")
        for kind, key in (("output", "output_file_id"), ("error", "error_file_id")):
            hold((row[key] is None) == (not files[kind]), f"{batch_id}: {key} is {row[key]}")
        found = {kind: [json.loads(text) for text in texts] for kind, texts in files.items()}
        places = {line.custom_id: line for line in lines}
        for kind, entries in found.items():
            ids = [entry["custom_id"] for entry in entries]
            hold(
                ids == [i for i in places if i in set(ids)],
                f"{batch_id}: {kind} is not in input order, or has too much",
            )
        ids = [entry["custom_id"] for entries in found.values() for entry in entries]
        hold(sorted(ids) == sorted(places), f"{batch_id}: lines are missing or doubled")
        self._check_texts(batch_id, places, [t for texts in files.values() for t in texts])

    def _check_texts(self, batch_id: str, places: dict[str, Line], texts: Sequence[bytes]) -> None:
        account = self.batches[batch_id]
        assert account.seen is not None
        status = Status(account.seen["status"])
        rest = 0
        for text in texts:
            entry = json.loads(text)
            line = places[entry["custom_id"]]
            code = entry["error"]["code"] if entry["error"] is not None else None
            if line.text is None:
                hold(code == _ENDS.get(status, "none at all"), f"{line.custom_id}: {code} in a batch that is {status}")
                rest += 1
            else:
                hold(line.text == text, f"{line.custom_id}: the file says other than what was recorded")
                given_up = _GAVE_UP | ({"outcome_unknown"} if self.once else set())
                hold(code is None or code in given_up, f"{line.custom_id}: {code} was recorded")
        hold(status is not Status.EXPIRED or rest or not places, f"{batch_id}: expired, and every line is done")

    def check_bitmaps(self) -> None:
        """A Slice's bitmap says of just those lines that they are done that are recorded."""
        for row in self.query("SELECT batch_id, first, lines, done FROM slice"):
            lines = self.planned(row["batch_id"])[row["first"] : row["first"] + row["lines"]]
            bits = sum(1 << at for at, line in enumerate(lines) if line.text is not None)
            hold(int.from_bytes(row["done"], "little") == bits, f"{row['batch_id']}: a bitmap is not what is recorded")

    def check_refs(self) -> None:
        """References are the rows that point, and what is ready has its bytes."""
        pointing = self.query(
            "SELECT key, COUNT(*) AS n FROM (SELECT blob_key AS key FROM file UNION ALL SELECT blob_key FROM segment"
            " UNION ALL SELECT input_key FROM batch WHERE input_key IS NOT NULL"
            " UNION ALL SELECT plan_key FROM batch WHERE plan_key IS NOT NULL"
            " UNION ALL SELECT order_key FROM batch WHERE order_key IS NOT NULL) GROUP BY key"
        )
        refs = {row["key"]: row["n"] for row in pointing}
        for row in self.query("SELECT * FROM blob"):
            hold(row["refs"] == refs.pop(row["key"], 0), f"{row['key']} has {row['refs']} references")
            if row["state"] == "ready":
                self.blobs.read(row["key"], offset=0, length=row["bytes"])
        hold(not refs, f"rows point at nothing: {sorted(refs)}")

    def check_blobs(self) -> None:
        """When all is swept, each blob is ready, and no bytes are left over (R17)."""
        self.check_refs()
        rows = {row["key"]: row["state"] for row in self.query("SELECT key, state FROM blob")}
        hold(set(rows.values()) <= {"ready"}, f"bytes on their way for ever: {rows}")
        present = set(self.blobs.keys(before=float("inf")))
        hold(present == set(rows), f"orphans or holes: {sorted(present ^ set(rows))}")
