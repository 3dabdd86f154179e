"""One streaming pass over an input File: every rule, every bad line, what the good ones come to, and their Plan."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from batchmill.blobs.blobs import Blobs, Span, Written
from batchmill.schedule.plan import Cut, Record
from batchmill.schedule.planner import Ordering, Planner
from batchmill.spec.limits import Limits
from batchmill.spec.lines import Checker, ErrorReport, Line, RawLine, read_lines, whole_file_errors
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue
from batchmill.spec.objects import LineError
from batchmill.spec.repeats import Hashes, Watched
from batchmill.spec.rules import SILENT
from batchmill.validation.ordered import OrderedCopy

_ORDERING = Ordering()


@dataclass(slots=True, kw_only=True)
class Part:
    """The good lines of one model, by estimate: an `unbounded` line says nothing of how much may be generated."""

    model: str
    place: int  # among the models of the file, in the order of first use
    lines: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0  # that its lines allow
    unbounded: int = 0

    def add(self, line: Line, *, generates: bool) -> None:
        """Count a line, whose endpoint `generates` tokens or does not."""
        self.lines += 1
        self.prompt_tokens += line.tokens - line.output
        self.completion_tokens += line.output
        self.unbounded += generates and not line.output


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What became of an input: `errors`, or else a durable Plan of `total` lines, cut into Slices, if one was wanted.

    With a `copy` the Plan refers to that, in which lines stand in its order; without one it refers to the input.
    """

    lines: int = 0  # good or bad
    parts: tuple[Part, ...] = ()  # the good ones, by model; of those that repeat a custom_id not each is told apart
    first: tuple[Span, ...] = ()  # where the first good ones are in the input
    cuts: tuple[Cut, ...] = ()
    errors: tuple[LineError, ...] = ()
    plan: Written | None = None
    copy: Written | None = None

    @property
    def total(self) -> int:
        """How many lines are good."""
        return sum(part.lines for part in self.parts)

    @property
    def tokens(self) -> int:
        """What the good lines come to, by estimate."""
        return sum(part.prompt_tokens + part.completion_tokens for part in self.parts)

    @property
    def models(self) -> Sequence[str]:
        """The models of the good lines, as a cut refers to them by their places."""
        return [part.model for part in self.parts]


@dataclass(slots=True, kw_only=True)
class _Pass:
    """Counts and plans the good lines, and keeps the bad ones' errors."""

    checker: Checker
    catalogue: Catalogue
    report: ErrorReport
    planner: Planner | None
    wanted: int  # spans of good lines
    generates: bool  # the endpoint does: a line may say how much
    lines: int = 0  # good or bad
    first: list[Span] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    _names: dict[str, Part] = field(default_factory=dict)  # as they are written: aliases, too

    def read(self, lines: Iterable[RawLine]) -> None:
        for raw in lines:
            self.lines += 1
            checked = self.checker.check(raw)
            if isinstance(checked, Line):
                part = self._names.get(checked.model) or self._part(checked.model)
                part.add(checked, generates=self.generates)
                if len(self.first) < self.wanted:
                    self.first.append((checked.offset, checked.length))
                if self.planner is not None and not self.report.count:  # else there will be no Plan
                    body = memoryview(raw.text)[checked.body_offset :][: checked.body_length]
                    record = _record(checked, model=part.place)
                    self.planner.add(record, prompt=checked.prompt, output=checked.output, body=body)
            else:
                self.report.add(checked)

    def _part(self, name: str) -> Part:
        model = self.catalogue.resolve(name)
        part = self.parts.setdefault(model, Part(model=model, place=len(self.parts)))
        self._names[name] = part
        return part


def _record(line: Line, *, model: int) -> Record:
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
    plan_key: str | None,
    endpoint: str,
    limits: Limits,
    known_models: Collection[str],
    catalogue: Catalogue = NOTHING_CONFIGURED,
    ordering: Ordering = _ORDERING,
    copy_key: str | None = None,
    first: int = 0,
) -> Validation:
    """Check the whole input and lay down its Plan; blocking. An input with a repeated custom_id is read twice.

    Memory is bounded by the longest line, the errors kept, some ten bytes a line for repeated custom_ids, and a piece
    of the Plan. An input that is copied is read twice, too.

    Args:
        blobs: Where the input is, and the Plan is to be.
        input_key: Of the input.
        plan_key: Of the Plan; without it none is laid down, and nothing is written.
        endpoint: The batch's.
        limits: What is allowed.
        known_models: Those that some Backend serves.
        catalogue: What is configured of models.
        ordering: What decides on the order of the lines.
        copy_key: Of a copy of the lines in that order, where it is not the input's; without it none is made.
        first: Of so many good lines it is told where they are.
    """
    checker = partial(Checker, endpoint=endpoint, limits=limits, known_models=known_models, catalogue=catalogue)
    hashes, report = Hashes(), ErrorReport(max_errors=limits.max_errors)
    plan = None if plan_key is None else blobs.writer(plan_key)
    copy = None if copy_key is None else OrderedCopy(blobs=blobs, input_key=input_key, key=copy_key)
    try:
        lay = None if copy is None else copy.lay
        planner = None if plan is None else Planner(write=plan.write, ordering=ordering, copy=lay)
        reading = _Pass(
            checker=checker(ids=hashes),
            catalogue=catalogue,
            report=report,
            planner=planner,
            wanted=first,
            generates=endpoint not in SILENT,
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
        found = Validation(lines=reading.lines, parts=tuple(reading.parts.values()), first=tuple(reading.first))
        if errors := report.data():
            return replace(found, errors=tuple(errors))
        if plan is None or planner is None:
            return found
        cuts = planner.finish()
        return replace(found, cuts=cuts, plan=plan.finish(), copy=None if copy is None else copy.finish())
    finally:
        if plan is not None:
            plan.discard()
        if copy is not None:
            copy.discard()
