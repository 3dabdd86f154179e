"""What the scheduling is worth: every goal of makespan and pacing, in virtual time, with the product's own code.

What ordering costs is measured, as CPU time beside validation's; all else is the same on every machine.

    python bench/makespan.py [--seeds 3] [--json figures.jsonl]

Prints a table, goal beside figure. A figure is the worst over the seeds.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from time import process_time

import engine_model as model
from figure import Figure, arguments, report
from policy_run import Change, PolicyRun, Run, Taken
from shared_run import Hand, SharedRun
from suites import Line, least_tokens, lower_bound, suite, visitors
from suites import profile as engine_for

from batchmill.schedule.order import Orderer, fingerprint
from batchmill.schedule.pace import Pace
from batchmill.schedule.placement import Placement
from batchmill.spec.limits import Limits
from batchmill.spec.lines import Checker, RawLine

ORDER, WINDOW, VISITORS = "Order", "Window", "Beside others' requests"  # the groups of the figures
MOST = 4096  # requests in flight
MAKESPAN = {"A": 1.15, "B": 1.15, "C": 1.45, "D": 1.05}  # the goal of each suite, / the lower bound
COMPUTED = {1: 1.05, 4: 1.10}  # the goal for so many engines, / the least tokens
VISIT_SECONDS = 900  # longer than any batch with visitors takes
SLOTS = {4: 400, 16: 1000, 64: 4000, 256: 16_000, 1024: 40_000}  # capacity: lines of the batch


def sized(slots: int) -> model.Profile:
    """Return an engine with so many slots: a small one is the standard engine with fewer, a large one is faster."""
    return replace(model.Profile(), slots=slots) if slots < model.Profile().slots else model.Profile().scaled(slots)


def run(
    lines: Sequence[Line],
    pace: Pace,
    profile: model.Profile,
    *,
    shows_gauges: bool = False,
    tells_prompts: bool = True,
    visitors: Sequence[tuple[float, model.Sequence]] = (),
    changes: Sequence[Change] = (),
) -> Run:
    """Run lines in file order on one engine."""
    rest = ((line, line.prompt) for line in lines)
    return PolicyRun(
        take=lambda _: next(rest, None),
        paces=[pace],
        engines=[model.Engine(profile)],
        shows_gauges=shows_gauges,
        tells_prompts=tells_prompts,
        visitors=visitors,
        changes=changes,
    ).run()


def times(profile: model.Profile, factor: float) -> model.Profile:
    """Return what becomes of an engine when replicas come or go behind it."""
    return replace(
        profile,
        token_seconds=profile.token_seconds / factor,
        kv_seconds=profile.kv_seconds / factor,
        slots=max(1, round(profile.slots * factor)),
        kv_tokens=round(profile.kv_tokens * factor),
    )


@cache
def best_fixed(kind: str, slots: int, step: float | None, seed: int) -> tuple[float, tuple[Change, ...]]:
    """Return the makespan with the best fixed window by sweep, unpaced, and the change of capacity in the middle."""
    lines, profile = suite(kind, lines=SLOTS[slots], seed=seed), sized(slots)
    changes: tuple[Change, ...] = ()
    if step is not None:
        middle = run(lines, Pace(window=2 * slots), profile, tells_prompts=False).makespan / 2
        changes = (Change(at=middle, profile=times(profile, step)),)
    windows = [slots * factor // 2 for factor in ((1, 2, 3, 4, 8) if step is None else (1, 2, 4, 8))]
    fixed = (Pace(window=window) for window in windows)
    runs = (run(lines, pace, profile, tells_prompts=False, changes=changes) for pace in fixed)
    return min(each.makespan for each in runs), changes


def window_found(kind: str, slots: int, *, step: float | None, gauges: bool, seed: int) -> float:
    """Return makespan with a cold start and nothing configured / makespan with the best fixed window."""
    best, changes = best_fixed(kind, slots, step, seed)
    lines = suite(kind, lines=SLOTS[slots], seed=seed)
    found = run(lines, Pace(most=MOST), sized(slots), shows_gauges=gauges, changes=changes)
    return found.makespan / best


@cache
def alone(seed: int) -> float:
    """Return the visitors' p99 seconds to the first token on an engine without a batch."""
    engine, coming = model.Engine(), visitors(600, seed=seed)
    for at, visitor in coming:
        engine.submit(visitor, at)
    while engine.run():
        pass
    waits = sorted(visitor.first_token_at - at for at, visitor in coming)
    return waits[int(0.99 * len(waits))]


