"""One streaming pass over an input File: every rule, every bad line, and a Plan record for each good one."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import partial

from batchmill.blobs.blobs import Blobs, Written
from batchmill.schedule.plan import Cut, Record
from batchmill.schedule.planner import Ordering, Planner
from batchmill.spec.limits import Limits
from batchmill.spec.lines import Checker, ErrorReport, Line, RawLine, read_lines, whole_file_errors
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue
from batchmill.spec.objects import LineError
from batchmill.spec.repeats import Hashes, Watched
from batchmill.validation.ordered import OrderedCopy

_ORDERING = Ordering()


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What became of an input: `errors`, or else a durable Plan of `total` lines, cut into Slices.

    With a `copy` the Plan refers to that, in which lines stand in its order; without one it refers to the input.
    """

    total: int = 0
    tokens: int = 0  # of all lines, by estimate
    models: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    errors: tuple[LineError, ...] = ()
    plan: Written | None = None
    copy: Written | None = None


@dataclass(slots=True, kw_only=True)
class _Pass:
    """Plans the good lines, and keeps the bad ones' errors."""

    checker: Checker
    catalogue: Catalogue
    report: ErrorReport
    planner: Planner
    lines: int = 0  # good or bad
    total: int = 0
    tokens: int = 0
    models: dict[str, int] = field(default_factory=dict)

    def read(self, lines: Iterable[RawLine]) -> None:
        for raw in lines:
            self.lines += 1
            checked = self.checker.check(raw)
            if isinstance(checked, Line):
                self.total += 1
                self.tokens += checked.tokens
                body = memoryview(raw.text)[checked.body_offset :][: checked.body_length]
                record = self._record(checked)
                if not self.report.count:  # else there will be no Plan
                    self.planner.add(record, prompt=checked.prompt, output=checked.output, body=body)
            else:
                self.report.add(checked)

    def _record(self, line: Line) -> Record:
        model = self.models.setdefault(self.catalogue.resolve(line.model), len(self.models))
        return Record(
            line.offset,
            line.length,
            line.number,
            line.custom_id_offset,
            line.custom_id_length,
            line.body_offset,
            line.body_length,
            model,
            line.tokens,
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
    ordering: Ordering = _ORDERING,
    copy_key: str | None = None,
) -> Validation:
    """Check the whole input and lay down its Plan; blocking. An input with a repeated custom_id is read twice.

    Memory is bounded by the longest line, the errors kept, some ten bytes a line for repeated custom_ids, and a piece
    of the Plan. An input that is copied is read twice, too.

    Args:
        blobs: Where the input is, and the Plan is to be.
        input_key: Of the input.
        plan_key: Of the Plan.
        endpoint: The batch's.
        limits: What is allowed.
        known_models: Those that some Backend serves.
        catalogue: What is configured of models.
        ordering: What decides on the order of the lines.
        copy_key: Of a copy of the lines in that order, where it is not the input's; without it none is made.
    """
    checker = partial(Checker, endpoint=endpoint, limits=limits, known_models=known_models, catalogue=catalogue)
    hashes, report = Hashes(), ErrorReport(max_errors=limits.max_errors)
    plan = blobs.writer(plan_key)
    copy = None if copy_key is None else OrderedCopy(blobs=blobs, input_key=input_key, key=copy_key)
    try:
        planner = Planner(write=plan.write, ordering=ordering, copy=None if copy is None else copy.lay)
        reading = _Pass(
            checker=checker(ids=hashes),
            catalogue=catalogue,
            report=report,
            planner=planner,
        )
        with blobs.open(input_key) as stream:
            reading.read(read_lines(stream.readline, limits.max_line_bytes))
        watched, others = hashes.repeated()
        if watched:
            report = ErrorReport(max_errors=limits.max_errors)
            with blobs.open(input_key) as stream:
                report.read(read_lines(stream.readline, limits.max_line_bytes), checker(ids=Watched(watched)))
            report.add_unlisted(others)
        report.add(whole_file_errors(reading.lines, limits))
        if errors := report.data():
            return Validation(errors=tuple(errors))
        cuts = planner.finish()
        return Validation(
            total=reading.total,
            tokens=reading.tokens,
            models=tuple(reading.models),
            cuts=cuts,
            plan=plan.finish(),
            copy=None if copy is None else copy.finish(),
        )
    finally:
        plan.discard()
        if copy is not None:
            copy.discard()
