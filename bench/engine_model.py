"""An inference engine in virtual time: continuous batching, chunked prefill, a KV cache with LRU prefixes, preemption.

The profile is that of an 8B model on one large GPU: an iteration over `n` tokens takes
`max(32 µs x n, 5 ms) + 0.039 µs x KV tokens read + 0.5 ms`, prefill comes in chunks of 8,192 tokens, at most 256
sequences run at once, and the KV cache holds 400,000 tokens. The constants are estimates; ratios are what it is for.

What had to be chosen, as vLLM does it where that is known:

- Waiting sequences are admitted in order of arrival, while there is room for the whole of their prompt and 1 % of the
  cache beside it. A waiting sequence that does not fit holds up those behind it.
- A cached prefix is found when a sequence is admitted, in whole blocks. The blocks of a running sequence can be shared
  as soon as it was admitted.
- What a sequence leaves behind stays cached until room is needed: least recently used first, and of one sequence its
  private tail before its prefix. The tails are of no use to anybody, but they push prefixes out.
- When the cache is full, the sequence that was admitted last is thrown out and later computed anew, with what it had
  generated (recompute preemption).
- Every running sequence reads the whole of its context in each iteration, shared or not.
- A prompt's last chunk yields the first token.

Iterations without prefill are taken together up to the next event, so that a simulated line costs some tens of
microseconds. No randomness: the same calls give the same answers.
"""

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from math import inf, sqrt

_WATERMARK = 0.01  # of the cache, kept free when a sequence is admitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What an engine can do. Times are seconds, sizes are tokens."""

    token_seconds: float = 32e-6
    iteration_seconds: float = 5e-3  # the least that the tokens of an iteration take: the weights are read anyway
    overhead_seconds: float = 0.5e-3
    kv_seconds: float = 0.039e-6  # per token of context read
    chunk: int = 8192
    slots: int = 256
    kv_tokens: int = 400_000
    block: int = 16

    def scaled(self, slots: int) -> "Profile":
        """Return an engine that is as good at `slots` sequences as this one is at its own number of them."""
        factor = slots / self.slots
        return replace(
            self,
            token_seconds=self.token_seconds / factor,
            kv_seconds=self.kv_seconds / factor,
            chunk=max(512, round(self.chunk * factor)),
            slots=slots,
            kv_tokens=max(8192, round(self.kv_tokens * factor)),
        )


@dataclass(frozen=True, slots=True)
class Gauges:
    """What `/metrics` tells: sequences waiting and running, and the part of the KV cache that running ones hold."""

    waiting: int
    running: int
    kv: float


@dataclass(eq=False, slots=True)
class Sequence:
    """One request inside an engine.

    `prefix` is the shareable beginning of its prompt: (key, tokens) of each part, each key standing for everything up
    to its end. `private` tokens of prompt follow that are its own, and it generates `output` tokens.
    """

    prefix: tuple[tuple[int, int], ...]
    private: int
    output: int
    tag: object = None
    arrived_at: float = 0.0
    first_token_at: float = -1.0
    generated: int = 0  # kept over a preemption
    computed: int = 0  # prompt tokens that no cache had, preemptions included
    left: int = 0  # of the prompt, to be prefilled
    started: int = 0  # iteration after which its first token of this run was there
    finish: int = 0  # iteration after which it is done
    admission: int = 0

    @property
    def prompt(self) -> int:
        """The tokens of the whole prompt."""
        return sum(tokens for _, tokens in self.prefix) + self.private


@dataclass(slots=True)
class _Part:
    """A shared piece of prompt in the cache: `held` tokens of it, used by so many running sequences."""

    held: int
    users: int = 0


