"""The order of a batch's Requests: those that share a prompt's beginning together, the longest first where that pays.

An engine keeps the beginnings of prompts in its KV cache, for as long as they fit. A shuffled batch over more of them
than fit computes each again and again; a grouped one computes each once. Where they fit, where nothing is shared, and
where the file is grouped already, there is nothing to be had, and the file's own order is kept: lines are then read
from one end of the file to the other.

A prompt's beginning is known by a chain of checksums, one at each of DEPTHS: over the SAMPLE bytes before it and the
checksum before that. Texts that differ hardly ever do so between two samples only; where they do, two lines stand
beside each other in vain.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise, takewhile
from zlib import crc32

DEPTHS = tuple(512 << level for level in range(8))  # bytes of a prompt's beginning: 512 B to 64 KiB
BYTES_PER_TOKEN = 4  # of a prompt, about
SAMPLE = 512  # bytes
TOKENS = (0, *(depth // BYTES_PER_TOKEN for depth in DEPTHS))  # of a beginning of so many depths
KV_TOKENS = 32_000  # an engine's cache where nobody tells: a small one, since grouping in vain costs little
KV_PART = 0.5  # of it: beginnings that fit into so much are computed once in any order (performance page, section 3)
LEAST_SAVED = 0.02  # of the prompts' tokens: below, another order is not worth it
SLOTS = 256  # of an engine, about
LONG_TAIL = 0.25  # the longest line's part of the whole batch's time: from here on the longest go first
SHORT_ONES = 4 * SLOTS  # lines for each Backend

NOTHING_SHARED = (0,) * len(DEPTHS)  # the fingerprint of a prompt that is shorter than all depths
_MASK = (1 << 30) - 1  # the numbers that Python sorts fastest


def fingerprint(prompt: bytes | memoryview) -> tuple[int, ...]:
    """Return the chain of checksums of a prompt's beginning, one at each of DEPTHS; 0 where the prompt is shorter.

    `prompt` are the raw bytes of all that sets a model's cache, in the order of the usual templates: tools,
    then messages, or `prompt`, or `input`, as the user wrote them. About 1 µs.
    """
    reached = bisect_right(DEPTHS, len(prompt))
    if not reached:
        return NOTHING_SHARED
    check = 0
    sums = [(check := crc32(prompt[depth - SAMPLE : depth], check)) & _MASK or 1 for depth in DEPTHS[:reached]]
    return (*sums, *NOTHING_SHARED[reached:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order of lines, each by the number of lines added before it.

    `prefix` and `prefill` are of the lines in that order: a mark that neighbours with a common beginning have in common
    (0 for a line to be placed by itself), and the prompt tokens that the engine is left to compute.
    """

    lines: Sequence[int]
    prefix: Sequence[int]
    prefill: Sequence[int]


