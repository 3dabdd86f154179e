"""Looks at everything after a run, over the API and behind its back, and says what should not be so.

What must hold is numbered as in the list of invariants (R1-R9, R15, R17, R18). It trusts no single witness: files over
the API are held against the input, the rows' trail, the bytes on disk, the witness' log and the clients' journal.
"""

import bisect
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing

from openai import NotFoundError, OpenAI
from openai.types import Batch

from batchmill.engine.group import GroupBounds
from batchmill.spec.results import result_id
from batchmill.spec.states import FINAL, TRANSITIONS, Status
from faults.evidence import EXECUTED, LEARN_SECONDS, Evidence, Finding, Record
from faults.journal import Fact
from faults.launcher import WINDOW
from faults.nemesis import Kind
from faults.outcome import BatchCheck
from faults.trail import Trail, bits

RESUME_SECONDS = 10.0
_SIGNS = 3  # of progress: one may be a transaction that was under way when the trouble began
_UNAVAILABLE = 503


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
            BatchCheck(
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
    _check_answers(evidence, finding)
    _check_troubles(evidence, finding)
    _check_rows(evidence, finding)
    return finding


def _recorded(trail: Trail) -> dict[str, dict[int, Record]]:
    """Return for each batch when each line was first recorded, and under which claim."""
    found: dict[str, dict[int, Record]] = defaultdict(dict)
    for entry in trail.recorded:
        for line in entry.lines():
            found[entry.batch].setdefault(line, Record(entry.at, entry.epoch))
    return found


def _batches(clients: Sequence[OpenAI]) -> dict[str, tuple[Batch, OpenAI]]:
    return {batch.id: (batch, client) for client in clients for batch in client.batches.list(limit=100)}


def _check_claims(evidence: Evidence, finding: Finding, recorded: Mapping[str, Mapping[int, Record]]) -> None:
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
        if send.wish in EXECUTED and (record is None or record.epoch != send.epoch):
            in_vain[owners[batch, first, send.epoch]] += 1
        if record is not None and send.at > record.at and record.epoch >= send.epoch:
            finding.check(record.epoch > send.epoch, "R4 a recorded line is not sent again under its claim", send)
            finding.figures["sends under a lost claim"] += 1
            at = bisect.bisect(woken, send.at)
            since = send.at - woken[at - 1] if at else float("inf")
            learnt = since <= LEARN_SECONDS
            finding.check(learnt, "R9 a worker learns that it lost its claim", f"{since:.2f} s after it woke: {send}")
    most = max(in_vain.values(), default=0)
    finding.figures["most sends in vain of one worker"] = most
    finding.check(most <= WINDOW + GroupBounds().results, "R5 a fault costs what was in flight and one group", in_vain)


def _check_moves(trail: Trail, finding: Finding) -> None:
    """The states move along the machine (R6), and recorded lines stay recorded (R4)."""
    allowed = {(old.value, new.value) for old, row in TRANSITIONS.items() for new in row.values() if old is not new}
    allowed |= {(None, Status.VALIDATING.value)}  # type: ignore[arg-type]
    now: dict[str, str | None] = defaultdict(lambda: None)
    for move in trail.moves:
        finding.figures["moves"] += 1
        finding.check((move.old, move.new) in allowed, "R6 states move along the machine", move)
        finding.check(now[move.batch] == move.old, "R6 no move is lost", move)
        now[move.batch] = move.new
    finding.check(not trail.restamped, "R6 a timestamp is set once", trail.restamped)
    for entry in trail.recorded:
        finding.check(not bits(entry.old) - bits(entry.new), "R4 what is recorded stays recorded", entry.batch)
    _check_counts(trail, finding)


def _check_counts(trail: Trail, finding: Finding) -> None:
    """Counts never fall (R2), and while a batch runs they are at every commit what its bitmaps say (R4)."""
    before: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for now in trail.counts:
        grown = now.completed >= before[now.batch][0] and now.failed >= before[now.batch][1]
        sound = grown and now.completed + now.failed <= now.total
        finding.check(sound, "R2 counts never fall nor exceed the total", now)
        same = now.status in {*FINAL} or now.completed + now.failed == now.recorded
        finding.check(same, "R4 results and counts change together", now)
        before[now.batch] = (now.completed, now.failed)


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
        elif fact.kind == "followed":
            same = fact.said["read"] == fact.said["published"]
            finding.figures["results read while they came"] += int(fact.said["lines"] or 0)
            finding.check(same, "R15 results read on a cursor are the files' lines, each once", fact)
        elif fact.kind == "cancelled":
            status = client.batches.retrieve(by_order[fact.order]).status
            finding.check(status == "cancelled", "R3 an acknowledged cancel holds", f"{fact} {status}")
        elif fact.kind == "deleted":
            finding.check(_is_gone(client, str(fact.said["file"])), "R3 an acknowledged delete holds", fact)
        elif fact.kind == "uploaded":
            _check_upload(evidence, finding, client, fact)


def _check_answers(evidence: Evidence, finding: Finding) -> None:
    """Where rows or bytes are away the API says so, and when to come again (R12)."""
    for fact in evidence.facts:
        finding.figures["calls that timed out"] += fact.kind == "timed out"
        if fact.kind == "refused":
            finding.figures["answers 503"] += fact.said["status"] == _UNAVAILABLE
            sound = fact.said["status"] == _UNAVAILABLE and fact.said["retry_after"] is not None
            finding.check(sound, "R12 the API answers 503 with Retry-After, nothing else of the kind", fact)


def _check_troubles(evidence: Evidence, finding: Finding) -> None:
    """Once rows and bytes are there again, work goes on soon: lines are recorded and batches moved by workers (R12).

    Where the model server is away, too, it is its return that counts.
    """
    outages = [i for i in evidence.inflicted if i.kind is Kind.OUTAGE]
    moves = (m.at for m in evidence.trail.moves if m.old is not None and m.new != Status.CANCELLING)
    progress = sorted([*moves, *(entry.at for entry in evidence.trail.recorded)])
    for trouble in evidence.inflicted:
        if trouble.kind is Kind.TROUBLE and trouble.until is not None:
            ends = [i.until for i in outages if i.until is not None and i.at < trouble.until + RESUME_SECONDS]
            end = max([trouble.until, *(each for each in ends if each > trouble.until)])
            since = progress[bisect.bisect(progress, trouble.until) :][_SIGNS - 1 :]
            took = max(0.0, since[0] - end) if since else float("inf")
            told = f"{trouble.mode}: {took:.1f} s"
            finding.check(took <= RESUME_SECONDS, "R12 work goes on within ten seconds of a trouble's end", told)
            name = f"seconds to go on after {trouble.mode}"
            finding.figures[name] = max(finding.figures[name], round(took, 1))  # type: ignore[call-overload]


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
    wrong = evidence.ground.unsound()
    finding.check(not wrong, "the database is sound", wrong[:5])
    with closing(evidence.ground.rows()) as rows:
        for what, sql in LEFTOVERS.items():
            left = rows.all(sql)
            finding.check(not left, f"R17 nothing is left behind: {what}", left[:5])
        ready = dict(rows.all("SELECT key, sha256 FROM blob WHERE state = 'ready'"))
        files = [key for (key,) in rows.all("SELECT blob_key FROM file")]
        orders = [key for (key,) in rows.all("SELECT order_key FROM batch WHERE order_key IS NOT NULL")]
        results = [
            file_id
            for pair in rows.all("SELECT output_file_id, error_file_id FROM batch")
            for file_id in pair
            if file_id is not None
        ]
        published = {i for (i,) in rows.all("SELECT id FROM file WHERE purpose = 'batch_output'")}
    owned = sorted([*files, *orders])
    finding.check(owned == sorted(ready), "R17 every ready blob is a File's or an order, once", set(owned) ^ set(ready))
    finding.check(sorted(results) == sorted(published), "R15 every result file is a batch's", set(results) ^ published)
    stored = evidence.ground.keys()
    finding.check(stored == ready.keys(), "R17 rows and bytes agree", sorted(stored ^ ready.keys())[:5])
    for key, sha256 in ready.items():
        if key in stored and sha256 is not None:
            same = hashlib.sha256(evidence.ground.read(key)).hexdigest() == sha256
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