@cache
def best_beside_visitors(seed: int) -> float:
    """Return the makespan beside visitors with the best fixed window, nothing paced."""
    coming = partial(visitors, VISIT_SECONDS, seed=seed)
    fixed = (Pace(window=window) for window in (128, 192, 256))
    runs = (run(suite("I"), pace, model.Profile(), tells_prompts=False, visitors=coming()) for pace in fixed)
    return min(each.makespan for each in runs)


def beside_visitors(*, polite: bool, gauges: bool, seed: int) -> tuple[float, float]:
    """Return the visitors' p99 to the first token / that alone, and the batch's throughput / the best there is."""
    pace, coming = Pace(most=MOST, polite=polite), visitors(VISIT_SECONDS, seed=seed)
    found = run(suite("I"), pace, model.Profile(), shows_gauges=gauges, visitors=coming)
    return found.first_token_p(0.99) / alone(seed), best_beside_visitors(seed) / found.makespan


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """A suite in the product's order, with nothing configured: makespan / lower bound, tokens computed / least."""

    makespan: float
    computed: float
    preemptions: int


@cache
def ordered(name: str, engines: int, *, gauges: bool, seed: int, in_file_order: bool = False) -> Ordered:
    """Run a suite on so many engines; `in_file_order` instead of the product's order and placement."""
    lines, profile = suite(name, seed=seed), engine_for(name)
    placement: Placement[Taken] = Placement()
    if in_file_order:
        for line in lines:
            placement.add((line, line.prompt), 0)
    else:
        orderer = Orderer()
        for line in lines:
            orderer.add(line.fingerprint(), prompt=line.prompt, output=line.max_tokens)
        order = orderer.order(backends=engines)
        for at, prefix, prefill in zip(order.lines, order.prefix, order.prefill, strict=True):
            placement.add((lines[at], prefill), prefix)
    ran = PolicyRun(
        take=placement.take,
        ended=placement.ended,
        paces=[Pace(most=MOST) for _ in range(engines)],
        engines=[model.Engine(profile) for _ in range(engines)],
        shows_gauges=gauges,
    ).run()
    return Ordered(
        makespan=ran.makespan / lower_bound(lines, profile, engines),
        computed=ran.computed / least_tokens(lines),
        preemptions=sum(engine.preemptions for engine in ran.engines),
    )


def figures(seeds: Sequence[int]) -> Iterator[Figure]:
    """Yield every figure, the worst over the seeds."""
    yield from _ordering_costs()
    yield from _orders(seeds)
    yield from _windows(seeds)
    yield from _shared(seeds)
    yield from _beside_visitors(seeds)


