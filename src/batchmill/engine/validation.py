"""One streaming pass over an input File: every rule, every bad line, and a Plan record for each good one."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from batchmill.blobs.blobs import Blobs, BlobWriter, Written
from batchmill.schedule.plan import Cut, Record, cut, pack
from batchmill.spec.limits import Limits
from batchmill.spec.lines import Checker, ErrorReport, Line, RawLine, read_lines, whole_file_errors
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue
from batchmill.spec.objects import LineError
from batchmill.spec.repeats import Hashes, Watched

_PACKED = 1024  # records written at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What became of an input: `errors`, or else a durable Plan of `total` lines, cut into Slices."""

    total: int = 0
    tokens: int = 0  # of all lines, by estimate
    models: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    errors: tuple[LineError, ...] = ()
    plan: Written | None = None


@dataclass(slots=True, kw_only=True)
class _Pass:
    """Yields the records of good lines, keeps the bad ones' errors, and writes the Plan."""

    checker: Checker
    catalogue: Catalogue
    report: ErrorReport
    lines: int = 0  # good or bad
    total: int = 0
    tokens: int = 0
    models: dict[str, int] = field(default_factory=dict)

    def records(self, lines: Iterable[RawLine], plan: BlobWriter) -> Iterator[Record]:
        packed: list[bytes] = []
        for raw in lines:
            self.lines += 1
            checked = self.checker.check(raw)
            if isinstance(checked, Line):
                self.total += 1
                self.tokens += checked.tokens
                record = self._record(checked)
                packed.append(pack(record))
                if len(packed) == _PACKED:
                    plan.write(b"".join(packed))
                    packed.clear()
                yield record
            else:
                self.report.add(checked)
        plan.write(b"".join(packed))

    def _record(self, line: Line) -> Record:
        return Record(
            offset=line.offset,
            length=line.length,
            line=line.number,
            id_offset=line.custom_id_offset,
            id_length=line.custom_id_length,
            body_offset=line.body_offset,
            body_length=line.body_length,
            model=self.models.setdefault(self.catalogue.resolve(line.model), len(self.models)),
            tokens=line.tokens,
            prefix=0,
        )


def validate(
    *,
    blobs: Blobs,
    input_key: str,
    plan_key: str,
    endpoint: str,
    limits: Limits,
    known_models: Collection[str],
    catalogue: Catalogue = NOTHING_CONFIGURED,
) -> Validation:
    """Check the whole input and lay down its Plan; blocking. An input with a repeated custom_id is read twice.

    Memory is bounded by the longest line, the errors kept, and some ten bytes a line for repeated custom_ids.
    """
    checker = partial(Checker, endpoint=endpoint, limits=limits, known_models=known_models, catalogue=catalogue)
    hashes, report = Hashes(), ErrorReport(max_errors=limits.max_errors)
    plan = blobs.writer(plan_key)
    try:
        reading = _Pass(checker=checker(ids=hashes), catalogue=catalogue, report=report)
        with blobs.open(input_key) as stream:
            cuts = tuple(cut(reading.records(read_lines(stream.readline, limits.max_line_bytes), plan)))
        watched, others = hashes.repeated()
        if watched:
            report = ErrorReport(max_errors=limits.max_errors)
            with blobs.open(input_key) as stream:
                report.read(read_lines(stream.readline, limits.max_line_bytes), checker(ids=Watched(watched)))
            report.add_unlisted(others)
        report.add(whole_file_errors(reading.lines, limits))
        if errors := report.data():
            return Validation(errors=tuple(errors))
        return Validation(
            total=reading.total,
            tokens=reading.tokens,
            models=tuple(reading.models),
            cuts=cuts,
            plan=plan.finish(),
        )
    finally:
        plan.discard()
