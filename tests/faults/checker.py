"""Looks at everything after a run, over the API and behind its back, and says what should not be so.

What must hold is numbered as in the list of invariants (R1-R9, R15, R17, R18). It trusts no single witness: files over
the API are held against the input, the rows' trail, the bytes on disk, the witness' log and the clients' journal.
"""

import bisect
import hashlib
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from openai import NotFoundError, OpenAI
from openai.types import Batch

from batchmill.engine.group import GroupBounds
from batchmill.spec.results import result_id
from batchmill.spec.states import FINAL, TRANSITIONS, Status
from faults.input import OUTCOMES, Order
from faults.journal import Fact
from faults.launcher import WINDOW
from faults.nemesis import Inflicted, Kind
from faults.trail import Trail, bits
from witness import BAD_REQUEST, answer

_LEARN_SECONDS = 1.0  # after an acknowledged cancel, or after it wakes, a worker may go on sending for so long (R8)
_NOISE_SECONDS = 1.0  # and here many processes share few cores
_OK = 200
_LONE_DEATHS = 3  # a line that kills its worker so often gets `worker_crashed` (R16): we kill them, too
_RESTS = {"cancelled": "batch_cancelled", "expired": "batch_expired"}
_LINE = re.compile(rb'\{"id":"(batch_req_[0-9a-f]{32})","custom_id":')
_SAID = re.compile(rb'"response":null,"error":\{"code":"([a-z_]+)","message":"')
_EXECUTED = ("ok", "slow", "drip", "400")  # answers that cost an inference engine its work


class Send(NamedTuple):
    """A request as the witness saw it arrive: `epoch` is that of the claim it was sent under."""

    at: float
    key: str
    epoch: int
    sha256: str
    wish: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a run has left behind."""

    data: Path
    padding: int
    orders: Mapping[str, Order]
    facts: Sequence[Fact]
    trail: Trail
    sends: Sequence[Send]
    inflicted: Sequence[Inflicted]
    clients: Sequence[OpenAI]


@dataclass(slots=True)
class Finding:
    """What was wrong, and the figures of what was looked at."""

    violations: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    figures: Counter[str] = field(default_factory=Counter)

    def check(self, holds: bool, invariant: str, example: object = "") -> None:
        """Count a violation of an invariant unless it holds."""
        if not holds:
            self.violations[invariant] += 1
            self.examples.setdefault(invariant, str(example)[:400])


def read_sends(log: Path) -> list[Send]:
    """Return the witness' log."""
    found = []
    for line in log.read_text().splitlines():
        word, key, request_id, sha256, at, wish = line.split()
        if word == "start":
            epoch = int(request_id.rpartition("_")[2].partition("a")[0])
            found.append(Send(at=float(at), key=key, epoch=epoch, sha256=sha256, wish=wish))
    return found


def check(evidence: Evidence) -> Finding:
    """Check all of it."""
    finding = Finding()
    ids = {str(f.said["batch"]): f.order for f in evidence.facts if f.kind == "created"}
    recorded = _recorded(evidence.trail)
    sends = defaultdict(list)
    for send in evidence.sends:
        sends[send.key].append(send)
    found = _batches(evidence.clients)
    for batch_id, name in ids.items():
        finding.check(batch_id in found, "R3 an acknowledged batch is there", batch_id)
        if batch_id in found:
            batch, client = found.pop(batch_id)
            order = evidence.orders[name]
            sent = {i: sends.pop(result_id(batch_id, line.number), []) for i, line in enumerate(order.lines)}
            _BatchCheck(
                evidence=evidence,
                finding=finding,
                client=client,
                batch=batch,
                order=order,
                recorded=recorded.get(batch_id, {}),
                sent=sent,
            ).run()
    finding.check(not found, "R14 one order makes one batch", sorted(found))
    finding.check(not sends, "R18 nothing is sent that nobody ordered", list(sends)[:3])
    _check_claims(evidence, finding, recorded)
    _check_moves(evidence.trail, finding)
    _check_journal(evidence, finding, ids)
    _check_rows(evidence, finding)
    return finding