class PrefixCache:
    """The KV cache. `used` tokens are of running sequences, `idle` ones may be evicted."""

    def __init__(self, *, capacity: int, block: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.idle = 0
        self._block = block
        self._parts: dict[int, _Part] = {}
        self._lru: OrderedDict[int, int] = OrderedDict()  # part key, or a negative number for garbage: idle tokens
        self._garbage = 0

    @property
    def free(self) -> int:
        """Tokens that no running sequence holds."""
        return self.capacity - self.used

    def cost(self, prefix: tuple[tuple[int, int], ...]) -> tuple[int, int]:
        """Return the tokens of a prefix that are cached from its beginning on, and those that using it would take."""
        hit = taken = 0
        broken = False
        for key, tokens in prefix:
            part = self._parts.get(key)
            held = 0 if part is None else part.held
            if not broken:
                hit += held if held == tokens else held - held % self._block
                broken = held < tokens
            if part is None or not part.users:
                taken += tokens
            elif held < tokens:
                taken += tokens - held
        return hit, taken

    def hold(self, prefix: tuple[tuple[int, int], ...], private: int) -> None:
        """Give a sequence the room for its prompt."""
        for key, tokens in prefix:
            part = self._parts.get(key)
            if part is None:
                part = self._parts[key] = _Part(0)
            if not part.users:
                self.idle -= self._lru.pop(key, 0)
                self.used += tokens
            else:
                self.used += tokens - part.held
            part.held = tokens
            part.users += 1
        self.used += private
        self.make_room()

    def release(self, prefix: tuple[tuple[int, int], ...], private: int) -> None:
        """Take back what a sequence held: it stays cached while there is room, the prefix longer than the tail."""
        self.used -= private
        if private:
            self._garbage -= 1
            self._lru[self._garbage] = private
            self.idle += private
        for key, _ in reversed(prefix):
            part = self._parts[key]
            part.users -= 1
            if not part.users:
                self.used -= part.held
                self._lru[key] = part.held
                self.idle += part.held

    def make_room(self) -> None:
        """Evict what is over the capacity."""
        over = self.used + self.idle - self.capacity
        while over > 0 and self._lru:
            key, tokens = next(iter(self._lru.items()))
            gone = min(tokens, over + -over % self._block)
            over -= gone
            self.idle -= gone
            if gone < tokens:
                self._lru[key] = tokens - gone
                if key >= 0:
                    self._parts[key].held = tokens - gone
            else:
                del self._lru[key]
                if key >= 0:
                    del self._parts[key]


@dataclass(slots=True)
class Engine:
    """One engine. `submit` what arrives, `run` it up to its next event."""

    profile: Profile = field(default_factory=Profile)
    clock: float = 0.0
    prefilled: int = 0  # prompt tokens computed, those computed anew included
    generated: int = 0
    preemptions: int = 0
    busy: float = 0.0  # seconds with something to do
    _cache: PrefixCache = field(init=False)
    _arrivals: list[tuple[float, int, Sequence]] = field(default_factory=list)  # heap: when, order, sequence
    _waiting: deque[Sequence] = field(default_factory=deque)
    _prefilling: deque[Sequence] = field(default_factory=deque)
    _decoding: list[tuple[int, int, Sequence]] = field(default_factory=list)  # heap: finish, admission, sequence
    _admitted: list[Sequence] = field(default_factory=list)  # in order of admission; the gone stay until they are last
    _running: set[Sequence] = field(default_factory=set)
    _rows: int = 0  # sequences that generate
    _context: int = 0  # tokens that an iteration reads
    _iteration: int = 0
    _admissions: int = 0
    _submissions: int = 0

    def __post_init__(self) -> None:
        """Start empty."""
        self._cache = PrefixCache(capacity=self.profile.kv_tokens, block=self.profile.block)

    def resize(self, profile: Profile) -> None:
        """Be another engine from now on, as when a replica comes or goes; what is running goes on if it fits."""
        self.profile = profile
        self._cache.capacity = profile.kv_tokens
        self._cache.make_room()

    def gauges(self) -> Gauges:
        """Return what `/metrics` would tell now."""
        return Gauges(len(self._waiting), len(self._running), self._cache.used / self._cache.capacity)

    def submit(self, sequence: Sequence, at: float) -> None:
        """Let a sequence arrive at `at`, or as soon after as an iteration ends."""
        sequence.arrived_at = at
        self._submissions += 1
        heapq.heappush(self._arrivals, (at, self._submissions, sequence))

    def run(self, until: float = inf) -> list[Sequence]:
        """Run to the end of the first iteration that finishes something or ends at `until` or later; return what did.

        An engine without work goes to sleep at `until`.
        """
        while self.clock < until:
            self._arrive()
            self._admit()
            if not self._running:
                if not self._arrivals or self._arrivals[0][0] > until:
                    self.clock = max(self.clock, until) if until < inf else self.clock
                    return []
                self.clock = max(self.clock, self._arrivals[0][0])
                continue
            began = self.clock
            finished = self._prefill() if self._prefilling else self._decode(until)
            self.busy += self.clock - began
            if finished:
                return finished
        return []

    def _arrive(self) -> None:
        while self._arrivals and self._arrivals[0][0] <= self.clock:
            self._waiting.append(heapq.heappop(self._arrivals)[2])

    def _admit(self) -> None:
        """Take waiting sequences in, while there is a slot, room in the cache and in the next chunk."""
        budget = self.profile.chunk - self._rows - sum(sequence.left for sequence in self._prefilling)
        spare = self._cache.capacity * _WATERMARK if self._running else 0
        while self._waiting and budget > 0 and len(self._running) < self.profile.slots:
            sequence = self._waiting[0]
            hit, taken = self._cache.cost(sequence.prefix)
            private = sequence.private + sequence.generated
            if taken + private > self._cache.free - spare:
                return
            self._waiting.popleft()
            self._cache.hold(sequence.prefix, private)
            whole = sequence.prompt + sequence.generated
            sequence.left = max(1, whole - hit)  # the last token's logits are wanted in any case
            sequence.computed += sequence.left
            self.prefilled += sequence.left
            budget -= sequence.left
            self._context += whole
            self._admissions += 1
            sequence.admission = self._admissions
            self._admitted.append(sequence)
            self._running.add(sequence)
            self._prefilling.append(sequence)
            spare = self._cache.capacity * _WATERMARK

    def _prefill(self) -> list[Sequence]:
        """Do one iteration with a chunk of prompts in it."""
        if self._rows and self._cache.free < self._rows:
            self._preempt()
        budget = most = max(1, self.profile.chunk - self._rows)
        begun: list[Sequence] = []
        while self._prefilling and budget > 0:
            sequence = self._prefilling[0]
            part = min(sequence.left, budget)
            sequence.left -= part
            budget -= part
            if not sequence.left:
                begun.append(self._prefilling.popleft())
        self._pass(1, most - budget)
        for sequence in begun:
            if sequence.first_token_at < 0:
                sequence.first_token_at = self.clock
            sequence.generated += 1
            self.generated += 1
            self._cache.used += 1
            self._context += 1
            sequence.started = self._iteration
            sequence.finish = self._iteration + sequence.output - sequence.generated
            heapq.heappush(self._decoding, (sequence.finish, sequence.admission, sequence))
        self._rows += len(begun)
        self._cache.make_room()
        return self._finish()

    def _decode(self, until: float) -> list[Sequence]:
        """Do iterations that only generate, as many as nothing happens in."""
        self._drop_gone()
        room = self._cache.free // self._rows
        if room < 1:
            self._preempt()
            return []
        until = min(until, self._arrivals[0][0]) if self._arrivals else until
        self._pass(min(self._decoding[0][0] - self._iteration, room, self._iterations_until(until)), 0)
        self._cache.make_room()
        return self._finish()

    def _pass(self, iterations: int, prefill: int) -> None:
        """Let time pass: so many iterations, the first with `prefill` tokens of prompts."""
        profile, rows = self.profile, self._rows
        tokens = max(profile.token_seconds * (rows + prefill), profile.iteration_seconds)
        read = self._context * iterations + rows * iterations * (iterations - 1) // 2
        self.clock += iterations * (tokens + profile.overhead_seconds) + profile.kv_seconds * read
        self._iteration += iterations
        grown = rows * iterations
        self.generated += grown
        self._context += grown
        self._cache.used += grown

    def _iterations_until(self, until: float) -> int:
        """Return the number of iterations after which it is `until` or later."""
        if until == inf:
            return 1 << 60
        profile, rows = self.profile, self._rows
        each = max(profile.token_seconds * rows, profile.iteration_seconds) + profile.overhead_seconds
        half = profile.kv_seconds * rows / 2
        linear = each + profile.kv_seconds * self._context - half
        left = until - self.clock
        exact = 2 * left / (linear + sqrt(linear * linear + 4 * half * left)) if left > 0 else 0.0
        return max(1, int(exact) + (exact > int(exact)))

    def _finish(self) -> list[Sequence]:
        """Return the sequences that are done, and free what they held."""
        finished: list[Sequence] = []
        while self._decoding and self._decoding[0][0] <= self._iteration:
            finish, admission, sequence = heapq.heappop(self._decoding)
            if sequence in self._running and sequence.admission == admission and sequence.finish == finish:
                self._leave(sequence)
                sequence.generated = sequence.output
                finished.append(sequence)
        return finished

    def _leave(self, sequence: Sequence) -> None:
        generated = sequence.generated
        if not sequence.left:
            generated += self._iteration - sequence.started
            self._rows -= 1
        self._context -= sequence.prompt + generated
        self._running.discard(sequence)
        self._cache.release(sequence.prefix, sequence.private + generated)
        sequence.generated = generated

    def _preempt(self) -> None:
        """Throw out the sequence that was admitted last; ValueError if nothing else is running."""
        if len(self._running) == 1:
            raise ValueError("a sequence is larger than the cache")
        while self._admitted[-1] not in self._running:
            self._admitted.pop()
        sequence = self._admitted.pop()
        if sequence.left:
            self._prefilling.remove(sequence)
        self._leave(sequence)
        sequence.admission = sequence.left = 0
        self._waiting.appendleft(sequence)
        self.preemptions += 1

    def _drop_gone(self) -> None:
        """Forget the entries of sequences that were thrown out."""
        heap = self._decoding
        while heap[0][2] not in self._running or heap[0][2].admission != heap[0][1] or heap[0][2].left:
            heapq.heappop(heap)
