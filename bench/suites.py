"""The batches that scheduling is measured on, and what no order, window or placement can beat.

    A  400 documents of 4,096 tokens, 15 short questions about each, shuffled
    B  nothing shared; outputs with a heavy tail (median 300, at most 8,192)
    C  300 prefixes of 3,072 tokens, 20 lines each, outputs with B's tail, an engine with half the cache, shuffled
    D  nothing shared, nothing uneven
    I  as D, all lines the same (900 in, 200 out): the batch beside the visitors

A line's `max_tokens` is what its author knew of the output's length: in B and C the length times a log-normal error of
sigma 0.8, never below the length itself; in A, D and I the same for all. All sizes are tokens.

Visitors are the interactive requests of others: 4 a second at random, 400 tokens in and 150 out on average, log-normal
with sigma 0.8. With that spread their p99 to the first token alone is the 68 ms that the goals were set against.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import engine_model as model

from batchmill.schedule.order import BYTES_PER_TOKEN, DEPTHS

ERROR = 0.8  # sigma of the logarithm of max_tokens / output
CAP = 8192
SPREAD = 0.8  # sigma of the logarithm of a visitor's sizes


@dataclass(frozen=True, slots=True)
class Line:
    """One request: the shared beginning of its prompt as (key, tokens) parts, what is its own, and its output."""

    prefix: tuple[tuple[int, int], ...]
    private: int
    output: int
    max_tokens: int

    @property
    def prompt(self) -> int:
        """The tokens of the whole prompt."""
        return sum(tokens for _, tokens in self.prefix) + self.private

    def fingerprint(self) -> tuple[int, ...]:
        """Return what `schedule.order.fingerprint` would of its prompt's bytes."""
        sums = []
        for depth in DEPTHS:
            begun = ends = 0
            mark = id(self)  # its own bytes
            for key, tokens in self.prefix:
                ends += tokens * BYTES_PER_TOKEN
                if begun < depth <= ends:
                    mark = key + 1
                begun = ends
            is_reached = depth <= self.prompt * BYTES_PER_TOKEN
            sums.append(hash((mark, depth)) & 0x3FFFFFFF or 1 if is_reached else 0)
        return tuple(sums)

    def sequence(self) -> model.Sequence:
        """Return the line as an engine takes it."""
        return model.Sequence(self.prefix, self.private, self.output, self)


def suite(name: str, *, lines: int | None = None, seed: int = 1) -> list[Line]:
    """Return the lines of a suite in file order: 6,000 (A, C), 16,000 (B), 40,000 (D), 8,000 (I), or `lines`."""
    draw = random.Random(f"{name}{seed}")  # noqa: S311 - a workload, not a secret
    return _MADE[name](draw, lines)


def profile(name: str) -> model.Profile:
    """Return the engine that a suite is run on."""
    return model.Profile(kv_tokens=200_000) if name == "C" else model.Profile()


def lower_bound(lines: Iterable[Line], on: model.Profile, engines: int = 1) -> float:
    """Return seconds that no policy can beat: the least work, evenly spread, or the longest request alone.

    The least work is every token computed once (a shared prefix once for all engines) and every context read, without
    the cost of an iteration as such.
    """
    work = longest = 0.0
    seen: dict[int, int] = {}
    for line in lines:
        steps = line.output - 1  # the first token comes with the prompt
        read = on.kv_seconds * (steps * line.prompt + steps * (steps + 1) // 2)
        work += on.token_seconds * (line.private + steps) + read
        seen.update(line.prefix)
        each = max(on.token_seconds, on.iteration_seconds) + on.overhead_seconds
        longest = max(longest, on.token_seconds * line.private + each * steps + read)
    return max((work + on.token_seconds * sum(seen.values())) / engines, longest)


def visitors(seconds: float, *, seed: int = 1, rate: float = 4.0) -> list[tuple[float, model.Sequence]]:
    """Return the interactive requests of so many seconds, each with the moment when it comes."""
    draw = random.Random(f"visitors{seed}")  # noqa: S311 - a workload, not a secret
    made: list[tuple[float, model.Sequence]] = []
    at = draw.expovariate(rate)
    while at < seconds:
        made.append((at, model.Sequence((), _around(draw, 400), _around(draw, 150))))
        at += draw.expovariate(rate)
    return made


def least_tokens(lines: Sequence[Line]) -> int:
    """Return the tokens that have to be computed: every prefix once, all else once a line."""
    return sum(dict(part for line in lines for part in line.prefix).values()) + sum(
        line.private + line.output for line in lines
    )


def _shared(draw: random.Random, *, prefixes: int, tokens: int, each: int, tail: bool) -> list[Line]:
    lines = []
    for key in range(prefixes):
        for _ in range(each):
            output = _tail(draw) if tail else draw.randint(64, 192)
            most = _known(draw, output) if tail else 256
            lines.append(Line(((key, tokens),), draw.randint(50, 150), output, most))
    draw.shuffle(lines)
    return lines


def _a(draw: random.Random, lines: int | None) -> list[Line]:
    return _shared(draw, prefixes=(lines or 6000) // 15, tokens=4096, each=15, tail=False)


def _b(draw: random.Random, lines: int | None) -> list[Line]:
    outputs = [_tail(draw) for _ in range(lines or 16000)]
    return [Line((), draw.randint(100, 300), output, _known(draw, output)) for output in outputs]


def _c(draw: random.Random, lines: int | None) -> list[Line]:
    return _shared(draw, prefixes=(lines or 6000) // 20, tokens=3072, each=20, tail=True)


def _d(draw: random.Random, lines: int | None) -> list[Line]:
    return [Line((), draw.randint(256, 768), draw.randint(100, 300), 512) for _ in range(lines or 40_000)]


def _i(_: random.Random, lines: int | None) -> list[Line]:
    return [Line((), 900, 200, 256) for _ in range(lines or 8000)]


def _around(draw: random.Random, mean: float) -> int:
    return max(1, round(mean * draw.lognormvariate(-SPREAD * SPREAD / 2, SPREAD)))


def _tail(draw: random.Random) -> int:
    return max(1, min(CAP, round(draw.lognormvariate(5.704, 1.0))))  # e^5.704 = 300


def _known(draw: random.Random, output: int) -> int:
    return max(output, min(CAP, round(output * draw.lognormvariate(0.0, ERROR))))


_MADE = {"A": _a, "B": _b, "C": _c, "D": _d, "I": _i}