class _Record(NamedTuple):
    at: float
    epoch: int


def _recorded(trail: Trail) -> dict[str, dict[int, _Record]]:
    """Return for each batch when each line was first recorded, and under which claim."""
    found: dict[str, dict[int, _Record]] = defaultdict(dict)
    for entry in trail.recorded:
        for line in entry.lines():
            found[entry.batch].setdefault(line, _Record(entry.at, entry.epoch))
    return found


def _batches(clients: Sequence[OpenAI]) -> dict[str, tuple[Batch, OpenAI]]:
    return {batch.id: (batch, client) for client in clients for batch in client.batches.list(limit=100)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _BatchCheck:
    """One batch, and all that was seen of it."""

    evidence: Evidence
    finding: Finding
    client: OpenAI
    batch: Batch
    order: Order
    recorded: Mapping[int, _Record]
    sent: Mapping[int, Sequence[Send]]  # by the line's place in the input

    def run(self) -> None:
        """Check its sends, its end and its files."""
        finding, batch = self.finding, self.batch
        finding.figures["batches"] += 1
        finding.figures[batch.status] += 1
        finding.check(batch.status in {*FINAL}, "R7 no batch is stuck", f"{batch.id} {batch.status}")
        finding.check(batch.status != "failed", "R1 good lines are accepted", f"{batch.id} {batch.errors}")
        self._check_sends()
        self._check_last_send()
        if batch.status not in {*FINAL} or batch.status == "failed":
            return
        if batch.request_counts and batch.request_counts.total:
            self._check_files()
        else:  # it ended before it was accepted
            finding.check(batch.status in _RESTS, "R1 a batch that ran has lines", batch.id)

    def _check_sends(self) -> None:
        for index, line in enumerate(self.order.lines):
            digest = hashlib.sha256(line.body).hexdigest()
            same = all(send.sha256 == digest for send in self.sent[index])
            self.finding.check(same, "R18 bodies arrive as written", line.custom_id)
        executed = [sum(send.wish in _EXECUTED for send in sends) for sends in self.sent.values()]
        self.finding.figures["executions"] += sum(executed)
        self.finding.figures["extra executions"] += sum(max(0, times - 1) for times in executed)

    def _check_last_send(self) -> None:
        """Nothing is sent a second after a cancel was acknowledged, or once the window has closed."""
        if not any(self.sent.values()):
            return
        last = max(send.at for sends in self.sent.values() for send in sends)
        cancels = [f.at for f in self.evidence.facts if f.order == self.order.name and f.kind == "cancelled"]
        moves = [move for move in self.evidence.trail.moves if move.batch == self.batch.id]
        closed = [move.at for move in moves if move.old == "in_progress"]
        stops = [i for i in self.evidence.inflicted if i.kind is Kind.STOP and i.until is not None]
        woken = [stop.until for stop in stops if stop.until is not None and stop.until <= last]
        for ends, what in ((cancels, "a cancel"), (closed, "the batch has closed")):
            if ends:
                late = last - max([min(ends), *woken]) - _LEARN_SECONDS - _NOISE_SECONDS
                self.finding.check(
                    late <= 0, f"R8 nothing is sent a second after {what}", f"{self.batch.id} {late:.2f}"
                )

    def _check_files(self) -> None:
        """Each line stands once, in one of the two files, as it came and as it was answered."""
        finding, batch, counts = self.finding, self.batch, self.batch.request_counts
        if counts is None:
            raise ValueError(f"{batch.id} has no request_counts")
        finding.figures["lines"] += counts.total
        finding.check(counts.total == len(self.order.lines), "R1 every line is counted", batch.id)
        places = self._check_file("output", batch.output_file_id, counts.completed)
        places += self._check_file("error", batch.error_file_id, counts.failed)
        doubled = [index for index, times in Counter(places).items() if times > 1]
        finding.check(not doubled, "R1 no line is doubled", f"{batch.id} {doubled[:10]}")
        missing = sorted(set(range(len(self.order.lines))) - set(places))
        finding.check(not missing, "R1 no line is missing", f"{batch.id} {batch.status} {missing[:10]}")
        rests = counts.total - len(self.recorded)
        finding.check(batch.status != "expired" or rests > 0, "an expired batch has an expired line", batch.id)

    def _check_file(self, kind: str, file_id: str | None, count: int) -> list[int]:
        """Check one of the files, and return the places in the input of its lines."""
        finding = self.finding
        finding.check((file_id is None) == (count == 0), "R2 no file without lines", f"{self.batch.id} {kind}")
        texts = self.client.files.content(file_id).content.split(b"\n") if file_id else [b""]
        finding.check(texts.pop() == b"", "R15 a file ends with a line end", file_id)
        finding.check(
            len(texts) == count, "R2 the counts are the files'", f"{self.batch.id} {kind} {len(texts)} {count}"
        )
        lines = {result_id(self.batch.id, line.number).encode(): i for i, line in enumerate(self.order.lines)}
        places: list[int] = []
        for text in texts:
            head = _LINE.match(text)
            place = lines.get(head[1]) if head else None
            finding.check(place is not None, "R1 no line is invented", text[:200])
            if place is not None and head is not None:
                places.append(place)
                line = self.order.lines[place]
                same_id = text.startswith(line.custom_id + b',"response":', head.end())
                finding.check(same_id, "R18 custom_ids return as written", text[:200])
                self._check_line(text, place, kind)
        finding.check(places == sorted(places), "a file is in the order of the input", file_id)
        return places

    def _check_line(self, text: bytes, place: int, kind: str) -> None:
        """A line of a file is the rest of a batch that closed early, or else what its backend's answer deserves."""
        finding, line = self.finding, self.order.lines[place]
        said = _SAID.search(text)
        code = said[1].decode() if said else None
        is_rest = code is not None and code == _RESTS.get(self.batch.status)
        finding.figures["rests"] += is_rest
        told = f"{self.batch.id} {self.batch.status} {line.custom_id.decode()} {text[:300]!r}"
        if is_rest:
            finding.check(place not in self.recorded, "R8 a recorded result is kept, whatever ends its batch", told)
            finding.check(kind == "error", "R1 a line is in the right file", told)
            return
        finding.check(place in self.recorded, "R4 what is in a file was recorded before", told)
        if code == "worker_crashed" and self._deaths_over(place) >= _LONE_DEATHS:
            finding.figures["lines that our own kills made suspect"] += 1
            return
        finding.check(bool(self.sent[place]), "R1 no result is invented", told)
        expected = OUTCOMES[line.behaviour]
        finding.check(kind == ("output" if expected == _OK else "error"), "R1 a line is in the right file", told)
        if isinstance(expected, str):
            finding.check(code == expected, "R13 a line ends as its backend's answers deserve", told)
        else:
            answered = b'"response":{"status_code":%d,' % expected in text
            finding.check(answered, "R13 a line ends as its backend's answers deserve", told)
            reply = answer(line.body, padding=self.evidence.padding) if expected == _OK else BAD_REQUEST
            kept = not answered or text.endswith(b',"body":%s},"error":null}' % reply)
            finding.check(kept, "R18 replies are kept as sent", told)

    def _deaths_over(self, place: int) -> int:
        """Return how many workers were killed or stopped that had sent this line."""
        epochs = {send.epoch for send in self.sent[place]}
        claims = [c for c in self.evidence.trail.claims if c.batch == self.batch.id]
        owners = {c.owner for c in claims if c.first <= place < c.first + c.lines and c.epoch in epochs}
        return len(owners & {i.worker for i in self.evidence.inflicted})


def _check_claims(evidence: Evidence, finding: Finding, recorded: Mapping[str, Mapping[int, _Record]]) -> None:
    """A recorded line is never sent again (R4), but by a worker that does not know yet that it lost its claim (R9)."""
    done = {(c.batch, c.first, c.epoch): bits(c.done) for c in evidence.trail.claims}
    owners = {(c.batch, c.first, c.epoch): c.owner for c in evidence.trail.claims}
    in_vain: Counter[str] = Counter()  # by worker: what it had sent and never recorded
    firsts: dict[str, list[int]] = defaultdict(list)  # of each batch the first lines of its Slices
    for batch, first in sorted({(c.batch, c.first) for c in evidence.trail.claims}):
        firsts[batch].append(first)
    places = {
        result_id(str(f.said["batch"]), line.number): (str(f.said["batch"]), index)
        for f in evidence.facts
        if f.kind == "created"
        for index, line in enumerate(evidence.orders[f.order].lines)
    }
    woken = sorted(i.until for i in evidence.inflicted if i.until is not None and i.kind is Kind.STOP)
    for send in evidence.sends:
        if send.key not in places:
            continue
        batch, line = places[send.key]
        first = firsts[batch][bisect.bisect(firsts[batch], line) - 1]
        again = line - first in done[batch, first, send.epoch]
        finding.check(not again, "R4 a recorded line is not sent again by a later claim", send)
        record = recorded.get(batch, {}).get(line)
        if send.wish in _EXECUTED and (record is None or record.epoch != send.epoch):
            in_vain[owners[batch, first, send.epoch]] += 1
        if record is not None and send.at > record.at and record.epoch >= send.epoch:
            finding.check(record.epoch > send.epoch, "R4 a recorded line is not sent again under its claim", send)
            finding.figures["sends under a lost claim"] += 1
            at = bisect.bisect(woken, send.at)
            since = send.at - woken[at - 1] if at else float("inf")
            learnt = since <= _LEARN_SECONDS + _NOISE_SECONDS
            finding.check(learnt, "R9 a worker learns that it lost its claim", f"{since:.2f} s after it woke: {send}")
    most = max(in_vain.values(), default=0)
    finding.figures["most sends in vain of one worker"] = most
    finding.check(most <= WINDOW + GroupBounds().results, "R5 a fault costs what was in flight and one group", in_vain)


def _check_moves(trail: Trail, finding: Finding) -> None:
    """The states move along the machine (R6), counts never fall (R2), recorded lines stay recorded (R4)."""
    allowed = {(old.value, new.value) for old, row in TRANSITIONS.items() for new in row.values() if old is not new}
    allowed |= {(None, Status.VALIDATING.value)}  # type: ignore[arg-type]
    now: dict[str, str | None] = defaultdict(lambda: None)
    for move in trail.moves:
        finding.figures["moves"] += 1
        finding.check((move.old, move.new) in allowed, "R6 states move along the machine", move)
        finding.check(now[move.batch] == move.old, "R6 no move is lost", move)
        now[move.batch] = move.new
    finding.check(not trail.restamped, "R6 a timestamp is set once", trail.restamped)
    before: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for batch, total, completed, failed in trail.counts:
        grown = completed >= before[batch][0] and failed >= before[batch][1]
        finding.check(grown and completed + failed <= total, "R2 counts never fall nor exceed the total", batch)
        before[batch] = (completed, failed)
    for entry in trail.recorded:
        finding.check(not bits(entry.old) - bits(entry.new), "R4 what is recorded stays recorded", entry.batch)


def _check_journal(evidence: Evidence, finding: Finding, ids: Mapping[str, str]) -> None:
    """What the clients were told holds, and they never saw time run backwards."""
    by_order = {order: batch_id for batch_id, order in ids.items()}
    found = {batch_id: client for batch_id, (_, client) in _batches(evidence.clients).items()}
    order_of = {status: place for place, status in enumerate(("validating", "in_progress", "finalizing", "cancelling"))}
    seen: dict[str, tuple[int, int, int]] = defaultdict(lambda: (0, 0, 0))
    for fact in evidence.facts:
        client = found.get(by_order.get(fact.order, ""))
        if client is None:
            continue
        if fact.kind == "saw":
            now = (
                order_of.get(str(fact.said["status"]), len(order_of)),
                int(fact.said["completed"] or 0),
                int(fact.said["failed"] or 0),
            )
            grown = all(a <= b for a, b in zip(seen[fact.order], now, strict=True))
            finding.check(grown, "R6 no reader sees time run backwards", f"{seen[fact.order]} {fact}")
            seen[fact.order] = now
        elif fact.kind == "published":
            sha256 = hashlib.sha256(client.files.content(str(fact.said["file"])).content).hexdigest()
            finding.check(sha256 == fact.said["sha256"], "R15 a published file never changes", fact)
        elif fact.kind == "cancelled":
            status = client.batches.retrieve(by_order[fact.order]).status
            finding.check(status == "cancelled", "R3 an acknowledged cancel holds", f"{fact} {status}")
        elif fact.kind == "deleted":
            finding.check(_is_gone(client, str(fact.said["file"])), "R3 an acknowledged delete holds", fact)
        elif fact.kind == "uploaded":
            _check_upload(evidence, finding, client, fact)


def _is_gone(client: OpenAI, file_id: str) -> bool:
    try:
        client.files.retrieve(file_id)
    except NotFoundError:
        return True
    return False


def _check_upload(evidence: Evidence, finding: Finding, client: OpenAI, fact: Fact) -> None:
    if not any(f.kind == "deleted" and f.said["file"] == fact.said["file"] for f in evidence.facts):
        content = client.files.content(str(fact.said["file"])).content
        same = hashlib.sha256(content).hexdigest() == fact.said["sha256"]
        finding.check(same, "R3 an acknowledged upload is kept as sent", fact)


def _check_rows(evidence: Evidence, finding: Finding) -> None:
    """Rows and bytes agree both ways, and nothing is left of what was only needed on the way (R7, R17)."""
    with closing(sqlite3.connect(f"file:{evidence.data / 'batchmill.sqlite3'}?mode=ro", uri=True, timeout=30)) as rows:

        def all_of(sql: str) -> list[tuple[object, ...]]:
            return rows.execute(sql).fetchall()

        finding.check(all_of("PRAGMA integrity_check") == [("ok",)], "the database is sound")
        finding.check(all_of("PRAGMA foreign_key_check") == [], "the database is sound")
        for what, sql in LEFTOVERS.items():
            left = all_of(sql)
            finding.check(not left, f"R17 nothing is left behind: {what}", left[:5])
        ready = dict(rows.execute("SELECT key, sha256 FROM blob WHERE state = 'ready'").fetchall())
        files = [key for (key,) in rows.execute("SELECT blob_key FROM file")]
        results = [
            file_id
            for pair in rows.execute("SELECT output_file_id, error_file_id FROM batch")
            for file_id in pair
            if file_id is not None
        ]
        published = {i for (i,) in rows.execute("SELECT id FROM file WHERE purpose = 'batch_output'")}
    finding.check(sorted(files) == sorted(ready), "R17 every ready blob is a File's, once", set(files) ^ set(ready))
    finding.check(sorted(results) == sorted(published), "R15 every result file is a batch's", set(results) ^ published)
    stored = {path.name: path for path in (evidence.data / "blobs").glob("*/*")}
    finding.check(stored.keys() == ready.keys(), "R17 rows and bytes agree", sorted(stored.keys() ^ ready.keys())[:5])
    for key, sha256 in ready.items():
        if key in stored and sha256 is not None:
            same = hashlib.sha256(stored[key].read_bytes()).hexdigest() == sha256
            finding.check(same, "R19 the bytes are those of the row", key)


# What must be gone once all is quiet and the workers have ended.
LEFTOVERS: Mapping[str, str] = {
    "slices": "SELECT batch_id, ordinal FROM slice",
    "segments": "SELECT batch_id, slice, seq FROM segment",
    "inputs held by final batches": "SELECT id FROM batch WHERE input_key IS NOT NULL OR plan_key IS NOT NULL",
    "leases of batches": "SELECT id, owner FROM batch WHERE owner IS NOT NULL",
    "blobs that nobody finished": "SELECT key, state FROM blob WHERE state != 'ready'",
    "references": "SELECT key, refs FROM blob WHERE state = 'ready' AND refs != 1",
}