class Orderer:
    """Takes in what matters of each line, then says in which order they are to be sent.

    40 bytes a line, and up to twice as much on top while it orders.
    """

    def __init__(self) -> None:
        self._sums = array("I")  # of all depths of a line, then of the next line
        self._column: list[array[int]] = []  # the same by depth
        self._prompt = array("I")
        self._output = array("I")
        self._shared = bytearray()  # of each line: how many of its depths some other line has, too

    def add(self, sums: Sequence[int], *, prompt: int, output: int) -> None:
        """Take in a line: its `fingerprint`, its prompt's tokens, and those that it may generate at most, or likely."""
        self._sums.extend(sums)
        self._prompt.append(prompt)
        self._output.append(output)

    def order(self, *, backends: int = 1, kv_tokens: int = KV_TOKENS, as_added: bool = False) -> Order:
        """Return the order for so many Backends that have caches of so many tokens each; or that of the adding."""
        every = range(len(self._prompt))
        if as_added:
            return self._told(every, bytes(len(every)), bytes(len(every)))
        self._column = list(takewhile(any, (self._sums[level :: len(DEPTHS)] for level in range(len(DEPTHS)))))
        self._shared = bytearray(len(every))
        longest_first = self._is_long_tailed(backends)
        grouped = self._arranged(every, 0, longest_first=longest_first) if every else every
        if any(self._shared):
            cached = self._cached(grouped)
            if self._pays(every, cached, kv_tokens):
                return self._told(grouped, map(self._shared.__getitem__, grouped), cached)
        lines = self._short_then_long(every, SHORT_ONES * backends) if longest_first else every
        return self._told(lines, bytes(len(lines)), map(self._shared.__getitem__, lines))

    def _is_long_tailed(self, backends: int) -> bool:
        """Say whether the longest line would end long after all others if it began late."""
        return bool(self._output) and max(self._output) > LONG_TAIL * sum(self._output) / (SLOTS * backends)

    def _arranged(self, lines: Sequence[int], level: int, *, longest_first: bool) -> Sequence[int]:
        """Return ascending lines that have `level` depths in common, those with more in common side by side."""
        groups: list[Sequence[int]] = []
        single = lines
        while level < len(self._column):
            column, mark = self._column[level], self._column[level][lines[0]]
            if any(column[line] != mark for line in lines):
                groups, single = _alike(lines, column)
                break
            if not mark:
                break
            level += 1  # all alike: look deeper
        for line in single:
            self._shared[line] = level
        if not groups:
            return self._sorted(lines, longest_first=longest_first)
        units = {group[0]: self._arranged(group, level + 1, longest_first=longest_first) for group in groups}
        first = sorted(chain(units, single))
        if longest_first:
            first.sort(key=lambda line: max(map(self._length, units.get(line, (line,)))), reverse=True)
        return array("I", chain.from_iterable(units.get(line, (line,)) for line in first))

    def _short_then_long(self, lines: Sequence[int], most: int) -> Sequence[int]:
        """Return the longest lines first, but for some ordinary ones: windows are found while lines are answered."""
        median = self._length(sorted(lines, key=self._length)[len(lines) // 2])
        short = (line for line in lines if self._length(line) <= median)
        first = list(islice(short, min(most, len(lines) // 8)))
        early = set(first)
        return [*first, *self._sorted([line for line in lines if line not in early], longest_first=True)]

    def _sorted(self, lines: Sequence[int], *, longest_first: bool) -> Sequence[int]:
        return sorted(lines, key=self._length, reverse=True) if longest_first else lines

    def _length(self, line: int) -> int:
        """Return how long a line may take, in steps of two: an author's guess is no better, and a draw keeps order."""
        return self._output[line].bit_length()

    def _cached(self, lines: Sequence[int]) -> bytearray:
        """Return how many depths each line has in common with the one before it."""
        shared, column = self._shared, self._column
        cached = bytearray(len(lines))
        for at, (one, other) in enumerate(pairwise(lines), start=1):
            depth = min(shared[one], shared[other])
            while depth and column[depth - 1][one] != column[depth - 1][other]:
                depth -= 1
            cached[at] = depth
        return cached

    def _pays(self, every: Sequence[int], cached: Sequence[int], kv_tokens: int) -> bool:
        """Say whether grouping saves tokens that the file's order would not."""
        saved = _tokens(cached)
        kept = _tokens(self._shared) - saved  # all beginnings, each once
        if not saved or kept <= KV_PART * kv_tokens:
            return False
        return saved - _tokens(self._cached(every)) > LEAST_SAVED * sum(self._prompt)

    def _told(self, lines: Sequence[int], together: Iterable[int], cached: Iterable[int]) -> Order:
        prompt, column = self._prompt, self._column
        prefix = (column[depth - 1][line] if depth else 0 for line, depth in zip(lines, together, strict=True))
        prefill = (max(1, prompt[line] - TOKENS[depth]) for line, depth in zip(lines, cached, strict=True))
        told = Order(lines=array("I", lines), prefix=array("I", prefix), prefill=array("I", prefill))
        self._column = []  # as large as the sums, and not needed before the next order
        return told


def _tokens(depths: Iterable[int]) -> int:
    """Return the tokens of beginnings of so many depths, together."""
    return sum(map(TOKENS.__getitem__, depths))


def _alike(lines: Sequence[int], column: Sequence[int]) -> tuple[list[Sequence[int]], Sequence[int]]:
    """Return the groups of lines with the same checksum, and the lines that are in none."""
    marks = sorted(filter(None, map(column.__getitem__, lines)))
    groups = {one: array("I") for one, other in pairwise(marks) if one == other}
    if not groups:
        return [], lines
    single = array("I")
    for line in lines:
        groups.get(column[line], single).append(line)
    return list(groups.values()), single
