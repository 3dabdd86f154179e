"""One batch held against its input: its status, its sends, and each line of its files."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openai import OpenAI
from openai.types import Batch

from batchmill.spec.results import result_id
from batchmill.spec.states import FINAL
from faults.evidence import EXECUTED, LEARN_SECONDS, Evidence, Finding, Record, Send
from faults.input import OUTCOMES, Order
from faults.nemesis import Kind
from witness import BAD_REQUEST, answer

_OK = 200
_LONE_DEATHS = 3  # a line that kills its worker so often gets `worker_crashed` (R16): we kill them, too
_RESTS = {"cancelled": "batch_cancelled", "expired": "batch_expired"}
_LINE = re.compile(rb'\{"id":"(batch_req_[0-9a-f]{32})","custom_id":')
_SAID = re.compile(rb'"response":null,"error":\{"code":"([a-z_]+)","message":"')


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCheck:
    """One batch, and all that was seen of it."""

    evidence: Evidence
    finding: Finding
    client: OpenAI
    batch: Batch
    order: Order
    recorded: Mapping[int, Record]
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
        self._check_pauses()
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
        executed = [sum(send.wish in EXECUTED for send in sends) for sends in self.sent.values()]
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
                late = last - max([min(ends), *woken]) - LEARN_SECONDS
                self.finding.check(
                    late <= 0, f"R8 nothing is sent a second after {what}", f"{self.batch.id} {late:.2f}"
                )

    def _check_pauses(self) -> None:
        """Nothing is sent a second after a pause was acknowledged, until the batch was told to go on.

        But by who could not know: a worker that was stopped meanwhile, or was cut off from the rows.
        """
        facts = [f for f in self.evidence.facts if f.order == self.order.name]
        resumes = [f.at for f in facts if f.kind == "resuming"] + [float("inf")]
        for pause in (f.at for f in facts if f.kind == "pause"):
            self.finding.figures["pauses"] += 1
            ends = min(at for at in resumes if at > pause)
            sends = ((place, send) for place, sends in self.sent.items() for send in sends)
            late = [
                (p, send) for p, send in sends if pause + LEARN_SECONDS < send.at < ends and self._could_know(p, send)
            ]
            told = f"{self.batch.id} paused at {pause}: {late[:2]}"
            self.finding.check(not late, "R8 nothing is sent a second after a pause", told)

    def _could_know(self, place: int, send: Send) -> bool:
        """Say whether the worker that has sent a line was awake before, and the rows were in its reach."""
        deaf = [i for i in self.evidence.inflicted if i.kind in (Kind.STOP, Kind.TROUBLE) and i.until is not None]
        mine = [i for i in deaf if i.worker in (None, self._owner(place, send))]
        return not any(i.at <= send.at <= (i.until or i.at) + LEARN_SECONDS for i in mine)

    def _owner(self, place: int, send: Send) -> str | None:
        """Return the worker that has sent a line."""
        claims = (c for c in self.evidence.trail.claims if c.batch == self.batch.id and c.epoch == send.epoch)
        return next((c.owner for c in claims if c.first <= place < c.first + c.lines), None)

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
