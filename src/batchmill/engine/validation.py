"""One streaming pass over an input File: every rule, every bad line, and a Plan record for each good one."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from batchmill.blobs.blobs import Blobs, BlobWriter, Written
from batchmill.schedule.plan import Cut, Record, cut, pack
from batchmill.spec.limits import Limits
from batchmill.spec.lines import Checker, ErrorReport, Line, read_lines, whole_file_errors
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue
from batchmill.spec.objects import LineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What became of an input: `errors`, or else a durable Plan of `total` lines, cut into Slices."""

    total: int = 0
    models: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    errors: tuple[LineError, ...] = ()
    plan: Written | None = None


@dataclass(slots=True, kw_only=True)
class _Pass:
    """Yields the records of good lines, keeps the bad ones' errors, and writes the Plan while nothing was bad."""

    checker: Checker
    catalogue: Catalogue
    plan: BlobWriter
    report: ErrorReport
    lines: int = 0  # good or bad
    total: int = 0
    models: dict[str, int] = field(default_factory=dict)

    def records(self, blobs: Blobs, input_key: str, max_line_bytes: int) -> Iterator[Record]:
        with blobs.open(input_key) as stream:
            for raw in read_lines(stream.readline, max_line_bytes):
                self.lines += 1
                checked = self.checker.check(raw)
                if isinstance(checked, Line):
                    self.total += 1
                    record = self._record(checked)
                    self.plan.write(pack(record))
                    yield record
                else:
                    self.report.add(checked)

    def _record(self, line: Line) -> Record:
        return Record(
            offset=line.offset,
            length=line.length,
            line=line.number,
            id_offset=line.custom_id_offset,
            id_length=line.custom_id_length,
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
    """Check the whole input and lay down its Plan; blocking.

    Memory is bounded by the longest line, the errors kept, and some tens of bytes a line for repeated custom_ids.
    """
    checker = Checker(endpoint=endpoint, limits=limits, known_models=known_models, catalogue=catalogue)
    plan = blobs.writer(plan_key)
    try:
        reading = _Pass(
            checker=checker, catalogue=catalogue, plan=plan, report=ErrorReport(max_errors=limits.max_errors)
        )
        cuts = tuple(cut(reading.records(blobs, input_key, limits.max_line_bytes)))
        reading.report.add(whole_file_errors(reading.lines, limits))
        if errors := reading.report.data():
            return Validation(errors=tuple(errors))
        return Validation(total=reading.total, models=tuple(reading.models), cuts=cuts, plan=plan.finish())
    finally:
        plan.discard()