def _ordering_costs() -> Iterator[Figure]:
    """Yield CPU time to order a file / CPU time to validate it: the median of pairs."""
    for name, shared, own in (("short lines", 0, 600), ("shared documents", 3000, 200), ("long lines", 0, 30_000)):
        lines = list(_file(4_000_000 // (shared + own), shared, own))
        pairs = [(_cpu(_order, lines), _cpu(_validate, lines)) for _ in range(5)]
        ratios = [ordering / validating for ordering, validating in pairs]
        yield Figure.of_pairs(ratios, group=ORDER, name=f"CPU of ordering / validating, {name}", goal=0.5)


def _file(count: int, shared: int, own: int) -> Iterator[RawLine]:
    """Yield the lines of an input File: so many characters of one of 300 documents, then so many of their own."""
    draw = random.Random(1)  # noqa: S311 - a workload, not a secret
    text = "".join(draw.choices("etaoin shrdlu ", k=1 << 20))
    for number in range(1, count + 1):
        document, begin = 3000 * draw.randrange(300), draw.randrange(len(text) - own)
        content = text[document : document + shared] + text[begin : begin + own]
        body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 512}
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield RawLine(number, 0, json.dumps(line).encode(), over=False)


def _order(lines: Sequence[RawLine]) -> None:
    orderer = Orderer()
    for line in lines:
        prompt = line.text[line.text.index(b'"messages"') :]
        orderer.add(fingerprint(prompt), prompt=len(prompt) // 4, output=512)
    orderer.order(backends=4)


def _validate(lines: Sequence[RawLine]) -> None:
    checker = Checker(endpoint="/v1/chat/completions", limits=Limits(), known_models=["m"])
    for line in lines:
        checker.check(line)


def _cpu(do: Callable[[Sequence[RawLine]], None], lines: Sequence[RawLine]) -> float:
    began = process_time()
    do(lines)
    return process_time() - began


def _orders(seeds: Sequence[int]) -> Iterator[Figure]:
    for (name, goal), engines, gauges in product(MAKESPAN.items(), (1, 4), (True, False)):
        found = [ordered(name, engines, gauges=gauges, seed=seed) for seed in seeds]
        of = f"{name}, {engines} engines, {'gauges' if gauges else 'blind'}"
        yield Figure(group=ORDER, name=f"{of}: makespan / bound", value=max(each.makespan for each in found), goal=goal)
        most = max(each.computed for each in found)
        yield Figure(group=ORDER, name=f"{of}: tokens / least", value=most, goal=COMPUTED[engines])
    for engines, gauges in product((1, 4), (True, False)):
        mine, plain = (
            [ordered("D", engines, gauges=gauges, seed=seed, in_file_order=plain).makespan for seed in seeds]
            for plain in (False, True)
        )
        name = f"D, {engines} engines, {'gauges' if gauges else 'blind'}: ordered / file order"
        yield Figure(group=ORDER, name=name, value=max(a / b for a, b in zip(mine, plain, strict=True)), goal=1.0)


def _windows(seeds: Sequence[int]) -> Iterator[Figure]:
    for step, kind, gauges, slots in product((None, 0.5, 2), "DB", (True, False), SLOTS):
        name = f"window {kind} {slots} slots, {'gauges' if gauges else 'blind'}" + (f", then x {step}" if step else "")
        worst = max(window_found(kind, slots, step=step, gauges=gauges, seed=seed) for seed in seeds)
        yield Figure(group=WINDOW, name=name, value=worst, goal=1.05)


def found_by(workers: int, slots: int, *, gauges: bool, seed: int) -> float:
    """Return makespan of one worker that finds a window / that of several that find it together."""
    took = []
    for count in (1, workers):
        hands = [Hand(pace=Pace(most=MOST, alone=count == 1)) for _ in range(count)]
        lines, engine = suite("D", lines=SLOTS[slots], seed=seed), model.Engine(sized(slots))
        took.append(SharedRun(lines=lines, hands=hands, engine=engine, shows_gauges=gauges).run().makespan)
    return took[0] / took[1]


def _shared(seeds: Sequence[int]) -> Iterator[Figure]:
    for workers, gauges, slots in product((2, 4), (True, False), SLOTS):
        name = f"{workers} workers' window / one's, {slots} slots, {'gauges' if gauges else 'blind'}: throughput"
        least = min(found_by(workers, slots, gauges=gauges, seed=seed) for seed in seeds)
        yield Figure(group=WINDOW, name=name, value=least, goal=0.95, at_least=True)


def _beside_visitors(seeds: Sequence[int]) -> Iterator[Figure]:
    for polite, gauges in product((False, True), (True, False)):
        found = [beside_visitors(polite=polite, gauges=gauges, seed=seed) for seed in seeds]
        name = f"{'polite' if polite else 'pacing'}, {'gauges' if gauges else 'blind'}"
        yield Figure(
            group=VISITORS,
            name=f"{name}: p99 / alone",
            value=max(wait for wait, _ in found),
            goal=2.7 if polite else 4.0,
        )
        least = min(throughput for _, throughput in found)
        yield Figure(
            group=VISITORS, name=f"{name}: throughput / best", value=least, goal=0.8 if polite else 0.97, at_least=True
        )


def main() -> None:
    """Print the figures."""
    options = arguments(__doc__)
    options.add_argument("--seeds", type=int, default=3)
    chosen = options.parse_args()
    report(figures(range(1, chosen.seeds + 1)), chosen.json)


if __name__ == "__main__":
    main()
