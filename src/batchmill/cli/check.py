"""`batchmill check`: every bad line of an input, by the rules of the server, without running anything."""

import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import msgspec

from batchmill.cli.exit import RunExit, Stop
from batchmill.spec.limits import Limits
from batchmill.spec.lines import Checker, Line, RawLine, likely_endpoint, read_lines, whole_file_errors
from batchmill.spec.models import Catalogue
from batchmill.spec.objects import LineError, more_errors

STDIN = Path("-")
_MODELS_NAMED = 5


@dataclass(slots=True, kw_only=True)
class Checked:
    """What was found in an input."""

    lines: int = 0  # request lines, good and bad; blank ones are none
    errors: int = 0
    bytes: int = 0
    models: Collection[str] = field(default_factory=tuple)

    def sentence(self) -> str:
        """Say it in words."""
        named = ", ".join(list(self.models)[:_MODELS_NAMED])
        more = f", and {len(self.models) - _MODELS_NAMED} more" if len(self.models) > _MODELS_NAMED else ""
        of = f" of {named}{more}" if named else ""
        bad = f"{_count(self.errors, 'error')} in " if self.errors else ""
        return f"{bad}{_count(self.lines, 'request')}{of}, {_count(self.bytes, 'byte')}."


def check_input(
    path: Path,
    *,
    limits: Limits,
    endpoint: str | None,
    models: Collection[str],
    catalogue: Catalogue,
    every: bool,
    as_json: bool,
) -> RunExit:
    """Check an input, `-` for standard input, and print what is wrong with it.

    As text, errors and summary go to stdout. As JSON, stdout has one object an error (code, message, param, line) and
    nothing else, and the summary goes to stderr.

    Args:
        path: The input.
        limits: What is allowed.
        endpoint: What every line's `url` must be; None takes the first line's.
        models: The models that there are; if empty, any will do.
        catalogue: What is configured of models.
        every: Whether to print more errors than the server would list.
        as_json: Whether to print JSON.

    Raises:
        Stop: the input cannot be read, or the endpoint is none of the limits'.
    """
    refuse_unknown_endpoint(endpoint, limits)
    most = None if every else limits.max_errors
    write = _write_json if as_json else _write_text
    shown = 0
    checked = Checked()
    try:
        with ExitStack() as stack:
            stream = sys.stdin.buffer if path == STDIN else stack.enter_context(path.open("rb", buffering=1 << 20))
            errors = check_lines(
                stream.readline,
                checked,
                limits=limits,
                endpoint=endpoint,
                models=models or None,
                catalogue=catalogue,
            )
            for error in errors:
                if most is None or shown < most:
                    write(error)
                    shown += 1
    except BrokenPipeError:  # whoever reads our errors has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return RunExit.BAD_DATA
    except OSError as fault:
        raise Stop(f"{path} cannot be read: {fault.strerror}.", RunExit.USAGE) from fault
    if checked.errors > shown:
        write(more_errors(checked.errors - shown))
    print(checked.sentence(), file=sys.stderr if as_json else sys.stdout)
    return RunExit.BAD_DATA if checked.errors else RunExit.GOOD


def check_lines(
    readline: Callable[[int], bytes],
    checked: Checked,
    *,
    limits: Limits,
    endpoint: str | None,
    models: Collection[str] | None,
    catalogue: Catalogue,
) -> Iterator[LineError]:
    """Yield everything that is wrong with an input, in order, and count in `checked` what is there."""
    counting = _Counting(readline)
    lines = read_lines(counting.readline, limits.max_line_bytes)
    first = next(lines, None)
    if first is not None:
        checker = Checker(
            endpoint=endpoint or likely_endpoint(first.text, limits),
            limits=limits,
            known_models=models,
            catalogue=catalogue,
        )
        for error in _errors(chain([first], lines), checker, checked):
            checked.errors += 1
            yield error
        checked.models = checker.models
    checked.bytes = counting.bytes
    for error in whole_file_errors(checked.lines, limits):
        checked.errors += 1
        yield error


def refuse_unknown_endpoint(endpoint: str | None, limits: Limits) -> None:
    """Raise Stop for an endpoint that the limits do not allow."""
    if endpoint is not None and endpoint not in limits.endpoints:
        known = ", ".join(limits.endpoints)
        raise Stop(f"endpoint: {endpoint!r} is none of {known} (see --limits).", RunExit.USAGE)


def describe(error: LineError) -> str:
    """Return an error as a line of text."""
    place = "The input" if error.line is None else f"line {error.line}"
    return f"{place}: {error.message} [{error.code}]"


def _errors(lines: Iterator[RawLine], checker: Checker, checked: Checked) -> Iterator[LineError]:
    for raw in lines:
        checked.lines += 1
        found = checker.check(raw)
        if not isinstance(found, Line):
            yield from found


class _Counting:
    """Counts the bytes that a reader gives."""

    def __init__(self, readline: Callable[[int], bytes]) -> None:
        self._readline = readline
        self.bytes = 0

    def readline(self, most: int) -> bytes:
        chunk = self._readline(most)
        self.bytes += len(chunk)
        return chunk


def _write_text(error: LineError) -> None:
    print(describe(error))  # noqa: T201 - the command's answer


def _write_json(error: LineError) -> None:
    print(msgspec.json.encode(error.wire()).decode())  # noqa: T201 - the same


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
